"""Tokenizers without SeqIO: one protocol, and SentencePiece and Hugging Face's BPE files behind it.

SentencePiece writes a space that begins a word as U+2581, byte-level BPE as `Ġ` and every other
byte as some letter, too. Callers see ids, texts and byte spans, never a library's own spelling.
"""

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.text.bpe_bytes import BYTE_PIECE, byte_ends, byte_level_bytes, fallback_bytes

SENTENCEPIECE = "spiece.model"
HUGGING_FACE = "tokenizer.json"

_SPACE = "\u2581"  # the visible space of SentencePiece
_BROKEN = "\ufffd"  # what decoders write for bytes that are no character
_MOST_REMEMBERED = 1 << 18  # strings, some 50 MB


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

T5_SENTINELS = 100


@dataclass(frozen=True)
class Pieces:
    """A text as a tokenizer cuts it, without the end.

    Attributes:
        strings: the text of each of M pieces, with U+2581 for a space.
        ids: M ids.
        spans: M half-open byte ranges of the UTF-8 text. They follow each other without gaps; a
            character may be divided. White space around a text, which SentencePiece drops, is in
            none. A piece that normalisation made up (the second of `½` with T5's vocabulary) has
            an empty one.
    """

    strings: tuple[str, ...]
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def cut(self, text: str) -> list[str]:
        """The parts of the text in the spans; the last piece of a divided character has it all."""
        data, decoder = text.encode(), codecs.getincrementaldecoder("utf-8")()
        return [decoder.decode(data[begin:end]) for begin, end in self.spans]


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
    unk_id: int | None
    fingerprint: str

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
        self.model = model if isinstance(model, bytes) else _read(model)
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
        self.special_ids = _sentencepiece_special_ids(self._processor, place)
        self._prefix = " " * proto.normalizer_spec.add_dummy_prefix
        self.first_piece = lru_cache(_MOST_REMEMBERED)(self._find_first)

    def __reduce__(self):
        return partial(SentencePieceTokenizer, extra_ids=self.extra_ids), (self.model,)

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
        return self._processor.DecodeIds(_before_end(self._known(ids), self.special_ids.end))

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
        return self.id_to_piece(id).replace(_SPACE, " ")

    @cached_property
    def writable(self) -> list[bool]:
        return [not (self._is_mute(i) or self._processor.IsByte(i)) for i in range(self.vocab_size)]

    def whole_piece(self, text: str) -> int | None:
        return self._text_ids.get(text.replace(" ", _SPACE))

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
        words = _SPACE.join(text.split())
        if not words or not _is_text(text):
            return None
        begins_word = text[0].isspace()
        whole = self._text_ids.get(_SPACE * begins_word + words)
        if whole is not None or not begins_word:
            return whole
        # Normalisation may leave nothing, of a zero-width space for instance.
        first = next(iter(self.encode(text)), self.unk_id)
        return None if first == self.unk_id else first


class HuggingFaceTokenizer:
    """A BPE vocabulary of Hugging Face's `tokenizers`: what its file says, to the letter.

    Two kinds are known: byte-level BPE (GPT-2's and most later ones) and BPE with byte fallback
    (Llama 2's). No text lacks an id in either. Ids are those of transformers'
    `PreTrainedTokenizerFast`; its classes for single families take the vocabulary from the file
    and the rest from their code. As there, the string of a special token in a text is that token.

    Args:
        model: the content of a tokenizer.json.
        special_ids: pad, end and start, which the file does not name.
        place: names the file in errors.

    Raises:
        UserError: no tokenizer.json, one of another kind, or special ids that it lacks.
    """

    def __init__(self, model: bytes, special_ids: SpecialIds, *, place: str = HUGGING_FACE):
        self.model, self.special_ids = model, special_ids
        settings = _bpe_settings(model, place)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(settings))
        except Exception as error:  # the library raises nothing narrower
            raise _no_tokenizer(place, error) from error
        # Tokens that only the configuration beside the file calls special are in transformers, too.
        special = [self._tokenizer.id_to_token(i) for i in sorted(set(special_ids))]
        if None in special:
            raise UserError(
                f"{place} with {special_ids}",
                "ids of its vocabulary",
                "download all files of one model",
            )
        self._tokenizer.add_special_tokens(special)
        named = json.dumps([special_ids, settings], sort_keys=True)
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()[:16]
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values())
        self.unk_id = None
        self._added = self._tokenizer.get_added_tokens_decoder()
        byte_level = "ByteLevel" in _types(settings.get("decoder"))
        self._spelled = byte_level_bytes if byte_level else fallback_bytes
        first = self.encode("a")[:1]
        self._prefix = " " * (self._bytes(first[0])[:1] == b" ")
        self.first_piece = lru_cache(_MOST_REMEMBERED)(self._find_first)

    def __reduce__(self):
        return HuggingFaceTokenizer, (self.model, self.special_ids)

    def encode(self, text: str) -> list[int]:
        return self._encoding(text).ids

    def pieces(self, text: str) -> Pieces:
        """Spans are counted in the bytes of the pieces.

        The library's own offsets are characters: all pieces of a divided character have the same.
        They serve only where normalisation changed the text, to find the stretches that it left.
        """
        encoding = self._encoding(text)
        parts = [self._bytes(i) for i in encoding.ids]
        ends = byte_ends(text, parts, encoding.offsets)
        texts = (part.decode(errors="replace").replace(" ", _SPACE) for part in parts)
        return Pieces(tuple(texts), tuple(encoding.ids), tuple(pairwise([0, *ends])))

    def decode(self, ids: Iterable[int]) -> str:
        return self._decode(_before_end(map(int, ids), self.special_ids.end))

    def surfaces(self, ids: Sequence[int]) -> list[str]:
        whole, written, surfaces = self._decode(ids), "", []
        for count in range(1, len(ids) + 1):
            text = whole if count == len(ids) else self._decode(ids[:count])
            if count < len(ids) and (text.endswith(_BROKEN) or not whole.startswith(text)):
                text = written
            surfaces.append(text[len(written) :])
            written = text
        return surfaces

    def id_to_piece(self, id: int) -> str:
        return self._tokenizer.id_to_token(id) or ""

    def piece_to_id(self, piece: str) -> int | None:
        return self._tokenizer.token_to_id(piece)

    def id_to_text(self, id: int) -> str:
        return self._bytes(id).decode(errors="replace")

    @cached_property
    def writable(self) -> list[bool]:
        texts = (self.id_to_text(i) for i in range(self.vocab_size))
        return [
            bool(text) and _BROKEN not in text and not self._is_special(i)
            for i, text in enumerate(texts)
        ]

    def whole_piece(self, text: str) -> int | None:
        return self._text_ids.get(text)

    def _encoding(self, text: str) -> tokenizers.Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _is_special(self, id: int) -> bool:
        return id in self._added and self._added[id].special

    def _bytes(self, id: int) -> bytes:
        piece = self.id_to_piece(id)
        return piece.encode() if id in self._added else self._spelled(piece)

    @cached_property
    def _text_ids(self) -> dict[str, int]:
        """Writable ids by their text; of two the one that the text becomes."""

        def rank(id: int) -> tuple[bool, bool]:
            return id in self._added, not BYTE_PIECE.fullmatch(self.id_to_piece(id))

        ids = (i for i, is_text in enumerate(self.writable) if is_text)
        return {self.id_to_text(i): i for i in sorted(ids, key=rank)}

    def _find_first(self, text: str, before: str | None = None) -> int | None:
        if not text.strip(" ") or not _is_text(text):
            return None
        if before is not None:
            pieces, skipped = self.pieces(before + text), len(before.encode())
            behind = zip(pieces.ids, pieces.spans, strict=True)
            return next((id for id, (begin, _) in behind if begin >= skipped), None)
        whole = self.whole_piece(text)
        if whole is not None or not text[0].isspace():
            return whole
        if not text.startswith(self._prefix):  # a line break: the prefix would come before it
            return self.whole_piece(text[0])
        return next(iter(self.encode(text.removeprefix(self._prefix))), None)


def open_tokenizer(path: str | os.PathLike, fingerprint: str = "") -> Tokenizer:
    """Opens a SentencePiece model, a tokenizer.json, or a folder with one of them.

    A SentencePiece model gets as many sentinels as `fingerprint` says, none or T5's 100; without
    a fingerprint none. Of a folder with both files the SentencePiece model is read.

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
    if found.suffix == ".json":
        readings = [partial(_open_hugging_face, found)]
    else:
        readings = [partial(SentencePieceTokenizer, found, extra_ids=n) for n in (0, T5_SENTINELS)]
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


def _tokenizer_file(path):
    if not path.is_dir():
        return path
    for name in (SENTENCEPIECE, HUGGING_FACE):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"no tokenizer in {path}", f"a {SENTENCEPIECE} or a {HUGGING_FACE}", "check the folder"
    )


def _read(path: str | os.PathLike) -> bytes:
    try:
        return path_at(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} ({error.strerror or error})", "a tokenizer's file", "check the path"
        ) from error


# SentencePiece ------------------------------------------------------------------------------------


def _with_sentinels(model: bytes, extra_ids: int) -> ModelProto:
    proto = ModelProto.FromString(model)
    for i in reversed(range(extra_ids)):
        kind = ModelProto.SentencePiece.USER_DEFINED
        proto.pieces.add(piece=f"{_SPACE}<extra_id_{i}>", score=0.0, type=kind)
    return proto


def _sentencepiece_special_ids(processor: SentencePieceProcessor, place: str) -> SpecialIds:
    pad, end = processor.pad_id(), processor.eos_id()
    if pad < 0 or end < 0:
        raise UserError(
            f"{place}a SentencePiece model with pad_id {pad} and eos_id {end}",
            "both, from 0",
            "train it with --pad_id=0 --eos_id=1 --unk_id=2, as T5's",
        )
    return SpecialIds(pad, end, start=pad)


# Hugging Face -------------------------------------------------------------------------------------


def _bpe_settings(model: bytes, place: str) -> dict[str, Any]:
    """The tokenizer.json without what plays no part here: marks around a text, and lengths."""
    try:
        settings = json.loads(model)
        settings |= {"post_processor": None, "truncation": None, "padding": None}
        kind = settings["model"].get("type", "BPE")
        with_bytes = settings["model"].get("byte_fallback")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _no_tokenizer(place, error) from error
    if kind != "BPE" or not (with_bytes or "ByteLevel" in _types(settings.get("decoder"))):
        raise UserError(
            f"{place} of the kind {kind}" + " without bytes" * (kind == "BPE"),
            "byte-level BPE, or BPE with byte fallback",
            f"give the {SENTENCEPIECE} if the model has one, or choose another student",
        )
    return settings


def _no_tokenizer(place: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {str(error)[:80]}"
    wanted = "a tokenizer.json of Hugging Face"
    return UserError(f"{place} ({reason})", wanted, "download it again")


def _types(component: Mapping[str, Any] | None) -> set[str]:
    """Types of a decoder and, where it is a sequence, of its parts."""
    component = component or {}
    return {component.get("type", "")}.union(*map(_types, component.get("decoders", ())))


def _open_hugging_face(path) -> HuggingFaceTokenizer:
    model = _read(path)
    settings = _bpe_settings(model, str(path))
    added = {token["content"]: token["id"] for token in settings.get("added_tokens", ())}
    ids = settings["model"].get("vocab", {}) | added
    end, pad, start = (_special_id(path.parent, role, ids) for role in ("eos", "pad", "bos"))
    if end is None:
        raise UserError(
            f"no end of a text beside {path}",
            "an eos_token in tokenizer_config.json or special_tokens_map.json, or an eos_token_id "
            "in generation_config.json",
            "download the model's tokenizer_config.json into the folder",
        )
    pad, start = (end if id is None else id for id in (pad, start))
    return HuggingFaceTokenizer(model, SpecialIds(pad, end, start), place=str(path))


def _special_id(folder, role: str, ids: Mapping[str, int]) -> int | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _settings(folder / name).get(f"{role}_token")
        token = token["content"] if isinstance(token, dict) else token
        if token is not None:
            if token not in ids:
                raise UserError(
                    f"{role}_token {token!r} in {folder / name}",
                    f"a token of the {HUGGING_FACE} beside it",
                    "download both files of one model",
                )
            return ids[token]
    found = _settings(folder / "generation_config.json").get(f"{role}_token_id")
    return found[0] if isinstance(found, list) else found


def _settings(path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(_read(path)))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} ({error})", "one JSON object", "download it again") from error


# Both ---------------------------------------------------------------------------------------------


def _before_end(ids: Iterable[int], end: int) -> list[int]:
    ids = list(ids)
    return ids[: ids.index(end)] if end in ids else ids


def _is_text(text: str) -> bool:
    """Whether it has a UTF-8 form; a half of a character, which JSON can hold, has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
