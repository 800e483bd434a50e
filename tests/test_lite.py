"""The course in a browser: what it is built of is held to Pyodide's list, and each page runs in headless Chromium."""

import hashlib
import importlib
import json
import shutil
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from chromium import chromium

FOLDER = Path(__file__).parents[1] / "notebooks"
SITE = FOLDER.parent / "build" / "lite"
sys.path.insert(0, str(FOLDER))  # for the modules of the course
lite = importlib.import_module("lite")
course = lite.course

in_browser = pytest.mark.lite
STARTS, RUNS = 300, 900  # seconds at most; a fast machine needs a tenth


def entry(name, raw, depends=()):
    return {"file_name": f"{name}-1.whl", "sha256": hashlib.sha256(raw).hexdigest(), "depends": list(depends)}


@pytest.fixture
def shelf(tmp_path):
    """A list of packages like Pyodide's, and a folder with their wheels."""
    lock = {"numpy": entry("numpy", b"n"), "matplotlib": entry("matplotlib", b"m", ["NumPy", "pytz"])}
    lock |= {"pytz": entry("pytz", b"p"), "scipy": entry("scipy", b"s", ["numpy"])}
    for name in lock:
        (tmp_path / f"{name}-1.whl").write_bytes(name[:1].encode())
    return {"packages": lock}, tmp_path


# -- what it is built of


def test_only_what_is_wanted_and_what_that_needs_is_taken(shelf):
    lock, folder = shelf
    assert lite.wheels(lock, folder) == {"numpy-1.whl": b"n", "matplotlib-1.whl": b"m", "pytz-1.whl": b"p"}


def test_the_wheels_may_lie_deep_in_an_archive(shelf, tmp_path):
    lock, folder = shelf
    with zipfile.ZipFile(tmp_path / "carrier.zip", "w") as archive:
        for path in folder.glob("*.whl"):
            archive.write(path, f"a/b/{path.name}")
    assert lite.wheels(lock, tmp_path / "carrier.zip") == lite.wheels(lock, folder)


def test_a_wheel_of_other_bytes_is_refused(shelf):
    lock, folder = shelf
    (folder / "numpy-1.whl").write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"its numpy-1.whl is not Pyodide .*'s; name another place: WHEELS=folder"):
        lite.wheels(lock, folder)


def test_a_wheel_that_is_missing_is_named_with_where_it_is_to_be_had(shelf):
    lock, folder = shelf
    (folder / "pytz-1.whl").unlink()
    with pytest.raises(SystemExit, match=r"has no pytz-1.whl; name a folder that has, as the release of Pyodide"):
        lite.wheels(lock, folder)


def test_every_notebook_said_to_stop_is_there():
    assert lite.NOT_HERE.keys() <= {path.stem for path in course.notebooks()}


# -- how its cells run, in this Python


@pytest.fixture
def session():
    names = {}
    exec(compile((FOLDER / "browser" / "session.py").read_text(), "session.py", "exec"), names)
    return lambda source: json.loads(names["run"](source))


def test_a_cell_shows_what_it_prints_and_what_its_last_line_is_worth(session):
    assert session("x = 3\nprint('a')\nx + 1") == [{"kind": "text", "data": "a\n"}, {"kind": "text", "data": "4\n"}]
    assert session("x;") == []
    assert session("x = x + 1") == []
    assert session("x") == [{"kind": "text", "data": "4\n"}]
    assert session("") == session("# a remark") == []


def test_an_error_is_told_from_the_line_of_the_cell_on(session):
    session("def f():\n    return 1 / 0")
    (shown,) = session("y = 1\nf()")
    assert shown["kind"] == "error"
    assert shown["data"].endswith("ZeroDivisionError: division by zero\n")
    assert "return 1 / 0" in shown["data"]
    assert "session.py" not in shown["data"]
    assert session("sys.exit(1)")[0]["kind"] == session("1 +")[0]["kind"] == "error"


def test_a_figure_is_shown_once(session):
    drawing = "import matplotlib; matplotlib.use('agg')\nfrom matplotlib import pyplot\npyplot.plot([1, 2]);"
    assert [one["kind"] for one in session(drawing)] == ["png"]
    assert session("1;") == []


def test_a_blank_is_told_from_a_wrong_answer(session):
    session("from numgemma.exercise import check\ndef answer(x):\n    return ...")
    assert "exercise 0.1 is still blank" in session("with check('0.1', answer):\n    pass")[0]["data"]


# -- the pages, in Chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def served():
    """folder -> its address on a server of this test."""
    servers = []

    def serve(folder):
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def opened(browser, address, stem):
    assert (SITE / "index.html").exists(), "build/lite is not there; run `make lite`."
    browser.open(f"{address}/{stem}.html")
    browser.until("['ready', 'failed'].includes(document.body.dataset.state)", STARTS)
    return browser.ask("document.body.dataset.state")


def fill(browser, solved):
    """Write the solutions into the page's exercises, as a student would."""
    browser.ask(f"""for (const [number, source] of Object.entries({json.dumps(solved)})) {{
        const area = document.querySelector(`.live[data-role="exercise"][data-number="${{number}}"] textarea`);
        area.value = source; area.dispatchEvent(new Event("input")); }}""")


def run_all(browser):
    browser.ask("document.querySelector('.all').click()")
    browser.until("document.body.dataset.state === 'ready'", RUNS)
    errors = browser.ask("[...document.querySelectorAll('.error')].map((e) => e.textContent)")
    left = browser.ask("document.querySelectorAll('.live:not(.done)').length")
    return errors, left


@in_browser
@pytest.mark.parametrize("path", course.notebooks(), ids=lambda path: path.stem)
def test_each_page_runs_with_its_solutions_unless_it_says_that_it_does_not(browser, served, path):
    assert opened(browser, served(SITE), path.stem) == "ready"
    fill(browser, course.solutions(path))
    errors, left = run_all(browser)
    if path.stem in lite.NOT_HERE:
        assert errors, "it runs after all: take it off the list"
        assert browser.ask("!!document.querySelector('.banner')")
        return
    assert errors == []
    assert left == 0
    assert browser.ask("document.querySelectorAll('.out img').length") > 0


@in_browser
def test_what_a_student_wrote_is_there_after_a_reload_and_blanks_are_called_blank(browser, served):
    address = served(SITE)
    assert opened(browser, address, "00_the_whole_model") == "ready"
    errors, left = run_all(browser)
    assert left == 0
    assert errors
    assert all("is still blank" in error for error in errors)
    fill(browser, course.solutions(FOLDER / "00_the_whole_model.ipynb"))
    assert opened(browser, address, "00_the_whole_model") == "ready"
    assert run_all(browser) == ([], 0)


@in_browser
def test_a_site_without_numpy_says_so_in_one_sentence(browser, served, tmp_path):
    shutil.copytree(SITE, tmp_path / "site")
    (wheel,) = (tmp_path / "site" / "pyodide").glob("numpy-*.whl")
    wheel.unlink()
    assert opened(browser, served(tmp_path / "site"), "00_the_whole_model") == "failed"
    said = browser.ask("document.getElementById('state').textContent")
    assert said.startswith("This page cannot run: numpy")
    assert said.count(". ") == 1
