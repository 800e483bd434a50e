"""The course: every notebook runs, every solution passes its check, and every blank fails it."""

import ast
import importlib.util
import json
import linecache
import re
import sys
from pathlib import Path

import pytest

from numgemma import ops
from numgemma.exercise import StillBlank, hints

FOLDER = Path(__file__).parents[1] / "notebooks"
spec = importlib.util.spec_from_file_location("course", FOLDER / "course.py")
course = importlib.util.module_from_spec(spec)
sys.path.insert(0, str(FOLDER))  # for the modules beside it
spec.loader.exec_module(course)

NOTEBOOKS = course.notebooks()
NUMBERED = [path for path in NOTEBOOKS if path.name[0].isdigit()]
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_numbered = pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)
runs = pytest.mark.notebooks


@each
def test_it_is_stored_without_outputs(path):
    notebook = course.read(path)
    assert notebook["metadata"].keys() <= {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert not cell["metadata"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)


@each_numbered
def test_it_has_15_to_40_cells_and_opens_with_title_question_and_facts(path):
    notebook = course.read(path)
    assert 15 <= len(notebook["cells"]) <= 40
    card = course.card(notebook)
    assert card.title.startswith(path.name[:2])
    assert re.fullmatch(r"\d+ minutes · explains .+ · before it: .+", card.facts)


@each
def test_every_exercise_has_a_blank_a_check_behind_it_and_a_solution(path):
    steps, solved = course.steps(course.read(path)), course.solutions(path)
    exercises = [(i, step) for i, step in enumerate(steps) if step.role == "exercise"]
    assert [step.number for _, step in exercises] == list(solved)
    assert [step.number for _, step in exercises] == [step.number for step in steps if step.role == "check"]
    for i, step in exercises:
        assert "..." in step.source
        assert (steps[i + 1].role, steps[i + 1].number) == ("check", step.number)
        assert solved[step.number].splitlines()[0] == step.source.splitlines()[0]
        asked = re.match(
            rf'# check {re.escape(step.number)}\nwith check\("{re.escape(step.number)}", (\w+)\):\n',
            steps[i + 1].source,
        )
        assert asked, "a check begins with the question whether its exercise is still blank"
        assert asked[1] in names(step.source)[0]


def test_every_exercise_has_a_hint_and_no_hint_lacks_one():
    assert sorted(hints()) == sorted(number for path in NOTEBOOKS for number in course.solutions(path))


@each_numbered
def test_it_has_two_exercises_or_more_numbered_in_order(path):
    numbers = list(course.solutions(path))
    assert numbers == [f"{int(path.name[:2])}.{n + 1}" for n in range(len(numbers))]
    assert len(numbers) >= 2


def names(source):
    """Names that a cell sets at its top level, and those that it uses and does not set."""
    nodes = list(ast.walk(ast.parse(source)))
    inner = {
        id(node) for f in nodes if isinstance(f, ast.FunctionDef | ast.Lambda) for node in ast.walk(f) if node is not f
    }
    stored = {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
    stored |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and id(n) not in inner}
    local = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} | {
        n.arg for n in nodes if isinstance(n, ast.arg)
    }
    return stored, {n.id for n in nodes if isinstance(n, ast.Name)} - local - stored


@each
def test_an_exercise_can_be_skipped(path):
    """No other cell uses a name that an exercise or its check has set."""
    setter = {}
    for step in course.steps(course.read(path)):
        stored, used = names(step.source)
        if not step.role:
            assert {name: setter[name] for name in used if setter.get(name)} == {}, step.source
        setter |= dict.fromkeys(stored, step.role and f"{step.role} {step.number}")


@each
def test_it_neither_shells_out_nor_uses_magic_nor_the_network(path):
    for step in course.steps(course.read(path)):
        assert not re.search(r"^\s*[%!]|urllib|requests|subprocess|http", step.source, re.MULTILINE), step.source


@each
def test_its_links_lead_somewhere(path):
    for cell in course.read(path)["cells"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", course.source(cell)):
            assert (FOLDER / target).exists(), target


@each
def test_the_files_that_it_names_are_there(path):
    there = [f"/{file.relative_to(FOLDER.parent)}" for file in FOLDER.parent.glob("[nrt]*/**/*.py")]
    for cell in course.read(path)["cells"]:
        for name in re.findall(r"`([\w/]+\.py)`", course.source(cell)):
            assert any(file.endswith(f"/{name}") for file in there), name


def test_the_teachers_page_lists_every_notebook():
    listed = re.findall(r"\]\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert listed == [path.name for path in NOTEBOOKS]


def test_every_lecture_of_the_syllabus_has_a_notebook_and_an_answer_to_its_question():
    syllabus = (FOLDER / "README.md").read_text().partition("## A syllabus")[2]
    lectures = re.findall(r"^\| (\d\d|[A-Z]\w+) \|", syllabus, re.MULTILINE)
    assert lectures == [path.stem[:2] if path in NUMBERED else path.stem.capitalize() for path in NOTEBOOKS]
    assert re.findall(r"^\*\*(\w+)\.\*\*", (FOLDER / "solutions/exam.md").read_text(), re.MULTILINE) == lectures


def execute(source, names, where):
    linecache.cache[where] = (len(source), None, source.splitlines(keepends=True), where)  # as Jupyter does
    exec(compile(source, where, "exec"), names)


def blank_fails(blank, check, names, where):
    """Run the blank and its check beside the notebook, whose names stay as they were.

    The check says that it is blank; and what it checks would not hold of the blank either.
    """
    names = dict(names)
    execute(blank.source, names, f"{where}, blank")
    with pytest.raises(StillBlank, match=f"exercise {re.escape(check.number)} is still blank"):
        execute(check.source, names, f"{where}, check on the blank")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception) as caught:  # noqa: PT011, PT012 - whatever NumPy makes of an Ellipsis
        patch.setattr("numgemma.exercise.is_blank", lambda answer: False)
        execute(check.source, names, f"{where}, check that takes the blank for an answer")
    assert not isinstance(caught.value, NameError | ImportError | SyntaxError), caught.value


def unlabelled(figure):
    """Axes that do not say what they show; a colour bar has one label, and a diagram, whose axes are off, has none."""
    bars = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
    plots = [ax for ax in figure.axes if ax.axison and ax not in bars]
    wrong = [ax for ax in plots if not (ax.get_xlabel() and ax.get_ylabel())]
    return wrong + [ax for ax in bars if not (ax.get_ylabel() or ax.get_xlabel())]


@runs
@each
@pytest.mark.parametrize("backend", ops.BACKENDS)
def test_it_runs_with_its_solutions_and_no_blank_passes_its_check(path, backend, tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    steps, solved = course.steps(course.read(path)), course.solutions(path)
    names = {"__name__": "__main__"}
    try:
        for i, step in enumerate(steps):
            where = f"{path.name}, code cell {i}"
            if step.role == "exercise":
                blank_fails(step, steps[i + 1], names, where)
            with ops.using(backend):
                execute(solved[step.number] if step.role == "exercise" else step.source, names, where)
        figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
        assert figures
        assert not [ax for figure in figures for ax in unlabelled(figure)]
        for figure in figures:
            figure.canvas.draw()
    finally:
        pyplot.close("all")
    assert not list(tmp_path.iterdir()), "a notebook leaves nothing behind"


# the runner


def written(folder, *cells):
    """A notebook with these code cells."""
    cells = [{"cell_type": "code", "source": text} for text in cells]
    path = folder / "00_sample.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_filling_puts_solutions_in_place_of_the_blanks_and_nowhere_else(tmp_path):
    notebook = course.read(written(tmp_path, "# exercise 0.1: one\nx = ...", "# check 0.1\nassert x == 1", "y = 2"))
    filled = course.filled(notebook, {"0.1": "# exercise 0.1: one\nx = 1"})
    sources = [step.source for step in course.steps(filled)]
    assert sources == ["# exercise 0.1: one\nx = 1", "# check 0.1\nassert x == 1", "y = 2"]
    assert "..." in course.steps(notebook)[0].source


ONE = course.step("# exercise 0.1: one\nx = ...")
CHECK = '# check 0.1\nfrom numgemma.exercise import check\nwith check("0.1", x):\n    assert '


def test_a_blank_that_its_check_names_and_fails_is_one():
    blank_fails(ONE, course.step(f"{CHECK}x == 1"), {}, "here")


def test_a_check_that_does_not_ask_whether_its_exercise_is_blank_is_caught():
    with pytest.raises(TypeError):
        blank_fails(ONE, course.step("# check 0.1\nassert x + 1"), {}, "here")


def test_a_check_that_the_blank_would_pass_is_caught():
    with pytest.raises(pytest.fail.Exception):
        blank_fails(ONE, course.step(f"{CHECK}x"), {}, "here")


def test_a_check_that_lacks_a_name_does_not_count_as_failing_on_the_blank():
    with pytest.raises(AssertionError, match="'y' is not defined"):
        blank_fails(ONE, course.step(f"{CHECK}x == y"), {}, "here")


def test_equations_become_mathml_and_code_stays():
    pytest.importorskip("latex2mathml")
    text = course.with_mathml("With `$x$` and $x_i^2$:\n\n$$y = \\frac{x}{2}$$\n")
    assert "`$x$`" in text
    assert text.count("<math") == 2
    assert 'display="block"' in text
    assert "_" not in text


def test_the_index_escapes_what_a_notebook_says():
    pytest.importorskip("pygments")
    card = course.Card("00 · <b>", "Is `a<b`?", "see [01](01.ipynb)")
    page = course.index([("00.html", card, "")])
    assert "00 · &lt;b&gt;" in page
    assert "<code>a&lt;b</code>" in page
    assert "ipynb" not in page


@pytest.fixture
def one_page(tmp_path):
    """A notebook of one exercise, run, and its blanks."""
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbconvert")
    pytest.importorskip("bs4")
    pytest.importorskip("latex2mathml")
    notebook = course.read(written(tmp_path, "# exercise 0.1: one\nx = ...", "# check 0.1\nassert x == 1"))
    node = nbformat.v4.new_notebook()
    for step in course.steps(course.filled(notebook, {"0.1": "# exercise 0.1: one\nx = 1"})):
        node.cells.append(nbformat.v4.new_code_cell(step.source))
    return node, course.blanks(notebook)


def test_a_slide_is_a_text_with_its_code_and_no_check_is_shown():
    pytest.importorskip("bs4")
    text, code, check = ("cell text_cell", "cell code_cell", "cell code_cell celltag_check")
    cells = [(text, "01"), (code, "import"), (text, "Now"), (code, "plot"), (text, "What to see: all"), (check, "no")]
    body = "".join(f'<div class="{kind}"><p>{says}</p></div>' for kind, says in [*cells, (text, "Next")])
    shown = [drawn(slide).get_text() for slide in course.deck.__globals__["slides"](body)]
    assert shown == ["01", "import", "NowplotWhat to see: all", "Next"]
    assert [section.get_text() for section in drawn(course.deck(body)).select("section")] == shown


def test_the_gallery_draws_every_figure_of_plots():
    pytest.importorskip("matplotlib").use("agg")
    from numgemma import plots

    drawers = {name for name in plots.__all__ if "-> Axes" in " ".join((getattr(plots, name).__doc__ or "").split())}
    body = course.gallery()
    assert len(drawers) >= 12
    assert not [name for name in drawers if f"plots.{name}(" not in body]
    assert body.count("data:image/svg+xml;base64,") >= len(drawers)


def drawn(text):
    """A page as a tree, without the colours of its code."""
    from bs4 import BeautifulSoup

    return BeautifulSoup(text, "html.parser")


def test_a_page_shows_the_blank_and_folds_the_solution(one_page):
    node, blanks = one_page
    tree = drawn(course.render(node, "00 · sample", blanks))
    (details,) = tree.select("details")
    assert "x = 1" in details.get_text()
    details.extract()
    assert "x = ..." in tree.main.get_text()
    assert "x = 1" not in tree.main.get_text()


def test_a_students_page_has_no_solution_anywhere(one_page):
    node, blanks = one_page
    text = course.render(node, "00 · sample", blanks, solved=False)
    assert not drawn(text).select("details")
    assert "x = ..." in drawn(text).main.get_text()
    assert "x = 1" not in drawn(text).main.get_text()


def test_a_page_leads_to_the_one_before_and_the_one_after(one_page):
    node, blanks = one_page
    tree = drawn(course.render(node, "02", blanks, (Path("01.ipynb"), Path("03.ipynb"))))
    targets = [a["href"] for a in tree.select("nav a")]
    assert targets == ["index.html", "01.html", "03.html"] * 2
    assert [a["href"] for a in drawn(course.render(node, "02", blanks)).select("nav a")] == ["index.html"] * 2
