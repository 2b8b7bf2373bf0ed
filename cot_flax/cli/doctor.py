"""`cot-flax doctor`: what is installed and what this machine has; what would fail, and why.

Every check is alone, so that one that breaks is a finding of its own; a library is imported where a
check needs it. What may end its process or hang, such as a driver, runs in another one.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import typer

import cot_flax
from cot_flax.cli import environment
from cot_flax.errors import EXTRAS, UserError

OK, NOTE, PROBLEM = "ok", "note", "problem"
_COLORS = {OK: "green", NOTE: "yellow", PROBLEM: "red"}
_SECONDS = 60.0
"""How long another process may take: a TPU's first program takes tens of seconds."""
_ANSWER_SECONDS = 4.0
_GB = 1e9
_VERBS = {
    "data": "demo, prepare, train, evaluate and plan",
    "teach": "teach with a server",
    "report": "report and demo",
    "serve": "serve",
}
_OPTIONAL = {
    "huggingface": ("transformers", "teach --huggingface"),
    "beam": ("apache_beam", "prepare --runner"),
    "ctranslate2": ("ctranslate2", "export --format ctranslate2"),
}
_FOUND_ANYWAY = ("importlib_resources", "pyarrow")  # with other extras or libraries, too
_REPORTED = (
    *("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax"),
    *("orbax-checkpoint", "tensorstore", "numpy", "gin-config", "seqio", "tensorflow"),
    *("tensorflow-text", "tensorflow-datasets", "protobuf", "huggingface-hub", "transformers"),
    *("torch", "t5x"),
)
_HONOURED = (
    r"JAX_|XLA_|TF_CPP_|TF_FORCE_|TF_GPU_|LIBTPU_|TPU_|CUDA_|NVIDIA_|HF_HUB_|HF_HOME|HF_ENDPOINT|"
    r"COT_FLAX_|TFDS_"
)
_VOCABULARY = "https://storage.googleapis.com/t5-data/vocabs/cc_all.32000/sentencepiece.model"
_JAX = """
import json, os, sys
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
import jax
devices = jax.local_devices()
float(jax.numpy.ones(2).sum())
memory = (devices[0].memory_stats() or {}).get("bytes_limit")
print(json.dumps([devices[0].platform, devices[0].device_kind, len(devices), memory]))
"""
_TENSORFLOW = "import tensorflow, tensorflow_text, seqio, tensorflow_datasets"


@dataclass(frozen=True)
class Finding:
    """What a check found, in a line."""

    text: str
    state: str = OK
    name: str = ""


def _bad(state: str, got: str, expected: str, remedy: str) -> Finding:
    return Finding(str(UserError(got, expected, remedy)), state)


@dataclass(frozen=True)
class Machine:
    """What the checks look at.

    Attributes:
        given: the variables that the command was started with.
        said: what was put right among them, a line each.
        refused: why no command can run with them.
        device_files: where the system shows its devices.
    """

    given: Mapping[str, str]
    said: tuple[str, ...] = ()
    refused: UserError | None = None
    device_files: Path = Path("/dev")

    @cached_property
    def variables(self) -> dict[str, str]:
        """Those that a command has."""
        variables = dict(os.environ)
        if self.refused:  # or the finding on it would come twice
            variables.pop("XLA_FLAGS", None)
        return variables

    def run(self, code: str) -> tuple[bool, str, str]:
        """Whether a process succeeds, what it prints, its last line on standard error.

        Raises:
            UserError: it takes too long.
        """
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=self.variables | {"TF_CPP_MIN_LOG_LEVEL": "3"},
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"no end of `{code.strip().splitlines()[-1]}` in {_SECONDS:.0f} s",
                "seconds",
                "look whether another process has the accelerator, or the disk is slow",
            ) from error
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {done.returncode}" * bool(done.returncode)
        return not done.returncode, done.stdout, last


def doctor() -> None:
    """Check versions, devices, memory, caches and the hub; say what would fail, and why.

    Exit code 2 where something that a command needs is broken.

    Example: cot-flax doctor
    """
    machine = _settled()
    findings = []
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        for found in pool.map(lambda check: _alone(check, machine), CHECKS.items()):
            findings += found
            for finding in found:
                state = typer.style(f"{finding.state:<8}", fg=_COLORS[finding.state])
                typer.echo(f"{state} {finding.name:<11} {finding.text}")
    problems, notes = (sum(f.state == state for f in findings) for state in (PROBLEM, NOTE))
    typer.echo(f"\n{_counted(problems, 'problem')}, {_counted(notes, 'note')}\n")
    typer.echo("For a bug report, send the command, its last line, and this:\n")
    typer.echo("\n".join(_report(machine, findings)))
    if problems:
        raise typer.Exit(2)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _settled() -> Machine:
    """Settles the environment as every command does, and keeps what there was to say."""
    given, said, refused = dict(os.environ), io.StringIO(), None
    with contextlib.redirect_stderr(said):
        try:
            environment.settle()
        except UserError as error:
            refused = error
    lines = [line.removeprefix("cot-flax: ") for line in said.getvalue().splitlines()]
    return Machine(given, tuple(lines), refused)


def _alone(check: tuple[str, Callable], machine: Machine) -> list[Finding]:
    name, look = check
    try:
        found = list(look(machine))
    except UserError as error:
        found = [Finding(str(error), PROBLEM)]
    except Exception as error:
        found = [Finding(f"this check failed: {_first_line(error)}", NOTE)]
    return [replace(finding, name=name) for finding in found]


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"


# The checks -------------------------------------------------------------------------------------


def _python(machine: Machine) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    try:
        asked = importlib.metadata.metadata("cot-flax")["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(f"{version}; cot-flax is not installed: nothing to compare with", NOTE)
        return
    if version in SpecifierSet(asked, prereleases=True):
        yield Finding(f"{version} at {sys.executable}")
    else:
        yield _bad(PROBLEM, f"Python {version}", asked, "make an environment with another Python")


def _packages(machine: Machine) -> Iterator[Finding]:
    """Against the bounds of setup.py, whose lower ones are the versions that CI tests."""
    from packaging.requirements import Requirement

    good, looked_at = 0, set()
    for requirement in map(Requirement, importlib.metadata.requires("cot-flax") or ()):
        wanted = f"{requirement.name}{requirement.specifier}"
        extras = [e for e in ("", *EXTRAS) if not requirement.marker or _holds(requirement, e)]
        if wanted in looked_at or not extras:
            continue
        looked_at.add(wanted)
        version = _version(requirement.name)
        if version and requirement.specifier.contains(version, prereleases=True):
            good += 1
        elif version or "" in extras:
            got = f"{requirement.name} {version}" if version else f"no {requirement.name}"
            yield _bad(PROBLEM, got, wanted, f'run: pip install "{wanted}"')
    yield Finding(f"{good} have the versions that setup.py asks for")


def _holds(requirement, extra: str) -> bool:
    return requirement.marker.evaluate({"extra": extra})


def _extras(machine: Machine) -> Iterator[Finding]:
    for extra, libraries in EXTRAS.items():
        missing = [library for library in libraries if not _is_there(library)]
        install = f'run: pip install "cot-flax[{extra}]"'
        if not missing:
            yield Finding(f"{extra}, for {_VERBS[extra]}")
            continue
        absent = {*libraries} - {*_FOUND_ANYWAY} <= {*missing}
        yield _bad(
            NOTE if absent else PROBLEM,
            f"no {', '.join(missing)}, without which {_VERBS[extra]} stop",
            f"the extra `{extra}`",
            install,
        )
    others = [
        f'{use}: pip install "cot-flax[{extra}]"'
        for extra, (library, use) in _OPTIONAL.items()
        if not _is_there(library)
    ]
    if others:
        yield Finding(f"not there, and rarely needed: {'; '.join(others)}")


def _tensorflow(machine: Machine) -> Iterator[Finding]:
    """Whether what reads data can be imported: their versions may not go together."""
    if not all(map(_is_there, EXTRAS["data"])):
        yield Finding("not looked at, as the extra `data` is not whole")
        return
    start = time.monotonic()
    good, _, error = machine.run(_TENSORFLOW)
    if not good:
        yield _bad(
            PROBLEM,
            f"an error at the import of TensorFlow or SeqIO ({error})",
            "libraries that go together",
            'run: pip install --upgrade --force-reinstall "cot-flax[data]"',
        )
        return
    yield Finding(f"it and SeqIO are imported in {time.monotonic() - start:.1f} s")


def _devices(machine: Machine) -> Iterator[Finding]:
    chosen = machine.given.get("JAX_PLATFORMS", "")
    seen = [*_accelerators(machine.device_files)]
    good, printed, error = machine.run(_JAX)
    if not good:
        yield _bad(
            PROBLEM,
            f"no device from JAX ({error})",
            "a platform that this machine has and the installed jaxlib can use",
            f"unset JAX_PLATFORMS={chosen}, or set it to cpu" if chosen else _remedy(seen),
        )
        return
    kind, name, count, memory = json.loads(printed.splitlines()[-1])
    text = f"{count} x {name} ({kind})" + (f", {memory / _GB:,.1f} GB each" if memory else "")
    if kind != "cpu" or not seen:
        yield Finding(text)
        return
    got = f"{', '.join(seen)} on this machine, unused: JAX has {text}"
    if chosen.split(",")[0] == "cpu":
        yield _bad(NOTE, f"{got}, by JAX_PLATFORMS={chosen}", "your wish", "unset it to use them")
    else:
        yield _bad(PROBLEM, got + (f" ({error})" if error else ""), "their use", _remedy(seen))


def _accelerators(folder: Path) -> Iterator[str]:
    """What the system shows, whether JAX can use it or not."""
    if any(folder.glob("nvidia[0-9]*")) or (folder / "dxg").exists():  # dxg: WSL's
        yield "an NVIDIA GPU"
    if any(folder.glob("accel[0-9]*")) or any((folder / "accel").glob("accel[0-9]*")):
        yield "a TPU"
    elif any((folder / "vfio").glob("[0-9]*")):
        yield "a device passed through (/dev/vfio), such as a TPU"


def _remedy(seen: Sequence[str]) -> str:
    gpu = any("GPU" in name for name in seen)
    plugin = _version("jax-cuda13-plugin") or _version("jax-cuda12-plugin")
    if gpu and not plugin:
        return 'run: pip install "cot-flax[gpu]"'
    if gpu and os.environ.get("LD_LIBRARY_PATH"):
        return "unset LD_LIBRARY_PATH, whose CUDA hides the installed one; then see nvidia-smi"
    if gpu:
        return "see nvidia-smi: the driver may be too old for the CUDA of the extra `gpu`"
    if seen and not _version("libtpu"):
        return 'run: pip install "cot-flax[tpu]"'
    if seen:
        return "end the process that has it, and see that you may read /dev/accel* or /dev/vfio"
    return 'run: pip install --upgrade "jax" "jaxlib"'


def _memory(machine: Machine) -> Iterator[Finding]:
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(path).read_text()))
    text = f"{total / _GB:,.1f} GB"
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
        text += f", {min(int(found[1]) * 1024, total) / _GB:,.1f} GB free" if found else ""
    if total < 4 * _GB:
        yield _bad(
            NOTE, text, "4 GB, of which TensorFlow takes one", "take small models and batches"
        )
    else:
        yield Finding(f"{text}, {os.cpu_count()} cores")


def _disk(machine: Machine) -> Iterator[Finding]:
    problem = _unwritable(Path.cwd())
    free = shutil.disk_usage(Path.cwd()).free / _GB
    if problem:
        yield _bad(NOTE, f"{Path.cwd()} ({problem})", "a folder for runs", "write to another one")
    elif free < 2:
        remedy = "make room: a checkpoint of T5 base with AdamW has 3 GB"
        yield _bad(NOTE, f"{free:,.1f} GB free in {Path.cwd()}", "more for checkpoints", remedy)
    else:
        yield Finding(f"{free:,.0f} GB free in {Path.cwd()}")


def _caches(machine: Machine) -> Iterator[Finding]:
    from cot_flax.files import cache

    yield _cache(
        "compiled programs", cache() / "compiled", "every run compiles anew", "COT_FLAX_CACHE"
    )
    with contextlib.suppress(ImportError):
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE)
        yield _cache("models of the hub", folder, "none can be downloaded", "HF_HOME")


def _cache(what: str, folder: Path, effect: str, variable: str) -> Finding:
    if problem := _unwritable(folder):
        remedy = f"set {variable} to a folder of yours"
        return _bad(NOTE, f"{folder} ({problem}): {effect}", f"a folder for {what}", remedy)
    return Finding(f"{what}: {_size(folder)} in {folder}")


def _unwritable(folder: Path) -> str:
    """Why a file cannot be written to a folder, or to one that could be made; "" where it can."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or type(error).__name__


def _size(folder: Path, seconds: float = 1.0) -> str:
    """The bytes below a folder, of those that are counted in time."""
    total, end, text = 0, time.monotonic() + seconds, "{:,.2f} GB"
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
        if time.monotonic() > end:
            text = "more than {:,.2f} GB"
            break
    return text.format(total / _GB)


def _hub(machine: Machine) -> Iterator[Finding]:
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import get_session

    has = "a token is set" if get_token() else "no token is set (HF_TOKEN); gated models need one"
    yield Finding(has)
    if constants.HF_HUB_OFFLINE:
        yield Finding("off by HF_HUB_OFFLINE: the cache alone is read")
        return
    expected = f"an answer in {_ANSWER_SECONDS:.0f} s, for models by their hub names"
    remedy = "start from a folder, set HF_ENDPOINT to a mirror, or the proxy (HTTPS_PROXY)"
    try:
        answer = _in_time(lambda: get_session().head(constants.ENDPOINT, timeout=_ANSWER_SECONDS))
        status = answer.status_code
    except Exception as error:
        got = f"no answer from {constants.ENDPOINT} ({_first_line(error)})"
        yield _bad(NOTE, got, expected, remedy)
        return
    if status >= 400:
        yield _bad(NOTE, f"status {status} from {constants.ENDPOINT}", expected, remedy)
        return
    yield Finding(f"{constants.ENDPOINT} answers")


def _in_time(ask: Callable[[], Any]) -> Any:
    """What a request gives; the look-up of a name may take longer than a request's own limit.

    Raises:
        TimeoutError: nothing in _ANSWER_SECONDS and a second.
        Exception: what the request raises.
    """
    answer: Future = Future()

    def answered() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=answered, daemon=True).start()  # the end does not wait for it
    return answer.result(_ANSWER_SECONDS + 1)


def _data(machine: Machine) -> Iterator[Finding]:
    import urllib.request

    folder = Path(machine.given.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if any((folder / "gsm8k").rglob("dataset_info.json")):  # a download that failed leaves folders
        yield Finding(f"GSM8K is in {folder}")
    else:
        yield Finding(f"no GSM8K in {folder}: TFDS downloads it, or GSM8K_DIRECTORY names a folder")
    request = urllib.request.Request(_VOCABULARY, method="HEAD")
    try:
        _in_time(lambda: urllib.request.urlopen(request, timeout=_ANSWER_SECONDS).close())
        yield Finding("T5's vocabulary can be read from its bucket")
    except OSError as error:
        yield _bad(
            NOTE,
            f"no T5 vocabulary from gs://t5-data ({getattr(error, 'reason', error)})",
            "an answer, for T5's own data sets and mixtures",
            "set T5_VOCABULARY_FILE to a local spiece.model",
        )


def _variables(machine: Machine) -> Iterator[Finding]:
    if machine.refused:
        yield Finding(str(machine.refused), PROBLEM)
    for line in machine.said:
        yield Finding(line, NOTE)
    for name, value in machine.given.items():
        now = os.environ.get(name)
        if now != value and not any(f" {name}=" in line for line in machine.said):
            yield Finding(f"{name}={value}: {'unset' if now is None else f'{now} instead'}")
    paths = machine.given.get("PYTHONPATH", "").split(os.pathsep)
    own = sysconfig.get_path("purelib")
    if others := [p for p in paths if Path(p).name.endswith("-packages") and p != own]:
        text = f"PYTHONPATH has packages of another Python, which come last: {', '.join(others)}"
        yield Finding(text, NOTE)
    libraries = machine.given.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    cuda = [path for path in libraries if re.search("cuda|cudnn|nvidia", path, re.IGNORECASE)]
    if cuda and (_version("jax-cuda13-plugin") or _version("jax-cuda12-plugin")):
        yield _bad(
            NOTE,
            f"LD_LIBRARY_PATH with {', '.join(cuda)}",
            "the CUDA that came with JAX",
            "unset it if a GPU is not found or a program fails in cuDNN",
        )
    honoured = sorted(n for n in machine.given if re.match(_HONOURED, n) and n in os.environ)
    yield Finding(f"honoured: {', '.join(honoured) or 'none is set'}")


CHECKS: dict[str, Callable[[Machine], Iterator[Finding]]] = {
    "python": _python,
    "packages": _packages,
    "extras": _extras,
    "tensorflow": _tensorflow,
    "devices": _devices,
    "memory": _memory,
    "disk": _disk,
    "caches": _caches,
    "hub": _hub,
    "data": _data,
    "variables": _variables,
}


# The text for a bug report ------------------------------------------------------------------------


def _report(machine: Machine, findings: Sequence[Finding]) -> Iterator[str]:
    yield f"cot-flax {cot_flax.__version__}, Python {platform.python_version()}"
    yield f"{platform.platform()}, {os.cpu_count()} cores"
    with contextlib.suppress(OSError):
        yield Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    yield ", ".join(f"{name} {found}" for name in _REPORTED if (found := _version(name)))
    for finding in findings:
        if finding.state == PROBLEM or finding.name == "devices":
            yield f"{finding.name}: {finding.text}"
    for name, value in sorted(machine.given.items()):
        if re.match(_HONOURED, name) and "TOKEN" not in name:
            yield f"{name}={re.sub('//[^/@]*@', '//', value)}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_there(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except (ImportError, ValueError):  # what hides it raises, too
        return False
