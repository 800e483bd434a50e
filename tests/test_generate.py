"""Sampling and the loops, on the bundled checkpoint and on random ones."""

import numpy as np
import pytest
import tiny

import numgemma
from numgemma.errors import InputError
from numgemma.generate import Sampling, choose, steps


@pytest.fixture(scope="module")
def story():
    return numgemma.load("tiny")


def drawn(logits, sampling, draws=4000):
    rng = np.random.default_rng(sampling.seed)
    found = [choose(logits, sampling, rng) for _ in range(draws)]
    return np.bincount(found, minlength=len(logits)) / draws


LOGITS = np.log(np.float32([0.5, 0.3, 0.15, 0.05]))


def test_greedy_takes_the_largest():
    assert choose(LOGITS, Sampling(), np.random.default_rng()) == 0


def test_sampling_follows_the_probabilities():
    np.testing.assert_allclose(drawn(LOGITS, Sampling(1.0)), [0.5, 0.3, 0.15, 0.05], atol=0.03)


def test_a_low_temperature_sharpens():
    sharp = np.float32([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(drawn(LOGITS, Sampling(0.5)), sharp / sharp.sum(), atol=0.03)


def test_top_k_keeps_k_tokens():
    np.testing.assert_allclose(drawn(LOGITS, Sampling(1.0, top_k=2)), [0.625, 0.375, 0, 0], atol=0.03)


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
    np.testing.assert_allclose(drawn(LOGITS, Sampling(1.0, top_p=0.6)), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(drawn(LOGITS, Sampling(1.0, top_p=1e-9)), [1, 0, 0, 0])


def test_suppressed_tokens_never_come():
    assert choose(LOGITS, Sampling(suppress=(0,)), np.random.default_rng()) == 1
    assert drawn(LOGITS, Sampling(1.0, suppress=(0, 2)))[[0, 2]].sum() == 0


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": np.nan}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}]
)
def test_a_sampling_without_meaning_is_refused(wrong):
    with pytest.raises(InputError, match="should be"):
        Sampling(**wrong)


def test_the_same_seed_gives_the_same_story(story):
    def told(seed):
        return story.generate([0, 261], 30, story.sampling(temperature=1.0, seed=seed))

    assert told(3) == told(3)
    assert told(3) != told(4)


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_generating_through_the_cache_equals_choosing_from_whole_runs(models, variant):
    model, ids = models[variant], tiny.prompt(tiny.VARIANTS[variant], 5).tolist()
    new = model.generate(ids, 30, ignore_eos=True)
    whole = model.logits(ids + new[:-1])
    assert whole[len(ids) - 1 :].argmax(-1).tolist() == new


def test_generation_stops_at_a_stop_token_and_returns_it(tmp_path, models):
    ids = tiny.prompt(tiny.DENSE, 5)
    new = models["dense"].generate(ids, 10, ignore_eos=True)
    stop = new[4]
    folder = tiny.write(tmp_path / "stops", tiny.DENSE, generation={"eos_token_id": [stop, 198]})
    model = numgemma.load(folder)
    assert model.generate(ids, 10) == new[: new.index(stop) + 1]
    assert model.generate(ids, 10, ignore_eos=True) == new


def test_generation_config_suppresses_its_tokens(tmp_path, models):
    ids = tiny.prompt(tiny.DENSE, 5)
    first = models["dense"].generate(ids, 1)[0]
    folder = tiny.write(tmp_path / "x", tiny.DENSE, generation={"eos_token_id": 1, "suppress_tokens": [first]})
    assert first not in numgemma.load(folder).generate(ids, 10)


def test_stop_ids_come_from_the_config_where_no_generation_config_is(tmp_path):
    folder = tiny.write(tmp_path / "x", tiny.DENSE | {"eos_token_id": [1, 106]})
    (folder / "generation_config.json").unlink()
    assert numgemma.load(folder).stop_ids == {1, 106}


def test_a_greedy_story_is_eighty_tokens_of_text_without_loops(story):
    ids = story.tokenizer.encode("Once upon")
    new = story.generate(ids, 80)
    assert len(new) == 80
    words = story.tokenizer.decode(new).split()
    phrases = [tuple(words[i : i + 6]) for i in range(len(words) - 5)]
    assert len(set(phrases)) == len(phrases)
    assert words[0] == "a"
    assert sum(word.endswith((".", '."', "!", '!"')) for word in words) >= 4


def test_steps_cover_the_sequence_once():
    ids = np.arange(7)
    assert [(s, p.tolist()) for s, p in steps(ids, 4)] == [(0, [0, 1, 2, 3]), (4, [4]), (5, [5]), (6, [6])]
    assert [(s, p.tolist()) for s, p in steps(ids)] == [(0, list(range(7)))]


@pytest.mark.parametrize("prefill", [0, -1, 8])
def test_a_prefill_that_does_not_fit_is_refused(prefill):
    with pytest.raises(InputError, match="prefill"):
        list(steps(np.arange(7), prefill))


@pytest.mark.parametrize("ids", [[], [[1, 2]], ["a"], [1.5], [-1], [1024]])
def test_ids_that_are_none_are_refused(story, ids):
    with pytest.raises(InputError):
        story.logits(ids)
