"""Speculative decoding changes the time and not the text: greedy, sampled, past the window, with stops and pictures."""

import json
from collections import Counter
from itertools import product
from pathlib import Path as Files

import numpy as np
import pytest
import tiny
import tiny_drafter

import numgemma
from numgemma import cache, generate, ops, speculative
from numgemma.cli import main
from numgemma.errors import InputError
from numgemma.generate import Memory, Sampling, through
from numgemma.prompt.media import read_media
from numgemma.speculative import Draft

PAIRS = list(tiny_drafter.TARGETS)
LOUD = (0.1, 0.3, 0.6)


@pytest.fixture(scope="module")
def pair_folders(tmp_path_factory):
    """Targets and drafters that agree often, now and then, hardly ever."""
    base = tmp_path_factory.mktemp("pairs")
    cases = product(PAIRS, LOUD)
    return {case: tiny_drafter.agreeing_pair(base / f"{case}", case[0], 5, case[1]) for case in cases}


@pytest.fixture(scope="module")
def pairs(pair_folders):
    return {case: tuple(map(numgemma.load, pair)) for case, pair in pair_folders.items()}


def prompt(tokens, seed=0):
    return tiny.prompt({"vocab_size": tiny_drafter.V}, tokens, seed)


def texts(rounds):
    return [i for one in rounds for i in one.kept]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("loud", LOUD)
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_greedy_text_is_the_same_with_a_drafter(pairs, name, loud, tokens):
    """Prompts shorter than the window of 7 and longer; texts several windows long."""
    target, drafter = pairs[name, loud]
    for seed, length in enumerate((1, 6, 15)):
        ids = prompt(length, seed)
        plain = target.generate(ids, 40, ignore_eos=True)
        assert target.generate(ids, 40, ignore_eos=True, draft=Draft(drafter, tokens)) == plain


def test_drafts_are_right_often_and_wrong_often_in_these_pairs(pairs):
    """So that what the other tests hold is held for every number of accepted drafts."""
    seen = Counter()
    for target, drafter in pairs.values():
        rounds = list(target.rounds(prompt(15), Draft(drafter, 3), 60, ignore_eos=True))
        assert all(one.kept[: one.accepted] == one.drafted[: one.accepted] for one in rounds)
        assert all(len(one.kept) == one.accepted + 1 for one in rounds)
        assert rounds[0].drafted == ()
        seen.update(one.accepted for one in rounds[1:-1])
    assert all(seen[n] > 8 for n in range(4)), seen


@pytest.mark.parametrize("name", PAIRS)
def test_both_backends_and_small_chunks_and_a_rounded_cache_give_the_same_text(pairs, name):
    pytest.importorskip("numba")
    target, drafter = pairs[name, 0.3]
    for backend in ops.BACKENDS:
        for memory in (Memory(chunk=4), Memory(cache_dtype=np.dtype("bfloat16"))):
            with ops.using(backend):
                plain = target.generate(prompt(15), 30, ignore_eos=True, memory=memory)
                drafted = target.generate(prompt(15), 30, ignore_eos=True, memory=memory, draft=Draft(drafter))
            assert drafted == plain


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("choices", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 20, "top_p": 0.9}])
def test_sampled_text_of_one_seed_is_the_same_with_a_drafter(pairs, name, choices):
    target, drafter = pairs[name, 0.3]
    for seed in range(4):
        sampling = Sampling(temperature=0.8, seed=seed, suppress=(9, 17), **choices)
        plain = target.generate(prompt(10), 30, sampling, ignore_eos=True)
        assert target.generate(prompt(10), 30, sampling, ignore_eos=True, draft=Draft(drafter, 3)) == plain


class Path(list):
    """Draws that are taken from a list, with the probability of them all: a random generator for `check`."""

    chance = 1.0

    def choice(self, ids, p):
        at = self.pop(0)
        self.chance *= p[at]
        return ids[at]


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0), Sampling(temperature=0.7, top_k=2)])
def test_what_stays_has_the_targets_distribution_exactly(sampling):
    """Every path of draws over two drafts in a vocabulary of three, with its probability."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 3))
    order = [np.argsort(-row, kind="stable")[: sampling.top_k] for row in logits]
    p = [np.zeros(3) for _ in logits]
    for row, ids, probs in zip(logits, order, p, strict=True):
        kept = np.exp(row[ids] / sampling.temperature)
        probs[ids] = kept / kept.sum()
    for drafts in product(range(3), repeat=2):
        found = Counter()
        for draws in product(range(len(order[0])), repeat=3):
            path = Path(draws)
            kept = tuple(speculative.check(drafts, (), logits, sampling, path))
            found[kept] += path.chance / len(order[0]) ** len(path)  # draws that were not needed
        assert sum(found.values()) == pytest.approx(1)
        first, second = drafts
        for kept, chance in found.items():
            assert chance == pytest.approx(np.prod([p[i][token] for i, token in enumerate(kept)]))
            assert len(kept) == 1 + (kept[0] == first) + (kept[:2] == drafts)
        assert sum(c for kept, c in found.items() if kept[0] == first) == pytest.approx(p[0][first])
        if p[0][first] and p[1][second]:
            assert sum(c for kept, c in found.items() if kept[:2] == drafts) == pytest.approx(
                p[0][first] * p[1][second]
            )


def test_frequencies_are_the_targets():
    """A draft that the drafter is surer of than the target: 6 in 10 against 5 in 10."""
    rng, logits = np.random.default_rng(7), np.log([[0.5, 0.5]] * 2)
    guesses = np.log([[0.6, 0.4]])
    kept = [speculative.check([0], guesses, logits, Sampling(temperature=1.0), rng) for _ in range(20_000)]
    assert np.mean([one[0] == 0 for one in kept]) == pytest.approx(0.5, abs=0.012)
    assert np.mean([one[1] == 0 for one in kept if len(one) == 2]) == pytest.approx(0.5, abs=0.012)


# the cache


@pytest.mark.parametrize("variant", tiny.VARIANTS)
@pytest.mark.parametrize("refused", [1, 4, 9])
@pytest.mark.parametrize("before", [3, 6, 20])
def test_a_cache_rewound_is_that_of_a_run_without_these_tokens(models, variant, refused, before):
    """Also where the window of 7 has moved on over the refused tokens."""
    model, ids = models[variant], prompt(before + refused)[: before + refused] % 199
    rows, family = model.outline.layers, model.family

    def run_of(tokens, kvs, start):
        return through(tokens, model.weights, family, model.run(kvs, start))

    held, fresh = (cache.empty(rows, model.dtype) for _ in range(2))
    family.part("leave")(run_of(ids[:2], held, 0), model.weights, model.run(held))
    run_of(ids[2:], held, 2)
    cache.rewind(held, refused)
    family.part("forget")(held, rows)
    family.part("leave")(run_of(ids[:before], fresh, 0), model.weights, model.run(fresh))
    for i in fresh:
        assert len(held[i]) == len(fresh[i])
        for ours, theirs in zip(held[i], fresh[i], strict=True):
            np.testing.assert_allclose(ours, theirs, 1e-4, 1e-5)
    other = prompt(3, seed=9) % 199
    x, y = (run_of(other, kvs, before).x for kvs in (held, fresh))
    np.testing.assert_allclose(x, y, 1e-3, 1e-4)


def test_no_more_is_taken_back_than_is_held():
    kvs = {0: cache.Kept(np.zeros((4, 1, 2)), np.zeros((4, 1, 2)), 1, 3)}
    with pytest.raises(ValueError, match="3 rows are to be taken back, and 2 are held"):
        cache.rewind(kvs, 3)


def test_a_cache_beside_another_forgets_alone():
    kvs = {0: cache.Kept(np.zeros((4, 1, 2)), np.zeros((4, 1, 2)), 0, 4)}
    other = cache.beside(kvs)
    cache.drop(other, 0, 3)
    assert (len(other[0]), len(kvs[0])) == (1, 4)


def test_a_round_is_one_pass_of_the_target(pairs, monkeypatch):
    target, drafter = pairs["k_eq_v", 0.1]
    passes, original = [], generate.through
    monkeypatch.setattr(speculative, "through", lambda ids, *rest: passes.append(len(ids)) or original(ids, *rest))
    rounds = list(target.rounds(prompt(9), Draft(drafter, 3), 30, ignore_eos=True))
    assert passes == [len(one.drafted) + 1 for one in rounds[1:]]


# ends


def test_it_ends_where_plain_decoding_ends(pairs, tmp_path):
    target, drafter = pairs["k_eq_v", 0.1]
    ids = prompt(9)
    free = target.generate(ids, 30, ignore_eos=True)
    for limit in (0, 1, 2, 5, 6):
        rounds = list(target.rounds(ids, Draft(drafter), limit, ignore_eos=True))
        assert texts(rounds) == free[:limit]
        assert all(len(one.drafted) <= 4 for one in rounds)


def test_a_stop_token_ends_the_text_also_in_the_midst_of_accepted_drafts(pair_folders, tmp_path):
    target, drafter = pair_folders["k_eq_v", 0.1]
    free = numgemma.load(target).generate(prompt(9), 30, ignore_eos=True)
    for at in range(2, 9):
        copy = tmp_path / f"{at}"
        copy.mkdir()
        for name in ("model.safetensors", "config.json"):
            (copy / name).write_bytes((target / name).read_bytes())
        (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [free[at], 1]}))
        model, draft = numgemma.load(copy), Draft(numgemma.load(drafter), 4)
        plain = model.generate(prompt(9), 30)
        assert plain[-1] == free[at]
        rounds = list(model.rounds(prompt(9), draft, 30))
        assert texts(rounds) == plain
        assert rounds[-1].accepted == sum(a == b for a, b in zip(rounds[-1].drafted, rounds[-1].kept, strict=False))
        assert texts(model.rounds(prompt(9), draft, 30, ignore_eos=True)) == free


def test_what_is_suppressed_is_neither_drafted_nor_kept(pairs):
    target, drafter = pairs["clustered", 0.1]
    never = tuple(target.generate(prompt(9), 8, ignore_eos=True)[:5])
    sampling = Sampling(suppress=never)
    rounds = list(target.rounds(prompt(9), Draft(drafter), 30, sampling, ignore_eos=True))
    assert texts(rounds) == target.generate(prompt(9), 30, sampling, ignore_eos=True)
    assert not {i for one in rounds for i in one.drafted} & set(never)


@pytest.mark.parametrize("name", ["e4b", "26b"])
def test_a_prompt_with_pictures_and_sound_goes_on_with_a_drafter(multimodal_folders, name, tmp_path):
    target = numgemma.load(multimodal_folders[name])
    raw = tiny_drafter.drafter("k_eq_v")
    raw["text_config"] = tiny.MULTIMODAL[name]["text_config"] | tiny_drafter.OWN
    drafter = numgemma.load(tiny.write(tmp_path / "drafter", raw, dtype="float32"))
    ids, arrays = tiny.multimodal_prompt(name)
    media = read_media(arrays)
    plain = target.generate(ids, 20, ignore_eos=True, media=media)
    assert target.generate(ids, 20, ignore_eos=True, media=media, draft=Draft(drafter)) == plain
    assert plain != target.generate(ids[ids < 190], 20, ignore_eos=True)


ADAPTERS = Files(__file__).parent / "fixtures" / "adapters"


@pytest.mark.parametrize("case", ["ple-lora", "ple-dora"])
def test_the_text_of_an_adapted_target_is_the_same_with_the_drafter_of_its_base(pair_folders, case, capsys):
    """The drafter knows nothing of the adapter: its drafts are worse, and the text is the adapted target's."""
    base, drafter = pair_folders["clustered", 0.3]
    plain, target = numgemma.load(base), numgemma.load(base, adapters=[ADAPTERS / case])
    ids, accepted = prompt(15), Counter()
    assert np.linalg.norm(target.logits(ids) - plain.logits(ids)) > 1e-3 * np.linalg.norm(plain.logits(ids))
    for sampling in (Sampling(), Sampling(temperature=0.8, seed=1)):
        text = target.generate(ids, 40, sampling, ignore_eos=True)
        rounds = list(target.rounds(ids, Draft(numgemma.load(drafter), 3), 40, sampling, ignore_eos=True))
        assert texts(rounds) == text
        accepted.update(one.accepted for one in rounds[1:])
    assert len(accepted) > 1, accepted  # some drafts stay and some do not
    options = ["--ids", ",".join(map(str, ids)), "--max-new-tokens", "40", "--ignore-eos", "--print-ids"]
    words = ["generate", str(base), "--adapter", str(ADAPTERS / case), *options]
    written = []
    for more in ([], ["--drafter", str(drafter)]):
        assert main([*words, *more]) == 0
        written.append(capsys.readouterr().out.splitlines()[-1])
    assert written[0] == written[1] == ",".join(map(str, target.generate(ids, 40, ignore_eos=True)))


# what does not fit


def test_a_drafter_of_another_model_is_refused_in_a_sentence(pair_folders, tmp_path):
    target, _ = pair_folders["k_eq_v", 0.1]
    wrong = {
        "numbers in its stream": {"backbone_hidden_size": 40},
        "tokens in its vocabulary": {"text_config": {"vocab_size": 104}},
        "key/value heads on sliding attention": {"text_config": {"num_key_value_heads": 6}},
        "lanes a head on full attention": {"text_config": {"global_head_dim": 48}},
        "as rope base on full attention": {
            "text_config": {
                "rope_parameters": tiny.TEXT["rope_parameters"]
                | {"full_attention": {"rope_type": "proportional", "rope_theta": 2e6, "partial_rotary_factor": 0.25}}
            }
        },
        "as kinds of layers": {"text_config": {"layer_types": ["full_attention"] * 4}},
    }
    for sentence, change in wrong.items():
        raw = tiny_drafter.drafter("k_eq_v")
        change = dict(change)
        raw["text_config"] |= change.pop("text_config", {})
        folder = tiny.write(tmp_path / sentence.replace("/", " "), raw | change)
        with pytest.raises(InputError, match=f"drafts for a model with .* {sentence}.*give the drafter"):
            numgemma.load(target).generate(prompt(3), draft=Draft(numgemma.load(folder)))


def test_what_drafts_for_no_other_and_other_precisions_are_refused(pairs, pair_folders):
    target, drafter = pairs["k_eq_v", 0.1]
    with pytest.raises(InputError, match="drafts for no other"):
        target.generate(prompt(3), draft=Draft(target))
    with pytest.raises(InputError, match="is opened in float64"):
        target.generate(prompt(3), draft=Draft(numgemma.load(pair_folders["k_eq_v", 0.1][1], "float64")))
    with pytest.raises(InputError, match="0 tokens a round"):
        Draft(drafter, 0)


# the verb


def test_the_verb_writes_what_was_drafted_and_says_what_it_saved(pair_folders, tmp_path, capsys):
    target, drafter = map(str, pair_folders["k_eq_v", 0.1])
    words = ["generate", target, "--ids", "5,9,77", "--max-new-tokens", "21", "--print-ids", "--ignore-eos"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    file = tmp_path / "out.json"
    more = ["--drafter", drafter, "--draft-tokens", "4", "--json", str(file), "--verbose"]
    assert main([*words, *more]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == plain.splitlines()[0]
    found = json.loads(file.read_text())
    assert found["schema"] == "numgemma.generate/1"
    assert found["ids"] == [int(i) for i in plain.split(",")]
    assert [i for one in found["rounds"] for i in one["kept"]] == found["ids"]
    accepted, drafted = (
        sum(n) for n in zip(*((one["accepted"], len(one["drafted"])) for one in found["rounds"]), strict=True)
    )
    assert f"{accepted} of {drafted} drafts accepted" in err
    assert f"{20 / (len(found['rounds']) - 1):.2f} tokens a pass" in err


def test_the_verb_writes_ids_without_a_drafter_too(capsys):
    assert main(["generate", "tiny", "--ids", "0,640", "--max-new-tokens", "5", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["ids"]) == 5
    assert found["rounds"] == []


def test_options_that_do_not_fit_are_refused(pair_folders, capsys):
    target, drafter = map(str, pair_folders["k_eq_v", 0.1])
    for more in (["--draft-tokens", "3"], ["--drafter", drafter, "--draft-tokens", "0"], ["--drafter", target]):
        assert main(["generate", target, "--ids", "5", *more]) == 2
        assert "Traceback" not in capsys.readouterr().err
