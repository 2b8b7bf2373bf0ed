"""Folders of Hugging Face's files: opened as parameters, and written from them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from cot_flax.errors import UserError
from cot_flax.students.parameters import Tensor
from cot_flax.students.t5.huggingface_config import SPECIAL_TOKENS, config_json, model_config
from cot_flax.students.t5.names import (
    EMBEDDING,
    EMBEDDING_ALIASES,
    HEAD,
    HUGGING_FACE_HEAD,
    IGNORED,
    from_hugging_face,
    to_hugging_face,
)
from cot_flax.weights import tokenizer_files
from cot_flax.weights.access import Access
from cot_flax.weights.files import safetensors, torch_pickle
from cot_flax.weights.new_folder import new_folder
from cot_flax.weights.source import Source, check_tensors, parameter_shapes, reading_order

CONFIG = "config.json"
_SAFETENSORS = safetensors.NAME
_PICKLE = "pytorch_model.bin"
_GENERATION = {"max_new_tokens": 256}  # without it transformers ends a chain after 20 tokens
_COMPARED_ROWS = 4096  # of the embedding and the head, at a time


def open_folder(folder: Path, access: Access) -> Source:
    """The parameters in a folder with a config.json; no tensor is read before it is asked for.

    Raises:
        UserError: no T5 that T5Config can express, no weights, weights that only `allow_pickle`
            lets us read, or damaged files.
    """
    settings = _read_json(folder / CONFIG)
    config = model_config(settings, str(folder / CONFIG))
    stored = _read_weights(folder, access)
    if config.logits_via_embedding:
        tensors = _ours(_without_head(stored, folder))
    else:
        tensors = _ours(stored)
        # A model made by transformers 5 has one matrix for both, whatever its config said.
        if HEAD not in tensors and "scale_decoder_outputs" in settings and EMBEDDING in tensors:
            tensors[HEAD] = tensors[EMBEDDING].T
    return Source(str(folder), config, tensors, tokenizer_files.fingerprint(folder), folder)


def write_folder(
    source: Source,
    out: Path,
    *,
    dtype,
    tokenizer: bytes | None,
    card: str,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes what transformers 4.5x and 5.x load; one tensor is in memory at a time.

    Args:
        out: appears when everything is written; a killed export leaves no half of it.
        dtype: of the tensors, "float32" or "bfloat16" (rounded to nearest even).
        tokenizer: the serialized SentencePiece model without sentinels.
        card: README.md.
        shard_bytes: how large one safetensors file may be.

    Raises:
        UserError: `out` is not empty, or the parameters or tokenizer are not the model's.
    """
    found = {name: tensor.shape for name, tensor in source.tensors.items()}
    check_tensors(found, parameter_shapes(source.config), source.place)
    settings = config_json(source.config) | {"dtype": str(np.dtype(dtype))}

    with new_folder(out) as folder:
        if tokenizer is not None:
            count = tokenizer_files.sentinels(tokenizer, source.vocabulary, source.config)
            tokenizer_files.write(folder, tokenizer, count)
        _write_json(folder / CONFIG, settings)
        _write_json(folder / "generation_config.json", SPECIAL_TOKENS | _GENERATION)
        (folder / "README.md").write_text(card)
        tensors = _theirs(source.tensors)
        safetensors.write_shards(folder, tensors, np.dtype(dtype), shard_bytes)


def _read_weights(folder: Path, access: Access) -> dict[str, Tensor]:
    if (files := _weight_files(folder, _SAFETENSORS)) is not None:
        return _read_all(files, safetensors.read)
    files = _weight_files(folder, _PICKLE)
    if files is None or not access.allow_pickle:
        raise UserError(
            f"{folder} with {_PICKLE} only" if files else f"no weights in {folder}",
            f"{_SAFETENSORS}, or {_SAFETENSORS}.index.json and the shards it names",
            "put them there, or pass --allow_pickle (in gin: ALLOW_PICKLE = True) to read it",
        )
    return _read_all(files, torch_pickle.read)


def _weight_files(folder: Path, name: str) -> list[Path] | None:
    """The one file, or the shards of its index; None where there is neither."""
    index = folder / f"{name}.index.json"
    if (folder / name).exists():
        return [folder / name]
    if not index.exists():
        return None
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise UserError(f"{index} without a weight_map", "a file for each tensor", "get it again")
    files = [folder / Path(shard).name for shard in sorted(set(shards.values()))]
    if absent := [path.name for path in files if not path.exists()]:
        raise UserError(
            f"{folder} without {', '.join(absent)}",
            f"the {len(files)} files that {index.name} names",
            "download the rest of them into the folder",
        )
    return files


def _read_all(files: list[Path], read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for path in files for name, tensor in read(path).items()}


def _without_head(stored: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Of a model whose head is the embedding; raises UserError if the file has them different."""
    rest = dict(stored)
    head = rest.pop(HUGGING_FACE_HEAD, None)
    embedding = next((rest[n] for n in ("shared.weight", *EMBEDDING_ALIASES) if n in rest), head)
    if head is not None and not _equal(head, embedding):
        raise UserError(
            f"{HUGGING_FACE_HEAD} different from shared.weight in {folder}",
            f"the same numbers, because {CONFIG} says that the head is the embedding",
            f'write "tie_word_embeddings": false into {CONFIG} if this is a T5 1.1 or Flan-T5',
        )
    return rest if embedding is None else rest | {"shared.weight": embedding}


def _equal(one: Tensor, other: Tensor) -> bool:
    if one is other or one.shape != other.shape:
        return one is other
    starts = range(0, one.shape[0], _COMPARED_ROWS)
    parts = [(slice(start, start + _COMPARED_ROWS), slice(None)) for start in starts]
    return all(np.array_equal(one.read(part), other.read(part)) for part in parts)


def _ours(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By our names, the way round that we have them; a name that no T5 has stays what it is."""
    tensors = {}
    for name, tensor in stored.items():
        if name not in (*EMBEDDING_ALIASES, *IGNORED):
            ours, transposed = from_hugging_face(name) or (name, False)
            tensors[ours] = tensor.T if transposed else tensor
    for name in EMBEDDING_ALIASES:
        if name in stored:
            tensors.setdefault(EMBEDDING, stored[name])
    return tensors


def _theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {name: to_hugging_face(name) for name in reading_order(tensors)}
    return {
        stored.name: tensors[name].T if stored.transposed else tensors[name]
        for name, stored in named.items()
    }


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"no {path}", "a folder of Hugging Face's files", "check the path, or download it again"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} ({error})", "JSON", "download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} with no JSON object", "names and values", "download it again")
    return content


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
