"""Against a small hub on the loopback, from other processes: HF_* are read when one starts."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FILES = {
    "t/safe": ("config.json", "spiece.model", "model.safetensors", "pytorch_model.bin", "tf.h5"),
    "t/sharded": (
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ),
    "t/pickled": ("config.json", "pytorch_model.bin", "rust_model.ot"),
    "t/gated": ("config.json", "model.safetensors"),
    "d/parquet": ("README.md", "main/test-00000-of-00001.parquet", "twin.jsonl"),
    "d/lines": ("dataset_infos.json", "data/train.jsonl.gz", "data/test.jsonl.gz", "x.csv"),
    "d/script": ("dataset_infos.json", "script.py", "raw.zip"),
    "d/script@refs/convert/parquet": ("default/train/0000.parquet", "default/test/0000.parquet"),
    "d/images": ("1.png",),
    "d/shards": ("train-00000-of-00003.parquet", "train-00002-of-00003.parquet"),
    "d/gated": ("train.parquet",),
}
CALL = """
import json, sys
from cot_flax.errors import UserError
from cot_flax.hub import data_files
from cot_flax.weights.source import Access
from cot_flax.weights.opening import download
for name, settings in json.loads(sys.argv[1]):
    try:
        if name.startswith("d/"):
            print(json.dumps(data_files(name, **settings)))
        else:
            print(download(name, Access(**settings)))
    except UserError as error:
        print("UserError", error)
"""


class Hub(BaseHTTPRequestHandler):
    """The three end points that a download asks; serves each file's own name as its content."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._file()

    def do_GET(self):
        path = urllib.parse.unquote(self.path.split("?")[0]).strip("/")
        parts = path.split("/")
        if parts[0] != "api":
            return self._file()
        name, asked = "/".join(parts[2:4]), "/".join(parts[5:])
        if name not in FILES:
            return self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        if parts[4] == "tree":
            listed = next(of for of in FILES if _etag(of) == parts[5])
            tree = [
                {"type": "file", "path": path, "size": len(path), "oid": _etag(path)}
                for path in FILES[listed]
            ]
            return self._send(json.dumps(tree).encode())
        named = name if asked == "main" else f"{name}@{asked}"
        if named not in FILES:
            return self._send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": path} for path in FILES[named]]
        info = {"id": name, "modelId": name, "sha": _etag(named), "siblings": siblings, "tags": []}
        return self._send(json.dumps(info | {"private": False, "downloads": 0}).encode())

    def _file(self):
        path = urllib.parse.unquote(self.path.split("?")[0]).strip("/").removeprefix("datasets/")
        _, model, _, sha, path = path.split("/", 4)
        if model == "gated":
            message = {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"}
            return self._send(b"", 403, message)
        assert path in next(files for of, files in FILES.items() if _etag(of) == sha)
        return self._send(path.encode(), 200, {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": sha})

    def _send(self, content, status=200, headers=()):
        self.send_response(status)
        for name, value in (dict(headers) | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def _etag(path):
    return hashlib.sha1(path.encode()).hexdigest()


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def download(tmp_path):
    """Downloads (name, fields of Access) one after the other; returns what each of them says."""

    def call(endpoint, *wanted, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        result = subprocess.run(
            [sys.executable, "-c", CALL, json.dumps(wanted)],
            env=clean | ours | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip().splitlines()[-len(wanted) :]

    return call


CLOSED = "http://127.0.0.1:9"  # nobody listens there
SAFE, LOCAL, PICKLED = {}, {"local_files_only": True}, {"allow_pickle": True}


def test_what_is_needed_comes_and_stays(hub, download, tmp_path):
    folder, sharded = download(hub, ("t/safe", PICKLED), ("t/sharded", SAFE))
    names = ["config.json", "model.safetensors", "spiece.model"]
    assert sorted(os.listdir(folder)) == names
    assert (tmp_path / folder / "spiece.model").read_text() == "spiece.model"
    assert sharded.endswith(_etag("t/sharded"))
    # From then on without a connection, said or not.
    assert download(CLOSED, ("t/safe", LOCAL), ("t/safe", SAFE)) == [folder, folder]


def test_pickled_weights_come_only_where_allowed_and_nothing_better_is(hub, download):
    (folder,) = download(hub, ("t/pickled", SAFE))
    assert os.listdir(folder) == ["config.json"]
    (folder,) = download(hub, ("t/pickled", PICKLED))
    assert sorted(os.listdir(folder)) == ["config.json", "pytorch_model.bin"]


def test_what_cannot_come(hub, download, tmp_path):
    nothing, gated, absent = download(
        hub, ("t/nothing", SAFE), ("t/gated", SAFE), ("t/safe", LOCAL)
    )
    assert nothing.startswith("UserError got no t/nothing: neither a folder in ")
    assert gated.startswith("UserError got t/gated, which its owners give to some only")
    (unreached,) = download(CLOSED, ("t/safe", SAFE))
    got = f"UserError got no folder t/safe in {Path.cwd()}, and no answer from {CLOSED}"
    assert unreached.startswith(got)
    assert "--local_files_only" in unreached and "hf download t/safe --local-dir DIR" in unreached
    (offline,) = download(hub, ("t/safe", SAFE), HF_HUB_OFFLINE="1")
    for message in (absent, offline):
        assert message.startswith("UserError got t/safe that is not, or not whole, in its cache")
        assert "HF_HOME" in message and str(tmp_path) in message


def test_data_sets_own_files_before_those_that_the_hub_converted(hub, download, tmp_path):
    parquet, lines, script, chosen = (
        [Path(path).relative_to(tmp_path) for path in json.loads(line)]
        for line in download(
            hub,
            ("d/parquet", {}),
            ("d/lines", {}),
            ("d/script", {}),
            ("d/parquet", {"patterns": ["twin*", "*.parquet"]}),
        )
    )
    names = [path.relative_to(*path.parts[:1]).parts[3:] for path in parquet]
    assert names == [("main", "test-00000-of-00001.parquet")]
    assert [path.name for path in lines] == ["test.jsonl.gz", "train.jsonl.gz"]
    assert [path.parts[-2:] for path in script] == [
        ("test", "0000.parquet"),
        ("train", "0000.parquet"),
    ]
    assert [path.name for path in chosen] == ["twin.jsonl"]
    assert (tmp_path / script[0]).read_text() == "default/test/0000.parquet"
    # From then on without a connection, said or not.
    again = download(CLOSED, ("d/script", {}), ("d/parquet", {}))
    assert [str(tmp_path / path) for path in script] == json.loads(again[0])
    (offline,) = download(CLOSED, ("d/script", {}), HF_HUB_OFFLINE="1")
    assert offline == again[0]


def test_data_that_cannot_come(hub, download, tmp_path):
    nothing, gated, images, shards, revision = download(
        hub,
        ("d/nothing", {}),
        ("d/gated", {}),
        ("d/images", {}),
        ("d/shards", {}),
        ("d/lines", {"revision": "v9"}),
    )
    assert nothing.startswith("UserError got no d/nothing: neither a folder in ")
    assert f"nor a data set on {hub}" in nothing and "hf auth login" in nothing
    assert gated.startswith("UserError got d/gated, which its owners give to some only")
    assert f"{hub}/datasets/d/gated" in gated
    assert images.startswith("UserError got no file *.parquet or ")
    assert "2 of the 3 files train-*-of-00003.parquet of d/shards" in shards
    assert revision.startswith("UserError got no revision v9 of d/lines")
    (unreached,) = download(CLOSED, ("d/lines", {}))
    assert f"no answer from {CLOSED} for a data set" in unreached
    assert "hf download d/lines --repo-type dataset --local-dir DIR" in unreached
    (offline,) = download(hub, ("d/lines", {}), HF_HUB_OFFLINE="1")
    assert offline.startswith("UserError got d/lines that is not, or not whole, in its cache")
