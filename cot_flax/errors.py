"""The one exception that a user is meant to read."""

import errno
import os
import re
import sys
import traceback
from pathlib import Path

_DISK = re.compile(
    "|".join(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)))
)
_PATH = re.compile(r"['\"]?(/[^\s'\":;,]+)")
EXTRAS = {
    "data": (
        *("importlib_resources", "seqio", "tensorflow", "tensorflow_datasets", "tensorflow_text"),
    ),
    "teach": ("openai", "pyarrow", "stamina"),
    "report": ("matplotlib",),
    "serve": ("aiohttp",),
}
"""Libraries that only some verbs need, by the extra of setup.py that installs them."""


class UserError(Exception):
    """Input that cot-flax cannot work with; the command line prints one line and exits with 2.

    Args:
        got: what was found, with its place (file, line, parameter).
        expected: what would have been right.
        remedy: what the user can do about it.
    """

    def __init__(self, got: str, expected: str, remedy: str):
        super().__init__(f"got {got}; expected {expected}; {remedy}".replace("\n", " "))

    def __reduce__(self):
        # By default an exception is rebuilt from its message, which __init__ does not take; errors
        # come back from other processes. gin raises a class of its own, with the same name, that
        # adds to the message where it was.
        kinds = type(self).__mro__
        kind = next(k for k in kinds if getattr(sys.modules[k.__module__], k.__name__, None) is k)
        return _rebuild, (kind, (str(self),), vars(self))


def _rebuild(kind: type[UserError], args: tuple, attributes: dict) -> UserError:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(attributes)
    return error


def missing_extra(error: ModuleNotFoundError) -> UserError | ModuleNotFoundError:
    """What to raise for an import that failed: it names the extra to install."""
    # gin raises what it augments anew, without its name; the message has it.
    named = re.search(r"(?:No module named|import of) '?([\w.]+)", str(error))
    library = (error.name or (named[1] if named else "")).partition(".")[0]
    if library == "fcntl" or (sys.platform == "win32" and library in EXTRAS["data"]):
        return UserError(f"no {library} on Windows", "Linux or macOS", "use WSL")
    for extra, libraries in EXTRAS.items():
        if library in libraries:
            remedy = f'run: pip install "cot-flax[{extra}]"'
            return UserError(f"no {library}", f"the extra `{extra}`", remedy)
    return error


def _of_environment(error: BaseException) -> UserError | None:
    """What to say of an error of JAX or of the system: no device, no room, no permission."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    origin = Path(frames[-1]) if frames else Path()
    message = (str(error).splitlines() or [type(error).__name__])[0]
    if origin.name == "xla_bridge.py" or message.startswith("Unable to initialize backend"):
        names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
        given = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
        return UserError(
            f"no device from JAX ({', '.join([*given, message])})",
            "a platform that this machine has and the installed jaxlib can use",
            "unset JAX_PLATFORMS, set JAX_PLATFORMS=cpu, or install the extra `tpu` or `gpu`",
        )
    if problem := _DISK.search(str(error)):
        place = getattr(error, "filename", None) or _PATH.search(str(error))
        named = place if isinstance(place, str) else place[1] if place else "what is written"
        return UserError(
            f"{named} ({problem[0]})",
            "a folder to write to, with room for it",
            "free some room, or write to another place (MODEL_DIR, EVAL_OUTPUT_DIR, --out)",
        )
    if isinstance(error, PermissionError) and error.filename:
        return UserError(
            f"{error.filename} ({error.strerror})",
            "permission to read or write it",
            "correct the path or its permissions",
        )
    if isinstance(error, ValueError) and origin.parts[-3:] == ("jax", "_src", "config.py"):
        return UserError(
            f"{message} in the environment", "a value that JAX takes", "correct or unset it"
        )
    return None


def report_error(error: BaseException) -> int:
    """Prints an error on standard error, what a user can mend in one line; returns the exit code.

    That is a UserError, an extra that is not installed, and a setting of the environment.
    """
    if isinstance(error, ModuleNotFoundError):
        error = missing_extra(error)
    error = _of_environment(error) or error
    if not isinstance(error, UserError):
        traceback.print_exception(error)
        return 1
    # gin adds lines on where it was; the first one is ours.
    print(f"cot-flax: {str(error).splitlines()[0]}", file=sys.stderr)
    return 2
