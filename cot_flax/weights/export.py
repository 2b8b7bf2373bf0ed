"""From any checkpoint to a folder that another library loads."""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cot_flax.errors import UserError
from cot_flax.files import new_folder, path_at, size_of
from cot_flax.weights import huggingface, t5x, tokenizer_files
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Access, Source

FORMATS = ("huggingface", "t5x", "ctranslate2")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Exported:
    """What was written: from where, how many parameters, and how many bytes of files."""

    place: str
    parameters: int
    bytes: int


def export(
    checkpoint: str,
    out: str | os.PathLike,
    *,
    format: str,
    card: Callable[[str, int, Path | None, str], str],
    dtype: str = "float32",
    tokenizer: str | os.PathLike | None = None,
    access: Access = Access(),  # noqa: B008 (frozen)
) -> Exported:
    """Writes the parameters of a checkpoint for another library; adapters are merged.

    Args:
        checkpoint: anything that INITIAL_CHECKPOINT_PATH takes.
        out: a folder that does not exist or is empty, on this machine or in a bucket.
        format: of FORMATS.
        card: makes Hugging Face's README.md of a name, the number of parameters, the folder of the
            run or of Hugging Face's files that the checkpoint is part of, if it is of any, and the
            checkpoint's place.
        dtype: of the parameters, of DTYPES.
        tokenizer: its file (see `text.tokenizers.open_tokenizer`), where none lies beside the
            checkpoint.

    Raises:
        UserError: an unknown format or dtype, a checkpoint that cannot be read, a vocabulary that
            is missing or not the checkpoint's, an `out` that holds something.
    """
    _check_choice("--format", format, FORMATS)
    _check_choice("--dtype", dtype, DTYPES)
    source = open_source(checkpoint, access)
    parameters = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
    out = path_at(out)
    if format == "t5x":
        return Exported(source.place, parameters, t5x.write(source, out, dtype=dtype))
    write = huggingface.write_folder if format == "huggingface" else _write_ctranslate2
    size = write(
        source,
        out,
        dtype=dtype,
        tokenizer=tokenizer_files.read(source, tokenizer),
        card=card(out.name, parameters, source.folder, source.place),
    )
    return Exported(source.place, parameters, size)


def _write_ctranslate2(source: Source, out: Path, *, dtype: str, tokenizer, card: str) -> int:
    """Writes what CTranslate2 loads, by its own converter from a folder of Hugging Face's.

    Returns:
        The bytes of the files.

    Raises:
        UserError: as `huggingface.write_folder`; no CTranslate2, or a model that its converter
            does not know.
    """
    try:
        import torch  # noqa: F401 (the converter says nothing of it)
        from ctranslate2.converters import TransformersConverter
    except ModuleNotFoundError as error:
        raise UserError(
            f"no {error.name}",
            "CTranslate2, transformers and PyTorch, which its converter uses",
            'run: pip install "cot-flax[ctranslate2]"',
        ) from error

    with new_folder(out) as folder, TemporaryDirectory() as beside:
        from_folder, made = Path(beside) / "huggingface", Path(beside) / "made"
        # Rounded by the converter, once; biases and norms stay as it wants them.
        huggingface.write_folder(
            source, from_folder, dtype="float32", tokenizer=tokenizer, card=card
        )
        kept = [
            name for name in (*tokenizer_files.NAMES, "README.md") if (from_folder / name).is_file()
        ]
        converter = TransformersConverter(str(from_folder), copy_files=kept)
        try:
            converter.convert(str(made), quantization=dtype)
        except (ValueError, NotImplementedError, KeyError) as error:
            raise UserError(
                f"{source.place} ({error})",
                "a model that the converter of CTranslate2 knows",
                "take --format huggingface",
            ) from error
        shutil.copytree(made, folder, dirs_exist_ok=True)
        return size_of(folder)


def _check_choice(option, value, choices):
    if value not in choices:
        raise UserError(f"{option} {value}", f"one of {choices}", "correct it")
