"""Reads the notebooks, fills their blanks with the solutions, runs them, and writes them out as pages.

`python notebooks/course.py build/course` executes all notebooks, solutions filled in, and writes one HTML page and one
deck of slides each, and an index that opens from disk.  How a notebook is built stands in README.md.
"""

import copy
import html
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gallery import gallery
from slides import deck

HERE = Path(__file__).parent
MARKER = re.compile(r"# (exercise|check) (\d+\.\d+)\b")

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --page: #fff; --box: #f6f8fa; --line: #d0d0d0; --link: #00588a;
  --quiet: #555; --hover: #f3f8fb; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e4e4; --page: #16181b; --box: #1f2327; --line: #484d53;
  --link: #7cc4ee; --quiet: #b0b0b0; --hover: #22303a; } }
body { margin: 0 auto; padding: 0 1rem 4rem; max-width: 68rem; font: 1rem/1.55 system-ui, sans-serif;
  color: var(--text); background: var(--page); }
nav { display: flex; gap: 1.5rem; padding: 0.8rem 0; border-bottom: 1px solid var(--line); }
nav.end { border-bottom: 0; border-top: 1px solid var(--line); margin-top: 2rem; }
nav a.next { margin-left: auto; }
a { color: var(--link); }
h1, h2, h3 { line-height: 1.25; }
.text_cell, h1, .intro { max-width: 56rem; }
pre, code { font: 0.84rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { overflow-x: auto; margin: 0; }
p code, li code, td code { background: var(--box); padding: 0.1em 0.25em; overflow-wrap: anywhere; }
td code { white-space: nowrap; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { border: 1px solid var(--line); padding: 0.25rem 0.6rem; text-align: left; }
math[display="block"] { overflow-x: auto; overflow-y: hidden; padding: 0.2rem 0; }
img { max-width: 100%; height: auto; background: #fff; }
.anchor-link, .prompt { display: none; }
.code_cell { margin: 1rem 0; }
.input_area .highlight { background: var(--box); border-left: 4px solid var(--line); padding: 0.6rem 0.8rem; }
.celltag_exercise .highlight, .celltag_solution .highlight { border-color: #e69f00; }
.celltag_check .highlight { border-color: #009e73; }
summary { cursor: pointer; color: var(--link); padding: 0.2rem 0; }
.output_area { padding: 0.5rem 0.8rem 0; overflow-x: auto; }
.output_area img { max-width: max(100%, 40rem); }
@media (min-width: 70rem) { .output_area pre { white-space: pre-wrap; } }
.cards { display: grid; gap: 1rem; padding: 0; }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
.cards li { list-style: none; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.cards a { display: block; padding: 0.8rem; color: inherit; text-decoration: none; height: 100%; }
.cards a:hover { background: var(--hover); }
.cards img { display: block; width: 100%; height: 11rem; object-fit: contain; background: #fff; }
.cards h2 { font-size: 1.1rem; margin: 0.7rem 0 0.3rem; color: var(--link); }
.cards p { margin: 0.3rem 0; }
.small { color: var(--quiet); font-size: 0.88rem; }
.index { max-width: 78rem; }
"""


@dataclass(frozen=True)
class Step:
    """One code cell: what it says, and which exercise or check it is."""

    source: str
    role: str = ""  # "exercise", "check" or neither
    number: str = ""


def notebooks() -> list[Path]:
    """The course in its order: numbered ones first."""
    return sorted(HERE.glob("*.ipynb"), key=lambda path: (not path.name[0].isdigit(), path.name))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def step(text: str) -> Step:
    match = MARKER.match(text)
    return Step(text, *match.groups()) if match else Step(text)


def steps(notebook: dict) -> list[Step]:
    """Its code cells."""
    return [step(source(cell)) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def solutions(path: Path) -> dict[str, str]:
    """Number of an exercise -> its cell, filled."""
    file = HERE / "solutions" / f"{path.stem}.py"
    if not file.exists():
        return {}
    _, *sections = re.split(r"^(?=# exercise )", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = [step(section.strip()) for section in sections]
    assert len({s.number for s in found}) == len(found), f"{file.name}: an exercise is solved twice"
    return {s.number: s.source for s in found}


def filled(notebook: dict, solved: dict[str, str]) -> dict:
    """The notebook with solutions in place of the blanks."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        this = step(source(cell))
        if cell["cell_type"] == "code" and this.role == "exercise":
            cell["source"] = solved[this.number]
    return notebook


# what the index shows of a notebook, from its first cell


@dataclass(frozen=True)
class Card:
    title: str
    question: str
    facts: str


def card(notebook: dict) -> Card:
    title, question, facts = re.split(r"\n\s*\n", source(notebook["cells"][0]).strip())[:3]
    return Card(title.removeprefix("# "), " ".join(question.split()), facts.strip("*"))


# pages


def with_mathml(text: str) -> str:
    """Markdown whose $...$ and $$...$$ are MathML, which browsers draw without a script; code is left alone."""
    from latex2mathml.converter import convert

    def draw(match):
        code, block, line = match.groups()
        if code:
            return code
        drawn = convert(block or line, display="block" if block else "inline")
        return drawn.replace("*", "&#42;").replace("_", "&#95;").replace("|", "&#124;")

    return re.sub(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$([^$\n]+?)\$", draw, text, flags=re.DOTALL)


SETUP = "import matplotlib\nmatplotlib.rcParams['figure.dpi'] = 110"  # so that labels are as large as the text


def execute(notebook: dict, folder: Path):
    """Run all cells in a fresh kernel, and keep what they show.  Raises where a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    node = nbformat.reads(json.dumps(notebook), as_version=4)
    node.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    NotebookClient(
        node,
        timeout=300,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    del node.cells[0]
    return node


def pictures(node) -> list[str]:
    """The PNG pictures among the outputs, in base64."""
    outputs = [output for cell in node.cells for output in cell.get("outputs", ())]
    return [output["data"]["image/png"].strip() for output in outputs if "image/png" in output.get("data", {})]


def page(title: str, body: str, kind: str = "") -> str:
    from pygments.formatters import HtmlFormatter

    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    style = f"<style>{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{STYLE}</style>"
    title = f"<title>{html.escape(title)}</title>"
    return (
        f'<!doctype html><html lang="en"><head>{head}{title}{style}</head><body class="{kind}">{body}</body></html>\n'
    )


def links(beside: tuple[Path | None, Path | None], kind: str = "") -> str:
    """The way to the index, to the notebook before and to the one after."""
    before, after = (
        path and f'<a class="{name}" href="{path.stem}.html">{sign}</a>'
        for path, name, sign in ((beside[0], "before", "← before this one"), (beside[1], "next", "the next one →"))
    )
    return f'<nav class="{kind}"><a href="index.html">The course</a>{before or ""}{after or ""}</nav>'


def render(node, title: str, blanks: dict[str, str], beside=(None, None), solved=True) -> str:
    """An executed notebook as one HTML page that needs nothing beside it.

    Every exercise stands there as the student gets it; the solution, which was run, is folded below, or left out.
    """
    return page(title, f"{links(beside)}<main>{cells(node, title, blanks, solved)}</main>{links(beside, 'end')}")


def cells(node, title: str, blanks: dict[str, str], solved=True) -> str:
    """The cells of an executed notebook as HTML, one element each."""
    from nbconvert import HTMLExporter

    node = copy.deepcopy(node)
    node.cells = [shown for cell in node.cells for shown in as_shown(cell, blanks, solved)]
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(node)
    return folded(body.replace("No description has been provided for this image", f"Plot of {html.escape(title)}"))


def as_shown(cell, blanks, solved):
    """One cell of the page for each of the notebook's; two for an exercise."""
    if cell.cell_type == "markdown":
        cell.source = re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.html)", with_mathml(cell.source))
        return [cell]
    this = step(cell.source)
    cell.metadata["tags"] = [this.role] * bool(this.role)  # the template's class names
    if this.role != "exercise":
        return [cell]
    blank = copy.deepcopy(cell)
    blank.source, blank.outputs, blank.id = blanks[this.number], [], f"{cell.id}-blank"
    cell.metadata["tags"] = ["solution"]
    return [blank, cell] if solved else [blank]


def folded(body: str) -> str:
    """Solutions behind a line that opens them."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(body, "html.parser")
    for cell in soup.select(".celltag_solution"):
        details, summary = soup.new_tag("details"), soup.new_tag("summary")
        summary.string = "Solution"
        cell.wrap(details)
        details.insert(0, summary)
    return str(soup)


MORE = 'As <a href="slides/index.html">slides</a>; all its <a href="figures.html">figures</a>.'


def index(cards: list[tuple[str, Card, str]], more: str = "") -> str:
    """The page of cards.  cards: file name, what it shows, picture in base64; more: HTML, what else there is."""
    items = [
        f'<li><a href="{name}"><img alt="" src="data:image/png;base64,{picture}"><h2>{html.escape(c.title)}</h2>'
        f'<p>{with_code(c.question)}</p><p class="small">{with_code(c.facts)}</p></a></li>'
        for name, c, picture in cards
    ]
    intro = "<h1>Gemma 4, computed by you</h1><p>Each page is a notebook, run; write the exercises yourself. "
    intro += f"{more}</p>"
    return page("Gemma 4, computed by you", f'{intro}<ul class="cards">{"".join(items)}</ul>', "index")


def with_code(text: str) -> str:
    """Text of a first cell, its `code` and *emphasis* marked, and its links as their words."""
    text = html.escape(re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", text))
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", re.sub(r"`([^`]+)`", r"<code>\1</code>", text))


def blanks(notebook: dict) -> dict[str, str]:
    """Number of an exercise -> its cell, as the student gets it."""
    return {this.number: this.source for this in steps(notebook) if this.role == "exercise"}


def executed(paths: list[Path]) -> Iterator:
    """The notebooks with their solutions, run, in order; as many at a time as there are processors."""

    def run(path):
        with tempfile.TemporaryDirectory() as folder:
            return execute(filled(read(path), solutions(path)), Path(folder))

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from pool.map(run, paths)
    finally:
        pool.shutdown(cancel_futures=True)


def build(out: Path) -> None:
    """Execute the course and write its pages: solutions folded, in `student/` left out; and as `slides/`."""
    folders = out, out / "student", out / "slides"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    cards, paths = [], notebooks()
    runs = executed(paths)
    for before, path, after, node in zip([None, *paths], paths, [*paths[1:], None], runs, strict=False):
        notebook = read(path)
        this = card(notebook)
        asked = blanks(notebook)
        written = [render(node, this.title, asked, (before, after), solved) for solved in (True, False)]
        written.append(page(this.title, deck(cells(node, this.title, asked)), "deck"))
        for folder, text in zip(folders, written, strict=True):
            (folder / f"{path.stem}.html").write_text(text, encoding="utf-8")
        cards.append((f"{path.stem}.html", this, pictures(node)[-1]))
        print(f"{out / path.stem}.html", flush=True)
    (out / "figures.html").write_text(page("The figures", f"{links((None, None))}{gallery()}"), encoding="utf-8")
    for folder in folders:
        (folder / "index.html").write_text(index(cards, MORE if folder == out else ""), encoding="utf-8")
    print(out / "index.html")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
