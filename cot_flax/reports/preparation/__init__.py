"""What a preparation kept, dropped and projected: one self-contained HTML page, and its numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from cot_flax.reports.preparation import figures, page

__all__ = ["HTML", "JSON", "write"]

HTML, JSON = "prepare_report.html", "prepare_report.json"


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes prepare_report.html and prepare_report.json beside a store.

    Args:
        folder: the store's, in which the manifest's files lie.
        manifest: what `layout.write_layout` wrote. `figures.summarize` says what the JSON holds.
    """
    sizes = {name: tf.io.gfile.stat(str(folder / name)).length for name in manifest["files"]}
    found = figures.summarize(manifest, sizes)
    (folder / JSON).write_text(json.dumps(found, indent=2) + "\n")
    # A lone surrogate, which a teacher's token may hold and UTF-8 cannot, becomes a question mark.
    html = page.render(manifest, found).encode(errors="replace")
    (folder / HTML).write_bytes(html)
