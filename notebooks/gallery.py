"""The figures of numgemma.plots on one page, each as an SVG with the line that draws it."""

import base64
import io
import tempfile
from html import escape
from pathlib import Path

# what is shown: the line, in whose names `make` makes what it takes
LINES = {
    "What a layer computes from what": "plots.layer(graph, 2)",
    "Who attends to whom": "plots.attention_map(dump, 2, 4, pieces)",
    "How unexpected each token was": "plots.surprise(dump, pieces)",
    "Which rows point the same way": 'plots.cosine_map(dump, "layers.5.out", pieces)',
    "How the stream grows, and who adds to it": "plots.residual_norms(dump)",
    "Which channels are large": 'plots.channel_norms(dump, ["layers.1.out", "layers.5.out"])',
    "How fast each pair of lanes turns": "plots.rope_frequencies(dump)",
    "Which pairs of lanes decide the scores": "plots.pair_strengths(dump, [0, 2])",
    "How far each token opens the gate of each layer's own input": "plots.gate_strengths(dump, pieces)",
    "How many tokens each expert gets": "plots.routing_histogram(experts, 1)",
    "How a canvas settles": "plots.canvas_map(block)",
    "Where two runs part": 'plots.error_against_depth(dump, {"a port": port})',
    "Which step is at fault, and which inherit": "plots.local_errors(replay(model, port, floor=floor))",
}

MADE = """\
model = numgemma.load("tiny")
story = "Once upon a time, there was a little fox named Lily. Her best friend was a bear named Tom."
ids = model.tokenizer.encode(story)
pieces = model.tokenizer.pieces(ids)
dump = model.record(ids, points=["*"])
graph = graph_of(model.checkpoint.config)
port = model.record(ids, edits={"layers.3.self_attn.k_norm": lambda k: 1.5 * k})
floor = measure_floor(model, ids, "float32")
synth("gemma-4-26B-A4B", folder / "moe", scale="tiny")
synth("diffusiongemma-26B-A4B-it", folder / "canvas", scale="tiny")
steps = denoised(numgemma.load(folder / "canvas"), [3, 4, 5])
block = {"steps": [{"entropy": s.entropy, "best": s.best, "accepted": s.accepted} for s in steps if s.block == 0]}
experts = numgemma.load(folder / "moe").record(list(range(60)), points=["*.router.*"])
"""


def names(folder: Path) -> dict:
    """What the lines need, by name."""
    import numgemma
    from numgemma import plots
    from numgemma.debug.blame.replay import replay
    from numgemma.debug.noise.floor import measure_floor
    from numgemma.denoise import denoised
    from numgemma.graph import graph_of
    from numgemma.surgery.synth import synth

    found = {"numgemma": numgemma, "plots": plots, "replay": replay, "folder": folder}
    found |= {"graph_of": graph_of, "denoised": denoised, "measure_floor": measure_floor, "synth": synth}
    exec(MADE, found)
    return found


def svg(ax) -> str:
    """A figure as an SVG file in base64."""
    from matplotlib import pyplot

    out = io.BytesIO()
    ax.figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(ax.figure)
    return base64.b64encode(out.getvalue()).decode()


def gallery() -> str:
    """The body of the page."""
    with tempfile.TemporaryDirectory() as folder:
        found = names(Path(folder))
        items = [
            f'<h2>{escape(title)}</h2><pre><code>{escape(line)}</code></pre><p><img alt="{escape(title)}" '
            f'src="data:image/svg+xml;base64,{svg(eval(line, found))}"></p>'
            for title, line in LINES.items()
        ]
    intro = "<p>Each is a function that takes a run and returns matplotlib's Axes. They are drawn from these:</p>"
    return f"<h1>The figures</h1>{intro}<pre><code>{escape(MADE)}</code></pre>{''.join(items)}"
