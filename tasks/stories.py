"""The embedded world's stories: `stories_<format>`, and `stories_teacher_<format>` from a store."""

import functools

import gin
import seqio

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import records_source
from cot_flax.lab.world.stories import SPLITS, make_stories
from cot_flax.lab.world.teacher import reference_rationale
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH

VOCABULARY = seqio.SentencePieceVocabulary(str(VOCABULARY_PATH))


@gin.configurable(module="cot_flax.tasks.stories")
def size(train: int = 6000, validation: int = 200, test: int = 400, seed: int = 0) -> dict:
    """How many stories a split has, and the seed that makes them."""
    return dict(locals())


@gin.configurable(module="cot_flax.tasks.stories")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the teacher's samples."""
    return directory


def _records(split):
    wanted = size()
    return _solved(split, wanted[split], wanted["seed"])


@functools.lru_cache(maxsize=4)
def _solved(split, count, seed):
    return [
        {
            "id": f"stories-{split}-{i}",
            "question": story.question,
            "rationale": reference_rationale(story),
            "answer": str(story.answer),
            "steps": len(story.steps),
        }
        for i, story in enumerate(make_stories(count, split=split, seed=seed))
    ]


SOURCE = records_source(_records, SPLITS)

add_cot_task("stories", SOURCE, vocabulary=VOCABULARY, teacher_store=teacher_store)
