"""What stack and transplant write beside the weights: a card that can be published, and what parents bring along."""

import re

import pytest
from test_stack import PLAIN, written

from numgemma.cli import main
from numgemma.cli.card import hub_name, license_of, quoted
from numgemma.surgery.recipe import read_recipe
from numgemma.surgery.synth import synth


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    """A child of two seams, of a parent with a license, a card and further templates."""
    folder = tmp_path_factory.mktemp("card")
    parent = folder / "models--google--gemma-4-E4B-it"
    written(parent, PLAIN)
    (parent / "LICENSE").write_text("its terms")
    (parent / "additional_chat_templates").mkdir()
    (parent / "additional_chat_templates" / "tools.jinja").write_text("{{ }}")
    (parent / "README.md").write_text("---\nlicense: apache-2.0\n---\nold")
    assert main(["stack", str(parent), "--slices", "0-3,2-5,4-7", "-o", str(folder / "child")]) == 0
    return folder


def test_license_and_templates_come_along_and_the_parents_card_does_not(stacked):
    child = stacked / "child"
    assert (child / "LICENSE").read_text() == "its terms"
    assert (child / "additional_chat_templates" / "tools.jinja").read_text() == "{{ }}"
    assert "old" not in (child / "README.md").read_text()
    assert (child / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_the_front_matter_is_what_the_hub_reads(stacked):
    yaml = pytest.importorskip("yaml")
    front = yaml.safe_load((stacked / "child" / "README.md").read_text().split("---")[1])
    assert front["base_model"] == ["google/gemma-4-E4B-it"]
    assert front["base_model_relation"] == "merge"
    assert front["license"] == "apache-2.0"
    assert {"merge", "passthrough"} <= set(front["tags"])


def test_the_card_names_the_seams_and_the_command_and_no_folder_of_this_machine(stacked):
    text = (stacked / "child" / "README.md").read_text()
    assert "At slots 4 (layer 2 after layer 3), 8 (layer 4 after layer 5)" in text
    assert "numgemma stack google/gemma-4-E4B-it --slices 0-3,2-5,4-7 -o child" in text
    assert 'r1["slots 4-7: layers 2-5<br>of google/gemma-4-E4B-it"]' in text
    assert 'r1 -- "seam: layer 4 after 5" --> r2' in text
    assert "those of slots 4-5, 8-9 repeat another slot's" in text
    assert str(stacked) not in text
    total = int(re.search(r"\*\*total\*\* \| \*\*([\d,]+)", text)[1].replace(",", ""))
    assert total > 10000


def test_the_recipe_in_the_card_is_one(stacked, tmp_path):
    pytest.importorskip("yaml")
    text = (stacked / "child" / "README.md").read_text()
    (tmp_path / "r.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    assert [(part.first, part.last) for part in read_recipe(tmp_path / "r.yaml").slices] == [(0, 3), (2, 5), (4, 7)]


def test_a_license_that_the_hub_does_not_know_keeps_its_name_and_address(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\nlicense: x\n"
    )
    assert license_of(tmp_path) == ["license: other", "license_name: ours", "license_link: LICENSE"]


def test_a_name_with_quotes_leaves_the_figure_whole():
    assert quoted('a "b" <c> #1') == "a #quot;b#quot; #lt;c> #35;1"


def test_a_card_can_be_left_out(stacked, tmp_path):
    parent = stacked / "models--google--gemma-4-E4B-it"
    assert main(["stack", str(parent), "--slices", "0-7", "-o", str(tmp_path / "m"), "--no-card"]) == 0
    assert not (tmp_path / "m" / "README.md").exists()


def test_the_card_of_a_transplant_says_what_is_new(tmp_path):
    synth("gemma-3-1b-it", target=tmp_path / "text", scale="tiny")
    synth("gemma-4-E2B-it", target=tmp_path / "tower", scale="tiny")
    parents = ["--text", str(tmp_path / "text"), "--tower", str(tmp_path / "tower")]
    assert main(["transplant", *parents, "-o", str(tmp_path / "m")]) == 0
    text = (tmp_path / "m" / "README.md").read_text()
    assert "| vision projection | new | fresh, normal, std 0.02 | 1 | 4,096 |" in text
    assert 'a["text<br>layers 0-17"]' in text
    assert "numgemma transplant --text text --tower tower -o m" in text


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/x/hub/models--google--gemma-4-E4B-it/snapshots/abc", "google/gemma-4-E4B-it"),
        ("someone/their-model", "someone/their-model"),
        ("/home/me/mine", "mine"),
    ],
)
def test_a_parent_is_called_as_on_the_hub_where_that_is_known(path, name):
    assert hub_name(path) == name


def test_a_recipe_may_name_its_parents_from_beside_itself(stacked, tmp_path):
    pytest.importorskip("yaml")
    recipe = stacked / "recipe.yaml"
    model = "models--google--gemma-4-E4B-it"
    recipe.write_text(f"merge_method: passthrough\nslices:\n- sources:\n  - model: {model}\n    layer_range: [0, 8]\n")
    assert read_recipe(recipe).trunk == str(stacked / model)
