"""One way in for every checkpoint: what kind it is shows when one looks at it."""

import contextlib
import re
from pathlib import Path

from cot_flax.errors import UserError
from cot_flax.files import is_bucket, path_at
from cot_flax.run_folder import CHECKPOINTS, FACTS
from cot_flax.weights import hub, huggingface, native, peft, t5x
from cot_flax.weights.files.tensorstore import Listing, listing
from cot_flax.weights.source import Access, Source

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""What a name on the Hugging Face hub looks like; so does many a path."""
_KINDS = (
    (native.find, native.open_step),
    (t5x.find_legacy, t5x.open_legacy),
    (t5x.find_orbax, t5x.open_orbax),
)


def open_source(path: str, access: Access = Access()) -> Source:  # noqa: B008 (frozen)
    """Opens the parameters of a student wherever they lie; reads none of them yet.

    Args:
        path: a model directory of cot-flax or a step in it; a checkpoint of T5X, in the legacy or
            the orbax format, or a folder of such; these also as `gs://bucket/path`. Or a folder of
            Hugging Face's files, or a name on its hub.

    Raises:
        UserError: nothing is there, it is of no known kind, or it is broken.
    """
    if not is_bucket(path):
        folder = path_at(path)
        if not folder.exists():
            return _from_hub(path, access)
        if not folder.is_dir():
            raise _unknown(path, "a file")
        if _is_hugging_face(folder):
            return _open_hugging_face(folder, access)
    found = listing(path)
    for find, open_step in _KINDS:
        if (step := find(found)) is not None:
            return open_step(step)
    raise _unknown(path, _shown(found))


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
    if HUB_ID.fullmatch(named):
        with contextlib.suppress(UserError):
            return hub.download(named, access)
    raise UserError(
        f"an adapter of PEFT at {folder} to {named}, which is neither here nor to be had",
        "the model that it was trained on",
        f"get it (`hf download {named} --local-dir DIR`) and write DIR into "
        f"base_model_name_or_path of {peft.CONFIG}, or {peft.MERGE}",
    )


def _from_hub(name: str, access: Access) -> Source:
    parent = path_at(name).parent
    is_path = "/" in name and parent.is_dir()  # a misspelt path looks like a name on the hub
    beside_runs = is_path and any(parent.glob(f"*/{FACTS}"))  # no name: the hub is not asked
    if HUB_ID.fullmatch(name) and not beside_runs:
        try:
            return _open_hugging_face(hub.download(name, access), access)
        except UserError:
            if not is_path:
                raise
    there = f" ({_shown(listing(str(parent)))} in {parent})" if is_path else ""
    raise UserError(
        f"no folder {name}{there}",
        "a checkpoint, or a name on the Hugging Face hub such as google/flan-t5-base",
        "correct the path",
    )


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
