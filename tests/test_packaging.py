"""What an installed package holds: every file of it that is not Python stands in setup.cfg's package data."""

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
