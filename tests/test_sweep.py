"""A sweep: a row for each pair, each once whatever is killed; and what all rows say together."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

import numgemma
from numgemma.cli import main
from numgemma.debug.faults import applied
from numgemma.debug.sweep import Order, Trends, cluster, sweep
from numgemma.debug.sweep.cluster import rows_of as rows_of_future
from numgemma.debug.sweep.ledger import SCHEMA, Ledger
from numgemma.debug.sweep.page import to_html
from numgemma.debug.sweep.pair import NOT_RUN, Seat, Way, Work, judged
from numgemma.debug.sweep.prompts import random_questions, read_questions
from numgemma.debug.sweep.trends import ranks
from numgemma.errors import InputError

EVIL = "<script>alert('x')</script>\"&"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("sweep") / "m", tiny.TEXT)


@pytest.fixture(scope="module")
def dumps(folder, tmp_path_factory):
    """Ten dumps of another engine; in those with more than 20 tokens one activation is wrong from layer 0 on."""
    model, out = numgemma.load(folder), tmp_path_factory.mktemp("dumps")
    for n in range(1, 11):
        ids = tiny.prompt(tiny.TEXT, 4 * n, seed=n)
        with applied(model, "T15-silu") if n > 5 else nullcontext():
            model.record(ids).save(out / f"p{n}.safetensors")
    return out


def prompts(path, number=6):
    lines = [
        json.dumps({"name": f"n{i}", "ids": tiny.prompt(tiny.TEXT, 3 + i, seed=i).tolist()}) for i in range(number)
    ]
    path.write_text("\n".join(lines))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(*words):
    return main([str(word) for word in ("sweep", *words)])


def test_every_pair_has_a_row_and_the_second_run_runs_nothing(folder, tmp_path, capsys, monkeypatch):
    out, words = tmp_path / "o.jsonl", ("--prompts", prompts(tmp_path / "p.jsonl"), "--workers", "0")
    assert run(folder, *words, "--engines", "float32", "float64", "-o", out) == 0
    rows = rows_of(out)
    assert {(row["prompt"], row["engine"]) for row in rows} == {
        (f"n{i}", engine) for i in range(6) for engine in ("float32", "float64")
    }
    assert all(len(row["layers"]) == 6 for row in rows)
    assert all((row["worst"]["rel"] > 0) == (row["engine"] == "float32") for row in rows)
    assert "12 pairs: 12 same" in capsys.readouterr().out
    before = out.read_bytes()
    monkeypatch.setattr("numgemma.debug.sweep.order.here", None)  # nothing is left for it
    assert run(folder, *words, "--engines", "float32", "float64", "-o", out) == 0
    assert out.read_bytes() == before
    assert "has 12 of 12 pairs already" in capsys.readouterr().out


def test_a_wrong_engine_is_seen_in_the_prompts_where_it_is_wrong(folder, dumps, tmp_path, capsys):
    out, page, tree = tmp_path / "o.jsonl", tmp_path / "o.html", tmp_path / "o.json"
    assert run(folder, "--engines", dumps, "--workers", "0", "-o", out, "--html", page, "--json", tree) == 1
    verdicts = {row["prompt"]: (row["verdict"], row["first"]) for row in rows_of(out)}
    assert verdicts == {
        f"p{n}": ("differs", "layers.0.mlp.down_proj") if n > 5 else ("same", None) for n in range(1, 11)
    }
    said = capsys.readouterr().out
    assert "first to fail: layers.0.mlp.down_proj (5 prompts)" in said
    assert "the error grows with the length" in said
    assert "with --floor and another -o" in said
    (found,) = json.loads(tree.read_text())["contestants"]
    assert found["verdicts"] == {"same": 5, "differs": 5, "not comparable": 0, "not run": 0}
    assert found["firsts"] == [{"point": "layers.0.mlp.down_proj", "prompts": 5}]
    assert found["trend"]["rank"] > 0.7
    assert [row["tokens"] > 20 for row in found["worst"]] == [True] * 5 + [False] * 5
    assert "Drift by layer" in page.read_text()


def test_a_dump_of_other_tokens_is_not_comparable_and_one_that_cannot_be_read_is_not_run(folder, dumps, tmp_path):
    there = tmp_path / "dumps"
    there.mkdir()
    (there / "n0.safetensors").write_bytes((dumps / "p1.safetensors").read_bytes())
    (there / "n1.safetensors").write_text("nothing")
    out, path = tmp_path / "o.jsonl", prompts(tmp_path / "p.jsonl", 2)
    assert run(folder, "--prompts", path, "--engines", there, "--workers", "0", "-o", out) == 3
    assert [row["verdict"] for row in rows_of(out)] == ["not comparable", NOT_RUN]
    assert "n1.safetensors" in rows_of(out)[1]["reason"]


def test_a_dump_that_is_not_there_is_said_before_anything_runs(folder, dumps, tmp_path, capsys):
    path = prompts(tmp_path / "p.jsonl", 1)
    assert run(folder, "--prompts", path, "--engines", dumps, "--workers", "0", "-o", tmp_path / "o") == 2
    assert "has no dump of prompt 'n0'" in capsys.readouterr().err


def test_texts_ids_and_chats_are_read(tmp_path):
    path = tmp_path / "p.jsonl"
    chat = [{"role": "user", "content": "Hello"}]
    lines = ["once", [2, 5], chat, {"text": "upon", "name": "a"}, {"ids": [3]}, {"messages": chat, "source": "x"}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    found = read_questions(path)
    assert [q.kind for q in found] == ["text", "ids", "chat", "text", "ids", "chat"]
    assert [q.name for q in found] == ["1", "3", "5", "a", "9", "11"]
    model = numgemma.load("tiny")
    assert found[0].encoded(model)[0] == model.tokenizer.encode("once")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no prompt"),
        ("{", "line 1: the line is not JSON"),
        ('{"txt": "a"}', "line 1: has none of text, prompt"),
        ("[1, true]", "integers from 0"),
        ("[]", "integers from 0"),
        ('""', "its text is"),
        ('[{"content": "x"}]', "has no role"),
        ('{"ids": [1], "name": "a"}\n{"ids": [2], "name": "a"}', "two prompts are called 'a'"),
    ],
)
def test_a_line_that_is_no_prompt_is_one_sentence(tmp_path, text, says):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(InputError, match=says):
        read_questions(tmp_path / "p.jsonl")


def test_prompts_of_the_same_ids_are_judged_once(folder, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text("[5, 6, 7]\n[5, 6]\n[5, 6, 7]")
    assert run(folder, "--prompts", tmp_path / "p.jsonl", "--workers", "0", "-o", tmp_path / "o") == 0
    assert len(rows_of(tmp_path / "o")) == 2
    assert "1 of these pairs are there twice" in capsys.readouterr().out


def test_a_checkpoint_that_is_other_weights_has_rows_of_its_own(folder, tmp_path):
    other = tiny.write(tmp_path / "other", tiny.TEXT, tiny.random_tensors(tiny.TEXT, 3), "float32")
    words = ("--random", "3", "--longest", "9", "--workers", "0", "-o", tmp_path / "o")
    assert run(folder, *words) == 0
    assert run(folder, other, *words) == 0
    assert len({row["key"] for row in rows_of(tmp_path / "o")}) == len(rows_of(tmp_path / "o")) == 6


def test_random_prompts_are_of_ids_that_every_checkpoint_knows(folder, tmp_path):
    small = tiny.TEXT | {"vocab_size": 20, "vocab_size_per_layer_input": 20}
    models = [numgemma.load("tiny"), numgemma.load(tiny.write(tmp_path / "small", small))]
    found = list(random_questions(models, 5, 30, 0))
    assert [len(q.value) for q in found] == sorted(len(q.value) for q in found)
    assert [q.value[0] for q in found] == [models[0].outline.bos] * 5
    assert max(max(q.value) for q in found) < 20
    assert found == list(random_questions(models, 5, 30, 0)) != list(random_questions(models, 5, 30, 1))


def test_weights_that_were_written_anew_under_an_equal_header_are_run_again(tmp_path):
    words = ("--random", "2", "--longest", "9", "--workers", "0", "-o", tmp_path / "o")
    for seed in (1, 2):
        assert run(tiny.write(tmp_path / "m", tiny.TEXT, tiny.random_tensors(tiny.TEXT, seed), "float32"), *words) == 0
    rows = rows_of(tmp_path / "o")
    assert len({row["key"] for row in rows}) == len(rows) == 4
    assert rows[0]["layers"] != rows[2]["layers"]


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_what_a_kill_leaves_of_a_line_is_cut_off_and_run_again(folder, tmp_path, cut):
    out, words = tmp_path / "o.jsonl", ("--random", "3", "--longest", "9", "--workers", "0")
    assert run(folder, *words, "-o", out) == 0
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
    assert run(folder, *words, "-o", out) == 0
    again = out.read_bytes().splitlines(keepends=True)
    assert again[:2] == lines[:2]
    assert [json.loads(line)["key"] for line in again] == [json.loads(line)["key"] for line in lines]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a letter to my aunt\n", "line 1: the row is not JSON"),
        ("a letter without an end", "is no file of a sweep"),
        ('{"schema": "numgemma.diff/1"}\n', "line 1: is no row of a sweep"),
    ],
)
def test_another_file_is_not_written_to(tmp_path, text, says):
    (tmp_path / "o").write_text(text)
    with pytest.raises(InputError, match=says), Ledger(tmp_path / "o"):
        pass
    assert (tmp_path / "o").read_text() == text


def test_two_sweeps_do_not_write_one_file(tmp_path):
    with Ledger(tmp_path / "o"), pytest.raises(InputError, match="another sweep is writing it"), Ledger(tmp_path / "o"):
        pass


def test_a_row_that_the_disk_has_no_room_for_leaves_no_half(tmp_path, monkeypatch):
    row = {"schema": "numgemma.sweep/1", "key": "a"}
    with Ledger(tmp_path / "o") as ledger:
        assert ledger.add(row)
        assert not ledger.add(row)
        whole = os.write
        monkeypatch.setattr(os, "write", lambda handle, line: whole(handle, line[:9]))
        with pytest.raises(InputError, match="No space left"):
            ledger.add(row | {"key": "b"})
    assert rows_of(tmp_path / "o") == [row]


SHORT_OF_MEMORY = """
import sys
from numgemma.debug.sweep.pair import Seat, Way, Work, judged
folder, seats = sys.argv[1], (Seat("float32", "k"),)
long, short = Work(folder, "long", tuple(range(3, 190)) * 40, seats), Work(folder, "short", (5, 6), seats)
used = int(open("/proc/self/statm").read().split()[5]) * 4096
for work in (long, short):
    (row,) = judged(work, Way(memory=used + 150_000_000))
    print(row["verdict"], row["reason"])
"""


def test_a_worker_with_too_little_memory_says_so_and_lives(folder):
    run = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY, folder], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-500:]
    assert run.stdout.splitlines() == ["not run there was not enough memory", "same "]


def test_an_engine_that_cannot_run_is_a_row_beside_the_others(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    work = Work(str(folder), "p", (5, 6, 7), (Seat("hf", "a"), Seat("float32", "b")))
    first, second = judged(work, Way())
    assert (first["verdict"], second["verdict"]) == (NOT_RUN, "same")
    assert "pip install 'numgemma[hf]'" in first["reason"]


def made(rows):
    """Rows that say no more than they must."""
    empty = {
        "checkpoint": "c",
        "engine": "e",
        "reason": "",
        "kl": None,
        "nonfinite": False,
        "layers": {},
        "first": None,
    }
    return [
        empty
        | {"prompt": f"p{i}", "verdict": "same", "tokens": 5, "worst": {"point": "x", "rel": 1e-6, "size": 1e-6}}
        | row
        for i, row in enumerate(rows)
    ]


def test_the_page_escapes_what_comes_from_outside():
    rows = made(
        [{"prompt": EVIL, "first": EVIL, "verdict": "differs", "worst": {"point": EVIL, "rel": 0.1, "size": 1.0}}]
    )
    rows += made([{"checkpoint": EVIL, "prompt": EVIL, "verdict": NOT_RUN, "worst": None, "reason": EVIL}])
    text = to_html(Trends.of(rows), EVIL, EVIL)
    assert "<script>alert" not in text
    seen = []
    reader = HTMLParser()
    reader.handle_data = seen.append
    reader.feed(text)
    assert sum(EVIL in data for data in seen) >= 5


def test_a_row_whose_worst_point_has_no_error_is_read_and_drawn(tmp_path):
    (row,) = made([{"worst": {"point": "x"}}])
    (tmp_path / "o").write_text(json.dumps(row | {"schema": SCHEMA, "key": "k"}) + "\n")
    with Ledger(tmp_path / "o") as ledger:
        page = to_html(Trends.of(list(ledger.rows.values())), "title", "command")
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")


def test_growth_is_told_from_chance():
    rng = np.random.default_rng(0)
    grows = [{"tokens": n, "worst": {"point": "x", "rel": 1.0, "size": 1e-6 * n}} for n in range(4, 40)]
    chance = [row | {"worst": row["worst"] | {"size": float(rng.uniform(1, 2))}} for row in grows]
    (a,), (b,) = (Trends.of(made(rows)).contestants for rows in (grows, chance))
    assert a.trend.rank == pytest.approx(1)
    assert a.trend.doubling == pytest.approx(2)
    assert abs(b.trend.rank) < 0.5
    assert "does not go with the length" in b.trend.says
    assert Trends.of(made(grows[:3])).contestants[0].trend is None
    np.testing.assert_array_equal(ranks(np.array([3.0, 1.0, 3.0])), [2.5, 1.0, 2.5])


def test_the_exit_code_is_the_worst_of_all():
    assert Trends.of(made([{}])).exit_code == 0
    assert Trends.of(made([{}, {"verdict": NOT_RUN, "worst": None}])).exit_code == 3
    assert Trends.of(made([{"verdict": NOT_RUN}, {"verdict": "differs"}])).exit_code == 1
    assert Trends.of(made([{"verdict": "differs"}, {"nonfinite": True}])).exit_code == 4


def test_records_are_flat():
    (record,) = Trends.of(made([{}])).records()
    assert all(not isinstance(value, (dict, list)) for value in record.values())
    assert record["worst_point"] == "x"


def test_an_order_that_cannot_be_is_one_sentence(folder, tmp_path, capsys):
    for words, says in (
        (("--random", "2", "--engines", "float23"), "is no folder of dumps, and none of float32"),
        ((), "--engines float32 needs prompts"),
        (("--random", "0"), "--random is 0"),
        (("--random", "1", "--workers", "-1"), "--workers is -1"),
    ):
        assert run(folder, *words, "-o", tmp_path / "o") == 2
        assert says in capsys.readouterr().err


# -- on Dask's workers ------------------------------------------------------------------------------------------------


def test_without_dask_the_extra_is_named(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert run(folder, "--random", "1", "-o", tmp_path / "o") == 2
    assert "pip install 'numgemma[sweep]'" in capsys.readouterr().err


def test_no_row_is_lost_or_doubled_when_one_of_two_workers_is_killed(folder, tmp_path):
    distributed = pytest.importorskip("distributed")
    setting = {"threads_per_worker": 1, "processes": True, "memory_limit": 0, "dashboard_address": None}
    with distributed.LocalCluster(n_workers=2, silence_logs=60, **setting) as cluster:
        with distributed.Client(cluster) as client:
            workers = list(client.run(os.getpid).values())
        assert len(set(workers)) == 2
        assert os.getpid() not in workers
        killed, questions = [], read_questions(prompts(tmp_path / "p.jsonl", 24))

        def told(done, of):
            if done == 3:
                os.kill(workers[0], signal.SIGKILL)
                killed.append(done)

        order = Order([str(folder)], ["float32", "float64"], questions, scheduler=cluster.scheduler_address)
        found = sweep(order, tmp_path / "o", told=told)
    assert killed == [3]
    rows = rows_of(tmp_path / "o")
    assert len(rows) == len({row["key"] for row in rows}) == len(found.rows) == 48
    assert {row["verdict"] for row in rows} == {"same"}


def test_no_row_is_lost_or_doubled_when_the_sweep_is_killed_and_begun_again(folder, tmp_path):
    pytest.importorskip("distributed")
    out, path = tmp_path / "o.jsonl", prompts(tmp_path / "p.jsonl", 40)
    words = [sys.executable, "-m", "numgemma", "sweep", folder, "--prompts", path, "-o", out, "--workers", "2"]
    words += ["--memory", "1"]
    begun = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True, start_new_session=True)
    while begun.poll() is None and not (out.exists() and out.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGKILL)
    assert "2 workers, each with at most 1.0 GB" in begun.communicate()[0]
    done = len(rows_of(out)) if out.read_bytes().endswith(b"\n") else None
    again = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert done is None or f"has {done} of 40 pairs already" in again.stdout
    rows = rows_of(out)
    assert len(rows) == len({row["key"] for row in rows}) == 40
    assert {row["verdict"] for row in rows} == {"same"}


class Future:
    """A prompt's, as Dask gives it back."""

    def __init__(self, status, error=None):
        self.status, self.exception = status, lambda: error


def test_a_worker_that_dies_at_its_start_is_one_sentence(monkeypatch):
    def failing(**setting):
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(cluster, "package", lambda *_: SimpleNamespace(LocalCluster=failing))
    said = r"A worker died before it had started; begin again, or with --workers 0."
    with pytest.raises(InputError, match=said), cluster.client_of(2, None):
        pass


def test_a_prompt_that_kills_worker_after_worker_is_a_row_and_a_cluster_that_goes_is_none():
    work, said = Work("c", "p", (5, 6), (Seat("float32", "k"),)), []
    (row,) = rows_of_future(Future("error", type("KilledWorker", (Exception,), {})()), work, said.append)
    assert (row["verdict"], row["key"]) == (NOT_RUN, "k")
    assert "give each more --memory" in row["reason"]
    assert len(said) == 1
    with pytest.raises(InputError, match="goes on from there"):
        rows_of_future(Future("cancelled"), work, said.append)


def test_a_prompt_that_a_checkpoint_cannot_take_is_named(folder, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('[5, 6]\n{"name": "far", "ids": [5, 100000]}')
    assert run(folder, "--prompts", tmp_path / "p.jsonl", "--workers", "0", "-o", tmp_path / "o") == 2
    assert "prompt far, with " in capsys.readouterr().err


def test_nobody_at_an_address_is_one_sentence(folder, tmp_path, capsys):
    pytest.importorskip("distributed")
    assert run(folder, "--random", "1", "--scheduler", "tcp://127.0.0.1:1", "-o", tmp_path / "o") == 2
    assert "nobody answers" in capsys.readouterr().err


@pytest.mark.hf
def test_transformers_is_an_engine(folder, tmp_path):
    pytest.importorskip("torch")
    assert (
        run(folder, "--random", "4", "--longest", "12", "--engines", "hf", "--workers", "0", "-o", tmp_path / "o") == 0
    )
    assert [row["verdict"] for row in rows_of(tmp_path / "o")] == ["same"] * 4


def test_the_page_and_the_command_are_documented():
    page = (Path(numgemma.__file__).parents[1] / "docs" / "json.md").read_text()
    assert "numgemma.sweep/1" in page
    assert "numgemma.sweep-summary/1" in page
