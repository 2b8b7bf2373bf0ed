import gin
import pytest
import seqio

from cot_flax.data import features
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH

PATH = "cot_flax.data.features.t5_vocabulary_file.path"


def test_the_t5_vocabulary_is_looked_up_when_it_is_needed(vocabulary):
    ours = features.T5Vocabulary()
    gin.bind_parameter(PATH, str(VOCABULARY_PATH))
    assert ours.encode("Anna has 3") == vocabulary.encode("Anna has 3")
    assert ours.vocab_size == vocabulary.vocab_size + 100


def test_t5_itself_has_the_pieces_and_sentinels_of_the_paper(shared_data):
    gin.bind_parameter(PATH, str(shared_data / "t5_vocab" / "spiece.model"))
    ours = features.T5Vocabulary()
    assert ours.vocab_size == 32_100
    assert (ours.pad_id, ours.eos_id, ours.unk_id) == (0, 1, 2)
    assert ours.decode([32_099, 32_098]) == "<extra_id_0> <extra_id_1>"


@pytest.mark.parametrize("path", ["/nowhere/spiece.model", "gs://no-such-bucket-here/spiece.model"])
def test_a_vocabulary_that_is_not_there_is_named(path):
    gin.bind_parameter(PATH, path)
    with pytest.raises(UserError, match=rf"no T5 vocabulary at {path}.*t5_vocabulary_file\.path"):
        features.T5Vocabulary().encode("Anna")


def test_pieces_are_all_ids(vocabulary):
    found = features.pieces(vocabulary)
    assert sorted(found.values()) == list(range(vocabulary.vocab_size))
    assert vocabulary.encode("Anna") == [found["\u2581Anna"]]


def test_a_fingerprint_names_the_model_and_not_its_place(vocabulary, tmp_path):
    (tmp_path / "copy.model").write_bytes(VOCABULARY_PATH.read_bytes())
    copy = seqio.SentencePieceVocabulary(str(tmp_path / "copy.model"))
    larger = seqio.SentencePieceVocabulary(str(tmp_path / "copy.model"), extra_ids=100)
    assert features.fingerprint(copy) == features.fingerprint(vocabulary)
    assert features.fingerprint(larger) != features.fingerprint(vocabulary)
    assert len(features.fingerprint(vocabulary)) == 16


def test_vocabularies_without_sentencepiece_have_fingerprints():
    small, large = seqio.ByteVocabulary(), seqio.ByteVocabulary(extra_ids=7)
    assert features.fingerprint(small) != features.fingerprint(large)


def test_teacher_features_only_where_there_are_teachers(vocabulary):
    assert set(features.output_features(vocabulary, 0)) == {"inputs", "targets"}
    found = features.output_features(vocabulary, 5)
    assert set(found) == {"inputs", "targets", *features.TEACHER_FEATURES}
    assert [found[name].rank for name in features.TEACHER_FEATURES] == [2, 2]


def test_the_model_of_a_vocabulary_is_its_file_without_sentinels(vocabulary):
    whole = seqio.SentencePieceVocabulary(str(VOCABULARY_PATH), extra_ids=100)
    assert features.sentencepiece_model(whole) == VOCABULARY_PATH.read_bytes()
    assert features.sentencepiece_model(vocabulary) == VOCABULARY_PATH.read_bytes()
    assert features.sentencepiece_model(seqio.ByteVocabulary()) is None
