"""Packages that only some need: one sentence where one is missing, and what draws is imported whole."""

import subprocess
import sys

import pytest

from numgemma.errors import InputError
from numgemma.extras import package

SCRIPT = """
import signal, sys
from numgemma import extras

def stop(number, frame):
    print("stopped", "matplotlib.backends.backend_agg" in sys.modules)
    raise SystemExit(3)

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib.ft2font":
            signal.raise_signal(signal.SIGTERM)

signal.signal(signal.SIGTERM, stop)
sys.meta_path.insert(0, Sender())
extras.drawing()
print("went on")
"""


def test_a_signal_waits_until_what_draws_is_imported():
    pytest.importorskip("matplotlib")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (3, ["stopped", "True"], "")


def test_a_missing_package_is_one_sentence_with_the_line_that_installs_it():
    with pytest.raises(InputError, match=r"nosuchpackage is needed here .* `pip install 'numgemma\[fast\]'`"):
        package("nosuchpackage", "fast")
