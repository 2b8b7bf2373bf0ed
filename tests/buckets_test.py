"""What `export`, `teach` and `prepare` write to a bucket is what they write to a folder."""

import gzip
import io
import json
from pathlib import Path

import gin
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from support.buckets import serve_bucket
from support.story_server import STORIES, StoryServer

from cot_flax import run_folder
from cot_flax.chains.file_names import record_files
from cot_flax.chains.preparation import Preparation
from cot_flax.chains.readers import parsed
from cot_flax.chains.records import records
from cot_flax.chains.samples import merge_samples, read_samples, write_samples
from cot_flax.errors import UserError
from cot_flax.evaluation.outputs import Outputs
from cot_flax.files import path_at, work_path
from cot_flax.lab.world.teacher import make_samples
from cot_flax.store import layout
from cot_flax.store.prepare import prepare
from cot_flax.students.parameters import Tensor
from cot_flax.students.t5 import T5Student
from cot_flax.students.t5.config import T5Config
from cot_flax.tasks import gsm8k
from cot_flax.tasks.stories import VOCABULARY
from cot_flax.teacher.recipes import Overrides
from cot_flax.teacher.scenario import read_scenario, read_test
from cot_flax.teacher.teach import NamedTeacher, sample
from cot_flax.weights.export import export
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Source
from cot_flax.weights.t5x import write

TRIAGE = Path(__file__).resolve().parents[1] / "examples" / "triage"


@pytest.fixture(autouse=True, scope="module")
def _bucket(tmp_path_factory):
    with serve_bucket() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("COT_FLAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_export(tmp_path):
    sizes = {"vocab_size": 24, "emb_dim": 16, "num_heads": 2, "head_dim": 4, "mlp_dim": 32}
    student = T5Student(T5Config(**sizes, num_encoder_layers=1, num_decoder_layers=1))
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=s).astype("f4") for n, s in student.parameter_shapes().items()}
    tensors = {name: Tensor(a.shape, a.dtype, a.__getitem__) for name, a in arrays.items()}
    write(Source("memory", student, tensors), tmp_path / "from", dtype="float32")
    written = export(str(tmp_path / "from"), "gs://runs/a/out", format="t5x", card=lambda *_: "")
    assert written.bytes > 4 * written.parameters
    found = open_source("gs://runs/a/out")
    assert found.place == "gs://runs/a/out/checkpoint_0"
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.tensors[name].whole(), array)


def test_evaluate_goes_on_after_a_kill():
    tasks = ("a", "b")
    facts = {"checkpoint": "run/checkpoints/7", "date": "then", "cards": {"a": {}, "b": {}}}
    rows = {task: [{"task": task, "id": str(i)} for i in range(2)] for task in tasks}
    first = Outputs("gs://runs/student/test", facts, tasks)
    first.end_task("a", rows["a"], {"count": 2})
    with pytest.raises(KeyboardInterrupt), first.growing("b") as add:
        add(rows["b"][:1])
        raise KeyboardInterrupt
    assert first.unfinished == work_path("gs://runs/student/test") / "predictions.unfinished.jsonl"
    assert json.loads(first.unfinished.read_text()) == rows["b"][0]
    (run,) = run_folder.read_runs({"run": path_at("gs://runs/student")})
    assert (list(run.tasks), run.predictions) == (["a"], rows["a"])

    second = Outputs("gs://runs/student/test", facts, tasks)
    assert second.rows == {"a": rows["a"]} and second.begun("b") == rows["b"][:1]
    second.end_task("b", rows["b"], {"count": 2})
    (run,) = run_folder.read_runs({"run": path_at("gs://runs/student")})
    assert run.predictions == [*rows["a"], *rows["b"]]
    assert not first.unfinished.exists()
    with pytest.raises(UserError, match=r"with 4 predictions of 2 tasks.*others: checkpoint"):
        Outputs("gs://runs/student/test", facts | {"checkpoint": "run/checkpoints/8"}, tasks)


def test_teach(tmp_path):
    records = [{"question": s.question, "answer": str(s.answer)} for s in STORIES[:3]]
    for name in ("questions", "worked"):
        lines = (json.dumps(r | {"id": str(i), "rationale": "2"}) for i, r in enumerate(records))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    def ask(out):
        return sample(
            questions=str(tmp_path / "questions.jsonl"),
            recipe="fu2023",
            dataset="stories",
            out=out,
            exemplars=str(tmp_path / "worked.jsonl"),
            overrides=Overrides(shots=1, samples=2),
            teacher=NamedTeacher(model="story", base_url=server.url),
        )

    with StoryServer() as server:
        ask(str(tmp_path / "samples.jsonl"))
        asked = server.answered.total()
        ask("gs://runs/samples.jsonl")
        assert server.answered.total() == 2 * asked
        ask("gs://runs/samples.jsonl")  # from the journal on this machine
        assert server.answered.total() == 2 * asked
    assert work_path("gs://runs/teacher.journal").is_file()
    (tmp_path / "fetched.jsonl").write_bytes(path_at("gs://runs/samples.jsonl").read_bytes())
    found = [list(read_samples(tmp_path / f"{name}.jsonl")) for name in ("samples", "fetched")]
    assert found[0] == found[1] != []


@pytest.fixture
def unbound():
    """Nothing that gin has bound, before and after."""
    gin.clear_config()
    yield
    gin.clear_config()


def test_records_are_read(unbound):
    rows = [
        {"question": f"{i} + 1?", "answer": f"{i} + 1 = {i + 1}.\n#### {i + 1}"} for i in range(502)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), table)
    contents = {
        "train.jsonl.gz": gzip.compress(lines),
        "test-00000-of-00001.parquet": table.getvalue(),
    }
    for name, content in contents.items():
        path_at(f"gs://runs/gsm8k/{name}").write_bytes(content)
    for name in contents:
        assert [row for _, row in records(f"gs://runs/gsm8k/{name}")] == rows
    gin.bind_parameter("cot_flax.tasks.gsm8k.data.directory", "gs://runs/gsm8k")
    counts = {
        split: len(list(gsm8k.SOURCE.get_dataset(split, shuffle=False)))
        for split in ("train", "validation", "test")
    }
    assert counts == {"train": 2, "validation": 500, "test": 502}
    with pytest.raises(UserError, match=r"gs://runs/gsm8k/dev\.jsonl: No such file"):
        record_files("gs://runs/gsm8k", "dev")
    with pytest.raises(UserError, match=r"gs://runs/none\.jsonl: No such file"):
        list(records("gs://runs/none.jsonl"))
    samples = list(parsed("gs://runs/gsm8k/train.jsonl.gz"))
    assert [(sample.text, sample.gold_answer) for sample in samples[:1]] == [("0 + 1 = 1.", "1")]


def test_a_scenario_is_read():
    for path in TRIAGE.iterdir():
        path_at(f"gs://runs/triage/{path.name}").write_bytes(path.read_bytes())
    assert read_scenario("gs://runs/triage") == read_scenario(TRIAGE)
    assert read_test("gs://runs/triage") == read_test(TRIAGE)


def test_samples_are_merged_and_prepared_in_a_bucket(tmp_path):
    write_samples("gs://runs/one.jsonl.gz", make_samples(STORIES[:3], samples=1, seed=0))
    assert merge_samples(["gs://runs/one.jsonl.gz"], "gs://runs/all.jsonl") == 3
    settings = {"vocabulary": VOCABULARY, "settings": Preparation(), "workers": 1}
    assert prepare(["gs://runs/all.jsonl"], str(tmp_path / "from"), **settings).read == 3


def test_prepare_goes_on_after_a_kill(tmp_path):
    samples = tmp_path / "samples.jsonl"
    write_samples(samples, make_samples(STORIES[:20], samples=1, seed=0))

    def run(out, progress=lambda tally: None):
        settings = {"vocabulary": VOCABULARY, "settings": Preparation(), "records_per_shard": 8}
        return prepare([str(samples)], out, workers=1, progress=progress, **settings)

    def killed(tally):
        raise KeyboardInterrupt

    expected = run(str(tmp_path / "store"))
    with pytest.raises(KeyboardInterrupt):
        run("gs://runs/store", killed)
    assert not path_at("gs://runs/store").exists()
    (done,) = work_path("gs://runs/store").glob("parts/00000.json")
    time = done.stat().st_mtime_ns
    seen = []
    assert run("gs://runs/store", lambda tally: seen.append(done.stat().st_mtime_ns)) == expected
    assert set(seen) == {time}  # what was prepared before the kill was not prepared again
    assert not work_path("gs://runs/store").exists()
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert {path.name for path in path_at("gs://runs/store").iterdir()} == names
    for name in names:
        found = (path_at("gs://runs/store") / name).read_bytes()
        assert found == (tmp_path / "store" / name).read_bytes(), name
    assert run("gs://runs/store", killed) == expected  # a finished one is left as it is
    assert layout.read_manifest("gs://runs/store")["kept"] == expected.kept
