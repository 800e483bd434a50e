"""The rooms of the package, as their docstrings list them: what a folder holds, in the order in which it reads best.

`python tests/rooms.py` writes anew what these maps tell: the picture in CONTRIBUTING, the files in debug's page.
"""

import ast
import re
import textwrap
from pathlib import Path

import numgemma

PACKAGE = Path(numgemma.__file__).parent
PAGE = PACKAGE.parent / "CONTRIBUTING.md"
PICTURE = re.compile(r"(?P<before><!-- the rooms[^\n]*-->\n```text\n)(?P<picture>.*?)(?P<after>```\n)", re.DOTALL)
LINE = re.compile(r"    (\w+(?: \w+)*)(?:  +(\S.*))?")
FILE = re.compile(r" {8}\w.*\n")
WIDTH = 110


def folders():
    """All folders of modules, the package first."""
    return [PACKAGE, *sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE})]


def lines(folder):
    """(names, what is said of them) of each line of a folder's map."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()), clean=False) or ""
    found = (LINE.fullmatch(line) for line in text.splitlines())
    return [(match[1].split(), match[2] or "") for match in found if match]


def order(folder):
    """What a folder holds, in the order of its map."""
    return [name for names, _ in lines(folder) for name in names]


def on_disk(folder):
    """The modules and folders of modules in a folder."""
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    return files | {path.parent.name for path in folder.glob("*/__init__.py")}


def picture():
    """The tree as text: what each file and each room at the top is for, and what the rooms hold."""
    text = "numgemma/\n"
    for (name,), says in lines(PACKAGE):
        room = (PACKAGE / name).is_dir()
        text += f"    {name + ('/' if room else '.py'):<17}{says}\n"
        text += held(PACKAGE / name, 21) if room else ""
    return text


def held(folder, indent):
    """The files of a room, and of the rooms within."""
    inner = [name for name in order(folder) if (folder / name).is_dir()]
    files = [name for name in order(folder) if name not in inner]
    text = wrapped(", ".join(files), indent, "") if files else ""
    return text + "".join(wrapped(", ".join(order(folder / name)), indent, f"{name}/  ") for name in inner)


def wrapped(text, indent, head):
    whole = textwrap.fill(head + text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + len(head)))
    return whole + "\n"


def debug_page(text):
    """The source of debug/__init__.py with the files of each folder's map under its line."""
    out = ""
    for line in FILE.sub("", text).splitlines(keepends=True):
        out += line
        if match := LINE.fullmatch(line.rstrip("\n")):
            entries = lines(PACKAGE / "debug" / match[1])
            width = max((len(names[0]) for names, _ in entries), default=0)
            out += "".join(f"        {names[0]:<{width}}  {says}\n" for names, says in entries)
    return out


if __name__ == "__main__":
    page = PACKAGE / "debug" / "__init__.py"
    page.write_text(debug_page(page.read_text()))
    PAGE.write_text(PICTURE.sub(lambda match: match["before"] + picture() + match["after"], PAGE.read_text()))
