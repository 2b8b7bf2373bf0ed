"""Tests of files and folders that are there whole or not at all."""

import json
import os
import shutil
import sys

import gin
import pytest

from cot_flax import files
from cot_flax.cli import main
from cot_flax.data.mixtures import find_task
from cot_flax.errors import UserError
from cot_flax.files import new_folder
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.store import layout
from cot_flax.tasks import gsm8k


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


def test_a_file_that_says_the_same_as_before_keeps_its_time(tmp_path):
    path = tmp_path / "file"
    files.write_whole(path, "content")
    os.utime(path, ns=(1, 1))
    files.write_whole(path, "content")
    assert path.stat().st_mtime_ns == 1
    files.write_whole(path, "CONTENT")  # of the same size
    assert path.read_text() == "CONTENT" and path.stat().st_mtime_ns > 1


def test_the_old_file_stays_after_an_error(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), files.new_file(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "old"
        raise OSError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}, which is a folder; expected a file"):
        files.write_whole(tmp_path, b"new")
    assert list(tmp_path.iterdir()) == []


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


def test_a_path_from_home_is_one_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COT_FLAX_CACHE", "~/cache")
    assert files.path_at("~/a") == files.work_path("~/a") == tmp_path / "a"
    assert files.cache() == tmp_path / "cache"
    files.write_whole("~/deep/a", "text")
    assert (tmp_path / "deep" / "a").read_text() == files.head("~/deep/a", 9).decode() == "text"
    with files.open_unpacked("~/deep/a") as file:
        assert file.read() == b"text"
    with new_folder("~/out") as folder:
        (folder / "file").touch()
    assert (tmp_path / "out" / "file").exists()
    assert files.file_version("~/deep/a")[:2] == (f"{tmp_path}/deep/a", 4)


@pytest.fixture
def unbound():
    """Nothing that gin has bound, before and after."""
    gin.clear_config()
    yield
    gin.clear_config()


def test_users_give_paths_from_home(tmp_path, monkeypatch, unbound):
    """In gin files and behind an equals sign, where no shell replaces the tilde."""
    home = tmp_path / "home"
    (home / "bills").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COT_FLAX_CACHE", str(tmp_path / "cache"))
    shutil.copy(VOCABULARY_PATH, home / "spiece.model")
    (home / "bills" / "instruction.md").write_text("Add.")
    rows = [{"input": f"{i}+1?", "reasoning": "One more.", "answer": str(i)} for i in range(6)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (home / "bills" / "exemplars.jsonl").write_text("".join(lines[:3]))
    (home / "bills" / "inputs.jsonl").write_text("".join(lines[3:]))
    bindings = ("T5_VOCABULARY_FILE", "spiece.model"), ("SCENARIO", "bills")
    (home / "mine.gin").write_text("".join(f'{name} = "~/{path}"\n' for name, path in bindings))
    store = ["prepare", "~/samples.jsonl", "--out=~/store", "--gin_file=~/mine.gin"]
    for words in (
        ["teach", "import", "~/bills/inputs.jsonl", "--out=~/samples.jsonl"],
        ["teach", "merge", "~/samples.jsonl", "--out=~/samples.jsonl"],
        [*store, "--rules=none", "--task=scenario_teacher_zero_shot_cot", "--workers=1"],
    ):
        monkeypatch.setattr(sys, "argv", ["cot-flax", *words])
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "home"}
    with gin.unlock_config():
        gin.bind_parameter("cot_flax.tasks.scenario.teacher_store.directory", "~/store")
        gin.bind_parameter("cot_flax.tasks.gsm8k.data.directory", "~/gsm8k")
    source = find_task("scenario_teacher_zero_shot_cot").source
    assert source.checked_directory() == str(home / "store")
    assert layout.fingerprint("~/store") == layout.fingerprint(str(home / "store")) != ""
    (home / "gsm8k").mkdir()
    (home / "gsm8k" / "test.csv").write_text('question,answer\nTwo?,"One.\n#### 2"\n')
    (record,) = gsm8k.SOURCE.get_dataset("test", shuffle=False).as_numpy_iterator()
    assert record["answer"] == b"2"


def test_a_block_that_fails_leaves_no_folder_that_it_made(tmp_path):
    (tmp_path / "runs").mkdir()
    deep = tmp_path / "runs" / "a" / "b"
    for whole, left in ((False, [deep / "log"]), (True, [])):
        with pytest.raises(KeyError), files.cleared_on_error(deep, whole=lambda whole=whole: whole):
            deep.mkdir(parents=True)
            (deep / "log").touch()
            raise KeyError
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == left
        shutil.rmtree(tmp_path / "runs" / "a", ignore_errors=True)
    with pytest.raises(KeyError), files.cleared_on_error(deep):
        deep.mkdir(parents=True)
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


@pytest.mark.parametrize("make", [files.new_file, files.new_folder])
def test_where_nothing_can_be_written_is_named(make):
    problem = pytest.raises(UserError, match=r"got /proc/new \(No such file.*to write to; check")
    with problem, make("/proc/new") as place:
        place.write_bytes(b"")


def test_nobody_who_answers_is_asked_for_once(monkeypatch):
    files._silence.cache_clear()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    assert files.unreachable().startswith("no answer from http://127.0.0.1:9: ")
    with pytest.raises(UserError, match=r"gs://a/b \(no answer from .*a folder to write to"):
        files.make_folder("gs://a/b")
    files._silence.cache_clear()
