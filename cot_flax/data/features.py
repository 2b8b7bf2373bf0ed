"""Vocabularies, output features, and the fingerprint that ties tokens to a vocabulary."""

import functools
import hashlib
import os
from collections.abc import Callable
from functools import cached_property

import gin
import numpy as np
import seqio
import tensorflow as tf
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from cot_flax.errors import UserError
from cot_flax.files import is_bucket, path_at, unreachable
from cot_flax.text.tokenizers import (
    T5_SENTINELS,
    ByteTokenizer,
    SentencePieceTokenizer,
    SpecialIds,
    Tokenizer,
    sentencepiece_special_ids,
    sentinels_beside,
)

T5_VOCABULARY = "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"
OTHER_STUDENTS = (
    "take a student that has them (of bytes: models/byt5_small.gin; of mT5's pieces: "
    "models/umt5_small.gin and its spiece.model), write them otherwise"
)
"""What to do where a vocabulary lacks the characters of a text."""
TEACHER_FEATURES = ("teacher_top_ids", "teacher_top_logprobs")


@gin.configurable(module="cot_flax.data.features")
def t5_vocabulary_file(path: str = T5_VOCABULARY) -> str:
    """Where the T5 SentencePiece model lies; bind `path` to a local copy of spiece.model."""
    return os.fspath(path_at(path))


class T5Vocabulary(seqio.SentencePieceVocabulary):
    """A T5's vocabulary with its sentinels, whose file is looked up when it is first needed.

    Tasks are registered before gin has bound anything, so the path cannot be fixed earlier. The
    file may be T5's, mT5's, umT5's or your own; its sentinels are those of `sentinels_beside`.

    It equals every SentencePiece vocabulary that gives the same ids, wherever its file lies and
    whether the sentinels stand in the file or are added to it: so tasks of others, and T5X's
    models, go with ours.
    """

    def __init__(self):
        super().__init__("", extra_ids=T5_SENTINELS)
        self._loaded = ""

    def __getstate__(self):
        """With the path and the sentinels, which SeqIO compares."""
        named = {"_sentencepiece_model_file": t5_vocabulary_file(), "_extra_ids": self._extra_ids}
        return super().__getstate__() | named | {"_loaded": ""}

    def __eq__(self, other) -> bool:
        if not isinstance(other, seqio.SentencePieceVocabulary):
            return False
        if self.__getstate__() == other.__getstate__():
            return True
        models = self.sp_model, other.sp_model
        return models[0] == models[1] or _ids_of(models[0]) == _ids_of(models[1])

    __hash__ = None  # as SeqIO's own

    def _model_context(self):
        """Of the file that gin names now: the next experiment of a notebook may have another."""
        if (path := t5_vocabulary_file()) != self._loaded:
            self._model, self._loaded = None, path
        return super()._model_context()

    @property
    def _sentencepiece_model_file(self) -> str:
        path = t5_vocabulary_file()
        _check_model(path)
        return path

    @_sentencepiece_model_file.setter
    def _sentencepiece_model_file(self, path: str):
        """SeqIO's constructor sets the path; here gin has it."""

    @property
    def _extra_ids(self) -> int:
        try:
            return _sentinels(t5_vocabulary_file())
        except UserError:  # said where the model is read
            return T5_SENTINELS

    @_extra_ids.setter
    def _extra_ids(self, count: int):
        """Likewise."""


@functools.lru_cache(maxsize=4)
def _sentinels(path: str) -> int:
    if is_bucket(path) and (why := unreachable()):
        raise UserError(f"{path} ({why})", "a file that can be read", "copy it to this machine")
    return sentinels_beside(path_at(path))


def _ids_of(model: bytes) -> tuple:
    """What of a serialized SentencePiece model decides which ids a text has."""
    proto = ModelProto.FromString(model)
    kinds = ModelProto.SentencePiece
    # Only of the pieces that are searched for by likelihood does the score matter.
    pieces = tuple((p.piece, p.type, p.score * (p.type == kinds.NORMAL)) for p in proto.pieces)
    trainer = proto.trainer_spec
    kind = trainer.model_type, trainer.byte_fallback, trainer.treat_whitespace_as_suffix
    return (
        pieces,
        kind,
        *(
            spec.SerializeToString(deterministic=True)
            for spec in (proto.normalizer_spec, proto.denormalizer_spec)
        ),
    )


@functools.lru_cache(maxsize=4)
def _check_model(path: str) -> None:
    """Raises UserError where there is no SentencePiece model; seqio has words for C++ only."""
    remedy = "set T5_VOCABULARY_FILE to a local spiece.model"
    try:
        if is_bucket(path) and (why := unreachable()):
            raise OSError(why)
        SentencePieceProcessor().LoadFromSerializedProto(tf.io.gfile.GFile(path, "rb").read())
        return
    except (tf.errors.OpError, OSError) as error:  # no file, or a bucket without a network
        why = f" ({error})" if isinstance(error, OSError) else ""
        problem = f"no T5 vocabulary at {path}{why}"
    except RuntimeError:
        problem = f"{path}, which holds no SentencePiece model"
    raise UserError(problem, "a SentencePiece model file", remedy)


class TokenizerVocabulary(seqio.Vocabulary):
    """Any tokenizer of text/tokenizers.py as a vocabulary of tasks: Hugging Face's BPE for one.

    Args:
        load: gives the tokenizer, once, when it is first needed: tasks are registered before gin
            has bound anything.
    """

    def __init__(self, load: Callable[[], Tokenizer]):
        super().__init__()
        self._load = load

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self._load()

    @property
    def pad_id(self) -> int:
        return self.tokenizer.special_ids.pad

    @property
    def eos_id(self) -> int:
        return self.tokenizer.special_ids.end

    @property
    def bos_id(self) -> int:
        return self.tokenizer.special_ids.start

    @property
    def unk_id(self) -> int | None:
        return self.tokenizer.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def _encode(self, s: str) -> list[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids) -> str:
        return self.tokenizer.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        """A text to its ids [T]."""

        def encode(text):
            # Bytes within a graph, an array without axes outside one.
            text = np.asarray(text, object).item().decode()
            return np.array(self.tokenizer.encode(text), np.int32)

        return tf.ensure_shape(tf.numpy_function(encode, [s], tf.int32, stateful=False), [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids [T] to a text, or [B, T] to B of them."""

        def decode(ids):
            texts = [self.tokenizer.decode(row).encode() for row in np.atleast_2d(ids).tolist()]
            return np.array(texts, object).reshape(ids.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        return tf.ensure_shape(texts, ids.shape[:-1])

    def __eq__(self, other) -> bool:
        if not isinstance(other, TokenizerVocabulary):
            return False
        return self is other or self.tokenizer.fingerprint == other.tokenizer.fingerprint

    __hash__ = None  # as SeqIO's own: equal ones may come from different places


def fingerprint(vocabulary: seqio.Vocabulary) -> str:
    """16 hex digits that name the vocabulary: its tokenizer, or its class and size."""
    if isinstance(vocabulary, TokenizerVocabulary):
        return vocabulary.tokenizer.fingerprint
    named = getattr(vocabulary, "sp_model", None)
    if named is None:
        named = f"{type(vocabulary).__name__} {vocabulary.vocab_size}".encode()
    return hashlib.sha256(named).hexdigest()[:16]


def special_ids(vocabulary: seqio.Vocabulary) -> SpecialIds:
    """Those of a vocabulary; where it does not say with which id a decoder starts, its pad id.

    Raises:
        UserError: a SentencePiece model without a pad or an end, or whose pad is not 0: SeqIO fills
            rows with 0 whatever the model says, and there 0 would be an unknown piece or a word.
    """
    if isinstance(vocabulary, TokenizerVocabulary):
        return vocabulary.tokenizer.special_ids
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        place = f"{vocabulary.sentencepiece_model_file}: "
        ids = sentencepiece_special_ids(vocabulary.tokenizer, place)
        if ids.pad != vocabulary.pad_id:
            raise UserError(
                f"{place}a SentencePiece model with pad_id {ids.pad}",
                f"{vocabulary.pad_id}, with which SeqIO fills rows",
                "train it with --pad_id=0 --eos_id=1 --unk_id=2, as T5's",
            )
        return ids
    return SpecialIds(vocabulary.pad_id, vocabulary.eos_id, vocabulary.pad_id)


def tokenizer_of(vocabulary: seqio.Vocabulary) -> Tokenizer:
    """The tokenizer, without SeqIO, that gives the ids of a vocabulary.

    Raises:
        UserError: there is none; or see `special_ids`.
    """
    special_ids(vocabulary)
    if isinstance(vocabulary, TokenizerVocabulary):
        return vocabulary.tokenizer
    if isinstance(vocabulary, seqio.ByteVocabulary):
        return ByteTokenizer(vocabulary.extra_ids)
    model = sentencepiece_model(vocabulary)
    if model is None:
        raise UserError(
            f"a {type(vocabulary).__name__}",
            "a SentencePiece or a byte vocabulary, or a TokenizerVocabulary",
            "give the task such a vocabulary",
        )
    return SentencePieceTokenizer(model, extra_ids=vocabulary.extra_ids)


def sentencepiece_model(vocabulary: seqio.Vocabulary) -> bytes | None:
    """The file that a SentencePiece vocabulary comes from; None for other vocabularies."""
    path = getattr(vocabulary, "sentencepiece_model_file", None)
    if path is None:
        return None
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def pieces(vocabulary: seqio.Vocabulary) -> dict[str, int]:
    """Every piece with its id."""
    tokenizer = vocabulary.tokenizer
    return {tokenizer.IdToPiece(i): i for i in range(tokenizer.GetPieceSize())}


def output_features(vocabulary: seqio.Vocabulary, rows: bool) -> dict[str, seqio.Feature]:
    """SeqIO's declaration of a task's features; with `rows` a teacher's [T, K], too."""
    text = seqio.Feature(vocabulary=vocabulary, add_eos=True)
    if not rows:
        return {"inputs": text, "targets": text}
    # The size is of no use to anyone; asking the vocabulary would load it at registration.
    none = seqio.PassThroughVocabulary(size=0)
    of_rows = {"rank": 2, "vocabulary": none, "add_eos": False}
    return {
        "inputs": text,
        "targets": text,
        "teacher_top_ids": seqio.Feature(dtype=tf.int32, **of_rows),
        "teacher_top_logprobs": seqio.Feature(dtype=tf.float32, **of_rows),
    }
