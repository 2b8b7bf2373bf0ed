"""Tests of files and folders that are there whole or not at all."""

import pytest

from cot_flax import files
from cot_flax.errors import UserError
from cot_flax.files import new_folder


def test_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "file").write_text("whole")
        assert not out.exists()
    assert (out / "file").read_text() == "whole"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(OSError, match="full"), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise OSError("full")
    assert not list(tmp_path.iterdir())


def test_takes_an_empty_folder_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with new_folder("empty") as folder:
        (folder / "file").write_text("")
    assert (tmp_path / "empty" / "file").exists()
    for taken in ("empty", "empty/file"):
        with pytest.raises(UserError, match="which is not empty"), new_folder(taken):
            pass


@pytest.mark.parametrize("content", ["déjà", b"\x00\xff"])
def test_a_file_is_written_whole(tmp_path, content):
    path = tmp_path / "deep" / "file"
    files.write_whole(path, content)
    files.write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_the_old_file_stays_after_an_error(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), files.new_file(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "old"
        raise OSError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
