"""What a caller's shell or notebook kernel sets, and must not break a command.

A kernel hands its whole environment to a command, though it was made for other libraries: Colab's
names a backend of matplotlib that our own environment has not got. What is known to hurt is put
right here, once, before a library reads it.
"""

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from pathlib import Path

from cot_flax.errors import UserError

_OURS = {
    "MPLBACKEND": "agg",  # TensorFlow imports Keras, and Keras matplotlib
    "KERAS_BACKEND": "tensorflow",
}
_UNUSED = (
    "TF_USE_LEGACY_KERAS",  # wants a package that nothing here needs
    "TF_XLA_FLAGS",  # TensorFlow reads data and compiles nothing; an unknown flag ends the process
)
_BREAKING = {
    "JAX_ENABLE_X64": "students train in 32 bits",
    "JAX_DISABLE_JIT": "a training step is compiled before it runs",
    "JAX_NUMPY_DTYPE_PROMOTION": "dtypes are promoted by JAX's standard rules",
    "JAX_LEGACY_PRNG_KEY": "random keys are raw integers",
    "JAX_TRANSFER_GUARD": "data go to the devices where they are needed",
}
_PARSE = "from jaxlib import xla_client; xla_client.CompileOptions()"


def settle() -> None:
    """Sets and unsets variables and puts our own packages first; says so where a user may care.

    Raises:
        UserError: a setting with which no command can run.
    """
    if sys.flags.optimize > 1:
        raise UserError(
            f"PYTHONOPTIMIZE={sys.flags.optimize}",
            "docstrings, which libraries need",
            "unset it, or run Python without -OO",
        )
    os.environ.update(_OURS)
    for name in _UNUSED:
        os.environ.pop(name, None)
    for name, reason in _BREAKING.items():
        if value := os.environ.pop(name, None):
            print(f"cot-flax: without {name}={value}: {reason}", file=sys.stderr)
    if not sys.stderr.isatty():  # bars would be drawn into a notebook, line under line
        os.environ.pop("FORCE_COLOR", None)
    _give_a_home()
    sys.path[:] = _own_packages_first(sys.path, os.environ.get("PYTHONPATH", ""))
    if "XLA_FLAGS" in os.environ and "jaxlib" not in sys.modules:
        _check_xla_flags(os.environ["XLA_FLAGS"])


def follow_parent(pipe: int) -> None:
    """Ends this process in order when the one that holds the other end of a pipe ends."""

    def wait() -> None:
        os.read(pipe, 1)  # nobody writes: it returns at the end
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _give_a_home() -> None:
    """A container may run as a user that its system does not know."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()
        print(f"cot-flax: no home folder: {os.environ['HOME']} stands for it", file=sys.stderr)


def _own_packages_first(paths: list[str], given: str) -> list[str]:
    """`paths` with the package folders of other Pythons in `given` (PYTHONPATH) at the end.

    They would hide our NumPy behind one that was compiled for another Python. A folder of modules,
    such as a team's own, stays where it is.
    """
    own = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    foreign = {
        path
        for path in given.split(os.pathsep)
        if Path(path).name in ("site-packages", "dist-packages") and path not in own
    }
    return sorted(paths, key=lambda path: path in foreign)


def _check_xla_flags(flags: str) -> None:
    """XLA ends its process on a flag that it does not know, so another process tries them."""
    command = [sys.executable, "-c", _PARSE]
    variables = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "XLA_FLAGS" in line]
    if done.returncode and complaints:
        raise UserError(
            f"XLA_FLAGS={flags} ({complaints[0].rpartition('] ')[2]})",
            "flags that this jaxlib knows",
            "correct or unset it",
        )
