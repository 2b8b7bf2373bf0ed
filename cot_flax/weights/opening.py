"""One way in for every checkpoint: what kind it is shows when one looks at it."""

import re
from pathlib import Path

from cot_flax.errors import UserError
from cot_flax.files import is_bucket, path_at
from cot_flax.weights import hub, huggingface, native, t5x
from cot_flax.weights.source import Access, Source

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""What a name on the Hugging Face hub looks like; so does many a path."""


def open_source(path: str, access: Access = Access()) -> Source:  # noqa: B008 (frozen)
    """Opens the parameters of a T5 wherever they lie; reads none of them yet.

    Args:
        path: a model directory of cot-flax or a step in it; a checkpoint of T5X, in the legacy or
            the orbax format, or a folder of such; these also as `gs://bucket/path`. Or a folder of
            Hugging Face's files, or a name on its hub.

    Raises:
        UserError: nothing is there, it is of no known kind, or it is broken.
    """
    folder = path_at(path)
    if not is_bucket(path):
        if not folder.exists():
            return _from_hub(path, access)
        if not folder.is_dir():
            raise _unknown(path, "a file")
        if (folder / huggingface.CONFIG).is_file():
            return huggingface.open_folder(folder, access)
        path = str(folder)
    if native.looks_like_one(path):
        return native.open_checkpoint(path)
    if t5x.looks_like_legacy(path):
        return t5x.open_legacy(path)
    if t5x.looks_like_orbax(path):
        return t5x.open_orbax(path)
    raise _unknown(path, "none of its files" if is_bucket(path) else _listing(folder))


def _from_hub(name: str, access: Access) -> Source:
    if not HUB_ID.fullmatch(name):
        raise UserError(
            f"no folder {name}",
            "a checkpoint, or a name on the Hugging Face hub such as google/flan-t5-base",
            "correct the path",
        )
    return huggingface.open_folder(hub.download(name, access), access)


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"


def _unknown(path: str, found: str) -> UserError:
    return UserError(
        f"no checkpoint at {path} ({found} there)",
        "a model directory of cot-flax (with checkpoints/), a folder of Hugging Face's (with "
        "config.json) or of T5X's (with the file checkpoint, or folders checkpoint_<N>)",
        "give the folder that holds one of these",
    )
