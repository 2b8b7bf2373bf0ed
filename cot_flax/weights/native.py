"""Checkpoints of cot-flax: where they lie, what they belong to, and their parameters."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cot_flax.errors import UserError
from cot_flax.files import is_bucket, path_at
from cot_flax.run_folder import BEST, CHECKPOINTS
from cot_flax.students.lora import Lora, is_adapter
from cot_flax.students.parameters import Index, Tensor, is_stacked, layer_names
from cot_flax.students.student import from_json
from cot_flax.weights.files import tensorstore as files
from cot_flax.weights.files.tensorstore import Listing
from cot_flax.weights.source import Source

METADATA = "metadata/metadata"
"""The file with the JSON of a step's `Metadata`."""
_KERNEL = "kernel"


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint was trained with, beside its arrays.

    Attributes:
        model: its student, as `students.student.to_json` gives it.
        vocabulary: the fingerprint of its vocabulary; "" where unknown.
        rows: of the data that were consumed (packed ones hold several examples each); None where
            the checkpoint counts in batches, as those from before version 0.1.0 do.
        shards: parts that the data were read in; the batches depend on it.
        selection: which steps were the best so far, as `training.selection` has it; None where
            the run does not say.
    """

    model: dict
    vocabulary: str
    rows: int | None = None
    shards: int = 1
    selection: Mapping | None = None

    @classmethod
    def from_json(cls, stored: Mapping) -> "Metadata":
        """The fields that this version knows."""
        return cls(**{name: stored[name] for name in cls.__dataclass_fields__ if name in stored})


def find(found: Listing) -> str | None:
    """The folder of the step that is listed, or of the latest whole one; None where there is none.

    Args:
        found: of a step, of a model directory or of its folder of steps.
    """
    if "metadata" in found.names:
        return found.place
    for folder in ("", f"{CHECKPOINTS}/"):
        names = [name.removeprefix(folder) for name in found.names if name.startswith(folder)]
        steps = [int(name) for name in names if name.isdigit() and _is_whole(found, folder + name)]
        if steps:
            return found.path(f"{folder}{max(steps)}")
    return None


def best(path: str) -> str | None:
    """The folder of the step that a run's metric chose; None where a path does not name one.

    Args:
        path: `MODEL_DIR/best/METRIC`, where there need be no such folder.

    Raises:
        UserError: the run has checkpoints, but no best one by this metric.
    """
    model_dir, marker, metric = path.rstrip("/").rpartition(f"/{BEST}/")
    # Such as gsm8k_zero_shot_cot/accuracy; a folder of the user's own may be called the same.
    newest = find(files.listing(model_dir)) if marker else None
    if newest is None or not newest.rpartition("/")[0].endswith(f"/{CHECKPOINTS}"):
        return None
    chosen = (read_metadata(newest).selection or {}).get("best", {})
    if metric not in chosen:
        raise UserError(
            f"no best checkpoint by {metric} in {model_dir}",
            f"one by {', '.join(chosen)}" if chosen else "a run with BEST_METRICS",
            "correct the name of the metric, or take the newest checkpoint: " + model_dir,
        )
    return f"{newest.rpartition('/')[0]}/{chosen[metric]['step']}"


def read_metadata(step: str) -> Metadata:
    """Reads what the checkpoint in the folder of a step was trained with.

    Raises:
        UserError: it does not say.
    """
    text = files.read(step, METADATA)
    if text is None:
        raise UserError(f"no metadata in {step}", "a checkpoint of cot-flax", "copy it again")
    return Metadata.from_json(json.loads(text))


def open_step(step: str) -> Source:
    """Opens the checkpoint in the folder of a step: layers unrolled, adapters merged when read.

    Raises:
        UserError: it is broken.
    """
    folder = path_at(step)
    metadata = read_metadata(step)
    student = from_json(metadata.model, str(folder))
    tensors = files.orbax(str(folder / "state"), "params.")
    if student.lora:
        tensors = _merged(tensors, student.lora)
    tensors = {name: tensor for name, tensor in tensors.items() if not is_adapter(name)}
    return Source(
        place=str(folder),
        student=student.for_decoding({})[0],
        tensors=unrolled(tensors),
        vocabulary=metadata.vocabulary,
        folder=folder.parent.parent if folder.parent.name == CHECKPOINTS else None,
        stacks={name: tensor for name, tensor in tensors.items() if is_stacked(name)},
    )


def _is_whole(found: Listing, step: str) -> bool:
    """Whether it is a step that orbax has finished: in a bucket a mark says so."""
    return f"{step}/{'commit_success.txt' if is_bucket(found.place) else 'metadata'}" in found.names


def _merged(stored: Mapping[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """Kernels with their adapters added, all others as they are; layers may be scanned."""
    merged = {name: tensor for name, tensor in stored.items() if not is_adapter(name)}
    for name in merged:
        module = name.removesuffix(_KERNEL)
        if f"{module}lora_a" in stored:
            a, b = stored[f"{module}lora_a"], stored[f"{module}lora_b"]
            merged[name] = _with_adapter(stored[name], a, b, lora.scale)
    return merged


def _with_adapter(kernel: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale A B, of which only the rows and columns that are asked for are read."""

    def read(index: Index) -> np.ndarray:
        *layers, rows, columns = index
        every = slice(None)
        delta = a.read((*layers, rows, every)) @ b.read((*layers, every, columns))
        return kernel.read(index) + np.float32(scale) * delta

    return Tensor(kernel.shape, kernel.dtype, read)


def unrolled(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each layer of a scanned stack by itself.

    Orbax writes a device's part of a whole stack as one chunk. The chunk that was read last is
    kept, so that reading its layers one after the other reads it once.
    """
    last: dict[tuple[str, str], np.ndarray] = {}

    def layer(name: str, i: int) -> Tensor:
        stack = stored[name]

        def read(index: Index) -> np.ndarray:
            key = (name, str(index))
            if key not in last:
                last.clear()
                last[key] = stack.read((slice(None), *index))
            return last[key][i].copy()  # a view would keep the whole stack alive

        return Tensor(stack.shape[1:], stack.dtype, read)

    tensors = {}
    for name, tensor in stored.items():
        if is_stacked(name):
            for i, own in enumerate(layer_names(name, tensor.shape[0])):
                tensors[own] = layer(name, i)
        else:
            tensors[name] = tensor
    return tensors
