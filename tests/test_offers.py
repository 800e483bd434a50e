"""A name that does not exist is met with the one that was meant; results show themselves in a notebook."""

import numpy as np
import pytest

import numgemma
from numgemma.cli import VERBS, main
from numgemma.errors import InputError, meant
from numgemma.notebook import MOST, html_table
from numgemma.official import CONFIGS, official, runnable

EVIL = "<script>alert(1)</script>"


def test_the_nearest_name_is_offered_and_a_far_one_is_not():
    assert meant("layers.0.outt", ["layers.0.out", "norm"]) == "; perhaps layers.0.out is meant"
    assert meant("zebra", ["layers.0.out", "norm"]) == ""


@pytest.mark.parametrize("wrong", ["dif", "inspct", "lintt"])
def test_a_misspelt_verb_is_met_with_a_verb(wrong, capsys):
    assert main([wrong]) == 2
    offered = capsys.readouterr().err.partition("perhaps ")[2].partition(" is meant")[0]
    assert offered in VERBS


def test_a_word_that_is_like_no_verb_is_met_with_all_of_them(capsys):
    assert main(["zebra"]) == 2
    assert "the verbs are inspect, generate" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["inspect"], ["synth", "-o", "never"]])
def test_a_misspelt_config_is_met_with_one_that_runs(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([verb[0], "gemma-4-E4B-itt", *verb[1:]]) == 2
    assert "perhaps gemma-4-E4B-it is meant" in capsys.readouterr().err
    assert main(["inspect", "gemma-4-E4B-it"]) == 0


def test_every_config_that_is_offered_can_be_inspected(capsys):
    assert "gemma-4-31B" in runnable()
    for name in runnable():
        assert main(["inspect", name]) == 0, name


def test_the_organisation_before_an_official_name_does_not_matter():
    assert official("google/gemma-4-E4B-it") == official("gemma-4-E4B-it") == CONFIGS / "gemma-4-E4B-it.json"
    assert official("../configs/gemma-4-E4B-it") is None


def test_a_misspelt_point_is_met_with_a_point():
    edits = {"layers.2.self_attn.contxt": lambda x: x}
    with pytest.raises(InputError, match=r"perhaps layers\.2\.self_attn\.context is meant"):
        numgemma.load("tiny").record([1, 2], edits=edits)


def test_a_dump_and_a_diff_show_themselves_as_escaped_tables():
    x = np.ones((3, 4), np.float32)
    about = {"ids": [1, 2, 3], "precision": "float32"}
    a, b = (numgemma.Dump(dict(about), {EVIL: x, "norm": y}, {EVIL: "T D", "norm": "T D"}) for y in (x, 2 * x))
    found = numgemma.diff(a, b)
    assert "DIFFERS first at norm (2 points)" in found._repr_html_()
    for shown in (a._repr_html_(), found._repr_html_(), html_table(EVIL, [EVIL], [[EVIL]])):
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown


def test_a_long_table_shows_both_ends_and_counts_the_rest():
    text = html_table("", ["n"], [[f"row {i}"] for i in range(100)])
    assert text.count("<tr>") == 1 + MOST + 1
    assert "row 0<" in text
    assert "row 99<" in text
    assert "60 more" in text
