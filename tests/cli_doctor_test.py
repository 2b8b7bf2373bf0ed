"""`cot-flax doctor` on environments with a broken part each, which are made, not pretended."""

import http.server
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
import venv
from pathlib import Path

import jax
import pytest

doctor = importlib.import_module("cot_flax.cli.doctor")  # the package has its verb by this name
ROOT = Path(__file__).resolve().parents[1]
TENSORFLOW = ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio")
SECRET = "hf_neverPrintThis"
NO_NETWORK = {"HF_ENDPOINT": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter whose environment has no packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


def libraries(folder, hidden=(), alone=()):
    """A folder with the libraries of this environment, but for the hidden ones, or some alone."""
    folder.mkdir()
    for place in (Path(path) for path in sys.path if "site-packages" in path):
        for entry in place.iterdir():
            name = entry.name.partition("-")[0].removesuffix(".py")
            if name not in hidden and (not alone or name in alone) and entry.suffix != ".pth":
                link = folder / entry.name
                link.exists() or link.symlink_to(entry)
    return folder


def with_requirements(name):
    """A distribution and those that it needs, by name."""
    found = {name}
    for text in importlib.metadata.requires(name) or ():
        if ";" not in text:
            found |= with_requirements(re.match(r"[\w-]+", text)[0].lower())
    return found


def examine(python, path, folder, **variables):
    """Runs `cot-flax doctor`; returns its exit code, findings by name, and all that it prints."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    given = kept | NO_NETWORK | {"PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)])}
    given |= {"COT_FLAX_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        [python, "-m", "cot_flax.cli", "doctor"],
        cwd=folder,
        env=given | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = {}
    for line in done.stdout.partition("\n\n")[0].splitlines():
        state, name, text = line.split(maxsplit=2)
        found.setdefault(name, []).append((state, text))
    assert set(found) == set(doctor.CHECKS), done.stderr[-3000:]
    assert done.stderr == ""
    return done.returncode, found, done.stdout


def the_one(found, name, state):
    (text,) = [text for known, text in found[name] if known == state]
    return text


def test_a_whole_environment_with_what_hurts_a_little(python, tmp_path):
    other = tmp_path / "other" / "dist-packages"
    other.mkdir(parents=True)
    whole = libraries(tmp_path / "whole")
    code, found, out = examine(
        *(python, [other, whole], tmp_path),
        COT_FLAX_CACHE="/dev/null/cache",
        HF_TOKEN=SECRET,
        JAX_ENABLE_X64="1",
        MPLBACKEND="module://a_kernels",
        JAX_LOG_COMPILES="0",
    )
    assert code == 0, out
    assert all(state == "ok" for name in ("python", "packages") for state, _ in found[name]), out
    assert found["tensorflow"][0][1].startswith("it and SeqIO are imported in ")
    assert found["devices"] == [("ok", "1 x cpu (cpu)")]
    assert the_one(found, "caches", "note") == (
        "got /dev/null/cache/compiled (Not a directory): every run compiles anew; expected a "
        "folder for compiled programs; set COT_FLAX_CACHE to a folder of yours"
    )
    hub = the_one(found, "hub", "note")
    assert hub.startswith("got no answer from http://127.0.0.1:9 (")
    assert ("ok", "a token is set") in found["hub"]
    assert SECRET not in out
    notes = [text for state, text in found["variables"] if state == "note"]
    assert notes == [
        "without JAX_ENABLE_X64=1: students train in 32 bits",
        f"PYTHONPATH has packages of another Python, which come last: {other}",
    ]
    texts = [text for state, text in found["variables"] if state == "ok"]
    assert texts[0] == "MPLBACKEND=module://a_kernels: agg instead"
    assert "JAX_LOG_COMPILES" in texts[1] and "COT_FLAX_CACHE" in texts[1]
    report = out.partition("For a bug report, send the command, its last line, and this:\n\n")[2]
    assert f"jax {jax.__version__}, " in report and "devices: 1 x cpu (cpu)" in report
    assert "JAX_LOG_COMPILES=0" in report


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """The libraries without TensorFlow's, which take seconds to import."""
    return libraries(tmp_path_factory.mktemp("libraries") / "core", hidden=TENSORFLOW)


def test_a_core_alone_is_not_broken(python, core, tmp_path):
    code, found, out = examine(python, [core], tmp_path)
    assert code == 0, out
    assert the_one(found, "extras", "note") == (
        "got no seqio, tensorflow, tensorflow_datasets, tensorflow_text, without which demo, "
        "prepare, train, evaluate and plan stop; expected the extra `data`; "
        'run: pip install "cot-flax[data]"'
    )
    assert "0 problems" in out


def test_half_an_extra_is_a_problem(python, tmp_path):
    half = libraries(tmp_path / "half", hidden=TENSORFLOW[:1])
    code, found, out = examine(python, [half], tmp_path)
    assert code == 2
    assert the_one(found, "extras", "problem").startswith("got no tensorflow, without which demo,")
    assert found["tensorflow"] == [("ok", "not looked at, as the extra `data` is not whole")]
    report = out.partition("For a bug report")[2]
    assert "extras: got no tensorflow, without" in report


def test_settings_that_no_command_runs_with(python, core, tmp_path):
    flags = {"XLA_FLAGS": "--no_such_flag=1", "JAX_PLATFORMS": "abacus"}
    code, found, out = examine(python, [core], tmp_path, **flags)
    assert code == 2
    text = the_one(found, "variables", "problem")
    assert text.startswith("got XLA_FLAGS=--no_such_flag=1 (Unknown flag")
    text = the_one(found, "devices", "problem")
    assert "abacus" in text and text.endswith("; unset JAX_PLATFORMS=abacus, or set it to cpu")
    assert "\n2 problems, " in out


def test_libraries_that_are_old_or_missing(python, core, tmp_path):
    old = tmp_path / "old" / "optax-0.1.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.1.0\n")
    hidden = libraries(tmp_path / "hidden", hidden=("jax", *TENSORFLOW))
    code, found, _ = examine(python, [old.parent, hidden], tmp_path)
    assert code == 2
    wanted = {
        text.partition(">")[0]: text
        for text in importlib.metadata.requires("cot-flax")
        if text.startswith(("jax>", "optax"))
    }
    problems = {text for state, text in found["packages"] if state == "problem"}
    assert problems == {
        f'got optax 0.1.0; expected {wanted["optax"]}; run: pip install "{wanted["optax"]}"',
        f'got no jax; expected {wanted["jax"]}; run: pip install "{wanted["jax"]}"',
    }
    text = the_one(found, "devices", "problem")
    assert "No module named 'jax'" in text


def test_with_hardly_a_library_it_still_ends_with_its_report(python, tmp_path):
    needed = {name.replace("-", "_") for name in with_requirements("typer")}
    bare = libraries(tmp_path / "bare", alone=needed | {"markdown_it", "typing_extensions"})
    code, found, out = examine(python, [bare], tmp_path)
    assert code == 2 and "\n1 problem, 9 notes\n" in out
    assert found["python"][0][1].startswith("this check failed: ModuleNotFoundError: No module")
    assert out.rstrip().splitlines()[-1].startswith(("HF_HOME=", "TF_"))


@pytest.fixture
def server():
    """What answers a HEAD request on this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_that_answers_and_one_that_is_not_to_be_asked(
    python, core, tmp_path, server, offline
):
    code = (
        "from cot_flax.cli.doctor import Machine, _hub; print(*[f.text for f in _hub(Machine({}))])"
    )
    variables = {"HF_ENDPOINT": server, "HF_HUB_OFFLINE": str(int(offline))}
    variables |= {"PYTHONPATH": f"{core}{os.pathsep}{ROOT}", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [python, "-c", code], env=variables, capture_output=True, text=True, timeout=60
    )
    said = "off by HF_HUB_OFFLINE: the cache alone is read" if offline else f"{server} answers"
    token = "no token is set (HF_TOKEN); gated models need one"
    assert done.stdout == f"{token} {said}\n", done.stderr


def test_a_name_that_is_looked_up_for_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "_ANSWER_SECONDS", -0.9)
    waits = threading.Event()
    with pytest.raises(TimeoutError):
        doctor._in_time(waits.wait)
    waits.set()
    with pytest.raises(OSError, match="broken"):
        doctor._in_time(lambda: (_ for _ in ()).throw(OSError("broken")))


class Fake(doctor.Machine):
    """What JAX would print."""

    printed = json.dumps(["cpu", "cpu", 1, None])

    def run(self, code):
        return True, f"{self.printed}\n", ""


@pytest.mark.parametrize(
    ("file", "given", "state", "text"),
    [
        ("nvidia0", {}, "problem", 'an NVIDIA GPU on .*pip install "cot-flax\\[gpu\\]"'),
        ("accel0", {}, "problem", "a TPU on this machine, unused: JAX has 1 x cpu"),
        ("vfio/0", {}, "problem", "a device passed through"),
        ("nvidia0", {"JAX_PLATFORMS": "cpu"}, "note", "by JAX_PLATFORMS=cpu; .*unset it to use"),
        ("vfio/vfio", {}, "ok", "1 x cpu"),
        ("null", {}, "ok", "1 x cpu"),
    ],
)
def test_an_accelerator_that_jax_does_not_use(tmp_path, monkeypatch, file, given, state, text):
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    (finding,) = doctor._devices(Fake(given, device_files=tmp_path))
    assert finding.state == state
    assert re.search(text, finding.text), finding.text


def test_an_accelerator_in_use_is_named_with_its_memory(tmp_path):
    (tmp_path / "nvidia0").touch()
    machine = Fake({}, device_files=tmp_path)
    object.__setattr__(machine, "printed", json.dumps(["gpu", "NVIDIA H100", 2, 64e9]))
    (finding,) = doctor._devices(machine)
    assert finding == doctor.Finding("2 x NVIDIA H100 (gpu), 64.0 GB each")


def test_a_report_has_no_password_of_a_mirror():
    machine = doctor.Machine({"HF_ENDPOINT": "https://me:secret@mirror/x", "HF_HUB_TOKEN": "t"})
    lines = list(doctor._report(machine, []))
    assert lines[-1] == "HF_ENDPOINT=https://mirror/x"


def test_gsm8k_is_there_when_tfds_has_finished_it(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it would keep this proxy
    made = tmp_path / "gsm8k" / "1.0.0"
    made.mkdir(parents=True)  # as a download leaves it that failed
    machine = doctor.Machine({"TFDS_DATA_DIR": str(tmp_path)})
    there = f"GSM8K is in {tmp_path}"
    assert there not in [finding.text for finding in doctor._data(machine)]
    (made / "dataset_info.json").write_text("{}")
    assert there in [finding.text for finding in doctor._data(machine)]
