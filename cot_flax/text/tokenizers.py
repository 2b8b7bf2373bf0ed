"""Tokenizers without SeqIO."""

import hashlib
import os
from collections.abc import Iterable
from typing import NamedTuple

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from cot_flax.errors import UserError

_SPACE = "\u2581"  # SentencePiece's visible space


class SpecialIds(NamedTuple):
    """Ids of a vocabulary that are no text.

    Attributes:
        pad: fills what is left of a row.
        end: closes a text.
        start: what a decoder reads before its first token.
    """

    pad: int
    end: int
    start: int


T5_SPECIAL_IDS = SpecialIds(pad=0, end=1, start=0)
"""Of T5's vocabulary, and of checkpoints that are older than their record."""


class Tokenizer:
    """Text to ids and back, id for id as SeqIO's `SentencePieceVocabulary` does it.

    So does Hugging Face's T5 tokenizer, save for what `tests/text/tokenizers_test.py` shows: there
    a sentinel that touches another word still is one, and what follows such a one begins a word
    (with `legacy=False`: what follows a sentinel and a space begins none); `</s>`, `<unk>` and
    `<pad>` in a text are control ids; and the tokenizers in Rust (all of transformers 5) normalise
    letters of several characters in their own way, choose otherwise between equally likely
    pieces, and from transformers 5 on take U+0085 for a space.

    The sentinels `<extra_id_0>`, `<extra_id_1>`, ... stand behind the pieces of the file, the
    first one last: T5's 32,000 pieces and 100 sentinels make 32,100 ids, `<extra_id_0>` is 32,099.
    The model's embedding may have more rows (T5: 32,128); no text becomes one of these.

    Args:
        model: the serialized SentencePiece model, as bytes or as the path of its file.
        extra_ids: how many sentinels; 100 for T5, 0 for a plain SentencePiece vocabulary.

    Attributes:
        model: the serialized model as it came, without sentinels: what a spiece.model holds.
        processor: SentencePiece itself, sentinels included, for spans and kinds of pieces.
        fingerprint: 16 hex digits that name the vocabulary, sentinels included; the same as
            `cot_flax.data.features.fingerprint` gives SeqIO's vocabulary over the same file.

    Raises:
        UserError: there is no such file, or it holds no SentencePiece model.
    """

    pad_id = 0

    def __init__(self, model: bytes | str | os.PathLike, *, extra_ids: int = 100):
        self.model = model if isinstance(model, bytes) else _read(model)
        self.processor = SentencePieceProcessor()
        try:
            whole = _with_sentinels(self.model, extra_ids)
            self.processor.LoadFromSerializedProto(whole)
        except (DecodeError, RuntimeError) as error:
            place = "" if isinstance(model, bytes) else f"{model}: "
            raise UserError(
                f"{place}{len(self.model):,} bytes that are no SentencePiece model",
                "a SentencePiece model file",
                "give a spiece.model",
            ) from error
        self.fingerprint = hashlib.sha256(whole).hexdigest()[:16]

    @property
    def vocab_size(self) -> int:
        """Pieces and sentinels."""
        return self.processor.GetPieceSize()

    @property
    def eos_id(self) -> int:
        return self.processor.eos_id()

    @property
    def unk_id(self) -> int:
        return self.processor.unk_id()

    def encode(self, text: str, *, add_eos: bool = False) -> list[int]:
        """Tokenizes; EOS is added only where asked for."""
        return self.processor.EncodeAsIds(text) + [self.eos_id] * add_eos

    def decode(self, ids: Iterable[int]) -> str:
        """Joins the pieces up to the first EOS; an id that no piece has is an unknown one."""
        known = [int(i) if i < self.vocab_size else self.unk_id for i in ids]
        if self.eos_id in known:
            known = known[: known.index(self.eos_id)]
        return self.processor.DecodeIds(known)

    def id_to_piece(self, id: int) -> str:
        """The piece, with SentencePiece's visible space: 32,099 is `▁<extra_id_0>`."""
        return self.processor.IdToPiece(id)

    def piece_to_id(self, piece: str) -> int:
        """The id of a piece as `id_to_piece` writes it; `unk_id` where there is none."""
        return self.processor.PieceToId(piece)


def load_tokenizer(path: str | os.PathLike, fingerprint: str) -> Tokenizer:
    """Loads the file with as many sentinels as a checkpoint was trained with, none or T5's 100.

    A checkpoint that does not name its vocabulary (`fingerprint` is "") gets the plain one.

    Raises:
        UserError: as Tokenizer, or the checkpoint was trained with another vocabulary.
    """
    plain, with_sentinels = Tokenizer(path, extra_ids=0), Tokenizer(path)
    for tokenizer in (plain, with_sentinels):
        if fingerprint in ("", tokenizer.fingerprint):
            return tokenizer
    raise UserError(
        f"vocabulary {plain.fingerprint} at {path}",
        f"the checkpoint's vocabulary {fingerprint}",
        "give the SentencePiece model that the checkpoint was trained with",
    )


def _with_sentinels(model: bytes, extra_ids: int) -> bytes:
    proto = ModelProto.FromString(model)
    for i in reversed(range(extra_ids)):
        kind = ModelProto.SentencePiece.USER_DEFINED
        proto.pieces.add(piece=f"{_SPACE}<extra_id_{i}>", score=0.0, type=kind)
    return proto.SerializeToString()


def _read(path: str | os.PathLike) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(
            f"{path} ({error.strerror})", "a SentencePiece model file", "check the path"
        ) from error
