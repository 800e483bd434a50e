"""The README says of the debugger and of lineage what the measurements in benchmarks/ say."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = " ".join((ROOT / "README.md").read_text().split())


COUNTS = (
    r"(\d+) have an effect above the noise",
    r"localised to the right layer and module: (\d+) of",
    r"named first by `whatif`: (\d+) of",
)


def test_the_readme_has_the_numbers_of_the_mutation_score():
    first, *others = re.split("^## ", (ROOT / "benchmarks" / "mutation_score.md").read_text(), flags=re.M)
    above, localised, named = (re.search(count, first)[1] for count in COUNTS)
    assert f"(benchmarks/mutation_score.md) | {above} | {localised} | {named} |" in README
    assert others
    for table in others:
        above, localised, named = (re.search(count, table)[1] for count in COUNTS)
        assert f"| {table.splitlines()[0]} | {above} | {localised} | {named} |" in README


def test_the_readme_has_the_numbers_of_the_calibration():
    total = json.loads((ROOT / "benchmarks" / "calibration.json").read_text())["clean, all"]
    points, suspects = sum(total["states"].values()), total["states"]["SUSPECT"]
    assert f"over {total['pairs']} clean pairs, {points:,} points, no fault was reported" in README
    touched = total["pairs with a SUSPECT or FAULT"]
    assert f"{suspects} points ({100 * suspects / points:.2g} %) of {touched} pairs were SUSPECT" in README


# Of the table of today's speeds: how a row begins, the checkpoint in benchmarks/speed.md, what was measured of which
SPEEDS = [
    ("E2B, decode:", "e2b", "decode", "numba-f32"),
    ("E2B, prompt of 512:", "e2b", "prefill-512-gen", "numba-f32"),
    ("the same, every layer for every token", "e2b", "prefill-512-all", "numba-f32"),
    ("E2B in bfloat16, prompt of 512", "e2b", "prefill-512-gen", "numba-bf16"),
    ("in bfloat16, every layer for every token", "e2b", "prefill-512-all", "numba-bf16"),
    ("a small Gemma 4, decode", "medium", "decode", "numba-f32"),
    ("a small Gemma 4, prompt of 512, every layer", "medium", "prefill-512-all", "numba-f32"),
    ("a small mixture of experts, decode", "moe", "decode", "numba-f32"),
]
PEERS = ("hf-f32", "hf-bf16", "llama-bf16")


def test_the_readme_has_the_speeds_of_the_page_of_speed():
    readme = (ROOT / "README.md").read_text().partition("Today's code")[2]
    today = (ROOT / "benchmarks" / "speed.md").read_text().partition("\n## Older code")[0]
    tables = dict(part.split("\n", 1) for part in today.split("\n### ")[1:])
    for begins, model, what, ours in SPEEDS:
        row = next(line for line in readme.splitlines() if line.startswith(f"| {begins}"))
        ratios = {peer: cell.strip() for peer, cell in zip(PEERS, row.split("|")[2:5], strict=True) if cell.strip()}
        assert ratios
        for peer, ratio in ratios.items():
            (measured,) = re.findall(rf"\| {ours} \| {what} \| {peer} \| ([\d.]+) \|", tables[model])
            assert rounded_to(ratio, measured) == ratio, row
        for told in re.findall(r": ([\d.]+) tokens a second", row):
            (measured,) = re.findall(rf"\| {what} \| tokens/s \| ([\d.]+) \|", tables[model])
            assert rounded_to(told, measured) == told, row


def rounded_to(like, number):
    """A number with as many places behind the point as another has."""
    return f"{float(number):.{len(like.partition('.')[2])}f}"


def test_the_readme_has_the_numbers_of_the_score_of_lineage():
    page = (ROOT / "benchmarks" / "lineage_score.md").read_text()
    children, recipes, share = re.search(
        r"(\d+) children of (\d+) recipes; recovered: \d+ \(([\d.]+)%\)", page
    ).groups()
    assert f"Of {children} tiny merges by {recipes} recipes it tells {share} %" in README
    wrong = int(re.search(r"confident wrong answers: (\d+) tensors", page)[1])
    assert (f"and {wrong} tensors wrong with confidence" if wrong else "and none wrong with confidence") in README
    assert float(re.search(r"of a weight or an angle: ([\d.]+)", page)[1]) <= 0.01
    assert "weights to within 0.01" in README


def test_the_readme_has_the_numbers_of_the_faults_of_some_tokens():
    page = (ROOT / "benchmarks" / "span_score.md").read_text()
    counts = r"(\d+) cases; localised: (\d+), named: \d+, span right: (\d+)"
    total, localised, right = re.search(counts, page).groups()
    assert f" | {total} | {localised} | {right}, with their span |" in README
    assert int(total) >= 60
    assert int(localised) == int(total)
    assert int(right) >= 0.95 * int(total)
    for kind in ("cached steps", "middle chunk", "one layer", "one picture"):
        assert f"| {kind} |" in page
