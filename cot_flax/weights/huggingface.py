"""Folders of Hugging Face's files: opened as parameters, and written from them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from cot_flax.errors import UserError
from cot_flax.files import new_folder, size_of
from cot_flax.students.parameters import Tensor
from cot_flax.students.student import Student, families
from cot_flax.text.tokenizers import Tokenizer
from cot_flax.weights import peft, tokenizer_files
from cot_flax.weights.files import safetensors, torch_pickle
from cot_flax.weights.source import Access, Source, check_tensors, reading_order

CONFIG = "config.json"
_SAFETENSORS = safetensors.NAME
_PICKLE = "pytorch_model.bin"
_RESAVE = (
    "take the model.safetensors of the same model, or write one with transformers 4: "
    "T5ForConditionalGeneration.from_pretrained(DIR, from_{}=True).save_pretrained(NEW)"
)
_OTHERS = {
    "*.safetensors": ("under another name", "rename it if it is the whole file"),
    "flax_model*.msgpack": ("weights of Flax", _RESAVE.format("flax")),
    "tf_model*.h5": ("weights of TensorFlow", _RESAVE.format("tf")),
    "*.ckpt*.index": (
        "a TensorFlow checkpoint",
        "take the same model from gs://t5-data/pretrained_models/t5x or the Hugging Face hub",
    ),
    "*.ckpt*": (
        "a checkpoint of Lightning or TensorFlow",
        "load it there and save_pretrained(NEW) the model in it",
    ),
    "*.gguf": ("weights of llama.cpp", "take the model from which it was made"),
}
"""Files that we do not read, by their pattern: what they are, and what to do."""
_GENERATION = {"max_new_tokens": 256}  # without it transformers ends a chain after 20 tokens


def open_folder(folder: Path, access: Access) -> Source:
    """The parameters in a folder with a config.json; no tensor is read before it is asked for.

    Raises:
        UserError: no model that a family of students can express, no weights, weights that only
            `allow_pickle` lets us read, or damaged files.
    """
    settings = _read_json(folder / CONFIG)
    family = _family(settings, str(folder / CONFIG))
    stored = _read_weights(folder, access)
    student, tensors = family.from_hugging_face(settings, stored, str(folder / CONFIG))
    return Source(str(folder), student, tensors, tokenizer_files.fingerprint(folder), folder)


def open_adapter(folder: Path, base: Path, access: Access) -> Source:
    """The parameters of the model in `base` with the adapter of PEFT in `folder` merged.

    Raises:
        UserError: as of `open_folder` and `peft.merged`.
    """
    settings = _read_json(base / CONFIG)
    family = _family(settings, str(base / CONFIG))
    adapter = _read_files(folder, peft.WEIGHTS, peft.PICKLE, access)
    about = _read_json(folder / peft.CONFIG)
    stored = peft.merged(_read_weights(base, access), adapter, about, str(folder))
    student, tensors = family.from_hugging_face(settings, stored, str(base / CONFIG))
    has_tokenizer = any((folder / name).is_file() for name in tokenizer_files.NAMES)
    beside = folder if has_tokenizer else base
    return Source(str(folder), student, tensors, tokenizer_files.fingerprint(beside), beside)


def base_of(folder: Path) -> str:
    """What an adapter's folder names as its base: a path or a name on the hub.

    Raises:
        UserError: it names none.
    """
    base = _read_json(folder / peft.CONFIG).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UserError(
            f"{folder / peft.CONFIG} without base_model_name_or_path",
            "the model that the adapter was trained on",
            f"write its folder or name there, or {peft.MERGE}",
        )
    return base


def write_folder(
    source: Source,
    out: Path,
    *,
    dtype,
    tokenizer: Tokenizer | None,
    card: str,
    shard_bytes: int = 5_000_000_000,
) -> int:
    """Writes what transformers 4.5x and 5.x load; one tensor is in memory at a time.

    Args:
        out: appears when everything is written; a killed export leaves no half of it.
        dtype: of the tensors, "float32" or "bfloat16" (rounded to nearest even).
        tokenizer: the model's, for the folder to stand alone.
        card: README.md.
        shard_bytes: how large one safetensors file may be.

    Returns:
        The bytes of the files.

    Raises:
        UserError: `out` is not empty, or the parameters or tokenizer are not the model's.
    """
    found = {name: tensor.shape for name, tensor in source.tensors.items()}
    check_tensors(found, source.student.parameter_shapes(), source.place)
    ordered = {name: source.tensors[name] for name in reading_order(source.tensors)}
    if tokenizer is not None:
        tokenizer_files.check(tokenizer, source)
    settings, tensors = source.student.to_hugging_face(ordered)

    with new_folder(out) as folder:
        if tokenizer is not None:
            tokenizer_files.write(folder, tokenizer)
        _write_json(folder / CONFIG, settings | {"dtype": str(np.dtype(dtype))})
        special_ids = {name: id for name, id in settings.items() if name.endswith("_token_id")}
        _write_json(folder / "generation_config.json", special_ids | _GENERATION)
        (folder / "README.md").write_text(card)
        safetensors.write_shards(folder, tensors, np.dtype(dtype), shard_bytes)
        return size_of(folder)


def _read_weights(folder: Path, access: Access) -> dict[str, Tensor]:
    return _read_files(folder, _SAFETENSORS, _PICKLE, access)


def _read_files(folder: Path, name: str, pickle: str, access: Access) -> dict[str, Tensor]:
    """The tensors of the files that are called `name`, or else, if allowed, `pickle`."""
    if (files := _weight_files(folder, name)) is not None:
        return _read_all(files, safetensors.read)
    files = _weight_files(folder, pickle)
    if files is None or not access.allow_pickle:
        raise _unreadable(folder, name, pickle, has_pickle=files is not None)
    return _read_all(files, torch_pickle.read)


def _unreadable(folder: Path, name: str, pickle: str, *, has_pickle: bool) -> UserError:
    """What lies there instead of weights that we read, and what helps."""
    expected = f"{name}, or {name}.index.json and the shards it names"
    if has_pickle:
        remedy = f"put {name} there, or pass --allow_pickle (in gin: ALLOW_PICKLE = True)"
        return UserError(f"{folder} with {pickle} only", expected, remedy)
    for pattern, (kind, remedy) in _OTHERS.items():
        if found := sorted(folder.glob(pattern)):
            return UserError(f"{folder} with {found[0].name}, {kind}", expected, remedy)
    return UserError(f"no weights in {folder}", expected, "download them into the folder")


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


def _family(settings: Mapping, place: str) -> type[Student]:
    kind = settings.get("model_type")
    for family in families().values():
        if kind in family.model_types:
            return family
    known = sorted(name for family in families().values() for name in family.model_types)
    raise UserError(f"a model of type {kind} in {place}", f"one of {known}", "give one of these")


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
