"""One way in for every checkpoint: what kind it is shows when one looks at it."""

import re

from cot_flax.errors import UserError
from cot_flax.files import is_bucket, path_at
from cot_flax.run_folder import CHECKPOINTS
from cot_flax.weights import hub, huggingface, native, t5x
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
        if (folder / huggingface.CONFIG).is_file():
            return huggingface.open_folder(folder, access)
    found = listing(path)
    for find, open_step in _KINDS:
        if (step := find(found)) is not None:
            return open_step(step)
    raise _unknown(path, _shown(found))


def _from_hub(name: str, access: Access) -> Source:
    if not HUB_ID.fullmatch(name):
        raise UserError(
            f"no folder {name}",
            "a checkpoint, or a name on the Hugging Face hub such as google/flan-t5-base",
            "correct the path",
        )
    return huggingface.open_folder(hub.download(name, access), access)


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
