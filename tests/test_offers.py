"""A name that does not exist is met with the one that was meant; results show themselves in a notebook."""

from html import unescape

import numpy as np
import pytest

import numgemma
from numgemma import diff
from numgemma.cli import VERBS, main
from numgemma.debug.blame.doctor import doctor
from numgemma.debug.blame.replay import replay
from numgemma.debug.report import Report, Subject
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


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One of each kind of result, of a run in which one norm is wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMGEMMA_CACHE", str(tmp_path_factory.mktemp("floors")))
        model, ids = numgemma.load("tiny"), [2, 105, 9, 300]
        bad = model.record(ids, edits={"layers.3.self_attn.k_norm": lambda x: x * x.dtype.type(1.5)})
        found = diff(model.record(ids), bad)
        again = replay(model, bad)
        subject = Subject(found, model.record(ids), bad, again, title=EVIL)
        return {"dump": bad, "diff": found, "replay": again, "doctor": doctor(model, bad), "report": Report(subject)}


@pytest.mark.parametrize("kind", ["dump", "diff", "replay", "doctor", "report"])
def test_every_result_shows_itself_in_a_notebook(results, kind):
    shown = results[kind]._repr_html_()
    assert "k_norm" in shown
    assert "<script" not in shown
    assert shown.lstrip().startswith(("<p>", "<iframe sandbox="))


def test_the_frame_of_a_report_holds_the_page(results, tmp_path):
    frame = results["report"]._repr_html_()
    results["report"].save(tmp_path / "r.html")
    page = unescape(frame.partition('srcdoc="')[2].rpartition('"></iframe>')[0])
    assert page == (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("kind", ["dump", "diff", "replay", "doctor"])
def test_every_result_is_a_list_of_flat_dicts(results, kind):
    rows = results[kind].records()
    assert len(rows) > 3
    assert all(value is None or isinstance(value, (str, int, float)) for row in rows for value in row.values())
    if kind != "doctor":
        assert "layers.3.self_attn.k_norm" in {row["name"] for row in rows}


def test_a_long_table_shows_both_ends_and_counts_the_rest():
    text = html_table("", ["n"], [[f"row {i}"] for i in range(100)])
    assert text.count("<tr>") == 1 + MOST + 1
    assert "row 0<" in text
    assert "row 99<" in text
    assert "60 more" in text
