"""Vocabularies, output features, and the fingerprint that ties tokens to a vocabulary."""

import hashlib

import gin
import seqio
import tensorflow as tf

from cot_flax.errors import UserError
from cot_flax.text.tokenizers import SpecialIds

T5_VOCABULARY = "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"
TEACHER_FEATURES = ("teacher_top_ids", "teacher_top_logprobs")


@gin.configurable(module="cot_flax.data.features")
def t5_vocabulary_file(path: str = T5_VOCABULARY) -> str:
    """Where the T5 SentencePiece model lies; bind `path` to a local copy of spiece.model."""
    return path


class T5Vocabulary(seqio.SentencePieceVocabulary):
    """T5's vocabulary with its 100 sentinels, whose file is looked up when it is first needed.

    Tasks are registered before gin has bound anything, so the path cannot be fixed earlier.
    """

    def __init__(self):
        super().__init__("", extra_ids=100)

    @property
    def _sentencepiece_model_file(self) -> str:
        path = t5_vocabulary_file()
        if not _readable(path):
            raise UserError(
                f"no T5 vocabulary at {path}",
                "a SentencePiece model file",
                "bind features.t5_vocabulary_file.path to a local spiece.model",
            )
        return path

    @_sentencepiece_model_file.setter
    def _sentencepiece_model_file(self, path: str):
        """SeqIO's constructor sets the path; here gin has it."""


def _readable(path: str) -> bool:
    try:
        return tf.io.gfile.exists(path)
    except tf.errors.OpError:  # a bucket without a network
        return False


def fingerprint(vocabulary: seqio.Vocabulary) -> str:
    """16 hex digits that name the vocabulary: its SentencePiece model, or its class and size."""
    named = getattr(vocabulary, "sp_model", None)
    if named is None:
        named = f"{type(vocabulary).__name__} {vocabulary.vocab_size}".encode()
    return hashlib.sha256(named).hexdigest()[:16]


def special_ids(vocabulary: seqio.Vocabulary) -> SpecialIds:
    """Those of a vocabulary; as in T5, a decoder starts with the pad id."""
    return SpecialIds(vocabulary.pad_id, vocabulary.eos_id, vocabulary.pad_id)


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


def output_features(vocabulary: seqio.Vocabulary, top_k: int) -> dict[str, seqio.Feature]:
    """SeqIO's declaration of a task's features; teacher rows [T, K] only where top_k > 0."""
    text = seqio.Feature(vocabulary=vocabulary, add_eos=True)
    if not top_k:
        return {"inputs": text, "targets": text}
    # The size is of no use to anyone; asking the vocabulary would load it at registration.
    none = seqio.PassThroughVocabulary(size=0)
    rows = {"rank": 2, "vocabulary": none, "add_eos": False}
    return {
        "inputs": text,
        "targets": text,
        "teacher_top_ids": seqio.Feature(dtype=tf.int32, **rows),
        "teacher_top_logprobs": seqio.Feature(dtype=tf.float32, **rows),
    }
