"""The figure of a layer: every point has its box, every arrow of the graph is drawn, and no box lies on another."""

import re
from itertools import combinations

import matplotlib
import pytest

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

from numgemma import InputError, anatomy, plots
from numgemma.cli import main
from numgemma.cli.show import graph_told
from numgemma.graph import layers_in, shallow_graphs


def kinds():
    """Of all layers of all official models those that differ in their points or in their arrows."""
    found = {}
    for graph in shallow_graphs():
        for i in range(layers_in(graph.points)):
            points = anatomy.own_points(graph, i)
            arrows = tuple((q, *(p for p in graph.parents(q) if p in points)) for q in points)
            found.setdefault(str(arrows).replace(f"layers.{i}.", ""), (graph, i))
    return list(found.values())


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    pyplot.close("all")


def names(ax):
    """What is written in the boxes and below them."""
    return [text.get_text() for text in ax.texts if text.get_text()]


@pytest.mark.parametrize(("graph", "i"), kinds())
def test_every_point_of_a_layer_has_a_box_and_every_arrow_of_the_graph_is_drawn(graph, i):
    ax = plots.layer(graph, i)
    points = anatomy.own_points(graph, i)
    before = anatomy.entry(graph, points)
    boxes = [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) == len(points) + 1
    assert {re.sub(rf".*layers\.{i}\.", "", p) for p in points} < set(names(ax))
    arrows = sum(p in (before, *points) for q in points for p in graph.parents(q))
    assert len(ax.lines) == arrows
    no_box_lies_on_another_and_all_lie_inside(ax, [box.get_bbox() for box in boxes])


def no_box_lies_on_another_and_all_lie_inside(ax, places):
    for a, b in combinations(places, 2):
        assert not (min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0))
    low, high = ax.get_xlim()
    assert all(low < place.x0 < place.x1 < high for place in places)


@pytest.fixture(scope="module")
def e2b():
    return graph_told("gemma-4-E2B")


def test_the_stream_is_what_nothing_goes_around(e2b):
    points = anatomy.own_points(e2b, 0)
    found = [p for p in points if anatomy.on_every_path(e2b, p, points, "embed_tokens")]
    assert found == ["layers.0.after_attention", "layers.0.after_mlp", "layers.0.out"]


def test_what_comes_from_outside_is_named(e2b):
    ax = plots.layer(e2b, 34)
    outside = {"layers.14.k_rope", "layers.14.v_norm", "full rope", "per_layer_inputs"}
    assert {f"with {name}" for name in outside} <= set(names(ax))


def test_a_layer_that_is_not_there_is_one_sentence(e2b):
    with pytest.raises(InputError, match="Layer 35 is not one of the 35"):
        plots.layer(e2b, 35)


@pytest.mark.parametrize(
    "source", ["tiny", "gemma-4-26B-A4B-it", "google/gemma-3n-E2B-it", "diffusiongemma-26B-A4B-it"]
)
def test_show_draws_it_of_a_checkpoint_or_an_official_name(source, tmp_path):
    assert main(["show", source, "--what", "layer", "--layer", "2", "-o", str(tmp_path / "layer.svg")]) == 0
    assert (tmp_path / "layer.svg").read_text().startswith("<?xml")
    assert main(["show", source, "--what", "layer", "-o", str(tmp_path / "layer.png")]) == 0
    assert (tmp_path / "layer.png").read_bytes().startswith(b"\x89PNG")
