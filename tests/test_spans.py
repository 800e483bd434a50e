"""Faults of some tokens alone: a port that is wrong in its cached steps, in one chunk or in one layer is told so."""

from contextlib import nullcontext

import numpy as np
import pytest
import tiny

from numgemma.debug.blame.spans import in_words
from numgemma.debug.blame.whatif import whatif
from numgemma.debug.faults import applied
from numgemma.dump import Dump
from numgemma.prompt.media import NO_MEDIA
from numgemma.trace import Recorder

TOKENS = 18
CACHED = [(11, False), *((end, True) for end in range(12, 19))]
CHUNK, FIRST = [(6, False), (12, True), (18, False)], [(5, True), (18, False)]
SPANS = {"cached steps": (CACHED, range(11, 18)), "one chunk": (CHUNK, range(6, 12)), "first chunk": (FIRST, range(5))}
MODULES = ("*", "!*attn.scores", "!*attn.probs", "!*attn.?_rope", "!*attn.context")


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
