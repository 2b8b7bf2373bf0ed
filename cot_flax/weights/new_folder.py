"""A folder that is there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cot_flax.errors import UserError


@contextmanager
def new_folder(out: str | os.PathLike) -> Iterator[Path]:
    """Yields a folder beside `out` that becomes `out` when the block ends without an error.

    Raises:
        UserError: there is something at `out`.
    """
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}, which is not empty", "a new folder", "choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as draft:
        folder = Path(draft) / out.name
        folder.mkdir()
        yield folder
        folder.rename(out)
