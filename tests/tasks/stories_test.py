import gin
import pytest
import seqio

from cot_flax.data.registration import cot_task
from cot_flax.lab.world.stories import SPLITS, make_stories
from cot_flax.tasks import stories
from cot_flax.text.answers import extract_answer
from cot_flax.text.prompts import FORMATS

SIZE = "cot_flax.tasks.stories.size"


def read(task, split):
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        sequence_length=None, split=split, shuffle=False
    )
    return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_the_bound_stories_with_their_steps(split):
    gin.bind_parameter(f"{SIZE}.{split}", 8)
    gin.bind_parameter(f"{SIZE}.seed", 5)
    expected = make_stories(8, split=split, seed=5)
    found = read("stories_zero_shot_cot", split)
    assert [e["question"].decode() for e in found] == [s.question for s in expected]
    assert [e["steps"] for e in found] == [len(s.steps) for s in expected]
    for e, story in zip(found, expected, strict=True):
        text = e["targets_pretokenized"].decode()
        assert extract_answer(text, kind="number", mode="strict") == str(story.answer)
        assert "=" in text
        assert 2 not in e["inputs"] and 2 not in e["targets"]  # nothing unknown


def test_both_data_sets_have_the_four_formats():
    for name in ("stories", "stories_teacher"):
        for form in FORMATS:
            task = seqio.TaskRegistry.get(f"{name}_{form}")
            card = cot_task(task.name)
            assert (card.answer_kind, card.role, card.seen_by_flan) == ("number", "train", False)
            assert ("teacher_top_ids" in task.output_features) == (name == "stories_teacher")
        assert f"{name}_cot_mix" in seqio.MixtureRegistry.names()


def test_one_vocabulary_serves_all():
    for form in FORMATS:
        for name in ("stories", "stories_teacher"):
            features = seqio.TaskRegistry.get(f"{name}_{form}").output_features
            assert features["inputs"].vocabulary == features["targets"].vocabulary
            assert features["targets"].vocabulary == stories.VOCABULARY


def test_all_tasks_can_be_read_from_seqios_cache():
    for form in FORMATS:
        assert seqio.TaskRegistry.get(f"stories_teacher_{form}").supports_caching
        assert seqio.TaskRegistry.get(f"stories_{form}").supports_caching
