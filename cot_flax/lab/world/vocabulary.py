"""The world's SentencePiece vocabulary: every word of the world and every number is one piece.

`vocabulary.model` is made by `python -m cot_flax.lab.world.vocabulary`. Ids as in T5: padding 0,
end of sequence 1, unknown 2; T5's normaliser too, so a newline becomes a space here as well.
"""

import io
import string
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from cot_flax.lab.world.abilities import ABILITIES, make_items
from cot_flax.lab.world.stories import LARGEST, make_stories
from cot_flax.lab.world.teacher import make_samples
from cot_flax.text.prompts import FORMATS, Exemplar, build_input, build_target, is_few_shot

VOCABULARY_PATH = Path(__file__).with_name("vocabulary.model")
WORD_SCORE, CHARACTER_SCORE = -5.0, -10.0
"""Log-probabilities: a word is likelier than any way of spelling it."""


def words() -> list[str]:
    """Every word of the world, sorted: of stories, solutions, prompts and abilities."""
    stories = make_stories(2000, split="train", seed=1)
    lines = [sample.text for sample in make_samples(stories, seed=1)]
    lines += [story.question for story in stories]
    for format in FORMATS:
        exemplars = [Exemplar("", "", "")] if is_few_shot(format) else []
        lines += [build_input("", format, exemplars), build_target("", "", format)]
    for ability in ABILITIES:
        lines += [" ".join(item) for item in make_items(ability, 500, split="train", seed=1)]
    numbers = {str(n) for n in range(LARGEST + 1)}
    return sorted({word.strip(".,:?") for line in lines for word in line.split()} | numbers - {""})


def build() -> bytes:
    """Returns a serialized SentencePiece model whose pieces are the words and all characters.

    The normaliser is the one of a freshly trained model; the pieces are then put in by hand,
    because the unigram trainer spells out half of the words to shorten its vocabulary.
    """
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([string.ascii_letters]),
        model_writer=trained,
        model_type="unigram",
        vocab_size=100,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue())
    del model.pieces[3:]
    for word in words():
        model.pieces.add(piece="\u2581" + word, score=WORD_SCORE)
    for character in "\u2581" + string.ascii_letters + string.digits + string.punctuation:
        model.pieces.add(piece=character, score=CHARACTER_SCORE)
    return model.SerializeToString(deterministic=True)


if __name__ == "__main__":
    VOCABULARY_PATH.write_bytes(build())
