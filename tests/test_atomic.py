"""Files that are written whole or not at all, and what is said when they cannot be."""

import errno
import os

import pytest

from numgemma.atomic import remedy, target, whole, write_whole
from numgemma.cli import main
from numgemma.errors import InputError


def test_a_file_appears_when_its_block_ends_and_not_before(tmp_path):
    with whole(tmp_path / "a.txt") as partial:
        partial.write_text("a")
        assert not (tmp_path / "a.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def write_half(path):
    with whole(path) as partial:
        partial.write_text(1000000 * "new")
        raise RuntimeError


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "a.txt")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    write_whole(tmp_path / "link", "a")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "a"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder", "it is a folder; name a file in it"),
        ("pipe", "it is there and is no file"),
        ("none/a.txt", "there is no folder"),
        ("file/a.txt", "file is a file and no folder"),
    ],
)
def test_a_place_that_cannot_hold_a_file_is_named_and_nobody_is_told_to_free_space(tmp_path, name, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("here")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError) as caught:
        target(tmp_path / name)
    assert said in str(caught.value)
    assert "space" not in str(caught.value)


def test_space_is_to_be_freed_where_there_is_none_and_only_there(tmp_path):
    assert remedy(OSError(errno.ENOSPC, "No space left on device")) == "free some space"
    assert remedy(OSError(errno.EACCES, "Permission denied")) == "choose another name"
    for number, said in ((errno.ENOSPC, "free some space"), (errno.EROFS, "choose another name")):
        with pytest.raises(InputError, match=said), whole(tmp_path / "a.txt"):
            raise OSError(number, os.strerror(number))


def test_a_folder_as_output_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["dump", "tiny", "--ids", "0,640", "-o", "a.safetensors"]) == 0
    (tmp_path / "folder").mkdir()
    capsys.readouterr()
    for words in (["diff", "a.safetensors", "a.safetensors", "--json"], ["dump", "tiny", "--ids", "0", "-o"]):
        assert main([*words, "folder"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "folder: cannot be written, it is a folder" in err


def test_what_is_written_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["dump", "tiny", "--ids", "0,640", "-o", "a.safetensors"]) == 0
    capsys.readouterr()
    given = {"--json": "d.json", "--html": "d.html", "--plot": "d.png"}
    options = [word for pair in given.items() for word in pair]
    assert main(["diff", "a.safetensors", "a.safetensors", *options, "--png", "pictures"]) == 0
    said = {line.removesuffix(": written") for line in capsys.readouterr().out.splitlines() if line.endswith("written")}
    assert said == {*given.values(), *(str(path.relative_to(tmp_path)) for path in tmp_path.glob("pictures/*.png"))}
    assert all((tmp_path / name).stat().st_size for name in said)
