"""One way in for every checkpoint: what kind it is shows when one looks at it."""

import contextlib
import difflib
from pathlib import Path

from cot_flax import hub
from cot_flax.errors import UserError
from cot_flax.files import is_bucket, path_at
from cot_flax.run_folder import CHECKPOINTS, FACTS
from cot_flax.text.bpe import HUGGING_FACE, SETTINGS, SPECIAL_TOKENS
from cot_flax.text.tokenizers import SENTENCEPIECE
from cot_flax.weights import huggingface, native, peft, t5x
from cot_flax.weights.files.tensorstore import Listing, listing
from cot_flax.weights.source import Access, Source

_HUB_FILES = (
    "config.json",
    "generation_config.json",
    SENTENCEPIECE,
    HUGGING_FACE,
    SETTINGS,
    SPECIAL_TOKENS,
    "model.safetensors.index.json",
    "model*.safetensors",
    peft.CONFIG,
    peft.WEIGHTS,
)
_HUB_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json", peft.PICKLE)
_KINDS = (
    (native.find, native.open_step),
    (t5x.find_legacy, t5x.open_legacy),
    (t5x.find_orbax, t5x.open_orbax),
)


def open_source(path: str, access: Access = Access()) -> Source:  # noqa: B008 (frozen)
    """Opens the parameters of a student wherever they lie; reads none of them yet.

    Args:
        path: a model directory of cot-flax, a step in it, or `MODEL_DIR/best/METRIC`, the step
            that a validation metric chose; a checkpoint of T5X, in the legacy or the orbax format,
            or a folder of such; these also as `gs://bucket/path`. Or a folder of Hugging Face's
            files, or a name on its hub.

    Raises:
        UserError: nothing is there, it is of no known kind, or it is broken.
    """
    path = _chosen(path)
    check_place(path)
    if not is_bucket(path):
        folder = path_at(path)
        if not folder.exists():
            return _open_hugging_face(download(path, access), access)
        if not folder.is_dir():
            raise _unknown(path, "a file")
        if _is_hugging_face(folder):
            return _open_hugging_face(folder, access)
    found = listing(path)
    for find, open_step in _KINDS:
        if (step := find(found)) is not None:
            return open_step(step)
    raise _unknown(path, _shown(found))


def download(name: str, access: Access) -> Path:
    """The folder of a model on the hub; of its weights only what will be read is fetched.

    Args:
        name: such as `google/flan-t5-base`.

    Raises:
        UserError: no connection, no such model, no access to it, or not in the cache.
    """
    local = access.local_files_only
    folder = hub.snapshot(name, _HUB_FILES, hub.MODEL, local_files_only=local)
    if access.allow_pickle and not any(folder.glob("*.safetensors")):
        folder = hub.snapshot(name, _HUB_PICKLES, hub.MODEL, local_files_only=local)
    return folder


def _is_hugging_face(folder: Path) -> bool:
    """Whether a folder holds a model of Hugging Face, or an adapter of PEFT to one."""
    return any((folder / name).is_file() for name in (huggingface.CONFIG, peft.CONFIG))


def _open_hugging_face(folder: Path, access: Access) -> Source:
    if not (folder / peft.CONFIG).is_file():
        return huggingface.open_folder(folder, access)
    return huggingface.open_adapter(folder, _base(folder, access), access)


def _base(folder: Path, access: Access) -> Path:
    """The folder of an adapter's base: its path as it is, from the adapter, or from the hub."""
    named = huggingface.base_of(folder)
    for place in (path_at(named), folder / named):
        if place.is_dir():
            return place
    if hub.NAME.fullmatch(named):
        with contextlib.suppress(UserError):
            return download(named, access)
    raise UserError(
        f"an adapter of PEFT at {folder} to {named}, which is neither here nor to be had",
        "the model that it was trained on",
        f"get it (`hf download {named} --local-dir DIR`) and write DIR into "
        f"base_model_name_or_path of {peft.CONFIG}, or {peft.MERGE}",
    )


def check_place(path: str) -> None:
    """Raises UserError where nothing lies at a path of this machine that is no name on the hub."""
    place = _chosen(path)
    if not is_bucket(place) and not path_at(place).exists() and not hub.is_name(place):
        raise no_folder(place)


def _chosen(path: str) -> str:
    """The step behind a name of the best one of a run; any other path as it is."""
    if not is_bucket(path) and path_at(path).exists():
        return path
    return native.best(path) or path


def no_folder(name: str) -> UserError:
    """What to say of a path at which there is nothing: what lies beside it, which runs are near."""
    parent = path_at(name).parent
    there = "" if path_at(name) == Path(name).expanduser() else f" in {Path.cwd()}"
    if parent.is_dir() and parent != Path.cwd():
        there = f" ({_shown(listing(str(parent)))} in {parent})"
    near = difflib.get_close_matches(name, _checkpoints(name), n=3, cutoff=0.4)
    expected = "a checkpoint" + (f", such as {', '.join(near)}" if near else "")
    if hub.is_name(name):
        expected += ", or a name on the Hugging Face hub such as google/flan-t5-base"
    return UserError(f"no folder {name}{there}", expected, "correct the path")


def _checkpoints(name: str) -> list[str]:
    """Folders with parameters beside a path and below the working folder, as a user writes them."""
    beside = Path(name).parent
    marks = (FACTS, CHECKPOINTS, huggingface.CONFIG)
    found = [
        beside / place.parent.name for mark in marks for place in path_at(beside).glob(f"*/{mark}")
    ]
    for mark in marks:
        found += [place.parent.relative_to(Path.cwd()) for place in Path.cwd().glob(f"*/*/{mark}")]
    return list(dict.fromkeys(map(str, found)))


def _shown(found: Listing) -> str:
    names = sorted(name for name in found.names if "/" not in name)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"


def _unknown(path: str, found: str) -> UserError:
    return UserError(
        f"no checkpoint at {path} ({found} there)",
        f"a model directory of cot-flax (with {CHECKPOINTS}/), a folder of Hugging Face's (with "
        "config.json) or of T5X's (with the file checkpoint, or folders checkpoint_<N>)",
        "give the folder that holds one of these",
    )
