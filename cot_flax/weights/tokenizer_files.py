"""The files of a tokenizer: in a folder of Hugging Face's, and beside our checkpoints."""

import json
import os
from pathlib import Path

from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.text.bpe import HUGGING_FACE, SETTINGS, SPECIAL_TOKENS
from cot_flax.text.tokenizers import (
    SENTENCEPIECE,
    SENTINEL_COUNTS,
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    open_tokenizer,
    sentinels_beside,
)
from cot_flax.weights.source import Source

_BYTE_SENTINELS = (0, 125)  # a byte vocabulary's, and those that Hugging Face gives ByT5
NAMES = (SENTENCEPIECE, HUGGING_FACE)
"""Files of which one holds the tokenizer."""


def fingerprint(folder: Path) -> str:
    """Of a folder's vocabulary; "" where it has none that we read.

    Raises:
        UserError: a broken SentencePiece model.
    """
    if (folder / SENTENCEPIECE).exists():
        model = folder / SENTENCEPIECE
        return SentencePieceTokenizer(model, extra_ids=sentinels_beside(model)).fingerprint
    try:
        return open_tokenizer(folder).fingerprint
    except UserError:  # none, or of a kind that we do not know: the weights are read all the same
        return ""


def find(source: Source, path: str | os.PathLike | None) -> Path:
    """The file of the tokenizer at `path`, or else the one that lies beside a checkpoint.

    Raises:
        UserError: there is none.
    """
    folder = source.folder or path_at(source.place)
    named = [path_at(path)] if path else [folder / name for name in NAMES]
    found = next((file for file in named if file.is_file()), None)
    if found is None:
        raise UserError(
            f"no {named[0]}" + (f", nor {HUGGING_FACE}" if not path else ""),
            "the tokenizer that the checkpoint was trained with",
            "name the file (--tokenizer FILE)",
        )
    return found


def read(source: Source, path: str | os.PathLike | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint, from where `find` finds it.

    A SentencePiece model gets as many sentinels as the checkpoint's vocabulary has, of
    `SENTINEL_COUNTS`; where the fingerprint is unknown, the first of these that fit into the model.

    Raises:
        UserError: there is none, or the model was trained with another vocabulary.
    """
    of_bytes = (ByteTokenizer(count) for count in _BYTE_SENTINELS)
    if known := next((one for one in of_bytes if one.fingerprint == source.vocabulary), None):
        return known  # it has no file
    found = find(source, path)
    if found.suffix == ".json":
        tokenizer = open_tokenizer(found)
    else:
        model = found.read_bytes()
        readings = (SentencePieceTokenizer(model, extra_ids=count) for count in SENTINEL_COUNTS)
        first = next(readings)
        tokenizer = next((one for one in (first, *readings) if _is_of(one, source)), first)
    check(tokenizer, source)
    return tokenizer


def check(tokenizer: Tokenizer, source: Source) -> None:
    """Raises UserError where the model was trained with another vocabulary."""
    if not _is_of(tokenizer, source):
        rows = source.student.config.vocab_size
        raise UserError(
            f"a tokenizer of {tokenizer.vocab_size:,} pieces (fingerprint {tokenizer.fingerprint})",
            f"at most {rows:,} pieces, fingerprint {source.vocabulary or 'unknown'}",
            "give the vocabulary that the model was trained with",
        )


def write(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes what AutoTokenizer of transformers 4.5x and 5.x reads; ids as in our tokenizer."""
    files = tokenizer.files
    if isinstance(tokenizer, SentencePieceTokenizer):
        files |= _t5_settings(tokenizer.extra_ids)
    if isinstance(tokenizer, ByteTokenizer):
        settings = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": _BYTE_SENTINELS[1]}
        files |= {SETTINGS: (json.dumps(settings, indent=2) + "\n").encode()}
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _is_of(tokenizer: Tokenizer, source: Source) -> bool:
    fits = tokenizer.vocab_size <= source.student.config.vocab_size
    return fits and source.vocabulary in ("", tokenizer.fingerprint)


def _t5_settings(extra_ids: int) -> dict[str, bytes]:
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    special = names | {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(extra_ids)]}
    # "legacy" is how T5's own tokenizers do it; unset, transformers 4 warns about it.
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": extra_ids, "legacy": True, **special}
    contents = {SPECIAL_TOKENS: special, SETTINGS: settings}
    return {name: (json.dumps(c, indent=2) + "\n").encode() for name, c in contents.items()}
