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


def test_an_upload_ends_with_the_file_that_says_so(tmp_path, monkeypatch):
    (tmp_path / "from" / "deep").mkdir(parents=True)
    for name in ("DONE", "a", "deep/b"):
        (tmp_path / "from" / name).write_text(name)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "other").touch()
    copied = []

    def copy(source, target, _):
        copied.append(source.name.removeprefix(f"{tmp_path}/from/"))
        target.write(source.read())
        if stop_at == copied[-1]:
            raise OSError("full")

    monkeypatch.setattr(files.shutil, "copyfileobj", copy)
    stop_at = "deep/b"
    with pytest.raises(OSError, match="full"):
        files.upload(tmp_path / "from", tmp_path / "to", last="DONE")
    assert [path.name for path in (tmp_path / "to").rglob("*") if path.is_file()] == ["other"]
    stop_at = None
    copied.clear()
    files.upload(tmp_path / "from", tmp_path / "to", last="DONE")
    assert copied == ["a", "deep/b", "DONE"]


def test_what_becomes_an_object_of_a_bucket_grows_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COT_FLAX_CACHE", str(tmp_path))
    assert files.work_path("gs://bucket/a/b") == tmp_path / "buckets" / "bucket" / "a" / "b"
    assert files.work_path("runs/b").as_posix() == "runs/b"
