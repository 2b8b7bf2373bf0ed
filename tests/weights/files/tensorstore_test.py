"""Tests of reading and writing arrays: parts of them, broken ones, and buckets."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import jax.numpy as jnp
import numpy as np
import pytest

from cot_flax.errors import UserError
from cot_flax.students.parameters import Tensor
from cot_flax.students.t5 import T5Student
from cot_flax.students.t5.config import T5Config
from cot_flax.weights import t5x
from cot_flax.weights.files import tensorstore as files
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Source

ALL = (slice(None), slice(None))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(files, "_CHUNK", 2 * 6 * 4)  # two rows of six floats


@pytest.fixture
def array(tmp_path, small_chunks):
    written = np.arange(42, dtype=np.float32).reshape(7, 6)
    files.write_zarr(tmp_path, "w", written)
    return written


def stored(place, shape=(7, 6)):
    return files.zarr(str(place), "w", shape, np.dtype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(5,), (7, 6), (2, 3, 4)])
def test_reads_what_was_written(shape, dtype, tmp_path):
    written = np.arange(np.prod(shape)).reshape(shape).astype(jnp.dtype(dtype))
    spec = files.write_zarr(tmp_path, "w", written)
    assert (spec["dtype"], spec["metadata"]["shape"]) == (dtype, list(shape))
    read = files.zarr(str(tmp_path), "w", shape, written.dtype).whole()
    np.testing.assert_array_equal(read, written, strict=True)


def test_a_chunk_is_some_rows(array, tmp_path):
    names = {path.name for path in (tmp_path / "w").iterdir()}
    assert names == {".zarray", "0.0", "1.0", "2.0", "3.0"}


def test_only_what_is_asked_for_is_read(array, tmp_path):
    (tmp_path / "w" / "3.0").unlink()
    (tmp_path / "w" / "0.0").write_bytes(b"broken")
    part = stored(tmp_path).read((slice(2, 6), slice(1, 3)))
    np.testing.assert_array_equal(part, array[2:6, 1:3])


def test_a_missing_chunk_is_not_read_as_zeros(array, tmp_path):
    (tmp_path / "w" / "2.0").unlink()
    with pytest.raises(UserError, match=r"w/2\.0\" is missing.*copy the checkpoint again"):
        stored(tmp_path).whole()


def test_a_cut_chunk(array, tmp_path):
    chunk = tmp_path / "w" / "1.0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(UserError, match=r"w/1\.0.*expected a complete checkpoint") as raised:
        stored(tmp_path).whole()
    assert "\n" not in str(raised.value)
    assert "tensorstore_spec" not in str(raised.value)


def test_a_missing_array(tmp_path):
    with pytest.raises(UserError, match=r"w/\.zarray\" does not exist"):
        stored(tmp_path).whole()


def test_an_array_of_another_shape(array, tmp_path):
    with pytest.raises(UserError, match=r"/w of shape \[7, 6\]; expected \[7, 5\]"):
        stored(tmp_path, (7, 5)).whole()


def test_files_of_a_folder(tmp_path):
    for name in ("a_1/x", "a_2", "b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert files.read(str(tmp_path), "a_1/x") == b"a_1/x"
    assert files.read(str(tmp_path), "c") is None
    (tmp_path / "a_3").symlink_to(tmp_path / "a_1")
    assert files.read(str(tmp_path), "a_1") is None
    assert files.listing(str(tmp_path)).names == {"a_1", "a_2", "a_3", "b"}
    assert files.listing(str(tmp_path / "no such folder")).names == frozenset()


def test_a_listing_looks_into_steps_and_no_further(tmp_path):
    names = {"checkpoints/3/state/manifest.ocdbt", "checkpoint_5/checkpoint"}
    for name in names | {"checkpoints/3/state/d/1", "checkpoint_5/target.w/0.0", "other/1"}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = files.listing(f"{tmp_path}/")
    between = {"checkpoints", "checkpoints/3", "checkpoints/3/state", "checkpoint_5", "other"}
    assert found.names == names | between | {"checkpoints/3/state/d", "checkpoint_5/target.w"}
    assert found.path("other") == f"{tmp_path}/other" and found.path("") == str(tmp_path)


# Buckets ------------------------------------------------------------------------------------------


def bucket(root, asked):
    """The two calls of Google Cloud Storage's JSON API that reading takes, for one folder."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlsplit(self.path)
            assert url.path.startswith("/storage/v1/b/ours")
            _, _, name = url.path.partition("/o/")
            query = {key: value for key, (value,) in parse_qs(url.query).items()}
            asked.append(unquote(name))
            if name and not (root / unquote(name)).is_file():
                self.send_error(404)
            else:
                self.answer((root / unquote(name)).read_bytes() if name else listing(query))

        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("x-goog-generation", "1")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    def listing(query):
        names = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        inside = [
            n for n in names if query.get("startOffset", "") <= n < query.get("endOffset", "~")
        ]
        return json.dumps({"items": [{"name": name} for name in sorted(inside)]}).encode()

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Serves `tmp_path` as any bucket gs://ours...; gives the names that were asked for."""
    names = []
    with bucket(tmp_path, names) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        yield names
        server.shutdown()


def test_a_bucket_reads_as_a_folder_does(asked, array, tmp_path):
    (tmp_path / "deep").mkdir()
    files.write_zarr(tmp_path / "deep", "w", array)
    for place in ("gs://ours", "gs://ours/deep/"):
        part = stored(place).read((slice(2, 3), slice(1, 3)))
        np.testing.assert_array_equal(part, array[2:3, 1:3])
    assert [name for name in asked if "/.z" not in name] == ["w/1.0", "deep/w/1.0"]
    assert files.listing("gs://ours").names >= {"deep", "deep/w", "deep/w/3.0"}
    assert files.listing("gs://ours/deep/w/").names >= {".zarray", "3.0"}
    assert files.listing("gs://ours/nothing").names == frozenset()
    assert files.read("gs://ours", "no such file") is None


def test_the_parts_of_a_chunk_take_one_reading_of_it(asked, array):
    # A bucket of its own: what is kept of another test's must not be taken for this one's.
    tensor = stored("gs://ours-too")
    for columns in (slice(0, 2), slice(2, 4), slice(4, 6)):
        part = tensor.read((slice(0, 2), columns))
        np.testing.assert_array_equal(part, array[:2, columns])
    assert asked.count("w/0.0") == 1


def test_a_t5x_checkpoint_in_a_bucket(asked, tmp_path):
    config = T5Config(vocab_size=24, emb_dim=16, num_heads=2, head_dim=4, mlp_dim=32)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in T5Student(config).parameter_shapes().items():
        drawn = rng.normal(size=shape).astype(np.float32)
        tensors[name] = Tensor(shape, drawn.dtype, drawn.__getitem__)
    t5x.write(
        Source("memory", T5Student(config), tensors), tmp_path / "run", dtype="float32", step=3
    )
    opened = open_source("gs://ours/run/")
    assert asked.count("") == 1  # the names, once
    assert (opened.place, opened.student.config) == ("gs://ours/run/checkpoint_3", config)
    assert not [name for name in asked if "target" in name]
    name = "decoder.layers_1.mlp.wo.kernel"
    np.testing.assert_array_equal(opened.tensors[name].whole(), tensors[name].whole())
    folder = f"run/checkpoint_3/target.{name}"
    assert [name for name in asked if "target" in name] == [f"{folder}/.zarray", f"{folder}/0.0"]


def test_an_unreachable_bucket(monkeypatch):
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:1")
    start = time.monotonic()
    with pytest.raises(UserError, match=r"gs://ours/model, .*gcloud storage cp -r gs://ours/m"):
        files.read("gs://ours/model", "checkpoint")
    assert time.monotonic() - start < 20
