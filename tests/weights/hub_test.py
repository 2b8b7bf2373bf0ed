"""Against a small hub on the loopback, from other processes: HF_* are read when one starts."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SHA = "a" * 40
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
}
CALL = """
import json, sys
from cot_flax.errors import UserError
from cot_flax.weights.source import Access
from cot_flax.weights.hub import download
for name, access in json.loads(sys.argv[1]):
    try:
        print(download(name, Access(**access)))
    except UserError as error:
        print("UserError", error)
"""


class Hub(BaseHTTPRequestHandler):
    """The three end points that a download asks; serves each file's own name as its content."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._file()

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] != ["api", "models"]:
            return self._file()
        name = "/".join(parts[2:4])
        if name not in FILES:
            return self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        if "tree" in parts:
            tree = [
                {"type": "file", "path": path, "size": len(path), "oid": _etag(path)}
                for path in FILES[name]
            ]
            return self._send(json.dumps(tree).encode())
        siblings = [{"rfilename": path} for path in FILES[name]]
        info = {"id": name, "modelId": name, "sha": SHA, "siblings": siblings, "tags": []}
        return self._send(json.dumps(info | {"private": False, "downloads": 0}).encode())

    def _file(self):
        owner, model, _, _, path = self.path.split("?")[0].strip("/").split("/")
        if model == "gated":
            message = {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"}
            return self._send(b"", 403, message)
        assert path in FILES[f"{owner}/{model}"]
        return self._send(path.encode(), 200, {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": SHA})

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
    assert sharded.endswith(SHA)
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
