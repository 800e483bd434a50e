"""What an installed package holds: every file of it that is not Python stands in setup.cfg's package data."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import numgemma

PACKAGE = Path(numgemma.__file__).parent
MADE = (".pyc", ".nbi", ".nbc")  # by Python and numba, not by us


def test_every_file_that_the_package_reads_is_installed_with_it():
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    installed = set()
    for package, globs in setup["options.package_data"].items():
        for glob in (word.strip() for word in globs.replace("\n", ",").split(",") if word.strip()):
            found = set(PACKAGE.parent.joinpath(*package.split(".")).glob(glob))
            assert found, f"{package}: {glob} is nothing"
            installed |= found
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", *MADE)}
    assert files == installed


def test_the_package_alone_far_from_its_clone_runs_the_demo(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "site" / "numgemma", ignore=shutil.ignore_patterns("__pycache__"))
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "numgemma").mkdir(parents=True)  # a folder of that name, as where a clone lies
    code = "import numgemma; from numgemma.cli import main; print(numgemma.__file__); raise SystemExit(main(['demo']))"
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(tmp_path / "site"))
    assert "DIFFERS first at layers.3.self_attn.k_norm" in run.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel that pip builds of this tree, installed alone into a folder; beside it lies a clone named numgemma."""
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("needs setuptools 77, which the extra `test` brings")
    base = tmp_path_factory.mktemp("wheel")
    clone = base / "around" / "numgemma"
    shutil.copytree(PACKAGE, clone / "numgemma", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PACKAGE.parent / name, clone)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", str(clone), "--no-deps", "--no-build-isolation", "-w", str(base)]
    subprocess.run(build, check=True, cwd=base)
    (wheel,) = base.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(base / "site"), str(wheel)], check=True, cwd=base)
    return base, wheel


def run_installed(base, *words):
    """The command, from the folder that holds the clone."""
    return subprocess.run(
        [sys.executable, "-m", "numgemma", *words],
        cwd=base / "around",
        env=os.environ | {"PYTHONPATH": str(base / "site")},
        capture_output=True,
        text=True,
    )


def test_the_wheel_runs_from_a_folder_that_holds_a_clone_named_numgemma(installed):
    base, _ = installed
    for words in (["--version"], ["inspect", "gemma-4-E4B-it"], ["demo"]):
        run = run_installed(base, *words)
        assert run.returncode == 0, run.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import numgemma; print(numgemma.__file__)"],
        cwd=base / "around",
        env=os.environ | {"PYTHONPATH": str(base / "site")},
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(base / "site"))


def test_the_wheel_holds_all_data_and_its_metadata_say_what_it_is(installed):
    _, wheel = installed
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    files = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    assert {name for name in files if not name.endswith(MADE) and "__pycache__" not in name} <= names
    assert "Classifier: Typing :: Typed" in about
    for extra in ("fast", "hf", "media", "merge", "weights", "sweep", "complete", "notebooks"):
        assert f"Provides-Extra: {extra}" in about
    assert f"Version: {numgemma.__version__}" in about
