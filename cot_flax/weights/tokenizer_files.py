"""The files of Hugging Face's T5 tokenizer around a SentencePiece model."""

import json
import os
from pathlib import Path

from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.students.student import Student
from cot_flax.text.tokenizers import SentencePieceTokenizer
from cot_flax.weights.source import Source

SENTENCEPIECE = "spiece.model"
_SETTINGS = "tokenizer_config.json"
_T5_SENTINELS = 100


def fingerprint(folder: Path) -> str:
    """Of a folder's vocabulary; "" where it has none. Raises UserError where it is broken."""
    if not (folder / SENTENCEPIECE).exists():
        return ""
    return SentencePieceTokenizer(
        folder / SENTENCEPIECE, extra_ids=_sentinels_of(folder)
    ).fingerprint


def find(source: Source, path: str | os.PathLike | None) -> Path:
    """The SentencePiece file at `path`, or else the one that lies beside a checkpoint.

    Raises:
        UserError: there is none.
    """
    looked_for = path_at(path or (source.folder or path_at(source.place)) / SENTENCEPIECE)
    if not looked_for.is_file():
        raise UserError(
            f"no {looked_for}",
            "the SentencePiece model that the checkpoint was trained with",
            "name the file (--tokenizer FILE)",
        )
    return looked_for


def sentinels(model: bytes, vocabulary: str, student: Student) -> int:
    """How many sentinels stand behind the pieces of a model's vocabulary: T5's 100, or none.

    Args:
        vocabulary: its fingerprint, which tells; where unknown (""), T5's if they fit in.

    Raises:
        UserError: the model was trained with another vocabulary.
    """
    for count in (_T5_SENTINELS, 0):
        tokenizer = SentencePieceTokenizer(model, extra_ids=count)
        fits = tokenizer.vocab_size <= student.config.vocab_size
        if fits and vocabulary in ("", tokenizer.fingerprint):
            return count
    raise UserError(
        f"a tokenizer of {tokenizer.vocab_size:,} pieces (fingerprint {tokenizer.fingerprint})",
        f"at most {student.config.vocab_size:,} pieces, fingerprint {vocabulary or 'unknown'}",
        "give the vocabulary that the model was trained with",
    )


def write(folder: Path, model: bytes, extra_ids: int) -> None:
    """Writes what AutoTokenizer of transformers 4.5x and 5.x reads; ids as in our tokenizer."""
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    special = names | {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(extra_ids)]}
    # "legacy" is how T5's own tokenizers do it; unset, transformers 4 warns about it.
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": extra_ids, "legacy": True, **special}
    (folder / SENTENCEPIECE).write_bytes(model)
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def _sentinels_of(folder: Path) -> int:
    try:
        settings = json.loads((folder / _SETTINGS).read_text())
        return int(settings.get("extra_ids", _T5_SENTINELS))
    except FileNotFoundError:
        return _T5_SENTINELS
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / _SETTINGS} ({error})", "the settings of a tokenizer", "download it again"
        ) from error
