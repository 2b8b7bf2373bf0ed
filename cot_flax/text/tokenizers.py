"""Tokenizers without SeqIO: one protocol; SentencePiece, Hugging Face's BPE files, bytes behind it.

SentencePiece writes a space that begins a word as U+2581, byte-level BPE as `Ġ` and every other
byte as some letter, too. Callers see ids, texts and byte spans, never a library's own spelling.
"""

import codecs
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Protocol

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.text.bpe import HUGGING_FACE, SETTINGS, open_hugging_face
from cot_flax.text.pieces import (
    MOST_REMEMBERED,
    SPACE,
    Pieces,
    SpecialIds,
    before_end,
    is_text,
    read_file,
)

SENTENCEPIECE = "spiece.model"

T5_SPECIAL_IDS = SpecialIds(pad=0, end=1, start=0)
"""Of T5's vocabulary, and of checkpoints that are older than their record."""

T5_SENTINELS = 100
SENTINEL_COUNTS = (T5_SENTINELS, 0, 300)
"""How many sentinels are added to a model: T5's, none (also mT5's, whose file has them), umT5's."""


class Tokenizer(Protocol):
    """Text to ids and back. It can be pickled, and is hashed by identity.

    Attributes:
        vocab_size: all ids are below it; the embedding of a model may have more rows.
        special_ids: pad, end and start.
        unk_id: stands for what the vocabulary lacks; None where it lacks nothing.
        fingerprint: 16 hex digits that name the vocabulary and its special ids.
    """

    vocab_size: int
    special_ids: SpecialIds
    fingerprint: str

    def __hash__(self) -> int: ...

    @property
    def unk_id(self) -> int | None: ...

    @property
    def files(self) -> dict[str, bytes]:
        """The files, by name, of a folder that `open_tokenizer` opens as this tokenizer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without the end."""
        ...

    def pieces(self, text: str) -> Pieces:
        """The same, with strings and spans."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids before the first end; special ids are no text."""
        ...

    def surfaces(self, ids: Sequence[int]) -> list[str]:
        """What each of the ids, none of them the end, adds to the text that `decode` gives.

        The last of several ids that only together are a character adds it.
        """
        ...

    def id_to_piece(self, id: int) -> str:
        """The piece as the vocabulary's file spells it."""
        ...

    def piece_to_id(self, piece: str) -> int | None:
        """The id of a piece as `id_to_piece` spells it; `unk_id` where there is none."""
        ...

    def id_to_text(self, id: int) -> str:
        """The text that a piece stands for, with its spaces."""
        ...

    @property
    def writable(self) -> Sequence[bool]:
        """For every id whether it is a text by itself: not special, and no part of a character."""
        ...

    def whole_piece(self, text: str) -> int | None:
        """The id of the piece that is this text, spaces included; None where there is none."""
        ...

    def first_piece(self, text: str, before: str | None = None) -> int | None:
        """The id of the piece that a text starts with; None where the text does not settle it.

        Where nothing is known of what stands before, a text that is a piece as it stands is that
        piece, and any other one is tokenized where it begins with white space, so a word: inside a
        word the tokenizer would need the letters before it. Spaces alone settle nothing, for a word
        may follow.

        Args:
            before: "" at the start of a text, a line break at that of a line; None inside a line.
        """
        ...


class SentencePieceTokenizer:
    """A SentencePiece vocabulary; the ids of a text are those of SeqIO's `SentencePieceVocabulary`.

    Hugging Face's T5 tokenizer agrees, save for what `tests/text/tokenizers_test.py` shows: there a
    sentinel that touches another word still is one, and what follows such a one begins a word
    (with `legacy=False`: what follows a sentinel and a space begins none); `</s>`, `<unk>` and
    `<pad>` in a text are control ids; and the tokenizers in Rust (all of transformers 5) normalise
    letters of several characters in their own way, choose otherwise between equally likely
    pieces, and from transformers 5 on take U+0085 for a space.

    The sentinels `<extra_id_0>`, `<extra_id_1>`, ... stand behind the pieces of the file, the
    first one last: T5's 32,000 pieces and 100 sentinels make 32,100 ids, `<extra_id_0>` is 32,099.

    Special ids are those of the model file; a decoder starts with the pad id, as T5's does.

    Args:
        model: the serialized SentencePiece model, as bytes or as the path of its file.
        extra_ids: how many sentinels; 100 for T5, 0 for a plain SentencePiece vocabulary.

    Attributes:
        model: the serialized model as it came, without sentinels: what a spiece.model holds.
        extra_ids: as given.
        fingerprint: as `cot_flax.data.features.fingerprint` gives it for SeqIO's vocabulary over
            the same file; sentinels count.

    Raises:
        UserError: there is no such file, it holds no SentencePiece model, or one without a pad or
            an end.
    """

    def __init__(self, model: bytes | str | os.PathLike, *, extra_ids: int = T5_SENTINELS):
        self.model = model if isinstance(model, bytes) else read_file(model)
        self.extra_ids = extra_ids
        self._processor = SentencePieceProcessor()
        place = "" if isinstance(model, bytes) else f"{model}: "
        try:
            proto = _with_sentinels(self.model, extra_ids)
            whole = proto.SerializeToString()
            self._processor.LoadFromSerializedProto(whole)
        except (DecodeError, RuntimeError) as error:
            raise UserError(
                f"{place}{len(self.model):,} bytes that are no SentencePiece model",
                "a SentencePiece model file",
                f"give a {SENTENCEPIECE}",
            ) from error
        self.fingerprint = hashlib.sha256(whole).hexdigest()[:16]
        self.vocab_size = self._processor.GetPieceSize()
        self.unk_id = self._processor.unk_id()
        self.special_ids = sentencepiece_special_ids(self._processor, place)
        self._prefix = " " * proto.normalizer_spec.add_dummy_prefix
        self.first_piece = lru_cache(MOST_REMEMBERED)(self._find_first)

    def __reduce__(self):
        return partial(SentencePieceTokenizer, extra_ids=self.extra_ids), (self.model,)

    @property
    def files(self) -> dict[str, bytes]:
        """The model alone: which of its two vocabularies is meant, the fingerprint says."""
        return {SENTENCEPIECE: self.model}

    def encode(self, text: str) -> list[int]:
        return self._processor.EncodeAsIds(text)

    def pieces(self, text: str) -> Pieces:
        """Spans are SentencePiece's own record of how it normalised the text."""
        pieces = self._processor.encode(text, return_type="proto").pieces
        return Pieces(
            tuple(piece.piece for piece in pieces),
            tuple(piece.id for piece in pieces),
            tuple((piece.begin, piece.end) for piece in pieces),
        )

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.DecodeIds(before_end(self._known(ids), self.special_ids.end))

    def surfaces(self, ids: Sequence[int]) -> list[str]:
        if not ids:  # the decoder would not return a message
            return []
        decoded = self._processor.decode(self._known(ids), return_type="proto")
        return [piece.surface for piece in decoded.pieces]

    def id_to_piece(self, id: int) -> str:
        """With U+2581 for a space: 32,099 is `▁<extra_id_0>`."""
        return self._processor.IdToPiece(id)

    def piece_to_id(self, piece: str) -> int:
        return self._processor.PieceToId(piece)

    def id_to_text(self, id: int) -> str:
        return self.id_to_piece(id).replace(SPACE, " ")

    @cached_property
    def writable(self) -> list[bool]:
        return [not (self._is_mute(i) or self._processor.IsByte(i)) for i in range(self.vocab_size)]

    def whole_piece(self, text: str) -> int | None:
        return self._text_ids.get(text.replace(" ", SPACE))

    def _known(self, ids: Iterable[int]) -> list[int]:
        """Ids that no piece has, those of surplus rows of an embedding, are unknown ones."""
        return [int(i) if i < self.vocab_size else self.unk_id for i in ids]

    def _is_mute(self, id: int) -> bool:
        of = self._processor
        return of.IsUnknown(id) or of.IsControl(id) or of.IsUnused(id)

    @cached_property
    def _text_ids(self) -> dict[str, int]:
        """Every piece that text can become."""
        ids = range(self.vocab_size)
        return {self.id_to_piece(i): i for i in ids if not self._is_mute(i)}

    def _find_first(self, text: str, before: str | None = None) -> int | None:
        if before is not None:  # a line break is a space, and no piece ends with one
            text = self._prefix + text
        words = SPACE.join(text.split())
        if not words or not is_text(text):
            return None
        begins_word = text[0].isspace()
        whole = self._text_ids.get(SPACE * begins_word + words)
        if whole is not None or not begins_word:
            return whole
        # Normalisation may leave nothing, of a zero-width space for instance.
        first = next(iter(self.encode(text)), self.unk_id)
        return None if first == self.unk_id else first


class ByteTokenizer:
    """The bytes of a text's UTF-8 form, as ByT5 and SeqIO's `ByteVocabulary` number them.

    Ids 0, 1 and 2 are pad, end and unknown, byte b is b + 3; behind them stand sentinels that no
    text has.

    Args:
        extra_ids: how many sentinels.

    Attributes:
        fingerprint: as `cot_flax.data.features.fingerprint` gives it for SeqIO's vocabulary.
    """

    special_ids = SpecialIds(pad=0, end=1, start=0)
    unk_id = 2
    _FIRST, _BYTES = 3, 256

    def __init__(self, extra_ids: int = 0):
        self.extra_ids = extra_ids
        self.vocab_size = self._FIRST + self._BYTES + extra_ids
        name = f"ByteVocabulary {self.vocab_size}"
        self.fingerprint = hashlib.sha256(name.encode()).hexdigest()[:16]

    @property
    def files(self) -> dict[str, bytes]:
        """None: there is nothing to write down."""
        return {}

    def encode(self, text: str) -> list[int]:
        return [byte + self._FIRST for byte in text.encode()]

    def pieces(self, text: str) -> Pieces:
        ids = self.encode(text)
        strings = (self.id_to_text(i).replace(" ", SPACE) for i in ids)
        return Pieces(tuple(strings), tuple(ids), tuple((i, i + 1) for i in range(len(ids))))

    def decode(self, ids: Iterable[int]) -> str:
        """Bytes that are no UTF-8 are left out, as SeqIO leaves them out."""
        return "".join(self.surfaces(before_end(map(int, ids), self.special_ids.end)))

    def surfaces(self, ids: Sequence[int]) -> list[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        return [decoder.decode(self._bytes(i)) for i in ids]

    def id_to_piece(self, id: int) -> str:
        """`<0x41>` for a byte, as SentencePiece spells one."""
        if found := self._bytes(id):
            return f"<0x{found[0]:02X}>"
        specials = ("<pad>", "</s>", "<unk>")
        return specials[id] if id < self._FIRST else f"<extra_id_{self.vocab_size - 1 - id}>"

    def piece_to_id(self, piece: str) -> int:
        return self._ids.get(piece, self.unk_id)

    def id_to_text(self, id: int) -> str:
        return self._bytes(id).decode(errors="replace")

    @cached_property
    def writable(self) -> list[bool]:
        """Those of ASCII: every other byte is a part of a character."""
        return [
            bool(found) and found[0] < 128 for found in map(self._bytes, range(self.vocab_size))
        ]

    def whole_piece(self, text: str) -> int | None:
        return self.encode(text)[0] if len(text) == 1 and text.isascii() else None

    def first_piece(self, text: str, before: str | None = None) -> int | None:
        """The first byte, whatever stands before it."""
        return self.encode(text)[0] if text and is_text(text) else None

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {self.id_to_piece(i): i for i in range(self.vocab_size)}

    def _bytes(self, id: int) -> bytes:
        byte = id - self._FIRST
        return bytes([byte]) if 0 <= byte < self._BYTES else b""


def open_tokenizer(path: str | os.PathLike, fingerprint: str = "") -> Tokenizer:
    """Opens a SentencePiece model, a tokenizer.json, or a folder with one of them.

    A SentencePiece model gets as many sentinels as `fingerprint` says, of `SENTINEL_COUNTS`;
    without a fingerprint none. Of a folder with both files the SentencePiece model is read.

    The special tokens of a tokenizer.json stand beside it: `eos_token`, `pad_token` and
    `bos_token` of tokenizer_config.json or else special_tokens_map.json, or else their ids in
    generation_config.json, of several ends the first. Where there is no pad, the end pads, as the
    makers of such models advise; where there is no start, the end starts a row.

    Args:
        path: a file or a folder, here or in a bucket.
        fingerprint: of the vocabulary that is wanted; "" takes any.

    Raises:
        UserError: there is none, it is broken or of an unknown kind, it has no end, or it is
            another vocabulary.
    """
    found, seen = _tokenizer_file(path_at(path)), []
    readings: list[Callable[[], Tokenizer]]
    if found.suffix == ".json":
        readings = [partial(open_hugging_face, found)]
    else:
        counts = sorted(SENTINEL_COUNTS)
        readings = [partial(SentencePieceTokenizer, found, extra_ids=count) for count in counts]
    for read in readings:
        tokenizer = read()
        if fingerprint in ("", tokenizer.fingerprint):
            return tokenizer
        seen.append(tokenizer.fingerprint)
    raise UserError(
        f"vocabulary {seen[0]} at {path}",
        f"the checkpoint's vocabulary {fingerprint}",
        "give the tokenizer that the checkpoint was trained with",
    )


def sentinels_beside(model: Path) -> int:
    """How many sentinels are added to a SentencePiece model's file.

    None where it has them; else as many as the tokenizer_config.json beside it says, or T5's.

    Raises:
        UserError: no such model, or broken settings.
    """
    try:
        proto = ModelProto.FromString(read_file(model))
    except DecodeError:  # what it is, the reader of the model says
        return T5_SENTINELS
    if any(piece.piece.lstrip(SPACE) == "<extra_id_0>" for piece in proto.pieces):
        return 0
    beside = model.parent / SETTINGS
    try:
        return int(json.loads(beside.read_text()).get("extra_ids", T5_SENTINELS))
    except (FileNotFoundError, NotADirectoryError):
        return T5_SENTINELS
    except (ValueError, TypeError, AttributeError) as error:
        wanted = "the settings of a tokenizer"
        raise UserError(f"{beside} ({error})", wanted, "download it again") from error


def _tokenizer_file(path):
    if not path.is_dir():
        return path
    for name in (SENTENCEPIECE, HUGGING_FACE):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"no tokenizer in {path}", f"a {SENTENCEPIECE} or a {HUGGING_FACE}", "check the folder"
    )


def _with_sentinels(model: bytes, extra_ids: int) -> ModelProto:
    proto = ModelProto.FromString(model)
    for i in reversed(range(extra_ids)):
        kind = ModelProto.SentencePiece.USER_DEFINED
        proto.pieces.add(piece=f"{SPACE}<extra_id_{i}>", score=0.0, type=kind)
    return proto


def sentencepiece_special_ids(processor: SentencePieceProcessor, place: str = "") -> SpecialIds:
    """Those of a model; raises UserError, with its place, where it has no pad or no end."""
    pad, end = processor.pad_id(), processor.eos_id()
    if pad < 0 or end < 0:
        raise UserError(
            f"{place}a SentencePiece model with pad_id {pad} and eos_id {end}",
            "both, from 0",
            "train it with --pad_id=0 --eos_id=1 --unk_id=2, as T5's",
        )
    return SpecialIds(pad, end, start=pad)
