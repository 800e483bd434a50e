"""Rules of the house that a machine can hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numgemma

PACKAGE = Path(numgemma.__file__).parent
FILES = sorted(p for p in PACKAGE.rglob("*.py"))


def reading_order():
    """The modules in the order of the package's docstring; what all may import comes first."""
    listed = [line.split()[0] for line in numgemma.__doc__.splitlines() if line.startswith("    ")]
    return ["errors", "version", "data", *listed]


def imported(path):
    """Rooms of the package that a file imports from: modules at the top, or debug, cli, ..."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "numgemma":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def test_imports_only_go_down_the_reading_order():
    order = reading_order()
    for path in FILES:
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        assert room in order, f"{room} is not in the reading order of numgemma/__init__.py"
        for other in imported(path):
            if other not in ("load", "read_dump", "diff"):
                assert order.index(other) <= order.index(room), f"{path.name} imports {other}, which comes later"


def test_files_and_functions_stay_small():
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 400, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 60, f"{path.name}: {node.name}"


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


def test_importing_the_package_changes_no_environment_variable():
    assert fresh("import os; a = dict(os.environ); import numgemma; print(a == dict(os.environ))") == "True"


def test_the_project_speaks_of_itself_alone():
    """No machine path in any text file of the package, the tests or the pages."""
    root = PACKAGE.parent
    pages = [*FILES, *root.glob("*.md"), *root.glob("reference_outputs/*.py"), *root.glob("numgemma/data/**/*.json")]
    for path in pages:
        assert not re.search(r"/(work|root|home)/", path.read_text()), path
