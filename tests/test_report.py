"""The report: one page that is complete in itself, and what a browser makes of it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import tiny

from numgemma import load
from numgemma.cli import main
from numgemma.debug.blame.replay import Replay, Step
from numgemma.debug.compare.diff import diff, render
from numgemma.debug.compare.result import FAULT, INHERITED, NOISE, PointDiff
from numgemma.debug.measure.logits import Flip
from numgemma.debug.noise.floor import measure_floor
from numgemma.debug.report import Subject, chart, svg, to_html, write_html, write_png
from numgemma.debug.report.equations import equation, source
from numgemma.debug.report.layer import layer
from numgemma.dump import Dump, new_meta
from numgemma.errors import InputError
from numgemma.graph import graph_of_dumps

BAD = "layers.3.self_attn.k_norm"
EVIL = "<script>alert('x')</script>\"&"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny.write(tmp_path_factory.mktemp("report") / "ple", tiny.PLE))


@pytest.fixture(scope="module")
def subject(model):
    """A run in which one norm's weight is larger by half, against one in which it is right."""
    ids = tiny.prompt(tiny.PLE, 11)
    a = model.record(ids, text=f"the text {EVIL}")
    b = model.record(ids, edits={BAD: lambda x: (x * 1.5).astype(x.dtype)})
    steps = tuple(
        Step(name=p.name, state=FAULT if p.name == BAD else NOISE, rel=p.rel, floor={"rel": 1e-6}, global_rel=0.1)
        for p in diff(a, b).points
    )
    replay = Replay(verdict="first local fault: there", first=BAD, points=steps, precision="float32")
    words = [f"w{i}" for i in range(10)] + [EVIL]
    return Subject(diff(a, b), a, b, replay, words, ("a.safetensors", f"it's {EVIL}"), f"title {EVIL}")


@pytest.fixture(scope="module")
def page(subject):
    return to_html(subject)


VOID = ("meta", "link", "br", "input", "img")


class Elements(HTMLParser):
    """The tags of a page with their attributes, whether all are closed, and the text in each section."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.ids, self.sections = [], [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "section":
            self.sections[attrs["id"]] = ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.sections:
            self.sections[list(self.sections)[-1]] += data


def test_the_page_has_every_section_and_all_its_tags_are_closed(page):
    found = Elements(page)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    wanted = ["compared", "depth", "layer", "heat", "local", "hints", "cards", "table", "logits", "glossary"]
    assert [name for name in wanted if name in found.sections] == list(found.sections)
    assert set(wanted) - {"hints"} <= set(found.sections)


def test_every_link_of_the_page_leads_somewhere_in_it(page):
    found = Elements(page)
    links = [attrs["href"] for tag, attrs in found.tags if tag == "a"]
    assert len(links) > 20
    assert {link.removeprefix("#") for link in links} <= set(found.ids)


def test_the_page_names_nothing_to_fetch(page):
    for tag, attrs in Elements(page).tags:
        assert "src" not in attrs, tag
        assert attrs.get("href", "#").startswith(("#", "data:")), attrs
        assert not any(name.startswith("on") for name in attrs), attrs
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", page)


def test_text_from_outside_stays_text(page, subject):
    assert EVIL not in page
    assert page.count("<script>") == 1
    assert escape(f"title {EVIL}") in page
    name = f"layers.0.{EVIL}"
    point = PointDiff(name=name, state="DIFFERS", rel=1.0, reason=EVIL)
    odd = replace(subject.diff, points=[point], first=name, warnings=[EVIL], engines=(EVIL, EVIL), hints=[])
    text = to_html(Subject(odd, Dump({"engine": {"name": EVIL}}), Dump({"text": EVIL})))
    assert EVIL not in text
    assert Elements(text).open == []


def test_the_card_of_the_bad_point_has_all_that_helps(page, subject):
    card = page[page.index(f'<details id="card-{BAD}"') :]
    card = card[: card.index("</details>")]
    assert "<svg" in card
    assert escape(equation(BAD)) in card
    assert "numgemma/layers/attention.py, line" in card
    assert f"--points {BAD}" in unescape(card)
    rows = re.findall(r"<td class='left'>\[([\d, ]+)\][^<]*</td><td>([^<]+)</td><td>([^<]+)</td>", card)
    assert len(rows) == chart.WORST
    for at, a, b in rows:
        place = tuple(map(int, at.split(",")))
        assert float(a) == pytest.approx(subject.a[BAD][place], rel=1e-5)
        assert float(b) == pytest.approx(1.5 * float(a), rel=1e-4)


def hooked(model, **edits):
    """What hooks on modules record, of which some made a mistake."""
    ids = tiny.prompt(tiny.PLE, 11)
    return model.record(
        ids, ["*", "!*attn.scores", "!*attn.probs", "!*attn.?_rope", "!*attn.context", "!rotary*"], **edits
    )


def test_a_card_names_no_single_equation_where_the_points_before_were_not_recorded(model):
    a = hooked(model)
    b = hooked(model, edits={"layers.0.self_attn.o_proj": lambda x: x * np.float32(1.5)})
    page = unescape(to_html(Subject(diff(a, b), a, b)))
    card = page[page.index('<details id="card-layers.0.self_attn.o_proj"') :]
    card = card[: card.index("</details>")]
    assert "Somewhere in" in card
    assert "layers.0.self_attn.{q_norm, k_norm, v_norm -> o_proj}" in card
    assert "scores, probs, context: not recorded" in card
    assert re.search(r"numgemma/layers/attention\.py, lines \d+ to \d+", card)
    assert card.count('class="here"') == 3, "one call makes scores, probs and context"


def test_the_page_says_when_by_what_and_by_which_command_it_was_made(subject):
    made = replace(
        subject, command=f"numgemma diff a {EVIL}", says="It is wrong.\nCause: T01: nothing.", cause="T01: nothing."
    )
    page = to_html(made)
    head = page.partition("</header>")[0]
    assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d, numgemma \d", head)
    assert escape(f"numgemma diff a {EVIL}") in head
    assert "<p><b>Cause:</b> T01: nothing.</p>" in head
    assert page.count("T01: nothing.") == 2, "at the top, and on the card of the point that shows it"


def test_ids_are_shown_as_texts_where_they_are_known(subject):
    flips = [Flip(token=2, a=7, b=9, margin=0.1)]
    logits = [replace(subject.diff.logits[0], flips=flips)]
    page = unescape(to_html(replace(subject, diff=replace(subject.diff, logits=logits), spelled={7: " seven"})))
    assert "2 'w2'</td><td>7 ' seven'</td><td>9</td>" in page
    assert "] 'w" in page, "the places of the largest differences have the text of their token"


def test_a_page_of_inherited_points_says_that_replay_may_find_more(model):
    a, b = model.record([5, 9, 17]), model.record([5, 9, 17], edits={BAD: lambda x: x * np.float32(1.5)})
    found = diff(a, b, floor=measure_floor(model, [5, 9, 17], "float32", 3))
    assert "`numgemma replay` may find more" in to_html(Subject(found, a, b)).partition("</header>")[0]
    assert "`numgemma replay` may find more" in render(found, width=1000)
    assert "may find more" not in render(diff(a, b), width=1000), "without a floor nothing is called inherited"


def test_the_command_of_a_card_survives_a_shell(page):
    command = unescape(re.search(r"<pre tabindex='0'>(numgemma replay .*?)</pre>", page)[1])
    out = subprocess.run(
        ["sh", "-c", command.replace("numgemma replay", "printf '%s\\n'")], capture_output=True, text=True
    )
    assert out.stdout.splitlines()[:2] == ["a.safetensors", f"it's {EVIL}"]


def test_what_is_missing_is_absent(subject):
    assert set(Elements(to_html(Subject())).sections) == {"glossary"}
    alone = Elements(to_html(Subject(replace(subject.diff, logits=[], hints=[]))))
    assert set(alone.sections) == {"compared", "depth", "cards", "table", "glossary"}
    of_replay = Elements(to_html(Subject(replay=subject.replay)))
    assert set(of_replay.sections) == {"depth", "local", "cards", "table", "glossary"}
    same = Elements(to_html(Subject(diff(subject.a, subject.a), subject.a, subject.a)))
    assert "cards" not in same.sections


def drawn(text):
    """The boxes of the layer's picture: point -> kind, and all that is written there."""
    picture = text[text.index('<section id="layer"') :].partition("</section>")[0]
    boxes = re.findall(r'<g class="cell ([a-z-]+)"><title>([^<]+)</title>(.*?</text>)</g>', picture)
    return {unescape(point): (kind, unescape(re.sub("<[^>]+>", " ", inside))) for kind, point, inside in boxes}


def test_the_layer_where_it_first_goes_wrong_is_drawn_with_what_was_found_at_each_point(page, subject):
    boxes = drawn(page)
    in_it = {p for p in subject.graph.points if p.startswith("layers.3.")}
    assert set(boxes) == in_it | {"layers.2.out"}
    states = {p.name: p.state for p in subject.diff.points}
    for point, (kind, text) in boxes.items():
        passed_on = states.get(point) == "DIFFERS" and point != BAD  # replay has found that step right
        state = FAULT if point == BAD else INHERITED if passed_on else states.get(point, "not recorded")
        assert kind == (chart.class_of(state) if point in states else chart.BLANK), point
        assert state in text
        assert point.removeprefix("layers.3.") in text
    kinds = [kind for kind, _ in boxes.values()]
    assert kinds.count(chart.WRONG) == 1
    assert {chart.FINE, chart.PASSED_ON} < set(kinds)
    assert "Layer 3, where it first goes wrong" in page
    picture = page[page.index('<section id="layer"') :].partition("</section>")[0]
    assert picture.count('class="wire') == sum(p in boxes for q in in_it for p in subject.graph.parents(q))
    assert f'<a href="#card-{BAD}"><g class="cell wrong">' in picture


def test_a_step_that_replay_finds_wrong_stands_out_from_what_is_inherited_and_a_point_without_record_says_so(subject):
    later = "layers.3.mlp.down_proj"
    steps = tuple(replace(s, state=FAULT) if s.name == later else s for s in subject.replay.points)
    points = [replace(p, state=INHERITED) if p.name == later else p for p in subject.diff.points]
    points = [p for p in points if p.name != "layers.3.mlp.up_proj"]
    replay = replace(subject.replay, points=tuple(s for s in steps if s.name != "layers.3.mlp.up_proj"))
    boxes = drawn(to_html(replace(subject, diff=replace(subject.diff, points=points), replay=replay)))
    assert boxes[later][0] == chart.WRONG
    assert boxes["layers.3.mlp.up_proj"][0] == chart.BLANK
    assert "not recorded" in boxes["layers.3.mlp.up_proj"][1]


@pytest.mark.parametrize("first", ["embed_tokens", "logits", "layers.3.of_nobody", None])
def test_no_layer_is_drawn_where_the_first_point_is_in_none(subject, first):
    assert layer(replace(subject, diff=replace(subject.diff, first=first), replay=None)) is None
    assert layer(subject) is not None


def test_dumps_that_cannot_be_compared_still_have_a_page(subject):
    other = Dump(subject.b.meta | {"ids": [3, 4]}, subject.b.arrays, subject.b.axes)
    text = to_html(Subject(diff(subject.a, other), subject.a, other))
    assert "NOT COMPARABLE" in text


def test_points_without_numbers_and_values_that_are_not_finite_are_drawn(subject):
    arrays = {name: np.array(x) for name, x in subject.b.arrays.items()}
    arrays["layers.1.out"][2, 3] = np.nan
    arrays["layers.2.out"] = arrays["layers.2.out"][:, :-1]
    arrays["layers.3.out"][:] = np.inf
    other = Dump(subject.b.meta, arrays, subject.b.axes)
    text = to_html(Subject(diff(subject.a, other), subject.a, other))
    assert Elements(text).open == []
    assert not re.search(r'(cx|cy|d|x|y)="[^"]*nan', text)


def test_the_page_of_a_large_model_stays_under_three_megabytes():
    rng = np.random.default_rng(0)
    leaves = [f"part_{i}" for i in range(24)] + ["out"]
    names = [f"layers.{layer}.{leaf}" for layer in range(60) for leaf in leaves] + ["norm", "logits"]
    ids = list(range(400))
    kinds = ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(60)]
    meta = new_meta("numgemma", "0", {"layer_kinds": kinds}, ids, "float32")
    x = rng.standard_normal((400, 4)).astype(np.float32)
    y = x * np.float32(1.01)
    a, b = (Dump(meta, dict.fromkeys(names, v), dict.fromkeys(names, "T D")) for v in (x, y))
    text = to_html(Subject(diff(a, b), a, b, words=["word"] * 400))
    assert 1_000_000 < len(text.encode()) < 3_000_000
    assert Elements(text).open == []


# -- the numbers behind the pictures -----------------------------------------------------------------------------------


def test_the_heat_map_shows_every_token_s_error_of_every_layer(subject):
    found = chart.heat_map(subject.a, subject.b, subject.diff.points, {})
    assert found.rows == ["embed_tokens", *(f"layers.{i}.out" for i in range(8)), "norm", "logits"]
    for name, errors in zip(found.rows, found.errors, strict=True):
        a, b = subject.a[name].astype(np.float64), subject.b[name].astype(np.float64)
        np.testing.assert_allclose(errors, np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1), rtol=1e-5)


def test_tokens_that_share_a_column_show_the_worst_of_them():
    x = np.ones((10, 4), np.float32)
    y = x.copy()
    y[3] += 1
    y[7] += np.float32(0.1)
    a, b = (Dump({}, {"layers.0.out": v}, {"layers.0.out": "T D"}) for v in (x, y))
    points = [PointDiff(name="layers.0.out", state="DIFFERS", rel=1.0)]
    whole = chart.heat_map(a, b, points, {}).errors[0]
    np.testing.assert_allclose(whole, [0, 0, 0, 1, 0, 0, 0, 0.1, 0, 0], atol=1e-7)
    chart_cells, chart.CELLS = chart.CELLS, 4
    try:
        found = chart.heat_map(a, b, points, {})
    finally:
        chart.CELLS = chart_cells
    assert found.width == 3
    np.testing.assert_allclose(found.errors[0], [0, 1, 0.1, 0], atol=1e-7)


def test_tokens_of_which_nothing_is_known_stay_empty():
    x = np.ones((10, 4))
    parts = {"layers.0.out": {"shape": [10, 4], "at": [[0, 9], None], "slack": None}}
    a, b = Dump({}, {"layers.0.out": x}, {"layers.0.out": "T D"}), Dump({"parts": parts}, {"layers.0.out": x[:2] * 2})
    b.axes["layers.0.out"] = "T D"
    points = [PointDiff(name="layers.0.out", state="DIFFERS", rel=1.0)]
    errors = chart.heat_map(a, b, points, {}).errors[0]
    assert np.flatnonzero(~np.isnan(errors)).tolist() == [0, 9]


def test_a_shade_is_a_step_above_noise():
    errors = np.array([[0, 1e-6, 2e-6, 1e-4, np.inf]])
    found = chart.Heat(["layers.0.out"], errors, 1, 5, [1e-6])
    shades = [svg.shade(e, 1e-6, svg.step(found)) for e in errors[0]]
    assert shades == [0, 0, 1, 4, svg.SHADES - 1]


def test_the_scale_holds_every_error_and_sets_zero_and_infinity_apart():
    scale = chart.scale_of([3e-5, 0, None, 0.2, np.inf])
    heights = [scale.at(v) for v in (0, 3e-5, 0.2, np.inf, None)]
    assert heights == sorted(heights)
    assert heights[0] == 0
    assert 0.1 < heights[1] < heights[2] < 0.95
    assert heights[3] == heights[4] == 1


def test_the_worst_values_are_the_largest_differences(monkeypatch):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 40, 30))
    monkeypatch.setattr("numgemma.debug.measure.metrics.BLOCK", 100)
    found = chart.worst_values(x, y)
    order = np.argsort(-np.abs(x - y), axis=None)[: chart.WORST]
    assert [at for at, _, _ in found] == [list(map(int, np.unravel_index(i, x.shape))) for i in order]
    assert chart.worst_values(x, x) == []


def test_a_constant_tensor_has_a_histogram_and_one_of_nans_has_none():
    assert chart.spread(np.zeros(5), np.ones(5)).a.sum() == 5
    assert chart.spread(np.full(5, 3.0), np.full(5, 3.0)).b.sum() == 5
    assert chart.spread(np.full(5, np.nan), np.full(5, np.nan)) is None


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_every_text_point_has_an_equation_and_its_line_of_source(variant, tmp_path):
    dump = load(tiny.write(tmp_path / variant, tiny.VARIANTS[variant])).record([5, 6, 7], ["*"])
    graph = graph_of_dumps(dump)
    for name in dump:
        assert equation(name), name
        found = source(name, graph)
        assert f'"{name.rpartition(".")[2]}"' in found.excerpt[found.line - found.first], name


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_page_is_written_whole_or_not_at_all(subject, tmp_path, monkeypatch):
    write_html(tmp_path / "r.html", subject)
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == to_html(subject)
    with pytest.raises(InputError, match="there is no folder"):
        write_html(tmp_path / "missing" / "r.html", subject)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_the_pictures_are_written_as_png(subject, tmp_path):
    found = write_png(tmp_path / "pictures", subject)
    assert [path.name for path in found] == ["depth.png", "heat.png", "local.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in found)
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["depth.png", "heat.png", "local.png"]
    assert [path.name for path in write_png(tmp_path / "few", Subject(subject.diff))] == ["depth.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another --png"):
        write_png(tmp_path / "file", subject)


def test_the_command_line_writes_page_and_pictures(subject, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subject.a.save("a.safetensors")
    subject.b.save("b.safetensors")
    code = main(["diff", "a.safetensors", "b.safetensors", "--html", "r.html", "--png", "pictures"])
    assert code == 1
    assert BAD in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert (tmp_path / "pictures" / "heat.png").exists()


# -- in a browser ------------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=4000"]
FLAGS += ["--enable-logging=stderr"]
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")

# Runs in the page, as a user would: sorts, filters, opens a card; and looks at what the page has done.
USER = """
<script>
const faults = [];
addEventListener("error", (e) => faults.push(String(e.message)));
addEventListener("securitypolicyviolation", (e) => faults.push("blocked " + e.blockedURI));
addEventListener("load", () => setTimeout(async () => {
  const pause = () => new Promise((go) => setTimeout(go, 30));
  const rows = () => [...document.querySelectorAll("#points tbody tr")].filter((row) => !row.hidden);
  const names = () => rows().map((row) => row.dataset.name);
  const head = (word) => [...document.querySelectorAll("#points th")].find((th) => th.textContent === word);
  const found = {start: names()};
  const sort = (word) => { head(word).querySelector("button").click(); return [head(word).ariaSort, names()]; };
  found.errors = sort("relative error");
  found.errorsAgain = sort("relative error");
  found.byName = sort("point");
  found.place = sort("#");
  const filter = document.getElementById("filter"), states = document.getElementById("states");
  filter.value = "layers.3 norm";
  filter.dispatchEvent(new Event("input"));
  found.filtered = [names(), document.getElementById("shown").textContent];
  states.value = "SAME";
  states.dispatchEvent(new Event("change"));
  found.same = names();
  filter.value = states.value = "";
  filter.dispatchEvent(new Event("input"));
  const cards = [...document.querySelectorAll("details")];
  found.openAtFirst = cards.map((card) => card.open);
  document.querySelector(`#points a[href="#${CSS.escape(cards[2].id)}"], #points a[href="#${cards[2].id}"]`).click();
  await pause();
  found.opened = [cards[2].open, document.activeElement === cards[2].querySelector("summary")];
  document.querySelector(`#depth a[href="#${cards[3].id}"]`).dispatchEvent(new MouseEvent("click", {bubbles: true}));
  await pause();
  found.openedByMark = cards[3].open;
  found.fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  const colour = (node, key) => getComputedStyle(node)[key];
  found.colours = [colour(document.body, "color"), colour(document.body, "backgroundColor"),
    colour(document.querySelector("td.state.wrong"), "color"), colour(document.querySelector("td.state.fine"), "color"),
    colour(document.querySelector(".note"), "color"), colour(document.querySelector("nav a"), "color")];
  const reached = (node) => { node.focus(); return document.activeElement === node; };
  found.unreachable = [...document.querySelectorAll("nav a, summary, th button, #filter, #states, .scroll")]
    .filter((node) => node.checkVisibility() && !reached(node)).map((node) => node.outerHTML.slice(0, 80));
  const width = (node) => node.getBBox().width;
  found.cut = [...document.querySelectorAll("#layer .cell")].filter((cell) =>
    [...cell.querySelectorAll("text:not(.outside)")].some((text) => width(text) > width(cell.querySelector("rect"))))
    .map((cell) => cell.textContent);
  const wide = document.createElement("iframe");
  wide.style.width = "1400px";
  wide.srcdoc = document.documentElement.outerHTML.replace(/<script>const faults[^]*?<\\/script>/, "");
  document.body.append(wide);
  await new Promise((go) => wide.onload = go);
  const grid = wide.contentDocument.querySelector(".scroll.table");
  found.wide = [grid.clientWidth, grid.scrollWidth];
  wide.remove();
  const frame = document.createElement("iframe");
  frame.style.width = "400px";
  frame.srcdoc = document.documentElement.outerHTML.replace(/<script>const faults[^]*?<\\/script>/, "");
  document.body.append(frame);
  await new Promise((go) => frame.onload = go);
  const inner = frame.contentDocument.documentElement;
  found.narrow = [inner.clientWidth, inner.scrollWidth];
  const box = frame.contentDocument.querySelector("#depth .scroll");
  box.scrollLeft = 200;
  await pause();
  const left = (node) => node.getBoundingClientRect().left;
  const plot = box.querySelector(".plot");
  found.axis = [box.scrollLeft, left(box), left(plot.querySelector("div.stays")), left(plot)];
  found.faults = faults;
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
}, 50));
</script>
"""


@pytest.fixture(scope="module")
def used(page, tmp_path_factory):
    """What a user of the page finds, on a light and on a dark screen."""

    def use(*flags):
        folder = tmp_path_factory.mktemp("browser")
        (folder / "page.html").write_text(page.replace("</body>", USER.replace("\n<script>", "<script>") + "</body>"))
        command = [BROWSER, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
        done = subprocess.run([*command, (folder / "page.html").as_uri()], capture_output=True, text=True, timeout=120)
        match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        assert match, done.stderr[-2000:]
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return json.loads(unescape(match[1])) | {"console": said}

    return {"light": use(), "dark": use("--force-dark-mode")}


@in_browser
def test_the_page_makes_no_error_and_fetches_nothing(used):
    for found in used.values():
        assert found["faults"] == []
        assert found["console"] == []
        assert found["fetched"] == []


@in_browser
def test_no_word_of_the_layer_s_picture_is_wider_than_its_box(used):
    assert [found["cut"] for found in used.values()] == [[], []]


@in_browser
def test_a_click_on_a_column_sorts_by_it(used, subject):
    found = used["light"]
    order = [p.name for p in subject.diff.points]
    errors = {p.name: p.rel for p in subject.diff.points if p.rel is not None}
    assert found["start"] == order
    sense, names = found["errors"]
    assert sense == "descending"
    np.testing.assert_allclose([errors[n] for n in names], sorted(errors.values(), reverse=True), rtol=1e-8)
    sense, names = found["errorsAgain"]
    assert sense == "ascending"
    np.testing.assert_allclose([errors[n] for n in names], sorted(errors.values()), rtol=1e-8)
    assert found["byName"][1][0] < found["byName"][1][-1]
    assert set(found["byName"][1]) == set(order)
    assert found["place"] == ["ascending", order]


@in_browser
def test_words_and_states_filter_the_table(used, subject):
    wanted = [p.name for p in subject.diff.points if "layers.3" in p.name and "norm" in p.name]
    names, count = used["light"]["filtered"]
    assert sorted(names) == sorted(wanted)
    assert count == f"{len(wanted)} of {len(subject.diff.points)}"
    same = {p.name for p in subject.diff.points if p.state == "SAME"}
    assert used["light"]["same"] == [name for name in names if name in same]
    assert 0 < len(used["light"]["same"]) < len(names)


@in_browser
def test_a_point_s_name_and_its_mark_open_its_card(used):
    found = used["light"]
    assert found["openAtFirst"][:4] == [True, False, False, False]
    assert found["opened"] == [True, True]
    assert found["openedByMark"]


@in_browser
def test_everything_can_be_reached_by_keyboard(used):
    assert used["light"]["unreachable"] == []


@in_browser
def test_a_phone_s_width_holds_the_page(used):
    width, content = used["light"]["narrow"]
    assert 350 < width <= 400
    assert content <= width


@in_browser
def test_the_axis_stays_where_a_picture_scrolls(used):
    scrolled, box, axis, plot = used["light"]["axis"]
    assert scrolled == 200
    assert 0 <= axis - box < 10
    assert plot < box - 150


@in_browser
def test_the_last_column_is_not_cut_at_1400_pixels(used):
    width, content = used["light"]["wide"]
    assert content <= width


@in_browser
def test_text_can_be_read_on_a_light_and_on_a_dark_screen(used):
    def luminance(colour):
        parts = np.array([int(n) for n in re.findall(r"\d+", colour)[:3]]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    backs = {}
    for screen, found in used.items():
        text, back, *others = (luminance(colour) for colour in found["colours"])
        backs[screen] = back
        for one in (text, *others):
            light, dark = max(one, back), min(one, back)
            assert (light + 0.05) / (dark + 0.05) > 4.5, (screen, found["colours"])
    assert backs["light"] > 0.9 > 0.1 > backs["dark"]


def test_the_states_of_a_replay_have_their_own_colours():
    assert [chart.class_of(s) for s in (NOISE, FAULT, INHERITED)] == ["fine", "wrong", "passed-on"]
