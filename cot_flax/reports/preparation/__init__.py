"""What a preparation kept, dropped and projected: one self-contained HTML page, and its numbers."""

import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from cot_flax.files import path_at, write_whole
from cot_flax.reports.preparation import figures, page

__all__ = ["HTML", "JSON", "write"]

HTML, JSON = "prepare_report.html", "prepare_report.json"


def write(store: str | os.PathLike, manifest: Mapping[str, Any]) -> None:
    """Writes prepare_report.html and prepare_report.json into a finished store.

    Args:
        store: its folder, on this machine or in a bucket, with the files that its manifest names.
        manifest: the store's. `figures.summarize` says what the JSON holds.
    """
    folder = epath.Path(path_at(store))
    sizes = {name: (folder / name).stat().length for name in manifest["files"]}
    found = figures.summarize(manifest, sizes)
    write_whole(folder / JSON, json.dumps(found, indent=2) + "\n")
    # A lone surrogate, which a teacher's token may hold and UTF-8 cannot, becomes a question mark.
    write_whole(folder / HTML, page.render(manifest, found).encode(errors="replace"))
