"""The launch scripts against stand-ins for gcloud, xpk and Slurm that record their calls."""

import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from importlib.metadata import version
from pathlib import Path
from unittest.mock import ANY

import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
# All that the scripts may call, beside what each test puts on PATH.
TOOLS = (
    "basename bash cat chmod cmp cp dirname env flock git grep gzip mkdir rm setsid sh sleep tail"
    " tar tee tr true"
)
SHIPPED = ["--gin_file=experiments/world_base.gin", "--gin.MODEL_DIR='gs://bucket/a run'"]
TRAIN = ["tpu_pod.sh", "train", "pod", "v5e-16", "us-central1-a"]
EVALUATE = ["tpu_pod.sh", "evaluate", *TRAIN[2:]]
RESULTS = ["--gin_file=e.gin", "--gin.EVAL_OUTPUT_DIR=gs://bucket/run/test"]
PASSED = ["--", "--project=p", "--reserved", "--network=n", "--tunnel-through-iap", "--"]
QUEUE = [*TRAIN, "--queue", "--spot"]
T5X = ("t5x", "airio", "jestimator")
GKE = ["tpu_gke.sh", "train", "job", "v6e-32", "cluster", "us-east5-b"]

RECORDER = """#!{python} -IS
import json, os, sys
NAME = {name!r}
with open({calls!r}, "a") as file:
    file.write(json.dumps([NAME, *sys.argv[1:]]) + "\\n")
"""
# `describe` takes its answers from states.txt in turn; the last one stays. Workers are folders.
GCLOUD = """
import pathlib, shutil, subprocess
words, states = [w for w in sys.argv[1:] if w != "alpha"], pathlib.Path({home!r}, "states.txt")
flags = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
if words[0] == "auth":
    print(pathlib.Path({home!r}, "account.txt").read_text(), end="")
elif words[3] == "delete" and pathlib.Path({home!r}, "stuck").exists():
    sys.exit("ERROR: stuck")
elif words[3] == "describe":
    state, *others = states.read_text().split("\\n")
    if others:
        states.write_text("\\n".join(others))
    if state in ("NOT_FOUND", "PERMISSION_DENIED"):
        sys.exit(f"ERROR: (gcloud.compute.tpus) {{state}}: of the resource")
    print("WARNING: of gcloud", file=sys.stderr)
    print(state)
elif words[3] == "scp":
    shutil.copy(words[4], pathlib.Path({home!r}, words[5].split(":")[1]))
elif words[3] == "ssh":
    environment = os.environ | {{"HOME": {home!r}, "PYTHON": sys.executable}}
    done = subprocess.run(["bash", "-c", flags["--command"]], cwd={home!r}, env=environment)
    sys.exit(done.returncode)
"""
# Stands for the virtual environment's command on a worker.
COT_FLAX = """
import pathlib, time
print("trains with a token of", len(os.environ.get("HF_TOKEN", "")), "letters", flush=True)
while pathlib.Path({home!r}, "busy").exists():
    time.sleep(0.02)
sys.exit(int(pathlib.Path({home!r}, "code.txt").read_text()))
"""
# Stands for an interpreter; the environments that it makes have it, too.
PYTHON = """
import pathlib
sys.version_info = (3, MINOR, 0)
match sys.argv[1:]:
    case ["-c", code]:
        exec(code)
    case ["-m", "venv", folder]:
        pathlib.Path(folder, "bin").mkdir(parents=True)
        pathlib.Path(folder, "pyvenv.cfg").touch()
        for name in ("python", "python3"):
            made = pathlib.Path(folder, "bin", name)
            program = pathlib.Path(__file__).read_text()
            made.write_text(program.replace(f"NAME = {{NAME!r}}", f"NAME = {{folder!r}}"))
            made.chmod(0o755)
    case [script, *words] if script != "-m":
        os.execv(sys.executable, [sys.executable, script, *words])
"""


class Host:
    """A machine with a checkout and stand-ins; `home` is that of its only TPU worker."""

    def __init__(self, folder):
        self.checkout, self.bin, self.home = folder / "checkout", folder / "bin", folder / "worker"
        self.calls_file, self.seen = folder / "calls.jsonl", 0
        for made in (self.checkout, self.bin, self.home):
            made.mkdir()
        for tool in TOOLS.split():
            (self.bin / tool).symlink_to(shutil.which(tool))
        # A python3 of PATH may be a wrapper that calls other tools.
        (self.bin / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (self.bin / "python3").chmod(0o755)
        shutil.copytree(LAUNCH, self.checkout / "launch")
        (self.checkout / "setup.py").write_text("# stands for ours\n")
        (self.checkout / ".gitignore").write_text("/runs/\n.venv/\n")
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
            identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
            subprocess.run(["git", *identity, *command], cwd=self.checkout, check=True)
        self.stand_in("gcloud", GCLOUD)
        (self.home / "account.txt").write_text("somebody@example.com\n")
        self.states("READY")
        (self.home / "code.txt").write_text("0")
        self.has_environment(self.home / "cot-flax", "tpu", "tpu,t5x")
        for name in T5X:  # beside the checkouts, so that none is cloned
            (self.home / name / name).mkdir(parents=True)
            (folder / name / name).mkdir(parents=True)

    def stand_in(self, name, program="", folder=None):
        places = {"python": sys.executable, "calls": str(self.calls_file), "home": str(self.home)}
        path = (folder or self.bin) / name
        path.write_text((RECORDER + program).format(name=name, **places))
        path.chmod(0o755)

    def has_environment(self, checkout, *extras):
        """As launch/setup.sh leaves it, so that nothing is installed here."""
        (checkout / ".venv" / "bin").mkdir(parents=True)
        for extra in extras:
            shutil.copy(self.checkout / "setup.py", checkout / ".venv" / f"installed-{extra}")
        for name in ("cot-flax", "python"):
            self.stand_in(name, COT_FLAX, checkout / ".venv" / "bin")

    def python(self, name, minor, folder=None):
        """An interpreter that says it is Python 3.`minor`; a file it is given runs here."""
        self.stand_in(name, PYTHON.replace("MINOR", str(minor)), folder)

    def installs(self):
        """Environments into which this package was installed since the last time."""
        calls = [
            call for call in self.calls() if call[1:3] == ["-m", "pip"] and "--editable" in call
        ]
        return [call[0] for call in calls]

    def states(self, *states):
        (self.home / "states.txt").write_text("\n".join(states))

    def begin(self, script, *arguments, **environment):
        """Starts a script."""
        return subprocess.Popen(
            ["bash", f"launch/{script}", *arguments],
            cwd=self.checkout,
            env={"PATH": str(self.bin), "HOME": str(self.home), "POLL_SECONDS": "0"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def launch(self, script, *arguments, **environment):
        """Runs a script to its end."""
        process = self.begin(script, *arguments, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def calls(self):
        """What the stand-ins were called with since the last time."""
        if not self.calls_file.exists():
            return []
        calls = [json.loads(line) for line in self.calls_file.read_text().splitlines()]
        before, self.seen = self.seen, len(calls)
        return calls[before:]

    def wait_for(self, command, word):
        """Waits for a call with this word in it; returns the calls until then."""
        deadline, calls = time.monotonic() + 30, []
        while not any(call[0] == command and word in " ".join(call) for call in calls):
            assert time.monotonic() < deadline
            time.sleep(0.05)
            calls += self.calls()
        return calls

    def verbs(self):
        """What gcloud was to do with slices, such as "tpu-vm create"."""
        return [" ".join(call[3:5]) for call in self.calls() if call[1:2] == ["compute"]]


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def printed(done):
    """The commands in what a script said."""
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck, "--external-sources", "--enable=quote-safe-variables", script],
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_and_says_how_to_use_it(script):
    lines = script.read_text().splitlines()
    assert len(lines) < 60
    if "Sourced" not in script.read_text():
        assert lines[0] == "#!/usr/bin/env bash"
        assert "set -euo pipefail" in lines
        usage = [line for line in lines if line.startswith("#   ")]
        assert f"launch/{script.name}" in usage[0]


@pytest.mark.parametrize(
    ("command", "states"),
    [
        (TRAIN, ["NOT_FOUND", "READY"]),
        (QUEUE, ["NOT_FOUND", "ACTIVE"]),
        ([*TRAIN, "--env-file=secrets.env"], ["NOT_FOUND", "READY"]),
        ([*TRAIN, "--ship=team", "--ship=spiece.model", *PASSED], ["NOT_FOUND", "READY"]),
        (["tpu_pod.sh", "t5x.train", *TRAIN[2:]], ["NOT_FOUND", "READY"]),
        (["tpu_pod.sh", "stop", "pod", "us-central1-a"], []),
        (["tpu_pod.sh", "delete", "pod", "us-central1-a"], []),
        (["tpu_pod.sh", "delete", "pod", "us-central1-a", "--queue"], []),
        (GKE, []),
        ([*GKE, "--restarts=3", "--env-file=secrets.env", "--ship=team", *PASSED[:3], "--"], []),
        (["tpu_gke.sh", "delete", "job", "cluster", "us-east5-b"], []),
        (["slurm_gpu.sbatch", "train"], []),
        (["slurm_gpu.sbatch", "evaluate"], []),
        (["slurm_gpu.sbatch", "t5x.train"], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_dry_run_prints_the_commands_of_a_real_one_and_runs_none(host, command, states):
    host.stand_in("xpk")
    host.stand_in("srun")
    host.has_environment(host.checkout, "gpu", "gpu,t5x")
    shutil.copytree(LAUNCH, host.home / "cot-flax" / "launch")  # of an earlier training
    (host.checkout / "secrets.env").write_text("HF_TOKEN=abc\n")
    (host.checkout / "team").mkdir()
    (host.checkout / "spiece.model").touch()
    flags = [] if {"stop", "delete"} & set(command) else SHIPPED
    before = sorted(host.checkout.rglob("*"))
    dry = host.launch(*command, *flags, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert host.calls() == []
    assert sorted(host.checkout.rglob("*")) == before
    host.states(*states)
    real = host.launch(*command, *flags, SLURM_JOB_ID="1")
    assert real.returncode == 0, real.stderr
    called = [call for call in host.calls() if call[0] not in ("cot-flax", "python")]
    if states:  # it looks once more than a dry run: is the slice ready now?
        first, second = (i for i, call in enumerate(called) if "describe" in call)
        assert called.pop(second) == called[first]
    stand_ins = {call[0] for call in called}
    assert [line for line in printed(dry) if line[0] in stand_ins] == called
    assert called


def real_gcloud(call, folder):
    """What the real gcloud says to a call, without an account, a project or a service to reach."""
    environment = os.environ | {
        "CLOUDSDK_CONFIG": str(folder),
        "CLOUDSDK_CORE_PROJECT": "none",
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": "http://127.0.0.1:9/",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
    }
    return subprocess.run(
        [*call, "--account=nobody@example.invalid"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="no gcloud on this machine")
def test_gcloud_takes_our_flags(host, tmp_path):
    """gcloud reads flags before it looks for an account: exit code 2 for those that it has not."""
    network = ["--", "--reserved", "--service-account=s", "--network=n", "--subnetwork=m"]
    network += ["--internal-ips", "--project=p"]
    alpha = [*network, "--tunnel-through-iap", "--labels=a=b", "--"]
    printed_calls = []
    for command in (
        [*TRAIN, "--spot", *SHIPPED],
        [*TRAIN, *network, "--labels=a=b", "--internal-ip", "--", *SHIPPED],
        [*QUEUE, *network, "--", *SHIPPED],
        [*QUEUE, *alpha, *SHIPPED],
        [*QUEUE, *SHIPPED],
        ["tpu_pod.sh", "delete", "pod", "z"],
        ["tpu_pod.sh", "delete", "pod", "z", "--queue"],
    ):
        printed_calls += printed(host.launch(*command, "--dry-run"))
    # One call of a kind: what it is about, and the names of its flags.
    calls = {
        tuple(word.split("=")[0] for word in call): call
        for call in printed_calls
        if call[0] == "gcloud"
    }
    (tmp_path / "runs" / "launch" / "pod").mkdir(parents=True)  # for the logs
    verbs = {tuple(call[3:5]) for call in calls.values() if call[1] == "compute"}
    assert len(verbs) == 8
    for call in calls.values():
        done = real_gcloud(call, tmp_path)
        if call[1] == "auth":
            assert (done.returncode, done.stdout) == (0, "")
        elif "alpha" in call and "have this command group installed" in done.stderr:
            continue
        else:
            assert done.returncode == 1, (call, done.stderr)
            assert "does not have any valid credentials" in done.stderr
    done = real_gcloud([*call, "--no-such-flag"], tmp_path)
    assert done.returncode == 2
    assert "unrecognized arguments: --no-such-flag" in done.stderr


@pytest.mark.skipif(shutil.which("xpk") is None, reason="no xpk on this machine")
def test_xpk_takes_our_flags(host):
    commands = printed(host.launch(*GKE, *SHIPPED, "--env-file=setup.py", "--dry-run"))
    commands += printed(host.launch("tpu_gke.sh", "delete", "job", "c", "z", "--dry-run"))
    for call in (call for call in commands if call[0] == "xpk"):
        done = subprocess.run([*call[:3], "--help"], capture_output=True, text=True, check=True)
        for flag in (word.split("=")[0] for word in call[3:]):
            assert flag in done.stdout, (call[:3], flag)


@pytest.mark.parametrize(
    ("command", "states", "verbs"),
    [
        (TRAIN, ["READY"], []),
        (TRAIN, ["NOT_FOUND", "READY"], ["tpu-vm create"]),
        (TRAIN, ["CREATING", "CREATING", "READY"], []),
        (TRAIN, ["PREEMPTED", "NOT_FOUND", "READY"], ["tpu-vm delete", "tpu-vm create"]),
        (QUEUE, ["ACTIVE"], []),
        (
            QUEUE,
            ["NOT_FOUND", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
            ["queued-resources create"],
        ),
        (
            QUEUE,
            ["SUSPENDING", "SUSPENDED", "NOT_FOUND", "ACTIVE"],
            ["queued-resources delete", "queued-resources create"],
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_slice_is_made_only_where_there_is_none(host, command, states, verbs):
    host.states(*states)
    done = host.launch(*command, *SHIPPED)
    assert done.returncode == 0, done.stderr
    describe = f"{'queued-resources' if '--queue' in command else 'tpu-vm'} describe"
    steps = ["scp", "ssh", "ssh", "ssh"]
    called = host.verbs()
    assert called.count(describe) == len(states)
    assert [verb for verb in called if verb != describe] == verbs + [f"tpu-vm {s}" for s in steps]


def test_what_gcloud_cannot_say_ends_the_launch_with_its_message(host):
    host.states("PERMISSION_DENIED")
    done = host.launch(*TRAIN, *SHIPPED)
    assert (done.returncode, done.stderr.count("PERMISSION_DENIED")) == (1, 1)
    assert host.verbs() == ["tpu-vm describe"]


def test_a_training_runs_on_the_worker_and_its_exit_code_and_log_come_back(host):
    (host.checkout / "setup.py").write_text("# changed, not committed\n")
    shutil.copy(host.checkout / "setup.py", host.home / "cot-flax" / ".venv" / "installed-tpu")
    (host.checkout / "secrets.env").write_text("HF_TOKEN=abcdefg\n")
    (host.home / "code.txt").write_text("3")
    done = host.launch(*TRAIN, "--env-file=secrets.env", *SHIPPED)
    assert done.returncode == 3
    assert "trains with a token of 7 letters" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(
        "tpu_pod.sh: ended with 3; logs in runs/launch/pod"
    )
    calls = host.calls()
    assert ["cot-flax", "train", *SHIPPED] in calls
    # The secret is in one file that only its owner reads.
    assert "abcdefg" not in done.stdout + done.stderr + json.dumps(calls)
    assert (host.home / "train.env").stat().st_mode & 0o777 == 0o600
    with tarfile.open(host.checkout / "runs" / "launch" / "pod" / "code.tar.gz") as archive:
        assert "./launch/tpu_worker.sh" in archive.getnames()
        assert "./secrets.env" not in archive.getnames()
        assert archive.extractfile("./setup.py").read() == b"# changed, not committed\n"


def test_what_is_shipped_can_be_imported_there_and_what_is_local_is_refused(host, tmp_path):
    package, project = tmp_path / "team" / "river", tmp_path / "project"
    (project / "lake").mkdir(parents=True)
    package.mkdir(parents=True)
    for made in (package / "__init__.py", project / "lake" / "__init__.py"):
        made.touch()
    (host.checkout / "spiece.model").touch()
    flags = [*SHIPPED, "--gin.T5_VOCABULARY_FILE='spiece.model'", f"--gin_file={project}/lake"]
    refused = host.launch(*TRAIN, *flags)
    remedy = r".* alone; .*--ship=spiece.model and --gin.T5_VOCABULARY_FILE=shipped/spiece.model"
    assert_refused(refused, TRAIN[0], f"got --gin.T5_VOCABULARY_FILE=spiece.model{remedy}")
    assert host.verbs() == []
    imports = "sys.path += os.environ.get('PYTHONPATH', '').split(':')\n"
    imports += "if 't5x.eval' in sys.argv: import lake, river\n"
    for name in ("cot-flax", "python"):
        host.stand_in(name, imports + COT_FLAX, host.home / "cot-flax" / ".venv" / "bin")
    old = host.home / "cot-flax" / "shipped" / "old"
    old.mkdir(parents=True)
    checkouts = [tmp_path / name for name in T5X]
    ship = [f"--ship={path}" for path in (package, f"{project}/", "spiece.model", *checkouts)]
    done = host.launch("tpu_pod.sh", "t5x.eval", *TRAIN[2:], *ship, *RESULTS)
    assert done.returncode == 0, done.stdout + done.stderr
    calls, shipped = host.calls(), host.home / "cot-flax" / "shipped"
    assert ["python", "-", *(str(shipped / name) for name in T5X)] in calls
    assert ["python", "-m", "t5x.eval", *RESULTS] in calls
    assert (shipped / "spiece.model").exists()
    assert not old.exists()


def test_flags_between_dashes_go_to_the_calls_of_gcloud_that_have_them(host):
    host.states("NOT_FOUND", "READY")
    done = host.launch(*TRAIN, *PASSED, *SHIPPED)
    assert done.returncode == 0, done.stderr
    calls = [[call[0], *call[2:]] for call in host.calls() if call[1:2] == ["alpha"]]
    assert len(calls) == 7  # no other command knows the flag that asks for alpha
    assert all("--project=p" in call for call in calls)
    assert all(("--tunnel-through-iap" in call) == (call[4] in ("ssh", "scp")) for call in calls)
    assert all(("--network=n" in call) == (call[4] == "create") for call in calls)
    assert {call[4] for call in calls if "--reserved" in call} == {"create"}


def test_a_worker_of_gke_runs_the_verb_in_the_foreground(host):
    host.has_environment(host.checkout, "tpu")
    (host.home / "code.txt").write_text("4")
    done = host.launch("tpu_worker.sh", "run", "evaluate", "--gin.A='b c'")
    assert done.returncode == 4, done.stderr
    assert host.calls() == [["cot-flax", "evaluate", "--gin.A='b c'"]]


@pytest.fixture
def running(host):
    """The launch of a training that goes on until the file `busy` is gone."""
    (host.home / "busy").touch()
    launch = host.begin(*TRAIN, *SHIPPED)
    host.wait_for("cot-flax", "train")
    yield launch
    (host.home / "busy").unlink(missing_ok=True)
    launch.communicate(timeout=30)


def test_the_same_line_again_watches_what_runs_and_other_flags_are_refused(host, running):
    os.killpg(running.pid, signal.SIGKILL)  # the connection breaks; the training does not
    running.communicate()
    other = host.launch(*TRAIN, *SHIPPED, "--gin.TRAIN_STEPS=5")
    assert other.returncode == 2
    assert "got other flags than those of what runs" in other.stderr
    host.calls()  # the first line may have begun to watch
    again = host.begin(*TRAIN, *SHIPPED)
    calls = host.wait_for("gcloud", "tpu_worker.sh watch")
    (host.home / "busy").unlink()
    out, _ = again.communicate(timeout=30)
    assert again.returncode == 0
    assert "trains with a token of 0 letters" in out
    assert "cot-flax" not in {call[0] for call in calls + host.calls()}


def test_stop_ends_the_training_and_leaves_the_slice(host, running):
    stopped = host.launch("tpu_pod.sh", "stop", "pod", "us-central1-a")
    assert stopped.returncode == 0, stopped.stderr
    _, err = running.communicate(timeout=30)
    assert running.returncode == 143, err
    assert "tpu-vm delete" not in host.verbs()
    (host.home / "busy").unlink()
    assert host.launch(*TRAIN, *SHIPPED).returncode == 0


@pytest.mark.parametrize(
    ("command", "extras", "setting"),
    [
        (["local_cpu.sh"], "alone", ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")),
        (["local_gpu.sh"], "gpu", ("JAX_PLATFORMS", "cuda,cpu")),
    ],
)
def test_a_local_run_sets_up_and_hands_all_arguments_on(host, command, extras, setting):
    host.stand_in("nvidia-smi")
    host.has_environment(host.checkout, extras)
    tell = f"print(os.environ[{setting[0]!r}])"
    host.stand_in("cot-flax", tell, host.checkout / ".venv" / "bin")
    done = host.launch(*command, "teach", "sample", "x y", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert host.calls() == [["cot-flax", "teach", "sample", "x y", "--dry-run"]]
    assert done.stdout.splitlines()[-1] == setting[1]
    dry = host.launch(*command, "--dry-run", "teach", "sample", "x y", "--dry-run")
    assert (dry.stdout.splitlines(), host.calls()) == (done.stdout.splitlines()[:-1], [])


@pytest.mark.parametrize(("version", "takes"), [(10, 0), (11, 1), (13, 1), (14, 0)])
def test_set_up_takes_a_python_that_has_all_wheels(host, version, takes):
    host.python("python", version)
    done = host.launch("setup.sh", PYTHON="python")
    if takes:
        assert (done.returncode, done.stderr) == (0, "")
        assert host.installs() == [".venv"]
    else:  # before pip starts
        expected = "3.11, 3.12 or 3.13; set PYTHON=/path/to/python3.12"
        assert_refused(done, "setup.sh", f"got Python 3.{version}; expected {expected}")
        assert (host.installs(), (host.checkout / ".venv").exists()) == ([], False)


def test_set_up_looks_for_a_python_on_path_and_stays_with_that_of_the_environment(host):
    host.python("python3", 14)
    assert_refused(host.launch("setup.sh"), "setup.sh", "got Python 3.14; ")
    host.python("python3.12", 12)
    assert host.launch("setup.sh").returncode == 0
    host.python("python3.13", 13)
    assert host.launch("setup.sh", "dev").returncode == 0
    done = host.launch("setup.sh", PYTHON="python3.13")
    assert_refused(
        done, "setup.sh", "got Python 3.13 for .venv of 3.12; expected one version; .*VENV"
    )
    assert host.launch("setup.sh", PYTHON="python3.13", VENV="other").returncode == 0
    assert host.installs() == [".venv", ".venv", "other"]


def test_set_up_with_constraints_is_done_again_when_they_change(host):
    host.python("python3", 12)
    locked = host.checkout / "launch" / "constraints" / "3.12.txt"
    locked.write_text("numpy==1.0\n")

    def limits(**environment):
        done = host.launch("setup.sh", **environment)
        assert done.returncode == 0, done.stderr
        calls = [call for call in host.calls() if call[1:3] == ["-m", "pip"]]
        return {call[call.index("--constraint") + 1] for call in calls}

    assert limits() == {"/dev/null"}
    assert limits(CONSTRAINTS="locked") == {"launch/constraints/3.12.txt"}
    assert limits(CONSTRAINTS="locked") == set()
    locked.write_text("numpy==2.0\n")
    assert limits(CONSTRAINTS="locked") == {"launch/constraints/3.12.txt"}
    (host.checkout / "mine.txt").write_text("numpy==3.0\n")
    assert limits(CONSTRAINTS="mine.txt") == {"mine.txt"}
    refused = host.launch("setup.sh", CONSTRAINTS="newest")
    assert_refused(refused, "setup.sh", "got no file newest; expected locked or a file")


def test_a_worker_with_an_older_python_gets_one_by_uv(host):
    host.python("python3", 10)
    host.python("found", 12, folder=host.home)
    uv = "print('found') if 'find' in sys.argv else None".replace("found", str(host.home / "found"))
    host.stand_in("uv", uv)
    host.has_environment(host.checkout, "tpu")
    done = host.launch("tpu_worker.sh", "run", "train")
    assert done.returncode == 0, done.stderr
    assert [call for call in host.calls() if call[0] != "python3"] == [
        ["uv", "python", "install", "--quiet", "3.12"],
        ["uv", "python", "find", "3.12"],
        ["found", "-c", ANY],
        ["cot-flax", "train"],
    ]


def test_the_versions_that_set_up_takes_are_those_of_the_package():
    asked = re.search(r'python_requires="(.*)"', (LAUNCH.parent / "setup.py").read_text())[1]
    assert asked == ">=3.11,<3.14"


def test_no_script_names_a_flag_of_xla():
    """One that another version does not know ends the process."""
    assert [path.name for path in SCRIPTS if re.search("xla_|XLA_FLAGS", path.read_text())] == []


# Stands for launch/test.sh: as many failures as its environment's file `failures` says.
TEST_SH = """
results=${@: -1} failures=$(cat "$VENV/../failures" 2> /dev/null || echo 0)
echo "<testsuites><testsuite tests='9' failures='$failures' errors='0' skipped='2'/></testsuites>" \
  > "${results#--junitxml=}"
exit "$failures"
"""


@pytest.fixture
def matrix(host):
    """A host with all three interpreters, and a stand-in for test.sh."""
    for minor in (11, 12, 13):
        host.python(f"python3.{minor}", minor)
    host.python("python3", 12)
    (host.checkout / "launch" / "test.sh").write_text(TEST_SH)
    for name in ("setup.py", "README.md"):
        shutil.copy(LAUNCH.parent / name, host.checkout)
    shutil.rmtree(host.checkout / "launch" / "constraints")
    (host.checkout / "launch" / "constraints").mkdir()
    return host


def test_the_matrix_prints_a_table_and_keeps_the_versions_that_passed(matrix):
    ends = ["3.11=lowest", "3.12=newest", "3.13=locked", "3.13=newest"]
    kept = matrix.checkout / "launch" / "constraints"
    (kept / "3.13.txt").write_text("numpy==1.0\n")
    selection = matrix.launch("matrix.sh", *ends, "--", "tests/text", "-x")
    assert selection.returncode == 0, selection.stderr
    assert matrix.installs() == [f"runs/matrix/{end.replace('=', '-')}/venv" for end in ends]
    assert os.listdir(kept) == ["3.13.txt"]
    red = matrix.checkout / "runs" / "matrix" / "3.13-newest" / "failures"
    red.write_text("3")
    done = matrix.launch("matrix.sh", *ends)
    assert (done.returncode, matrix.installs()) == (1, [])
    assert done.stderr.startswith("matrix.sh: failed: 3.13=newest; see runs/matrix/END/log.txt")
    counts = ["passed", "failed", "skipped"]
    table = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[-6:]]
    assert table[0] == ["Python", "jax", "flax", "numpy", *counts, "minutes"]
    assert [row[4:] for row in table[2:]] == [["7", "0", "2", "0.0"]] * 3 + [["4", "3", "2", "0.0"]]
    assert table[2][:2] == [platform.python_version(), version("jax")]
    assert sorted(os.listdir(kept)) == ["3.11.txt", "3.12.txt", "3.13.txt"]
    assert f"jax=={version('jax')}\n" in (kept / "3.12.txt").read_text()
    assert (kept / "3.13.txt").read_text() == "numpy==1.0\n"  # the newest failed
    bounds = matrix.checkout / "runs" / "matrix" / "3.11-lowest" / "lowest.txt"
    assert "apache-beam==" in bounds.read_text()


def test_an_end_without_an_interpreter_is_said_before_anything_is_installed(matrix):
    (matrix.bin / "python3.13").unlink()
    remedy = "run: apt-get install python3.13-venv, pyenv install 3.13 or uv python install 3.13"
    assert_refused(
        matrix.launch("matrix.sh"), "matrix.sh", f"got no Python 3.13 with venv; .*{remedy}"
    )
    assert matrix.installs() == []
    pyenv = matrix.home / ".pyenv" / "versions" / "3.13.0" / "bin"
    pyenv.mkdir(parents=True)
    matrix.python("python", 13, folder=pyenv)
    assert matrix.launch("matrix.sh").returncode == 0


def test_a_bisection_is_between_what_is_locked_and_what_an_end_has(matrix):
    refused = matrix.launch("bisect.sh", "3.13=newest", "tests/text")
    assert_refused(
        refused, "bisect.sh", "got no runs/matrix/3.13-newest/installed.txt; .*matrix.sh 3.13="
    )
    assert matrix.launch("matrix.sh", "3.13=newest").returncode == 0
    (matrix.checkout / "launch" / "bisect_upgrades.py").write_text(
        "import sys; print(sys.argv[1:])"
    )
    done = matrix.launch("bisect.sh", "3.13=newest", "tests/text", "-x")
    assert done.returncode == 0, done.stderr
    good, bad = (f"runs/matrix/3.13-{end}/installed.txt" for end in ("bisect", "newest"))
    command = ["--", "python", "-m", "pytest", "tests/text", "-x"]
    assert done.stdout == f"{['runs/matrix/3.13-bisect/venv', good, bad, *command]}\n"


SWEEP = ["sweep.sh", "runs/lr", "LEARNING_RATE=1e-2", "TAIL='ignore'; WARMUP_STEPS=5", "--"]


def test_a_sweep_gives_each_training_its_bindings_and_folder(host):
    host.stand_in("trainer", "sys.exit('WARMUP' not in sys.argv[-2])")
    dry = host.launch(SWEEP[0], "--dry-run", *SWEEP[1:], "trainer", "--gin_file=a.gin")
    assert host.calls() == []
    real = host.launch(*SWEEP, "trainer", "--gin_file=a.gin")
    expected = [
        ["--gin.LEARNING_RATE=1e-2", "--gin.MODEL_DIR='runs/lr/LEARNING_RATE=1e-2'"],
        [
            "--gin.TAIL='ignore'",
            "--gin.WARMUP_STEPS=5",
            "--gin.MODEL_DIR='runs/lr/TAIL=_ignore_WARMUP_STEPS=5'",
        ],
    ]
    # The first one fails, the second has its turn all the same.
    assert host.calls() == [["trainer", "--gin_file=a.gin", *flags] for flags in expected]
    assert (real.returncode, real.stderr) == (1, "sweep.sh: failed: LEARNING_RATE=1e-2\n")
    assert (dry.returncode, dry.stdout) == (0, real.stdout)


def test_slurm_runs_a_copy_of_its_script(host, tmp_path):
    host.stand_in("srun")
    host.has_environment(host.checkout, "gpu")
    script = shutil.copy(LAUNCH / "slurm_gpu.sbatch", tmp_path / "slurm_script")
    slurm = {"SLURM_JOB_ID": "1", "SLURM_SUBMIT_DIR": str(host.checkout)}
    slurm |= {"SLURM_NTASKS_PER_NODE": "4", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "6"}
    words = [f"../{os.path.relpath(script, host.checkout)}", "train", *SHIPPED]
    done = host.launch(*words, **slurm)
    assert done.returncode == 0, done.stderr
    srun = ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=6", ".venv/bin/cot-flax", "train"]
    assert host.calls() == [srun + SHIPPED]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["tpu_pod.sh"], "got ''; expected VERB NAME SLICE ZONE"),
        (["tpu_pod.sh", "train", "pod", "v5e-16", *SHIPPED], "got 'train pod v5e-16'; .*ZONE"),
        (["tpu_pod.sh", "train", "Pod", "v5e-16", "z", *SHIPPED], "NAME 'Pod'; .*a-z"),
        (["tpu_pod.sh", "train", "pod", "v5e-12", "z", *SHIPPED], "SLICE 'v5e-12'; .*v5e-N"),
        (["tpu_pod.sh", "train", "pod", "v5p-12", "z", *SHIPPED], "SLICE 'v5p-12'; .*cores"),
        (["tpu_pod.sh", "train", "pod", "h100", "z", *SHIPPED], "SLICE 'h100'"),
        ([*TRAIN, *SHIPPED, "--dryrun"], "--dryrun; expected one of .* --dry-run "),
        ([*TRAIN, *SHIPPED, "--gin_file"], "got --gin_file; expected .*--gin_file=FILE"),
        ([*TRAIN, *SHIPPED, "--env-file=no.env"], "no file no.env; .*--env-file"),
        ([*TRAIN], "no MODEL_DIR in a bucket; .*gs://BUCKET"),
        (["tpu_pod.sh", "delete", "pod"], "got 'delete pod'"),
        ([*GKE[:3], "v7-1", *GKE[4:], *SHIPPED], "SLICE 'v7-1'"),
        ([*GKE, *SHIPPED, "--restarts=few"], "--restarts=few; expected a whole number"),
        ([*GKE, *SHIPPED], "no xpk on PATH; .*pip install xpk"),
        (["tpu_gke.sh", "delete", "job", "cluster"], "got 'delete job cluster'"),
        (["tpu_worker.sh", "go"], "got 'go'; .*launch/tpu_pod.sh"),
        ([*TRAIN, *SHIPPED, "--gin.MODEL_DIR='runs/a'"], "no MODEL_DIR in a bucket but runs/a; "),
        ([*EVALUATE, *SHIPPED], "no EVAL_OUTPUT_DIR in a bucket; .*gs://BUCKET"),
        (["tpu_pod.sh", "report", *TRAIN[2:]], "got 'report'; expected train, evaluate, t5x.train"),
        ([*TRAIN, "--", "--reserved", *SHIPPED], "got one --; expected two"),
        ([*TRAIN, *SHIPPED, "--ship=no_team"], "got no file or folder no_team; .*--ship"),
        (["slurm_gpu.sbatch", "train", *SHIPPED], "no srun on PATH; .*sbatch"),
        (["slurm_gpu.sbatch", "v5e-16", *SHIPPED], "got 'v5e-16'; expected train, evaluate"),
        (["slurm_gpu.sbatch", *SHIPPED], "got ''; expected train, evaluate"),
        (["local_gpu.sh", "train"], "no nvidia-smi on PATH; .*local_cpu"),
        (["local_cpu.sh"], "got no command"),
        (["sweep.sh", "runs/lr", "A=1"], "no FOLDER, BINDINGS or COMMAND"),
        (["sweep.sh", "runs/lr", "--", "true"], "no FOLDER, BINDINGS or COMMAND"),
        (["sweep.sh", "runs/lr", "A=(1,)", "A=[1,]", "--", "true"], "two trainings in runs/lr/A"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_mistake_is_one_line_and_exit_code_2(host, command, message):
    assert_refused(host.launch(*command), command[0], message)
    assert host.calls() == []


def assert_refused(done, script, message):
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.match(f"{script}: got .*; expected .*; ", line)
    assert re.search(message, line)


def test_a_deletion_that_fails_makes_no_slice(host):
    (host.home / "stuck").touch()
    done = host.launch("tpu_pod.sh", "delete", "pod", "us-central1-a")
    assert (done.returncode, done.stderr) == (1, "ERROR: stuck\n")
    assert host.verbs() == ["tpu-vm delete"]


def test_gcloud_must_be_there_and_know_an_account(host):
    (host.home / "account.txt").write_text("")
    assert_refused(host.launch(*TRAIN, *SHIPPED), TRAIN[0], "no account in gcloud; .*auth login")
    assert host.verbs() == []
    (host.bin / "gcloud").unlink()
    assert_refused(host.launch(*TRAIN, *SHIPPED), TRAIN[0], "no gcloud on PATH; .*sdk/docs/install")


def test_a_slice_that_failed_is_left_for_the_user_to_look_at(host):
    host.states("FAILED")
    assert_refused(host.launch(*QUEUE, *SHIPPED), QUEUE[0], "pod FAILED; .*delete it first")
    assert host.verbs() == ["queued-resources describe"]


def test_slurm_wants_a_job_with_a_task_a_gpu(host, tmp_path):
    host.stand_in("srun")
    done = host.launch("slurm_gpu.sbatch", "train")
    assert_refused(done, "slurm_gpu.sbatch", "no Slurm job; .*sbatch")
    job = {"SLURM_JOB_ID": "1", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "4"}
    done = host.launch("slurm_gpu.sbatch", "train", **job)
    assert_refused(done, "slurm_gpu.sbatch", "8 tasks for 4 GPUs .*--ntasks-per-node=4")
    done = host.launch("slurm_gpu.sbatch", SLURM_SUBMIT_DIR=str(tmp_path))
    assert_refused(done, "slurm_gpu.sbatch", "expected a checkout of cot-flax")
    assert host.calls() == []
