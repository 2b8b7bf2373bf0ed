"""The Beam pipeline against `prepare`: the same records, rows, counts and reasons."""

import gzip
import hashlib
import json
import sys
from pathlib import Path

import pytest
import seqio

from cot_flax.chains.codex import read_codex_dump
from cot_flax.chains.filtering import Filters
from cot_flax.chains.preparation import Preparation
from cot_flax.chains.readers import find_format
from cot_flax.chains.samples import merge_samples, to_line, write_samples
from cot_flax.errors import UserError
from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import make_samples
from cot_flax.store import beam, beam_steps, layout
from cot_flax.store import prepare as local

# What the DirectRunner is where it cannot download another one.
IN_PROCESS = ["--runner=FnApiRunner"]
CHOOSY = Preparation(Filters(per_question=2, balance=1, similarity=0.9), max_target_tokens=60)


@pytest.fixture(scope="module")
def chains():
    """Four chains of each of 20 questions, one question after the other."""
    return list(make_samples(make_stories(20, split="train"), samples=4))


@pytest.fixture
def on_beam(tmp_path, vocabulary):
    """Prepares on Beam; returns the store's folder."""

    def make(*inputs, settings=CHOOSY, name="beam", **options):
        options = {"vocabulary": vocabulary, "flags": IN_PROCESS, "max_rejected": 0.5} | options
        beam.prepare(list(map(str, inputs)), str(tmp_path / name), settings=settings, **options)
        return tmp_path / name

    return make


@pytest.fixture
def here(tmp_path, vocabulary):
    """Prepares without Beam; returns the store's folder."""

    def make(*inputs, settings=CHOOSY, **options):
        options = {"vocabulary": vocabulary, "workers": 1, "max_rejected": 0.5} | options
        local.prepare(list(map(str, inputs)), str(tmp_path / "here"), settings=settings, **options)
        return tmp_path / "here"

    return make


def kept(folder):
    """Records with the bytes of their rows, in the order of their ids."""
    records = list(layout.dataset(str(folder)).as_numpy_iterator())
    for record in records:
        record["targets"] = record["targets"].tolist()
    return sorted(records, key=lambda record: record["id"])


def left_out(folder):
    return (
        sorted(gzip.decompress((folder / layout.DROPPED).read_bytes()).splitlines()),
        sorted((folder / layout.REJECTED).read_bytes().splitlines()),
    )


def counts(folder):
    """The tally; of equally bad chains, any may be shown."""
    tally = layout.read_manifest(str(folder))["tally"]
    tally["worst"] = [chain["soft_share"] for chain in tally["worst"]]
    tally["mass"] = pytest.approx(tally["mass"], rel=1e-12)
    return tally


def assert_same(beam, here):
    assert kept(beam) == kept(here) != []
    assert left_out(beam) == left_out(here)
    assert counts(beam) == counts(here)
    manifests = [layout.read_manifest(str(folder)) for folder in (beam, here)]
    for name in ("vocabulary", "top_k", "teachers", "prompt_hash", "read", "kept", "dropped"):
        assert manifests[0][name] == manifests[1][name], name


def test_keeps_drops_and_rejects_what_prepare_does(on_beam, here, chains, tmp_path):
    lines = [*map(to_line, chains), b"no JSON\n", b'{"id": "lonely"}\n']
    (tmp_path / "samples.jsonl.gz").write_bytes(gzip.compress(b"".join(lines))[:-9])
    beam, here = (make(tmp_path / "samples.jsonl.gz") for make in (on_beam, here))
    assert_same(beam, here)
    tally = layout.read_manifest(str(beam))["tally"]
    assert set(tally["rejected"]) == {"bad_json", "missing_field", "truncated_file"}
    assert len(tally["fates"]) > 2


def test_takes_the_chains_of_a_question_from_anywhere(on_beam, here, chains, tmp_path):
    write_samples(tmp_path / "together.jsonl", chains)
    write_samples(tmp_path / "apart.jsonl", [c for i in range(4) for c in chains[i::4]])
    assert_same(on_beam(tmp_path / "apart.jsonl"), here(tmp_path / "together.jsonl"))


def test_two_files_of_the_same_numbers_are_merged(on_beam, here, chains, tmp_path):
    more = list(make_samples(make_stories(20, split="train"), samples=4, seed=1))
    assert {(c.id, c.sample) for c in more} == {(c.id, c.sample) for c in chains}
    files = tmp_path / "b.jsonl", tmp_path / "a.jsonl"
    for file, written in zip(files, (chains, more), strict=True):
        write_samples(file, written)
    merge_samples(files, tmp_path / "merged.jsonl")
    everything = Preparation()
    assert_same(
        on_beam(*files, settings=everything),
        here(tmp_path / "merged.jsonl", settings=everything),
    )


def test_reads_given_rationales(on_beam, here, tmp_path):
    rows = [(f"What is {i} + 1?", str(i + 1), f"It is\\n{i} + 1 = {i + 1}.") for i in range(30)]
    (tmp_path / "sums.tsv").write_text("".join("\t".join(row) + "\n" for row in rows) + "bad\n")
    names = ("source", "target", "rationale")
    entries = {str(i): dict(zip(names, row, strict=True)) for i, row in enumerate(rows)}
    (tmp_path / "collection.json").write_text(json.dumps(entries | {"x": 1})[:-1])
    files, settings = (
        (tmp_path / "sums.tsv", tmp_path / "collection.json"),
        Preparation(Filters("none")),
    )
    beam = on_beam(*files, settings=settings)
    assert_same(beam, here(*files, settings=settings))
    assert layout.read_manifest(str(beam))["kept"] == 60


def test_real_teachers_rows(on_beam, here, shared_data, tmp_path):
    dump = shared_data / "teacher" / "gsm8k_train_codex_top5.jsonl"
    write_samples(tmp_path / "codex.jsonl", read_codex_dump(dump))
    model = str(shared_data / "t5_vocab" / "spiece.model")
    options = {
        "settings": Preparation(top_k=6, projection="paths"),
        "vocabulary": seqio.SentencePieceVocabulary(model, extra_ids=100),
    }
    beam, here = (make(tmp_path / "codex.jsonl", **options) for make in (on_beam, here))
    assert_same(beam, here)
    assert any(record["teacher_top_logprobs"] for record in kept(beam))


def test_a_store_depends_on_no_runner(on_beam, chains, tmp_path):
    write_samples(tmp_path / "samples.jsonl", chains)
    options = {"bytes_per_shard": (tmp_path / "samples.jsonl").stat().st_size // 3 + 1}
    two = ["--direct_running_mode=multi_threading", "--direct_num_workers=2"]
    one = on_beam(tmp_path / "samples.jsonl", name="one", **options)
    other = on_beam(tmp_path / "samples.jsonl", name="two", flags=IN_PROCESS + two, **options)
    files = layout.read_manifest(str(one))["files"]
    assert sum("tfrecord" in name for name in files) == 3
    assert files == layout.read_manifest(str(other))["files"]
    assert counts(one) == counts(other)
    for name in (layout.DROPPED, layout.REJECTED):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_store_is_whole(on_beam, chains, tmp_path):
    write_samples(tmp_path / "samples.jsonl", chains[:4])
    folder = on_beam(tmp_path / "*.jsonl", bytes_per_shard=2048)
    manifest = layout.read_manifest(str(folder))
    shards = sorted(folder.glob("*tfrecord*"))
    assert len(shards) == json.loads((folder / layout.INFO).read_text())["num_shards"] > 1
    assert any(not shard.stat().st_size for shard in shards)  # one question fills one shard
    assert len(kept(folder)) == manifest["kept"] > 0
    layout.check(str(folder), manifest["vocabulary"])
    assert manifest["files"].items() >= {(s.name, sha256(s)) for s in shards}
    assert (folder / layout.COMPLETED).exists() and not (folder / local.PARTS).exists()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_finished_store_is_left_and_another_is_replaced(on_beam, chains, tmp_path):
    write_samples(tmp_path / "samples.jsonl", chains)
    completed = on_beam(tmp_path / "samples.jsonl", bytes_per_shard=4096) / layout.COMPLETED
    (completed.parent / layout.REJECTED).write_text("mine")
    on_beam(tmp_path / "samples.jsonl", bytes_per_shard=4096)
    assert (completed.parent / layout.REJECTED).read_text() == "mine"
    other = {"settings": Preparation(top_k=2)}
    with pytest.raises(
        UserError, match=r"another finished store .* settings\.top_k 5 instead of 2"
    ):
        on_beam(tmp_path / "samples.jsonl", **other)
    folder = on_beam(tmp_path / "samples.jsonl", overwrite=True, **other)
    manifest = layout.read_manifest(str(folder))
    assert manifest["top_k"] == 2
    assert {file.name for file in folder.glob("*tfrecord*")} <= manifest["files"].keys()
    assert (folder / layout.REJECTED).read_text() == ""


def test_stops_at_too_many_rejected_records(on_beam, chains, tmp_path):
    lines = [*map(to_line, chains[:8]), b"{}\n", b"[]\n"]
    (tmp_path / "samples.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"2 of 10 records .*missing_field.*at most 10.0%"):
        on_beam(tmp_path / "samples.jsonl", max_rejected=0.1)
    assert not (tmp_path / "beam" / layout.COMPLETED).exists()
    assert list((tmp_path / "beam" / local.PARTS).glob(f"*.{layout.REJECTED}"))


def test_stops_where_nothing_is_kept(on_beam, chains, tmp_path):
    write_samples(tmp_path / "samples.jsonl", chains[:4])
    with pytest.raises(UserError, match=r"no usable chain .*too_long"):
        on_beam(tmp_path / "samples.jsonl", settings=Preparation(max_target_tokens=1))


@pytest.mark.parametrize(
    ("name", "match"),
    [("missing-*.jsonl", "no file"), ("empty.jsonl", "an empty file"), ("a.txt", "an empty file")],
)
def test_refuses_inputs(on_beam, tmp_path, name, match):
    for other in ("empty.jsonl", "a.txt"):
        (tmp_path / other).touch()
    with pytest.raises(UserError, match=match):
        on_beam(tmp_path / name)


def test_refuses_flags_before_it_removes_a_store(on_beam, chains, tmp_path):
    write_samples(tmp_path / "samples.jsonl", chains)
    folder = on_beam(tmp_path / "samples.jsonl")
    with pytest.raises(UserError, match="--runner=Unheard: Unexpected pipeline runner"):
        on_beam(
            tmp_path / "samples.jsonl",
            settings=Preparation(top_k=2),
            overwrite=True,
            flags=["--runner=Unheard"],
        )
    assert kept(folder)


def test_reads_a_record_at_a_time(tmp_path):
    entries = {str(i): {"source": "q", "target": "a", "rationale": "r"} for i in range(3)}
    path = str(tmp_path / "cut.json")
    (tmp_path / "cut.json").write_text(json.dumps(entries)[:-9])
    records = beam_steps.read_file((7, path, find_format(path)))
    places = [place for _, (place, _, raw) in records if isinstance(raw.data, dict)]
    assert places == [(7, 0), (7, 1)]


def test_says_how_to_get_beam(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "cot_flax.store.beam_steps")
    monkeypatch.delattr("cot_flax.store.beam_steps")
    with pytest.raises(UserError, match=r'pip install "cot-flax\[beam\]"'):
        import cot_flax.store.beam_steps  # noqa: F401
