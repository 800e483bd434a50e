"""What an installed package holds: every file of it that is not Python stands in setup.cfg's package data."""

import configparser
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
