"""Names of files: patterns, folders, shards, the hub."""

import pytest

from cot_flax import hub
from cot_flax.chains.file_names import files_of, record_files
from cot_flax.errors import UserError


def test_files_are_named_by_pattern_and_folder(tmp_path, monkeypatch):
    names = ("a/train.jsonl", "a/b/test.parquet", "a/b/x.csv.gz", "a/dataset_infos.json")
    for name in (*names, "a/README.md", "a/.x.jsonl", "a/b/data-00000-of-00001.arrow"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    everything = ["a/b/data-00000-of-00001.arrow", "a/b/test.parquet", "a/b/x.csv.gz"]
    everything = [str(tmp_path / name) for name in (*everything, "a/train.jsonl")]
    assert files_of("a") == files_of(tmp_path / "a") == everything
    assert files_of("a/b/*.[cp]*") == everything[1:3]
    assert files_of(f"{tmp_path}/a/*/test*") == everything[1:2]
    assert files_of("a/**/*.jsonl") == [str(tmp_path / "a/.x.jsonl"), everything[3]]
    assert files_of(["a/b/x.csv.gz", "none.jsonl"]) == ["a/b/x.csv.gz", "none.jsonl"]
    (tmp_path / "a/[1].csv").touch()
    assert files_of("a/[1].csv") == ["a/[1].csv"]
    for named, message in {
        "a/*.tsv": r"no file a/\*\.tsv",
        "c": "c, a folder without any",
        ("a/b/*.csv.gz", str(tmp_path / "a/b/x.csv.gz")): r"x\.csv\.gz twice",
        "hf://models/a/b": "hf://models/a/b; expected hf://datasets/OWNER/NAME",
    }.items():
        (tmp_path / "c").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            files_of(named)


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("o/n", {}),
        ("hf://datasets/o/n", {}),
        ("hf://datasets/o/n@v1", {"revision": "v1"}),
        (
            "hf://datasets/o/n@refs/convert/parquet/x/*.parquet",
            {"revision": "refs/convert/parquet"},
        ),
        ("hf://datasets/o/n/main/test*", {"patterns": ("main/test*",)}),
        ("hf://datasets/o/n/main", {"patterns": tuple(f"main/{p}" for p in hub.DATA_PATTERNS)}),
    ],
)
def test_names_on_the_hub(monkeypatch, named, asked):
    calls = []
    monkeypatch.setattr(hub, "data_files", lambda name, **given: calls.append((name, given)) or [])
    files_of(named)
    ((name, given),) = calls
    assert name == "o/n"
    assert given.items() >= asked.items()


def test_a_path_beside_others_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "data_files", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert files_of("data/tickets") == ["data/tickets"]
    assert files_of("tickets") == ["tickets"]
    assert files_of("other/tickets.csv.gz") == ["other/tickets.csv.gz"]


def test_the_file_of_a_name_is_found(tmp_path):
    for name in ("train.csv.gz", "test-00001-of-00002.parquet", "test-00000-of-00002.parquet"):
        (tmp_path / name).touch()
    for name in ("training.jsonl", "train.txt", "train.jsonl.partial"):
        (tmp_path / name).touch()
    assert record_files(tmp_path, "train") == [f"{tmp_path}/train.csv.gz"]
    assert record_files(str(tmp_path), "test") == [
        f"{tmp_path}/test-0000{i}-of-00002.parquet" for i in range(2)
    ]
    with pytest.raises(UserError, match=r"dev\.jsonl: No such file"):
        record_files(tmp_path, "dev")
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(UserError, match=r"train\.csv\.gz, train\.jsonl in .*; expected one file"):
        record_files(tmp_path, "train")
    with pytest.raises(UserError, match=r"none/dev\.jsonl: No such file"):
        record_files(tmp_path / "none", "dev")
