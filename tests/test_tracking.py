"""The text that the bundled checkpoint is trained on, and the questions whether it keeps its names straight."""

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import numgemma

REFERENCE = Path(__file__).parents[1] / "reference_outputs"
sys.path.insert(0, str(REFERENCE))

import corpus  # noqa: E402
import foreseen  # noqa: E402
import stories  # noqa: E402
import tracking  # noqa: E402

MODEL = numgemma.load("tiny")
TOKENIZER = Tokenizer.from_file(str(MODEL.checkpoint.folder / "tokenizer.json"))
TEXT = (
    "Mia had a red kite, and Tom had a blue drum. Tom took his drum, and Mia took her kite. "
    '"My kite is the best," said Mia. "I like my drum," said Tom.'
)
CODED = TOKENIZER.encode_batch([TEXT])
V = TOKENIZER.get_vocab_size()


def word(id_):
    return TOKENIZER.id_to_token(id_).strip("Ġ")


def test_after_said_the_speaker_is_asked_for_among_the_names_so_far():
    asked = tracking.said(CODED, [TEXT])
    assert [(word(q.right), [word(i) for i in q.others]) for q in asked] == [("Mia", ["Tom"]), ("Tom", ["Mia"])]
    for q in asked:
        assert word(CODED[0].ids[q.at - 1]) == "said"


def test_after_her_and_his_the_object_is_asked_for_among_the_objects_so_far():
    asked = tracking.owned(CODED, [TEXT])
    assert [(word(q.right), [word(i) for i in q.others]) for q in asked] == [("kite", ["drum"]), ("drum", ["kite"])]
    assert [word(CODED[0].ids[q.at - 1]) for q in asked] == ["her", "his"]


def test_an_object_that_was_not_there_before_is_no_question():
    text = "Tom had a drum. Mia lost her kite."
    assert not tracking.owned(TOKENIZER.encode_batch([text]), [text])


@pytest.mark.parametrize(("sign", "share"), [(1, 1.0), (-1, 0.0)])
def test_who_knows_the_next_token_answers_all_and_who_shuns_it_none(sign, share):
    logits = sign * np.eye(V)[CODED[0].ids[1:]]
    for asked in (tracking.said(CODED, [TEXT]), tracking.owned(CODED, [TEXT])):
        assert tracking.share_right(asked, [logits]) == share


def test_a_mention_costs_the_logarithm_of_how_many_words_may_come():
    ids, pairs = [CODED[0].ids], tracking.mentions(CODED, [TEXT])
    assert len(pairs) == 2
    flat = [np.zeros((len(ids[0]), V))]
    names = [TOKENIZER.encode(f" {name}", add_special_tokens=False).ids[0] for name in tracking.PEOPLE]
    _, second = tracking.mention_losses(pairs, flat, ids, names)
    assert second == pytest.approx(np.log(29))
    tokens = np.mean([len(pair[2]) for pair in pairs])
    assert tracking.mention_losses(pairs, flat, ids)[1] == pytest.approx(tokens * np.log(V))


def test_a_head_that_copies_scores_one_and_one_that_looks_back_a_step_does_not():
    period, T = 5, 11
    copies, steps = np.zeros((2, T, T))
    for t in range(T):
        copies[t, t - period + 1 if t > period else 0] = 1
        steps[t, max(t - 1, 0)] = 1
    assert tracking.induction(np.array([copies, steps]), period).tolist() == [1, 0]
    assert tracking.previous(np.array([copies, steps]))[1] == 1


def test_repeated_tokens_come_again_after_their_period():
    rows, periods = corpus.repeats(0, 20, 200, 3, V)
    assert rows.min() >= 3
    for row, period in zip(rows, periods.tolist(), strict=True):
        assert (row[period:] == row[:-period]).all()


def test_the_text_that_the_tokenizer_was_trained_on_is_what_it_was():
    text = "\n".join(stories.stories(100, 0))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7e3d5dfd3cfa3b01"


def test_a_story_of_two_owners_names_both_and_their_things():
    for seed in range(20):
        text, facts = corpus.told(random.Random(seed), corpus.OWNERS)
        for fact in ("hero", "friend", "thing", "thing2"):
            assert facts[fact] in text


SMALL = ("{hero} [came|went].", "? [{hero}|he|{friend}] sat.", "{hero} [and [{friend}|he] |]slept.")


@pytest.mark.parametrize(
    ("before", "chances"),
    [
        ("", {"@mia": 1}),
        ("Mia went. ", {"@mia": 2 / 3, "@tom": 1 / 6, "": 1 / 6}),  # the line in the middle is told or not
        ("Mia went. Mia ", {"": 1}),
        ("Mia went. Mia and ", {"@tom": 1 / 2, "": 1 / 2}),
        ("Mia went. Mia slept. ", {"@tom": 3 / 4, "": 1 / 4}),  # now a plot is drawn
        ("Mia went. Mia slept. Tom saw ", {"": 1}),
        ("Mia went. Mia slept. Tom saw an owl. ", {"@mia": 1}),  # who came is drawn at the plot's beginning
        ("Mia went. Mia slept. Tom saw a bear. ", {"@tom": 1}),
    ],
)
def test_the_chance_of_a_name_is_that_of_all_ways_to_go_on_with_it(monkeypatch, before, chances):
    plots = ("a, b = owl / {hero} | bear / {friend}", "{friend} saw a {a}.", "{b} laughed."), ("it rained.",)
    monkeypatch.setattr(foreseen, "COMMON", SMALL)
    monkeypatch.setattr(foreseen, "SCRIPTS", [(plots[0], 3 / 4), (plots[1], 1 / 4)])
    assert foreseen.following(before, {"hero": "Mia", "friend": "Tom"}) == pytest.approx(chances)


def test_a_name_that_came_was_possible_and_costs_what_its_two_questions_cost():
    told = corpus.held_out(1, 6)
    places = [(story, span[0]) for story, spans in tracking.named_again([text for text, _ in told]) for span in spans]
    for (story, at), (whether, which) in zip(places, foreseen.losses(told, places), strict=True):
        text, facts = told[story]
        name = foreseen.MARKED.match(foreseen.bare(text[at:]))[0]
        assert np.exp(-whether - which) == pytest.approx(foreseen.following(text[:at], facts)[name])
        assert min(whether, which) >= -1e-12


def test_the_bundled_checkpoint_does_what_its_evaluation_says():
    """On the first of its stories."""
    said = json.loads((REFERENCE / "evaluation.json").read_text())["of_the_first"]
    texts = [text for text, _ in corpus.held_out(0, said["stories"])]
    coded = TOKENIZER.encode_batch(texts)
    ids = [encoding.ids for encoding in coded]
    logits = [MODEL.logits(story) for story in ids]
    assert tracking.share_right(tracking.said(coded, texts), logits) == pytest.approx(said["said"], abs=1e-3)
    assert tracking.share_right(tracking.owned(coded, texts), logits) == pytest.approx(said["her"], abs=1e-3)
    first, second = tracking.mention_losses(tracking.mentions(coded, texts), logits, ids)
    assert [first, second] == pytest.approx([said["first_mention"], said["second_mention"]], abs=2e-3)
    told = corpus.held_out(0, said["stories"])
    places = [(story, spans[1][0]) for story, spans in tracking.named_again(texts)]
    parts = [said["by_the_grammar"][name] for name in ("whether_a_name_comes", "which_name")]
    assert np.mean(foreseen.losses(told, places), axis=0) == pytest.approx(parts, abs=1e-4)


def test_given_that_a_name_comes_its_second_mention_costs_less_than_a_tenth_of_the_first():
    said = json.loads((REFERENCE / "evaluation.json").read_text())
    assert said["second_mention_given_a_name"] < said["first_mention_given_a_name"] / 10
    assert said["second_mention"] < said["by_the_grammar"]["second_mention"] + 0.05
    expected = said["names_expected"]
    assert expected["by_the_model"] > 1.3 * expected["by_the_grammar"]


def test_heads_of_the_bundled_checkpoint_copy_as_its_evaluation_says():
    """One in a full layer and one in a sliding layer, and one of a layer before both that looks at the token before."""
    said = json.loads((REFERENCE / "evaluation.json").read_text())
    dumps = [MODEL.record(ids, ["*.probs"]) for ids in tracking.repeated(16, 60, 3, V, 0).tolist()]
    for name, score in (("induction", lambda probs: tracking.induction(probs, 60)), ("previous", tracking.previous)):
        found = [np.mean([score(dump[f"layers.{i}.self_attn.probs"]) for dump in dumps], axis=0) for i in range(6)]
        assert np.array(found) == pytest.approx(np.array(said[name]), abs=2e-3)
    copying = [i for i, row in enumerate(said["induction"]) if max(row) > 0.5]
    assert {said["layer_types"][i] for i in copying} == {"full_attention", "sliding_attention"}
    assert any(max(said["previous"][i]) > 0.5 for i in range(min(copying)))
