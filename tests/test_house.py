"""Rules of the house that a machine can hold."""

import ast
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import rooms
from rooms import PACKAGE

import numgemma

FILES = sorted(p for p in PACKAGE.rglob("*.py"))
PUBLIC = set(numgemma.__all__)  # what the package itself exports is not a room


# What is still to be mended; a line that is no longer true fails, and goes.
STILL_UP: set[str] = set()


def place(path):
    """Where a file stands, from the package down: debug, compare, diff.  A folder's __init__ stands for the folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] in ("__init__", "__main__") else parts


def imported(path):
    """The places in the package that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: import by the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, *parts = name.split(".")
            if root == "numgemma" and parts and not (len(parts) == 1 and parts[0] in PUBLIC):
                yield tuple(module(parts))


def module(parts):
    """The part of a dotted name that is a file or a folder; the rest are names within."""
    return parts if not parts or is_place(PACKAGE.joinpath(*parts)) else module(parts[:-1])


def is_place(path):
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_every_folder_has_a_map_of_what_it_holds():
    for folder in rooms.folders():
        assert (folder / "__init__.py").exists(), folder
        listed = rooms.order(folder)
        assert sorted(listed) == sorted(rooms.on_disk(folder)), f"the map in {folder.name}/__init__.py"


def test_imports_only_go_down_the_order_of_every_map():
    climbing = {f"{'/'.join(here)} -> {'/'.join(there)}" for here, there in steps() if climbs(here, there)}
    assert climbing == STILL_UP


def steps():
    """(importing place, imported place) of the whole package."""
    return [(place(path), other) for path in FILES for other in imported(path) if path.name != "__main__.py"]


def climbs(here, there):
    """Whether `there` stands below `here` in the map of the folder that holds both."""
    common = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), None)
    if common is None:
        return len(there) < len(here)  # a folder may take from its own files, and not they from it
    order = rooms.order(PACKAGE.joinpath(*here[:common]))
    return order.index(there[common]) > order.index(here[common])


def test_the_order_is_broken_by_an_import_that_goes_up():
    assert climbs(("debug", "measure", "metrics"), ("debug", "compare", "diff"))
    assert climbs(("debug", "compare", "pair"), ("debug", "compare", "diff"))
    assert climbs(("debug", "compare", "pair"), ("debug", "compare"))
    assert not climbs(("debug", "compare", "diff"), ("debug", "compare", "pair"))
    assert not climbs(("debug", "compare", "diff"), ("ops",))


def test_the_picture_of_the_rooms_is_the_tree_on_disk():
    assert rooms.PICTURE.search(rooms.PAGE.read_text())["picture"] == rooms.picture(), "run python tests/rooms.py"


def test_debugs_page_says_of_each_file_what_its_folder_says():
    page = (PACKAGE / "debug" / "__init__.py").read_text()
    assert page == rooms.debug_page(page), "run python tests/rooms.py"
    assert "        states     what a point is called" in page


def test_the_reading_list_of_the_readme_goes_down_the_order():
    table = (PACKAGE.parent / "README.md").read_text().partition("| file | |")[2].partition("\n\n")[0]
    links = [Path(link).with_suffix("").parts for link in re.findall(r"\]\(numgemma/([^)]+)\)", table)]
    links = [link[:-1] if link[-1] == "__init__" else link for link in links]
    assert len(links) > 20
    for before, after in pairwise(links):
        inside = before == after[: len(before)]
        assert inside or not climbs(after, before), f"{before} stands before {after}"


def functions():
    """(file and name, function) of the whole package."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.name}: {node.name}", node


def test_files_and_functions_stay_small():
    for path in FILES:
        assert path.read_text().count("\n") <= 400, path.name
    for where, node in functions():
        assert node.end_lineno - node.lineno <= 60, where


def test_functions_take_at_most_eight_arguments():
    assert not {where for where, node in functions() if parameters(node) > 8}


def parameters(node):
    return len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)


def test_a_class_name_means_one_thing_in_the_whole_package():
    names = [
        node.name for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    assert sorted(names) == sorted(set(names))


def test_every_file_and_every_public_function_of_the_package_says_what_it_is():
    for path in FILES:
        if path.stat().st_size and path.name != "version.py":
            assert ast.get_docstring(ast.parse(path.read_text())), path.name


def fresh(code):
    """Run Python code in a new process; returns what it prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "transformers", "matplotlib", "numba", "PIL", "tokenizers", "av", "soundfile", "yaml")
    code = f"import sys, numgemma; print([m for m in {heavy} if m in sys.modules])"
    assert fresh(code) == "[]"


def modules_of(*words):
    """The names of all modules that a command has imported when it ends."""
    code = f"""
import contextlib, io, sys
from numgemma.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main({list(words)})
print(*sys.modules)
"""
    return set(fresh(code).split())


def test_help_waits_for_nothing_that_it_does_not_need():
    bare = set(fresh("import sys; print(*sys.modules)").split())
    found = modules_of("--help")
    rooms_named = {name for name in found if name.startswith("numgemma")}
    assert rooms_named == {
        f"numgemma{room}"
        for room in ("", ".atomic", ".cli", ".cli.terminal", ".errors", ".extras", ".incoming", ".version")
    }
    assert "numpy" not in found
    assert len(found - bare) < 60


def test_the_bare_name_of_a_config_is_inspected_without_what_reads_prompts_and_draws():
    found = modules_of("inspect", "gemma-4-E2B-it")
    assert sorted(found & {"numba", "matplotlib", "jinja2", "tokenizers", "PIL", "torch", "av", "soundfile"}) == []
    assert not {name for name in found if name.startswith(("numgemma.debug", "numgemma.surgery", "numgemma.plots"))}
    assert {name for name in found if name.startswith("numgemma.cli.")} == {
        f"numgemma.cli.{name}" for name in ("inspect", "numbers", "terminal")
    }


def test_importing_the_package_changes_no_environment_variable():
    assert fresh("import os; a = dict(os.environ); import numgemma; print(a == dict(os.environ))") == "True"


def test_the_project_speaks_of_itself_alone():
    """No machine path in any text file of the package, the tests or the pages."""
    root = PACKAGE.parent
    pages = [*FILES, *root.glob("*.md"), *root.glob("reference_outputs/*.py"), *root.glob("numgemma/data/**/*.json")]
    for path in pages:
        assert not re.search(r"/(work|root|home)/", path.read_text()), path
