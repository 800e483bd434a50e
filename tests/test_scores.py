"""The README says of the debugger what the measurements in benchmarks/ say."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = " ".join((ROOT / "README.md").read_text().split())


def test_the_readme_has_the_numbers_of_the_mutation_score():
    page = (ROOT / "benchmarks" / "mutation_score.md").read_text()
    above, of_3n = re.findall(r"(\d+) have an effect above the noise", page)
    localised, localised_of_3n = re.findall(r"localised to the right layer and module: (\d+) of", page)
    named, named_of_3n = re.findall(r"named first by `whatif`: (\d+) of", page)
    says = f"{above} cases above the noise, {localised} localised to the right layer and module, {named} named first"
    assert says in README
    assert of_3n == localised_of_3n == named_of_3n
    assert f"and so are the {of_3n} of Gemma 3n's own faults" in README


def test_the_readme_has_the_numbers_of_the_calibration():
    total = json.loads((ROOT / "benchmarks" / "calibration.json").read_text())["clean, all"]
    points, suspects = sum(total["states"].values()), total["states"]["SUSPECT"]
    assert f"Over {total['pairs']} clean pairs of runs, {points:,} points, no fault was reported" in README
    touched = total["pairs with a SUSPECT or FAULT"]
    assert f"{suspects} points ({100 * suspects / points:.2g} %) of {touched} pairs are SUSPECT" in README
