"""BPE vocabularies of Hugging Face: a tokenizer.json and the files beside it."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from etils import epath

from cot_flax.errors import UserError
from cot_flax.text.pieces import (
    MOST_REMEMBERED,
    SPACE,
    Pieces,
    SpecialIds,
    before_end,
    is_text,
    read_file,
)

HUGGING_FACE = "tokenizer.json"
SETTINGS, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
_ROLES = {"pad_token": "pad", "eos_token": "end", "bos_token": "start"}

_BROKEN = "\ufffd"  # what decoders write for bytes that are no character
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")  # of BPE with byte fallback


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
        self.unk_id: int | None = None
        self._added = self._tokenizer.get_added_tokens_decoder()
        byte_level = "ByteLevel" in _types(settings.get("decoder"))
        self._spelled = byte_level_bytes if byte_level else fallback_bytes
        written = b"".join(map(self._bytes, self.encode("a")))
        self._prefix = " " * written.startswith(b" ")
        self.first_piece = lru_cache(MOST_REMEMBERED)(self._find_first)

    def __reduce__(self):
        return HuggingFaceTokenizer, (self.model, self.special_ids)

    @property
    def files(self) -> dict[str, bytes]:
        """Both files of a folder that `open_tokenizer` opens as this tokenizer."""
        ids = self.special_ids._asdict()
        tokens = {name: self._tokenizer.id_to_token(ids[role]) for name, role in _ROLES.items()}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
        return {HUGGING_FACE: self.model, SETTINGS: json.dumps(settings, indent=2).encode() + b"\n"}

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
        texts = (part.decode(errors="replace").replace(" ", SPACE) for part in parts)
        return Pieces(tuple(texts), tuple(encoding.ids), tuple(pairwise([0, *ends])))

    def decode(self, ids: Iterable[int]) -> str:
        return self._decode(before_end(map(int, ids), self.special_ids.end))

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
            return id in self._added, not _BYTE_PIECE.fullmatch(self.id_to_piece(id))

        ids = (i for i, is_text in enumerate(self.writable) if is_text)
        return {self.id_to_text(i): i for i in sorted(ids, key=rank)}

    def _find_first(self, text: str, before: str | None = None) -> int | None:
        if not text.strip(" ") or not is_text(text):
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
            "give the spiece.model if the model has one, or choose another student",
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


def open_hugging_face(path: Path | epath.Path) -> HuggingFaceTokenizer:
    """Opens a tokenizer.json; `open_tokenizer` says where its special ids come from."""
    model = read_file(path)
    settings = _bpe_settings(model, str(path))
    added = {token["content"]: token["id"] for token in settings.get("added_tokens", ())}
    ids = settings["model"].get("vocab", {}) | added
    end, pad, start = (_special_id(path.parent, role, ids) for role in ("eos", "pad", "bos"))
    if end is None:
        raise UserError(
            f"no end of a text beside {path}",
            f"an eos_token in {SETTINGS} or {SPECIAL_TOKENS}, or an eos_token_id "
            "in generation_config.json",
            f"download the model's {SETTINGS} into the folder",
        )
    pad, start = (end if id is None else id for id in (pad, start))
    return HuggingFaceTokenizer(model, SpecialIds(pad, end, start), place=str(path))


def _special_id(folder, role: str, ids: Mapping[str, int]) -> int | None:
    for name in (SETTINGS, SPECIAL_TOKENS):
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
        return dict(json.loads(read_file(path)))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} ({error})", "one JSON object", "download it again") from error


# Bytes --------------------------------------------------------------------------------------------


def _byte_alphabet() -> dict[str, int]:
    """The letter for each byte in byte-level BPE: itself where it prints, or else from U+0100 on.

    Source: Radford et al. 2019, `bytes_to_unicode` of GPT-2's encoder.
    """
    printing = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    letters = [*map(chr, printing), *(chr(256 + i) for i in range(len(others)))]
    return dict(zip(letters, printing + others, strict=True))


_BYTE_OF = _byte_alphabet()


def byte_level_bytes(piece: str) -> bytes:
    """Of a piece of byte-level BPE."""
    return b"".join(
        bytes([_BYTE_OF[letter]]) if letter in _BYTE_OF else letter.encode() for letter in piece
    )


def fallback_bytes(piece: str) -> bytes:
    """Of a piece of BPE with byte fallback."""
    if match := _BYTE_PIECE.fullmatch(piece):
        return bytes.fromhex(match[1])
    return piece.replace(SPACE, " ").encode()


def byte_ends(text: str, parts: Sequence[bytes], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each piece the byte of the text that follows it; the last one's is the text's length.

    Where the parts are the text, but for a prefix, they alone say so. Where normalisation changed
    the text, they are counted within stretches of it that share no character.

    Args:
        parts: bytes that each piece stands for.
        offsets: half-open ranges of characters, for each piece, as the library gives them: those
            of a divided character are the same for all of its pieces.
    """
    data = text.encode()
    if not parts:
        return []
    if b"".join(parts).endswith(data):
        return _ends_from_the_right(parts, 0, len(data))
    byte_at = [0]
    for character in text:
        byte_at.append(byte_at[-1] + len(character.encode()))
    ends: list[int] = []
    for start, stop in _overlapping(offsets):
        begin = ends[-1] if ends else 0
        # What normalisation left out, such as an accent of its own, stays with what it follows.
        end = len(data) if stop == len(parts) else byte_at[offsets[stop][0]]
        ends += _ends_from_the_right(parts[start:stop], begin, max(begin, end))
    return ends


def _ends_from_the_right(parts: Sequence[bytes], begin: int, end: int) -> list[int]:
    """Lays the parts side by side so that they end at `end`; none begins before `begin`."""
    ends = []
    for part in reversed(parts):
        ends.append(end)
        end = max(begin, end - len(part))
    return ends[::-1]


def _overlapping(offsets: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Yields ranges of pieces that share characters with their neighbours."""
    start, reached = 0, offsets[0][1]
    for i, (begin, end) in enumerate(offsets):
        if begin >= reached and i > start:
            yield start, i
            start = i
        reached = end
    yield start, len(offsets)
