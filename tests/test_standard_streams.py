"""Arguments that are no paths, standard streams that are closed or full, signals: one sentence, nothing lost."""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from numgemma.cli import VERBS, check_outputs, main, parser, paths_of
from numgemma.cli.terminal import Shown, encodable
from numgemma.dump import read_dump
from numgemma.errors import LONGEST, InputError, one_line, visible

MOUSE = "Once upon a time there was a mouse. "


@pytest.fixture
def run(capsys):
    def call(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def shell(command, **options):
    """Exit code, standard output and error of a command line; `numgemma` stands for ours."""
    command = command.replace("numgemma ", f"{sys.executable} -m numgemma ")
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, **options)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("length", [200, 256, 4097, 40000])
def test_a_prompt_is_no_path_however_long_it_is(run, tmp_path, length):
    text = (MOUSE * length)[:length]
    assert run("preprocess", "tiny", "--prompt", text, "-o", tmp_path / "x.safetensors")[0] == 0


def test_long_ids_are_no_path_and_every_option_takes_them(run, tmp_path):
    ids = ",".join(["5"] * 200)
    assert run("dump", "tiny", "--ids", ids, "--points", "logits", "-o", tmp_path / "a.safetensors")[0] == 0
    assert len(read_dump(tmp_path / "a.safetensors").meta["ids"]) == 200


def test_every_declared_path_of_every_verb_may_be_too_long_or_not_there(run):
    long = "x" * 300
    for words in (["inspect", long], ["lint", long], ["diff", long, long], ["generate", long, "--ids", "5"]):
        code, _, err = run(*words)
        assert code in (1, 2), words
        assert err.count("\n") <= 1
        assert len(err) < 300


@pytest.mark.parametrize("option", ["--prompt", "--ids", "--chat", "--json", "-o"])
def test_two_dashes_are_no_value_of_an_option(run, option):
    code, _, err = run("generate", "tiny", f"{option}=--")
    assert code == 2
    assert err == f"numgemma: {option} is given -- alone, which is no value; put a text of that kind in a file.\n"


def test_only_what_is_declared_as_a_path_is_one():
    words = ["dump", "tiny", "--prompt", "tests", "-o", "x.safetensors"]
    args = vars(parser(words).parse_args(words))
    assert [str(path) for value in args.values() for path in paths_of(value)] == ["tiny", "x.safetensors"]
    check_outputs(args | {"prompt": "y" * 5000})


def test_every_number_of_every_verb_is_bounded():
    top = parser(VERBS)
    (verbs,) = (action for action in top._actions if isinstance(action.choices, dict))
    plain = [(verb, a.dest) for verb, sub in verbs.choices.items() for a in sub._actions if a.type in (int, float)]
    assert plain == []


@pytest.mark.parametrize("source", ["file", "standard input"])
@pytest.mark.parametrize("option", ["--prompt-file", "--ids-file"])
def test_prompts_and_ids_come_from_a_file_or_standard_input(run, tmp_path, monkeypatch, source, option):
    text = MOUSE * 20 if option == "--prompt-file" else "5, 6\n7,8\n"
    (tmp_path / "in.txt").write_text(text + ("\n" if option == "--prompt-file" else ""))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "in.txt").read_bytes())))
    name = tmp_path / "in.txt" if source == "file" else "-"
    out = tmp_path / "x.safetensors"
    assert run("dump", "tiny", option, name, "--points", "logits", "-o", out)[0] == 0
    meta = read_dump(out).meta
    assert meta["text"] == MOUSE * 20 if option == "--prompt-file" else meta["ids"] == [5, 6, 7, 8]


@pytest.mark.parametrize("ids", ["-1", "99999999999999999999999", "1e3", "5,,6", "٣", "9" * 5000, ""])
def test_ids_that_are_no_token_are_one_sentence(run, ids):
    code, out, err = run("generate", "tiny", f"--ids={ids}", "--max-new-tokens", "1")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert len(err) < 300


@pytest.mark.parametrize(
    "verb", ["inspect tiny", "generate tiny --ids 2,3 --max-new-tokens 2", "lint tiny --no-values"]
)
def test_a_full_disk_behind_standard_output_is_one_sentence(verb):
    code, _, err = shell(f"numgemma {verb} > /dev/full")
    assert code == 2
    assert "standard output: cannot be written (No space left on device)" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "2> /dev/full", "<&-", "| head -c 1"])
def test_closed_and_full_streams_leave_no_traceback(redirection):
    code, _, err = shell(f"numgemma inspect tiny {redirection}")
    assert "Traceback" not in err
    assert "Exception" not in err
    assert code == 0


def test_what_is_meant_for_a_closed_standard_error_does_not_come_out_of_standard_output():
    command = "numgemma generate tiny --ids 5 --max-new-tokens 2 --print-ids --backend numpy"
    assert shell(f"{command} 2>&-")[1] == shell(f"{command} 2>/dev/null")[1]


def test_closed_standard_input_is_said():
    code, _, err = shell("numgemma generate tiny --chat - <&-")
    assert code == 2
    assert err == "numgemma: standard input: is closed; name a file instead of -.\n"


def test_json_to_standard_output_is_json_alone(tmp_path):
    shell(f"numgemma dump tiny --ids 5,6 -o {tmp_path}/a.safetensors")
    code, out, err = shell(f"numgemma diff {tmp_path}/a.safetensors {tmp_path}/a.safetensors --json -", cwd=tmp_path)
    assert (code, json.loads(out)["verdict"]) == (0, "same")
    assert "SAME" in err
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("seed", range(3))
def test_a_signal_at_any_moment_is_no_traceback(seed, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "numgemma", "inspect", "tiny"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    time.sleep(random.Random(seed).uniform(0.02, 0.8))
    process.send_signal(number)
    _, err = process.communicate()
    read = set(re.findall(rb"numgemma/([\w/]+)\.py", err))  # three files are imported before a line of ours can answer
    assert read <= {b"__init__", b"errors", b"version"}
    assert process.returncode in (0, 1, 128 + number, -number)  # 1: while Python itself was starting


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16"])
def test_text_that_the_terminal_lacks_is_printed_as_escapes(encoding):
    rng = random.Random(encoding)
    for _ in range(200):
        text = "".join(chr(rng.choice([rng.randrange(0x250), rng.randrange(0x110000)])) for _ in range(20))
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding, newline="")
        Shown(stream, "\n\t", None).write(text)
        stream.flush()
        printed = raw.getvalue().decode(encoding)
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in printed if c not in "\n\t")
        quoted = printed.replace("\\u", "\0").replace("\\", "\\\\").replace("\0", "\\u").replace('"', '\\"')
        read_back = json.loads('"' + quoted.replace("\n", "\\n").replace("\t", "\\t") + '"')
        assert read_back.encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")


def test_printed_json_is_json_whatever_is_in_it():
    value = {"\x1b]0;title\x07": "\x9b31m \u202e \ud800 é 😀"}
    shown = encodable(visible(json.dumps(value, ensure_ascii=False), "\n\t"), "ascii")
    assert json.loads(shown) == value
    assert shown.isascii()


def test_a_message_is_one_short_line_that_keeps_both_its_ends():
    rng = random.Random(0)
    for length in [*range(250, 320), 5000, 10**6]:
        odd = [chr(rng.choice([7, 10, 27, 65, 0x9B, 0x2028])) for _ in range(min(length, 1000))]
        quoted = "".join(odd) + "x" * length
        text = str(InputError(f"a/file.json: holds {quoted}; correct it."))
        assert len(text) <= LONGEST
        assert text.startswith("a/file.json: holds ")
        assert text.endswith("; correct it.")
        assert text == one_line(text) == visible(text)


def test_names_that_are_no_utf8_reach_a_report(run, tmp_path):
    folder = tmp_path / os.fsdecode(b"bad\xff\xfe")
    folder.mkdir()
    dump = folder / "o.safetensors"
    assert run("dump", "tiny", "--ids", "2,3", "--points", "logits", "-o", dump)[0] == 0
    code, out, _ = run("diff", dump, dump, "--html", tmp_path / "o.html", "--json", tmp_path / "o.json")
    assert code == 0
    out.encode()
    assert "bad" in (tmp_path / "o.html").read_text(encoding="utf-8")
    json.loads((tmp_path / "o.json").read_bytes())
    assert Path(folder).exists()
