"""The course's figures: what stands in the Axes is what stands in the dump."""

import math
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import tiny
import tiny3n

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from numgemma import InputError, load, plots
from numgemma.cli import main
from numgemma.debug.blame.replay import replay
from numgemma.debug.faults import applied
from numgemma.debug.noise.floor import measure_floor
from numgemma.dump import Dump
from numgemma.plots import figures

TOKENS = 15


@pytest.fixture(scope="module")
def dumps(models):
    """A run of each shape, maps included."""
    raws = tiny.VARIANTS
    return {name: m.record(tiny.prompt(raws[name], TOKENS, seed=3), points=["*"]) for name, m in models.items()}


@pytest.fixture(scope="module")
def dump(dumps):
    return dumps["ple"]


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    pyplot.close("all")


def drawn(ax):
    """Draws it, which is where matplotlib finds out about impossible labels; every axis must have one."""
    assert isinstance(ax, Axes)
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    ax.figure.canvas.draw()
    return ax


def image(ax):
    return np.ma.filled(ax.images[0].get_array(), np.nan)


def heights(ax):
    return [bar.get_height() for bar in ax.patches]


def lines(ax):
    return {line.get_label(): np.array(line.get_ydata(), float) for line in ax.get_lines()}


def texts(ticks):
    return [tick.get_text() for tick in ticks]


def rms(x):
    return math.sqrt(sum(float(v) ** 2 for v in x.ravel()) / x.size)


def test_an_attention_map_shows_the_probs_below_the_diagonal_and_nothing_above(dump):
    ax = drawn(plots.attention_map(dump, 3, 4))
    below = np.tri(TOKENS, dtype=bool)
    np.testing.assert_allclose(image(ax)[below], dump["layers.3.self_attn.probs"][4][below])
    assert np.isnan(image(ax)[~below]).all()
    assert ax.get_title("left") == "sliding attention, layer 3, head 4"
    assert texts(ax.get_yticklabels()) == [str(i) for i in dump.meta["ids"]]


def test_an_attention_map_without_a_head_is_the_mean_of_all(dump):
    ax = drawn(plots.attention_map(dump, 2))
    below = np.tri(TOKENS, dtype=bool)
    np.testing.assert_allclose(image(ax)[below], dump["layers.2.self_attn.probs"].mean(0)[below], rtol=1e-6)
    assert "mean of 6 heads" in ax.get_title("left")


def test_token_texts_label_the_axes_whatever_they_hold(dump):
    tokens = ["<bos>", " a", "\n", "$x", " ", *(["é"] * (TOKENS - 5))]
    ax = drawn(plots.attention_map(dump, 0, 0, tokens))
    assert texts(ax.get_xticklabels())[:5] == ["<bos>", "a", "\\n", r"\$x", "␣"]
    with pytest.raises(InputError, match="2 texts for the 15 tokens"):
        plots.attention_map(dump, 0, 0, ["a", "b"])


def test_many_tokens_are_counted_instead_of_written(models):
    long = models["dense"].record(tiny.prompt(tiny.DENSE, 70), points=["layers.0.self_attn.probs"])
    assert len(drawn(plots.attention_map(long, 0, 0)).get_xticklabels()) < 20


def test_the_surprise_of_a_token_is_minus_the_log_of_its_probability(dump):
    bars = heights(drawn(plots.surprise(dump)))
    ids, logits = dump.meta["ids"], dump["logits"].astype(np.float64)
    assert len(bars) == TOKENS - 1
    for t, height in enumerate(bars):
        total = sum(math.exp(score) for score in logits[t])
        assert height == pytest.approx(math.log(total) - logits[t, ids[t + 1]])


def test_the_cosine_map_compares_every_row_with_every_row(dump):
    shown, x = image(drawn(plots.cosine_map(dump, "layers.1.out"))), dump["layers.1.out"].astype(np.float64)
    for a, b in ((0, 0), (2, 9), (9, 2), (14, 5)):
        assert shown[a, b] == pytest.approx((x[a] @ x[b]) / math.sqrt((x[a] @ x[a]) * (x[b] @ x[b])))


def test_residual_norms_are_those_of_the_stream_and_of_what_each_branch_adds(dump):
    found = lines(drawn(plots.residual_norms(dump)))
    names = ["embed_tokens", *(f"layers.{i}.out" for i in range(8))]
    np.testing.assert_allclose(found["the stream x, after the layer"], [rms(dump[name]) for name in names])
    for label, name in (("attention", "post_attention"), ("the per-layer input", "post_per_layer_input")):
        suffix = "_layernorm" if label == "attention" else "_norm"
        expected = [rms(dump[f"layers.{i}.{name}{suffix}"]) for i in range(8)]
        np.testing.assert_allclose(found[f"added by {label}"], expected)


def test_residual_norms_of_a_model_without_per_layer_inputs_lack_their_line(dumps):
    assert set(lines(plots.residual_norms(dumps["dense"]))) == {
        "the stream x, after the layer",
        "added by attention",
        "added by the feed-forward",
    }


def test_the_largest_channel_is_named(dump):
    ax = drawn(plots.channel_norms(dump, ["layers.4.out"]))
    sizes = [rms(dump["layers.4.out"][:, d]) for d in range(48)]
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), sizes)
    assert ax.get_lines()[0].get_label().endswith(f"largest {max(sizes):.1f} in channel {sizes.index(max(sizes))}")


def test_a_turn_takes_two_pi_over_the_frequency_and_the_rest_never_turn(dump):
    found = lines(drawn(plots.rope_frequencies(dump)))
    np.testing.assert_allclose(
        found["sliding attention"], [2 * math.pi * 10000 ** (2 * i / 16) for i in range(8)], rtol=1e-5
    )
    np.testing.assert_allclose(
        found["full attention"], [2 * math.pi * 1e6 ** (2 * i / 32) for i in range(4)], rtol=1e-5
    )
    assert len(found["full attention: never turns"]) == 12
    assert found["full attention: never turns"].min() > found["sliding attention"].max()


def test_one_token_shows_no_turn(models):
    with pytest.raises(InputError, match="two tokens or more"):
        plots.rope_frequencies(models["ple"].record([5]))


def test_a_pair_is_as_strong_as_its_part_of_the_scores_varies(dump):
    found = lines(drawn(plots.pair_strengths(dump, [2])))["layer 2, full attention"]
    q, k = (dump[f"layers.2.self_attn.{x}_rope"].astype(np.float64) for x in "qk")
    H = q.shape[2]
    for i in (0, 3, 15):
        squares = []
        for n in range(6):
            for t in range(TOKENS):
                part = [sum(q[t, n, j] * k[s, n // 2, j] for j in (i, i + H // 2)) for s in range(t + 1)]
                squares += [(score - sum(part) / len(part)) ** 2 for score in part]
        assert found[i] == pytest.approx(math.sqrt(sum(squares) / len(squares)))


def test_a_gate_is_as_strong_as_its_gelu(dump):
    shown = image(drawn(plots.gate_strengths(dump)))
    assert shown.shape == (8, TOKENS)
    gate = dump["layers.5.per_layer_input_gate"][7].astype(np.float64)
    opened = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    assert shown[5, 7] == pytest.approx(rms(opened), rel=1e-5)


def test_the_routing_histogram_counts_each_token_once_for_each_expert_it_chose(dumps):
    dump = dumps["moe"]
    found = heights(drawn(plots.routing_histogram(dump, 1)))
    ids = dump["layers.1.router.ids"]
    assert found == [sum(e in row for row in ids.tolist()) for e in range(7)]
    assert sum(found) == 3 * TOKENS


def test_local_errors_mark_the_steps_that_are_at_fault_and_no_others(models):
    """A value norm left out: one fault a layer; what inherits lies high on the line and low as a dot."""
    model = models["ple"]
    ids = tiny.prompt(tiny.VARIANTS["ple"], TOKENS, seed=3)
    with applied(model, "T03", layers=[1]):
        dump = model.record(ids)
    found = replay(model, dump, floor=measure_floor(model, ids, "float32", runs=3))
    ax = drawn(plots.local_errors(found))
    shown = {line.get_label(): line for line in ax.get_lines()}
    wrong = shown["the step alone: at fault"]
    steps = [step for step in found.points if step.xfloor is not None]
    assert [steps[int(i)].name for i in wrong.get_xdata()] == ["layers.1.self_attn.v_norm"]
    np.testing.assert_allclose(wrong.get_ydata(), [s.xfloor for s in steps if s.state == "FAULT"])
    last = steps[-1]
    assert last.state == "INHERITED"
    assert shown["the step alone"].get_ydata()[-1] == pytest.approx(max(last.xfloor, 1e-2))
    assert shown["the tensor, with what it inherited"].get_ydata()[-1] == pytest.approx(last.global_xfloor)


def test_error_against_depth_is_relative_to_the_truth(models, dump):
    ids, model = dump.meta["ids"], models["ple"]
    rough = load(model.checkpoint.folder, "bfloat16").record(ids)
    found = lines(drawn(plots.error_against_depth(dump, {"bfloat16": rough, "itself": dump})))
    a, b = dump["layers.6.out"].astype(np.float64), rough["layers.6.out"].astype(np.float64)
    assert found["bfloat16"][7] == pytest.approx(rms(a - b) / rms(a), rel=1e-4)
    assert not found["itself"].any()


EVERY = {
    "attention_map": lambda dump, ax: plots.attention_map(dump, 1, ax=ax),
    "surprise": lambda dump, ax: plots.surprise(dump, ax=ax),
    "cosine_map": lambda dump, ax: plots.cosine_map(dump, "norm", ax=ax),
    "residual_norms": lambda dump, ax: plots.residual_norms(dump, ax=ax),
    "channel_norms": lambda dump, ax: plots.channel_norms(dump, ["norm"], ax=ax),
    "rope_frequencies": lambda dump, ax: plots.rope_frequencies(dump, ax=ax),
    "pair_strengths": lambda dump, ax: plots.pair_strengths(dump, [1], ax=ax),
    "gate_strengths": lambda dump, ax: plots.gate_strengths(dump, ax=ax),
    "error_against_depth": lambda dump, ax: plots.error_against_depth(dump, {"itself": dump}, ax=ax),
}


@pytest.mark.parametrize("name", EVERY)
def test_it_draws_into_the_axes_that_it_is_given(name, dump):
    ax = pyplot.subplots()[1]
    assert EVERY[name](dump, ax) is ax
    assert len(pyplot.get_fignums()) == 1
    drawn(ax)


@pytest.mark.parametrize("name", EVERY)
def test_it_says_what_a_dump_lacks(name, dump):
    with pytest.raises(InputError, match="dump"):
        EVERY[name](Dump(dump.meta), None)
    assert not pyplot.get_fignums()


def test_a_head_that_is_not_there_is_refused(dump):
    with pytest.raises(InputError, match="Head 6 is not one of the 6 heads"):
        plots.attention_map(dump, 1, 6)
    with pytest.raises(InputError, match="Head -1"):
        plots.attention_map(dump, 1, -1)


def test_a_dump_without_ids_is_refused_where_they_are_needed(dump):
    nameless = Dump({key: value for key, value in dump.meta.items() if key != "ids"}, dump.arrays, dump.axes)
    with pytest.raises(InputError, match="which token ids"):
        plots.surprise(nameless)


def test_importing_the_plots_does_not_import_matplotlib():
    code = "import sys, numgemma.plots; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# on the command line


@pytest.fixture(scope="module")
def file(dump, tmp_path_factory):
    path = tmp_path_factory.mktemp("dumps") / "all.safetensors"
    dump.save(path)
    return path


@pytest.mark.parametrize("what", ["attention", "surprise", "residual", "rope", "gates"])
def test_show_draws_a_run(what, file, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert main(["show", str(file), "--what", what, "-o", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{out}: drawn\n"
    assert not pyplot.get_fignums()


def test_show_draws_the_layer_and_the_head_that_are_asked_for(file, tmp_path, monkeypatch):
    asked = []
    usual = plots.attention_map
    monkeypatch.setattr(plots, "attention_map", lambda *given: asked.append(given[1:3]) or usual(*given))
    for options in ([], ["--layer", "3", "--head", "2"]):
        assert main(["show", str(file), "--what", "attention", *options, "-o", str(tmp_path / "out.png")]) == 0
    assert asked == [(7, None), (3, 2)]  # 7 is the last full-attention layer


def test_show_writes_tokens_as_text_where_the_checkpoint_is_named(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(figures, "name_ticks", lambda axis, given, **style: labels.append(given))
    model = load("tiny")
    model.record(model.tokenizer.encode("Once upon a time"), points=["*"]).save(tmp_path / "a.safetensors")
    command = ["show", str(tmp_path / "a.safetensors"), "--what", "surprise", "-o", str(tmp_path / "out.png")]
    assert main([*command, "--ckpt", "tiny"]) == 0
    assert main(command) == 0
    assert labels == [["<bos>", "Once", "upon", "a", "time"], ["0", "640", "639", "261", "547"]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--what", "rope", "--head", "1"], "--head is no option of --what rope"),
        (["--what", "attention", "--token", "1"], "--token is no option of --what attention"),
        (["--what", "attention", "--layer", "9"], "layers.9.self_attn.probs"),
        (["--what", "routing"], "layers.7.router.ids"),
    ],
)
def test_show_refuses_in_a_sentence_and_writes_nothing(options, says, file, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert main(["show", str(file), *options, "-o", str(out)]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert not pyplot.get_fignums()


def test_the_figures_of_a_gemma_3n_show_all_of_its_streams(tmp_path):
    dump = load(tiny3n.write(tmp_path / "m", tiny3n.TEXT)).record(tiny3n.prompt(TOKENS), ["*"])
    stream = plots.residual_norms(dump).lines[0].get_ydata()
    each = [np.sqrt(np.mean(dump[f"layers.{i}.out"].astype(float) ** 2)) for i in range(8)]
    assert dump["layers.0.out"].shape == (4, TOKENS, 48)
    np.testing.assert_allclose(stream[1:], each, rtol=1e-6)
    for figure in (plots.gate_strengths, plots.surprise, plots.rope_frequencies):
        assert isinstance(figure(dump), Axes)
    assert isinstance(plots.attention_map(dump, 7), Axes)
