import copy
import functools
import json
import operator
import shutil

import gin
import pytest
import seqio
import tensorflow as tf
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from support.tokenizers import world_without

from cot_flax.data import features
from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import records_source
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.store import layout
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.text.tokenizers import SpecialIds, open_tokenizer
from cot_flax.weights import tokenizer_files

PATH = "cot_flax.data.features.t5_vocabulary_file.path"


def test_the_t5_vocabulary_is_looked_up_when_it_is_needed(vocabulary):
    ours = features.T5Vocabulary()
    gin.bind_parameter(PATH, str(VOCABULARY_PATH))
    assert ours.encode("Anna has 3") == vocabulary.encode("Anna has 3")
    assert ours.vocab_size == vocabulary.vocab_size + 100


def test_another_file_is_another_vocabulary_in_the_same_process(tmp_path):
    ours = features.T5Vocabulary()
    gin.bind_parameter(PATH, str(VOCABULARY_PATH))
    size, ids = ours.vocab_size, ours.encode("2 apples")
    with gin.unlock_config():
        gin.bind_parameter(PATH, str(tmp_path / "bad.model"))
    (tmp_path / "bad.model").write_text("no model")
    with pytest.raises(UserError, match=r"bad\.model, which holds no SentencePiece model"):
        ours.encode("2 apples")
    with gin.unlock_config():
        gin.bind_parameter(PATH, str(VOCABULARY_PATH))
    assert (ours.vocab_size, ours.encode("2 apples")) == (size, ids)


def test_t5_itself_has_the_pieces_and_sentinels_of_the_paper(shared_data):
    gin.bind_parameter(PATH, str(shared_data / "t5_vocab" / "spiece.model"))
    ours = features.T5Vocabulary()
    assert ours.vocab_size == 32_100
    assert (ours.pad_id, ours.eos_id, ours.unk_id) == (0, 1, 2)
    assert ours.decode([32_099, 32_098]) == "<extra_id_0> <extra_id_1>"


def a_copy_with_sentinels(folder, **changes):
    """The world's model with T5's 100 sentinels in the file, as T5X's `.100extra` has them."""
    proto = ModelProto.FromString(seqio.SentencePieceVocabulary(str(VOCABULARY_PATH), 100).sp_model)
    proto.trainer_spec.vocab_size = len(proto.pieces)  # says nothing of a text's ids
    for name, value in changes.items():
        setattr(proto.normalizer_spec, name, value)
    (folder / "100extra.model").write_bytes(proto.SerializeToString())
    return seqio.SentencePieceVocabulary(str(folder / "100extra.model"))


def test_the_t5_vocabulary_is_any_that_gives_the_same_ids(tmp_path):
    """Both ways, and as SeqIO and T5X compare: by `!=`, and within a feature."""
    gin.bind_parameter(PATH, str(VOCABULARY_PATH))
    (tmp_path / "copy.model").write_bytes(VOCABULARY_PATH.read_bytes())
    same = [
        features.T5Vocabulary(),
        copy.deepcopy(features.T5Vocabulary()),
        seqio.SentencePieceVocabulary(str(VOCABULARY_PATH), extra_ids=100),
        seqio.SentencePieceVocabulary(str(tmp_path / "copy.model"), extra_ids=100),
        a_copy_with_sentinels(tmp_path),
    ]
    for other in same:
        ours = features.T5Vocabulary()
        assert ours == other and other == ours
        assert [operator.ne(ours, other), operator.ne(other, ours)] == [False, False]
        assert seqio.Feature(ours) == seqio.Feature(other)


@pytest.mark.parametrize(
    ("in_file", "settings", "added"),
    [
        (False, None, 100),  # T5's, or a model of one's own
        (True, None, 0),  # mT5's file has them
        (False, {"extra_ids": 300}, 300),  # umT5's folder
        (False, {"extra_ids": 0}, 0),
        (False, {}, 100),
    ],
)
def test_the_sentinels_are_those_of_the_file_and_its_folder(tmp_path, in_file, settings, added):
    """So that the fingerprint is that of the checkpoint in the folder, and ids fit its rows."""
    path = tmp_path / "spiece.model"
    shutil.copy(VOCABULARY_PATH, path)
    if in_file:
        shutil.copy(a_copy_with_sentinels(tmp_path).sentencepiece_model_file, path)
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", str(path))
    ours = features.T5Vocabulary()
    pieces = len(ModelProto.FromString(path.read_bytes()).pieces)
    assert (ours.vocab_size, ours.extra_ids) == (pieces + added, added)
    assert ours == seqio.SentencePieceVocabulary(str(path), extra_ids=added)
    assert features.fingerprint(ours) == tokenizer_files.fingerprint(tmp_path)
    assert features.tokenizer_of(ours).vocab_size == ours.vocab_size
    assert open_tokenizer(tmp_path, features.fingerprint(ours)).vocab_size == ours.vocab_size


def test_the_t5_vocabulary_is_none_that_gives_other_ids(tmp_path):
    gin.bind_parameter(PATH, str(VOCABULARY_PATH))
    others = [
        seqio.SentencePieceVocabulary(str(VOCABULARY_PATH), extra_ids=99),
        seqio.SentencePieceVocabulary(str(VOCABULARY_PATH), 100, reverse_extra_ids=False),
        a_copy_with_sentinels(tmp_path, add_dummy_prefix=False),
        seqio.ByteVocabulary(),
    ]
    for other in others:
        ours = features.T5Vocabulary()
        assert ours != other and other != ours
        assert [operator.eq(ours, other), operator.eq(other, ours)] == [False, False]


def test_our_tasks_mix_with_any_of_the_same_vocabulary(sums_source):
    """As T5's and Flan's: SeqIO's own vocabulary and preprocessors."""
    gin.bind_parameter(PATH, str(VOCABULARY_PATH))
    add_cot_task("sums", sums_source, vocabulary=features.T5Vocabulary())
    theirs = seqio.SentencePieceVocabulary(str(VOCABULARY_PATH), extra_ids=100)
    translate = {"inputs": "question", "targets": "answer"}
    seqio.TaskRegistry.add(
        "theirs",
        source=sums_source,
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map=translate),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features={name: seqio.Feature(theirs) for name in translate},
    )
    for order in (["sums_cot_mix", "theirs"], ["theirs", "sums_zero_shot_cot"]):
        name = "_and_".join(order)
        seqio.MixtureRegistry.add(name, order, default_rate=1.0)
        gin.bind_parameter("cot_flax.data.registration.prompting.shots", 1)
        examples = seqio.MixtureRegistry.get(name).get_dataset(
            {"inputs": 64, "targets": 64}, "train", shuffle=False
        )
        texts = [
            theirs.decode(e["targets"].tolist()) for e in examples.take(40).as_numpy_iterator()
        ]
        assert {"2", "3"} <= set(texts) and any("The answer is 2" in text for text in texts)


@pytest.mark.parametrize("path", ["/nowhere/spiece.model", "gs://no-such-bucket-here/spiece.model"])
def test_a_vocabulary_that_is_not_there_is_named(path):
    gin.bind_parameter(PATH, path)
    with pytest.raises(UserError, match=rf"no T5 vocabulary at {path}.*set T5_VOCABULARY_FILE to"):
        features.T5Vocabulary().encode("Anna")


def test_pieces_are_all_ids(vocabulary):
    found = features.pieces(vocabulary)
    assert sorted(found.values()) == list(range(vocabulary.vocab_size))
    assert vocabulary.encode("Anna") == [found["\u2581Anna"]]


def test_a_fingerprint_names_the_model_and_not_its_place(vocabulary, tmp_path):
    (tmp_path / "copy.model").write_bytes(VOCABULARY_PATH.read_bytes())
    copied = seqio.SentencePieceVocabulary(str(tmp_path / "copy.model"))
    larger = seqio.SentencePieceVocabulary(str(tmp_path / "copy.model"), extra_ids=100)
    assert features.fingerprint(copied) == features.fingerprint(vocabulary)
    assert features.fingerprint(larger) != features.fingerprint(vocabulary)
    assert len(features.fingerprint(vocabulary)) == 16


def test_vocabularies_without_sentencepiece_have_fingerprints():
    small, large = seqio.ByteVocabulary(), seqio.ByteVocabulary(extra_ids=7)
    assert features.fingerprint(small) != features.fingerprint(large)


class Letters:
    """A tokenizer with ids 0 to 25 for letters and special ids behind them."""

    vocab_size, special_ids, unk_id = 29, SpecialIds(pad=26, end=27, start=28), None
    fingerprint = "letters"

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids):
        ids = list(ids)
        end = ids.index(27) if 27 in ids else len(ids)
        return "".join(chr(ord("a") + i) for i in ids[:end] if i < 26)


def test_any_tokenizer_is_a_vocabulary(add_sums):
    loaded = []
    letters = features.TokenizerVocabulary(lambda: loaded.append(1) or Letters())
    add_sums("letters", vocabulary=letters)
    assert not loaded  # at registration gin has bound nothing
    assert letters.encode("abz") == [0, 1, 25]
    assert letters.decode([0, 1, 27, 25]) == "ab"
    assert letters.encode_tf(tf.constant("cab")).numpy().tolist() == [2, 0, 1]
    assert letters.decode_tf(tf.constant([2, 0, 27, 1])).numpy() == b"ca"
    assert letters.decode_tf(tf.constant([[2, 0], [27, 1]])).numpy().tolist() == [b"ca", b""]
    assert (letters.vocab_size, letters.pad_id, letters.eos_id, letters.bos_id) == (29, 26, 27, 28)
    assert features.fingerprint(letters) == "letters"
    assert features.special_ids(letters) == SpecialIds(26, 27, 28)
    assert isinstance(features.tokenizer_of(letters), Letters)
    assert letters == features.TokenizerVocabulary(Letters)
    assert letters != seqio.ByteVocabulary()
    assert len(loaded) == 1


def test_a_task_of_another_tokenizer_closes_texts_with_its_own_end():
    source = records_source(
        lambda split: [{"id": "0", "question": "ab", "rationale": "ba", "answer": "c"}], ["train"]
    )
    add_cot_task(
        "letters",
        source,
        formats=("zero_shot_answer",),
        vocabulary=features.TokenizerVocabulary(Letters),
    )
    task = seqio.TaskRegistry.get("letters_zero_shot_answer")
    (e,) = task.get_dataset(None, "train", shuffle=False).as_numpy_iterator()
    assert e["targets"].tolist() == [*Letters().encode("The answer is c"), 27]
    assert e["inputs"].tolist() == [*Letters().encode("Q: ab A:"), 27]


def test_special_ids_of_seqios_vocabularies(vocabulary):
    assert features.special_ids(vocabulary) == SpecialIds(pad=0, end=1, start=0)


@pytest.fixture
def vocabulary_with(tmp_path):
    """The world's vocabulary with its special pieces at other places."""

    def make(**special_ids):
        path = tmp_path / "other.model"
        path.write_bytes(world_without("", **special_ids))
        return seqio.SentencePieceVocabulary(str(path))

    return make


@pytest.mark.parametrize(
    ("special_ids", "message"),
    [
        # As SentencePiece trains by default: it has no pad, and 0 is the unknown piece.
        ({"pad": -1, "unk": 0, "end": 2}, "pad_id -1 and eos_id 2; expected both, from 0; train"),
        ({"unk": 0, "end": 1, "pad": 2}, "pad_id 2; expected 0, with which SeqIO fills rows; tr"),
        ({"end": -1, "unk": 1}, "pad_id 0 and eos_id -1; expected both, from 0; train"),
    ],
)
def test_ids_that_cannot_be_honoured_are_refused_in_one_line(
    add_sums, vocabulary_with, special_ids, message
):
    other = vocabulary_with(**special_ids)
    add_sums("other", vocabulary=other)
    task = seqio.TaskRegistry.get("other_zero_shot_cot")
    match = rf"other\.model: a SentencePiece model with {message}"
    for use in (
        lambda: features.special_ids(other),
        lambda: features.tokenizer_of(other),
        lambda: task.get_dataset(None, "train", shuffle=False),
    ):
        with pytest.raises(UserError, match=match) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_an_end_of_its_own_closes_texts_of_all_kinds(
    add_sums, vocabulary_with, make_sample, make_store
):
    other = vocabulary_with(pad=0, unk=1, end=2)
    assert features.special_ids(other) == (0, 2, 0) == features.tokenizer_of(other).special_ids
    add_sums("other", vocabulary=other)
    task = seqio.TaskRegistry.get("other_zero_shot_cot")
    example = next(iter(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator()))
    text = other.encode("1 + 1 = 2. The answer is 2")
    assert example["targets"].tolist() == [*text, 2]
    assert example["inputs"][-1] == 2
    store = make_store([make_sample("1 + 1 = 2.")], vocabulary=other)
    (record,) = layout.dataset(store).as_numpy_iterator()
    assert record["targets"].tolist() == [*text, 2]
    unknown = other.encode("é")[-1]
    lengths = {"inputs": 4, "targets": 4}
    batch = EncoderDecoder().to_batch(
        [[{"inputs": [unknown, 2], "targets": [unknown, 2]}]],
        lengths,
        features.special_ids(other),
        top_k=0,
        packed=False,
    )
    # An unknown piece is no padding: it counts in the loss.
    assert batch["decoder_target_tokens"].tolist() == [[1, 2, 0, 0]]
    assert batch["decoder_loss_weights"].tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize("extra_ids", [0, 100])
def test_a_sentencepiece_vocabulary_has_a_tokenizer_of_the_same_ids(extra_ids):
    ours = seqio.SentencePieceVocabulary(str(VOCABULARY_PATH), extra_ids=extra_ids)
    tokenizer = features.tokenizer_of(ours)
    assert tokenizer.fingerprint == features.fingerprint(ours)
    assert tokenizer.vocab_size == ours.vocab_size
    assert tokenizer.encode("Anna has 3") == ours.encode("Anna has 3")


@pytest.mark.parametrize("extra_ids", [0, 7])
def test_bytes_have_a_tokenizer_of_the_same_ids(extra_ids):
    vocabulary = seqio.ByteVocabulary(extra_ids)
    tokenizer = features.tokenizer_of(vocabulary)
    assert tokenizer.fingerprint == features.fingerprint(vocabulary)
    assert tokenizer.special_ids == features.special_ids(vocabulary)
    assert tokenizer.encode("é 3") == vocabulary.encode("é 3")


def test_other_vocabularies_have_none():
    with pytest.raises(UserError, match="a UnigramVocabulary; expected a SentencePiece or a byte"):
        features.tokenizer_of(seqio.UnigramVocabulary(["a"]))


def test_teacher_features_only_where_there_are_teachers(vocabulary):
    assert set(features.output_features(vocabulary, rows=False)) == {"inputs", "targets"}
    found = features.output_features(vocabulary, rows=True)
    assert set(found) == {"inputs", "targets", *features.TEACHER_FEATURES}
    assert [found[name].rank for name in features.TEACHER_FEATURES] == [2, 2]


def test_the_model_of_a_vocabulary_is_its_file_without_sentinels(vocabulary):
    whole = seqio.SentencePieceVocabulary(str(VOCABULARY_PATH), extra_ids=100)
    assert features.sentencepiece_model(whole) == VOCABULARY_PATH.read_bytes()
    assert features.sentencepiece_model(vocabulary) == VOCABULARY_PATH.read_bytes()
    assert features.sentencepiece_model(seqio.ByteVocabulary()) is None
