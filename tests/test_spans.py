"""Faults of some tokens alone: a port that is wrong in its cached steps, in one chunk or in one layer is told so."""

from contextlib import nullcontext

import numpy as np
import pytest
import tiny
from wrong_caches import MODULES, cache_of_another, draft_left, turn_left

import numgemma
from numgemma.debug.blame.other import alongside
from numgemma.debug.blame.replay import subject_of
from numgemma.debug.blame.spans import in_words, which_one
from numgemma.debug.blame.whatif import whatif
from numgemma.debug.faults import CATALOGUE, applied, swapped
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.prompt.media import NO_MEDIA, read_media
from numgemma.trace import Recorder

TOKENS = 18
CACHED = [(11, False), *((end, True) for end in range(12, 19))]
CHUNK, FIRST = [(6, False), (12, True), (18, False)], [(5, True), (18, False)]
SPANS = {"cached steps": (CACHED, range(11, 18)), "one chunk": (CHUNK, range(6, 12)), "first chunk": (FIRST, range(5))}


def run_in_parts(model, ids, parts, fault, layers=None):
    """A run through the cache, of which some parts make a mistake.  parts: (where it ends, whether it is wrong)"""
    dump = Dump(model.describe(ids, MODULES, prefill=parts[0][0]))
    kvs, start = {}, 0
    for end, wrong in parts:
        dump.start = start
        tap = Recorder(dump.keep, model.dtype, MODULES)
        with applied(model, fault, layers=layers) if wrong else nullcontext():
            model.forward(np.asarray(ids[start:end]), NO_MEDIA, model.run(kvs, start), tap)
        start = end
    return dump


CASES = [
    *(("dense", fault, span) for fault in ("T15-silu", "T01") for span in SPANS),
    *(("dense", "T04", span) for span in ("cached steps", "one chunk")),  # the first token's one score is 1 anyway
    *(("moe", fault, span) for fault in ("M05-silu", "M03") for span in ("cached steps", "one chunk")),
    *(("ple", fault, "cached steps") for fault in ("T12", "P01")),
]


@pytest.mark.parametrize(("variant", "fault", "span"), CASES)
def test_a_fault_of_some_tokens_is_named_with_its_span(models, variant, fault, span):
    model = models[variant]
    ids = tiny.prompt(getattr(tiny, variant.upper()), TOKENS).tolist()
    parts, tokens = SPANS[span]
    found = whatif(model, run_in_parts(model, ids, parts, fault))
    best = found.candidates[0]
    assert best.explains == best.of
    assert best.faults[0].split("-")[0] == fault.split("-")[0], found.verdict
    assert best.tokens == tuple(tokens)
    if span == "cached steps":
        assert "in the cached steps alone (from token 11 on)" in found.verdict


MASKS = [
    *(("dense", fault, "one chunk") for fault in ("C01-itself", "C01-zero", "C01-both")),
    *(("dense", fault, "cached steps") for fault in ("C01-itself", "C02-1", "C02-3")),
]


@pytest.mark.parametrize(("variant", "fault", "span"), MASKS)
def test_a_fault_of_a_later_pass_is_named(models, variant, fault, span):
    """A chunk's mask, and a window that lost keys: in a run of one pass they change nothing."""
    model = models[variant]
    ids = tiny.prompt(tiny.DENSE, TOKENS).tolist()
    with applied(model, fault):
        whole = model.record(ids, ["logits"])["logits"]
    np.testing.assert_array_equal(whole, model.record(ids, ["logits"])["logits"])
    found = whatif(model, run_in_parts(model, ids, SPANS[span][0], fault))
    best = found.candidates[0]
    assert (best.faults, best.explains, best.breaks) == ((fault,), best.of, 0), found.verdict
    first, last = SPANS[span][1][0], SPANS[span][1][-1]
    assert first <= best.tokens[0] <= best.tokens[-1] <= last


@pytest.mark.parametrize(("form", "layers"), [("T27-prompt", "shared"), ("T27-one", "full"), ("T27-zero", [1])])
def test_queries_turned_for_other_positions_are_named(models, form, layers):
    model = models["ple"]
    with applied(model, form, layers=layers):
        dump = model.record(tiny.prompt(tiny.PLE, 12))
    best = whatif(model, dump).candidates[0]
    assert best.faults == (form,)
    assert best.layers == (layers if isinstance(layers, str) else tuple(layers))


def test_attention_that_is_wrong_from_a_token_on_in_no_known_way_is_placed(models):
    """All faults of attention are tried on a run through the cache, also those that cannot enter one midway."""
    model, ids = models["dense"], tiny.prompt(tiny.DENSE, TOKENS).tolist()

    def bent(x):
        x = x.copy()
        x[9:] = x[9:, ::-1]
        return x

    found = whatif(model, model.record(ids, MODULES, edits={"layers.2.self_attn.o_proj": bent}))
    assert (found.replay.first, found.candidates) == ("layers.2.self_attn.o_proj", ())


def test_a_fault_of_all_tokens_has_no_span(models):
    with applied(models["dense"], "T15-silu"):
        dump = models["dense"].record(tiny.prompt(tiny.DENSE, 12))
    best = whatif(models["dense"], dump).candidates[0]
    assert (best.faults, best.tokens) == (("T15-silu",), ())


def test_spans_have_names():
    dump = Dump(
        {"ids": list(range(20)), "cache": "after 9 tokens", "media": [{"kind": "image", "first": 3, "count": 4}]}
    )
    said = {
        (): "",
        tuple(range(9, 20)): ", in the cached steps alone (from token 9 on)",
        tuple(range(3, 7)): ", at the image of tokens 3 to 6 alone",
        tuple(range(4, 20)): ", from token 4 on",
        (8,): ", at token 8 alone",
        (2, 3): ", in tokens 2 to 3 alone",
    }
    for tokens, words in said.items():
        assert in_words(tokens, dump) == words


# -- another sequence's rows


OTHERS = {"C03-counted": draft_left, "C04": cache_of_another, "C03-turn-counted": turn_left}


@pytest.mark.parametrize(("fault", "variant"), [*((fault, "dense") for fault in OTHERS), ("C04", "ple")])
def test_rows_of_another_sequence_are_named_where_its_ids_are_given(models, variant, fault):
    model = models[variant]
    ids = tiny.prompt(getattr(tiny, variant.upper()), TOKENS).tolist()
    other = ids[:11] + tiny.prompt(tiny.DENSE, 3, seed=5).tolist()
    if fault != "C03-counted":
        other = tiny.prompt(tiny.DENSE, 14, seed=3).tolist()
    dump = OTHERS[fault](model, ids, other)
    best = whatif(model, dump, other=other).candidates[0]
    assert (best.faults, best.explains, best.breaks) == ((fault,), best.of, 0)
    assert best.tokens == (() if "turn" in fault else tuple(range(11, TOKENS)))


FORMS = {"C03-stays": range(11, 18), "C03-ahead": range(11, 13), "C03-turn": None, "C04-all": None}


@pytest.mark.parametrize("fault", FORMS)
def test_each_form_of_reading_another_sequence_is_told_from_the_others(models, fault):
    model, ids = models["dense"], tiny.prompt(tiny.DENSE, TOKENS).tolist()
    other = ids[:11] + tiny.prompt(tiny.DENSE, 3, seed=5).tolist()
    if fault in ("C03-turn", "C04-all"):
        other = tiny.prompt(tiny.DENSE, 14, seed=3).tolist()
    subject = subject_of(model, Dump(model.describe(ids)))
    with alongside(subject, other):
        dump = run_in_parts(model, ids, CACHED if FORMS[fault] else [(TOKENS, True)], fault)
    best = whatif(model, dump, other=other).candidates[0]
    assert (best.faults, best.explains, best.breaks) == ((fault,), best.of, 0)
    assert best.tokens == tuple(FORMS[fault] or ())


def test_without_the_other_sequence_its_rows_are_no_cause(models):
    model, ids = models["dense"], tiny.prompt(tiny.DENSE, TOKENS).tolist()
    assert not any(CATALOGUE[fault].places(model) for fault in (*OTHERS, *FORMS))
    dump = cache_of_another(model, ids, tiny.prompt(tiny.DENSE, 14, seed=3).tolist())
    found = whatif(model, dump)
    assert not {f for c in found.candidates for f in c.faults} & {*OTHERS, *FORMS}
    assert "give those ids with --other" in found.verdict


def test_a_right_run_reads_no_other_sequence_and_a_fault_of_another_kind_keeps_its_name(models):
    model, ids = models["dense"], tiny.prompt(tiny.DENSE, 12).tolist()
    other = tiny.prompt(tiny.DENSE, 9, seed=3).tolist()
    assert whatif(model, model.record(ids), other=other).candidates == ()
    with applied(model, "T15-silu"):
        dump = model.record(ids)
    assert whatif(model, dump, other=other).candidates[0].faults == ("T15-silu",)


def test_a_sequence_that_is_no_other_is_refused(models):
    ids = tiny.prompt(tiny.DENSE, 12).tolist()
    with applied(models["dense"], "T15-silu"):
        dump = models["dense"].record(ids)
    with pytest.raises(InputError, match="the beginning of the dump's own"):
        whatif(models["dense"], dump, other=ids[:5])


# -- one of several pictures, and chunks whose first token is right by chance


@pytest.mark.parametrize("fault", ["V04"])
def test_a_fault_of_one_picture_is_named_with_its_tokens(multimodal_folders, fault):
    """Right at the first of two, wrong at the second: a position that is counted on, a buffer that is not reset."""
    model = numgemma.load(multimodal_folders["26b"])
    ids, arrays = tiny.multimodal_prompt("26b")
    media = read_media(arrays)

    def see(original, suffix):
        with applied(model, fault) if suffix == "@1" else nullcontext():
            return original()

    with swapped("families.gemma4.multimodal.see", see):
        dump = model.record(ids, MODULES, media=media)
    picture = [span for span in dump.meta["media"] if span["kind"] == "image"][1]
    first, last = picture["first"], picture["first"] + picture["count"] - 1
    found = whatif(model, dump, media=media)
    best = found.candidates[0]
    assert (best.faults, best.explains, best.breaks) == ((fault,), best.of, 0)
    assert best.tokens == tuple(range(first, last + 1))
    assert f"at the image of tokens {first} to {last} alone" in found.verdict


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("vision_tower@1.patch_embedder.input_proj", "vision@1"),
        ("embed_vision@0.embedding_projection", "vision@0"),
        ("encoder.audio_tower@2.out", "audio@2"),
        ("vision_tower.patch_embedder.input_proj", ""),
        ("layers.1.out", ""),
    ],
)
def test_a_point_of_one_of_several_pictures_has_its_number(name, number):
    assert which_one(name) == number


@pytest.mark.parametrize("fault", ["T20"])
def test_a_chunk_whose_first_token_is_right_by_chance_is_found(models, fault):
    """A window that is too long: the first query of a chunk finds no older key in the cache, and so is right."""
    model, ids = models["dense"], tiny.prompt(tiny.DENSE, TOKENS).tolist()
    best = whatif(model, run_in_parts(model, ids, CHUNK, fault)).candidates[0]
    assert (best.faults, best.explains, best.breaks) == ((fault,), best.of, 0)
    assert best.tokens == tuple(range(6, 12))
