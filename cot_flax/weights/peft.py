"""Adapters that PEFT wrote: LoRA of a Hugging Face model, merged when its tensors are read.

A module `m` with the kernel W [out, in] has `base_model.model.m.lora_A.weight` A [r, in] and
`...lora_B.weight` B [out, r]; merged it is W + s B A, where s is lora_alpha / r (with rank
stabilization lora_alpha / sqrt(r)). Modules that were trained whole stand under their own names.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from cot_flax.errors import UserError
from cot_flax.students.parameters import Index, Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
MERGE = (
    "merge it where PEFT is installed: merge_and_unload(), then save_pretrained(DIR), and give DIR"
)
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_HARMLESS = (True, False, "gaussian", "eva", "orthogonal")
"""Starts of an adapter that leave the base as it was; others change it, in no file of theirs."""


def merged(
    base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], settings: Mapping, place: str
) -> dict[str, Tensor]:
    """The base's tensors, by Hugging Face's names, with the adapter added: float32 where it is.

    Args:
        adapter: the tensors of adapter_model.safetensors.
        settings: adapter_config.json.
        place: of the adapter, for messages.

    Raises:
        UserError: an adapter of another kind than LoRA, or not one of this base.
    """
    _check_kind(settings, place)
    named = {name.removeprefix(_PREFIX): tensor for name, tensor in adapter.items()}
    tensors, unknown = dict(base), []
    for name, tensor in named.items():
        module = name.removesuffix(_A)
        kernel = base.get(f"{module}.weight")
        if name.endswith(_A) and kernel and _fits(kernel, tensor, named.get(module + _B)):
            scale = _scale(settings, module, tensor.shape[0])
            tensors[f"{module}.weight"] = _sum(kernel, tensor, named[module + _B], scale)
        elif ".lora_" not in name:  # whole; what no model has is found out where it is loaded
            tensors[name] = tensor
        elif not (name.endswith(_B) and name.removesuffix(_B) + _A in named):
            unknown.append(f"{name} {list(tensor.shape)}")
    if unknown:
        raise UserError(
            f"{len(unknown)} parameters of the adapter at {place} that do not fit its base: "
            f"{', '.join(unknown[:3])}",
            f"lora_A and lora_B of modules of {settings.get('base_model_name_or_path')}",
            f"correct base_model_name_or_path in {CONFIG}, or {MERGE}",
        )
    return tensors


def _check_kind(settings: Mapping, place: str) -> None:
    kind, start = settings.get("peft_type"), settings.get("init_lora_weights", True)
    if kind != "LORA" or settings.get("use_dora") or start not in _HARMLESS:
        found = "DoRA" if settings.get("use_dora") else kind
        found = f"LoRA that began with {start}" if kind == "LORA" and found == kind else found
        raise UserError(f"an adapter of kind {found} at {place}", "plain LoRA", MERGE)


def _fits(kernel: Tensor, a: Tensor, b: Tensor | None) -> bool:
    if b is None or not len(kernel.shape) == len(a.shape) == len(b.shape) == 2:
        return False
    return kernel.shape == (b.shape[0], a.shape[1]) and a.shape[0] == b.shape[1]


def _scale(settings: Mapping, module: str, rank: int) -> float:
    """lora_alpha / r; a pattern of alpha_pattern that the module's name ends with goes before it.

    The rule of patterns is PEFT's `get_pattern_key`.
    """
    alphas = settings.get("alpha_pattern") or {}
    matching = (alpha for key, alpha in alphas.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = next(matching, settings.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _sum(kernel: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s B A, of which only the rows and columns that are asked for are read."""

    def read(index: Index) -> np.ndarray:
        rows, columns = index
        every = slice(None)
        delta = b.read((rows, every)).astype(np.float32) @ a.read((every, columns)).astype(
            np.float32
        )
        return kernel.read(index).astype(np.float32) + np.float32(scale) * delta

    return Tensor(kernel.shape, np.dtype(np.float32), read)
