import re

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from cot_flax.lab.world.abilities import ABILITIES, make_items
from cot_flax.lab.world.stories import LARGEST, SPLITS, make_stories
from cot_flax.lab.world.teacher import make_samples, reference_rationale
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH, build
from cot_flax.text.prompts import FORMATS, Exemplar, build_input, build_target, is_few_shot


@pytest.fixture(scope="module")
def processor():
    return sentencepiece.SentencePieceProcessor(model_file=str(VOCABULARY_PATH))


def read(model):
    parsed = sentencepiece_model_pb2.ModelProto.FromString(model)
    return [(piece.piece, piece.score, piece.type) for piece in parsed.pieces], parsed


@pytest.fixture(scope="module")
def world_texts():
    return set(make_texts())


def make_texts():
    for split in SPLITS:
        stories = make_stories(150, split=split, seed=11)
        yield from (sample.text for sample in make_samples(stories, seed=11))
        for story in stories:
            exemplar = Exemplar(story.question, reference_rationale(story), str(story.answer))
            for form in FORMATS:
                shown = [exemplar] * 2 if is_few_shot(form) else []
                yield build_input(story.question, form, shown)
                yield build_target(exemplar.rationale, exemplar.answer, form)
        for ability in ABILITIES:
            for question, answer in make_items(ability, 100, split=split, seed=11):
                yield build_input(question, "zero_shot_answer")
                yield build_target("", answer, "zero_shot_answer")


def test_every_word_is_one_piece(processor, world_texts):
    words = {word.strip(".,:?") for text in world_texts for word in text.split()} - {""}
    assert len(words) > 100
    in_pieces = {word: processor.EncodeAsPieces(word) for word in words}
    assert in_pieces == {word: ["\u2581" + word] for word in words}


def test_every_number_of_the_world_is_one_piece(processor):
    for number in map(str, range(LARGEST + 1)):
        assert processor.EncodeAsPieces(number) == ["\u2581" + number]


def test_texts_come_back_and_nothing_is_unknown(processor, world_texts):
    for text in world_texts:
        ids = processor.EncodeAsIds(text)
        assert processor.unk_id() not in ids, text
        assert processor.DecodeIds(ids) == re.sub(r"\s+", " ", text)


def test_any_ascii_text_can_be_spelt(processor):
    text = 'Zebra-7 (42%) costs $1,250.99; is "that" <ok> & [fine]? #1 @x * y_z ~ `q` {a|b} ^!\''
    ids = processor.EncodeAsIds(text)
    assert processor.unk_id() not in ids
    assert processor.DecodeIds(ids) == text


def test_special_ids_are_those_of_t5(processor):
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id()) == (0, 1, 2)
    assert processor.bos_id() == -1


def test_pieces_are_distinct():
    pieces, _ = read(VOCABULARY_PATH.read_bytes())
    assert len({piece for piece, _, _ in pieces}) == len(pieces)


def test_the_shipped_model_is_what_build_makes():
    shipped, shipped_model = read(VOCABULARY_PATH.read_bytes())
    built, built_model = read(build())
    assert shipped == built
    for name in ("pad_id", "eos_id", "unk_id", "bos_id"):
        assert getattr(shipped_model.trainer_spec, name) == getattr(built_model.trainer_spec, name)
    normalizers = [m.normalizer_spec for m in (shipped_model, built_model)]
    assert normalizers[0].name == normalizers[1].name
