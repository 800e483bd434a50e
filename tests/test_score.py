"""A text's score: from the logits that a run gives, whatever the windows."""

import numpy as np
import pytest
import tiny

from numgemma import load
from numgemma.errors import InputError
from numgemma.score import score, windows

IDS = np.random.default_rng(0).integers(3, 199, 40).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny.write(tmp_path_factory.mktemp("m"), tiny.VARIANTS["ple"]))


def expected(model, ids):
    """- log softmax(logits)[next], by a plain loop."""
    logits = model.logits(ids).astype(np.float64)
    return [
        -(row[i] - np.log(np.exp(row - row.max()).sum()) - row.max()) for row, i in zip(logits, ids[1:], strict=False)
    ]


def test_a_score_is_the_logits_own(model):
    ids = IDS[:20]
    found = score(model, ids)
    assert np.isnan(found.nll[0])
    np.testing.assert_allclose(found.nll[1:], expected(model, ids), rtol=1e-5)
    assert found.perplexity == pytest.approx(np.exp(np.mean(expected(model, ids))), rel=1e-5)


def test_in_parts_through_the_cache_a_text_scores_the_same(model, monkeypatch):
    ids = IDS[:20]
    whole = score(model, ids).nll
    monkeypatch.setattr("numgemma.score.CHUNK", 3)
    np.testing.assert_allclose(score(model, ids).nll, whole, rtol=1e-4, atol=1e-5)


def test_in_windows_each_token_is_scored_once_from_its_own_window(model):
    ids, W, S = IDS[:25], 10, 4
    found = score(model, ids, window=W, stride=S).nll
    for first, fresh, stop in windows(len(ids), W, S):
        alone = expected(model, ids[first:stop])
        np.testing.assert_allclose(found[fresh:stop], alone[fresh - first - 1 : stop - first - 1], rtol=1e-4, atol=1e-5)
    assert np.isfinite(found[1:]).all()


def test_the_windows_cover_every_token_but_the_first_once():
    for tokens in (2, 5, 10, 11, 37):
        covered = [t for _, fresh, stop in windows(tokens, 10, 3) for t in range(fresh, stop)]
        assert covered == list(range(1, tokens))


def test_the_divergence_from_itself_is_nothing_and_from_another_is_the_definitions(model, tmp_path):
    ids = IDS[:12]
    same = score(model, ids, against=model)
    np.testing.assert_allclose(same.kl[1:], 0, atol=1e-9)
    np.testing.assert_array_equal(same.other, same.nll)
    other = load(tiny.write(tmp_path / "o", tiny.VARIANTS["dense"]))
    found = score(model, ids, against=other)
    p, q = (np.exp(m.logits(ids).astype(np.float64)) for m in (model, other))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    np.testing.assert_allclose(found.kl[1:], (p * np.log(p / q)).sum(-1)[:-1], rtol=1e-4)


def test_what_cannot_be_scored_is_one_sentence(model):
    for ids, more, says in (([5], {}, "two or more"), ([5, 6], {"window": 4, "stride": 4}, "leaves tokens out")):
        with pytest.raises(InputError, match=says):
            score(model, ids, **more)


def test_the_verb_prints_the_numbers_and_writes_them(tmp_path, capsys):
    import json

    from numgemma.cli import main

    text = tmp_path / "t.txt"
    text.write_text("Once upon a time there was a")
    assert (
        main(["score", "tiny", "--text-file", str(text), "--against", "tiny", "--json", str(tmp_path / "s.json")]) == 0
    )
    said = capsys.readouterr().out
    assert "perplexity" in said
    assert "divergence: 0 nats" in said
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["schema"] == "numgemma.score/1"
    assert found["by_token"][0] is None
    assert found["nll"] == pytest.approx(np.mean(found["by_token"][1:]))
