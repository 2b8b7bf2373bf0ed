import pytest
import seqio

from cot_flax.data.registration import cot_task
from cot_flax.lab.world.abilities import ABILITIES, make_items
from cot_flax.lab.world.stories import SPLITS
from cot_flax.tasks import abilities
from cot_flax.text import scoring


@pytest.mark.parametrize("ability", ABILITIES)
def test_a_gold_target_scores_as_right(ability):
    task = seqio.TaskRegistry.get(f"{ability}_zero_shot_answer")
    assert set(task.splits) == set(SPLITS)
    dataset = task.get_dataset(sequence_length=None, split="test", shuffle=False)
    examples = list(dataset.as_numpy_iterator())
    items = make_items(ability, abilities.COUNTS["test"], split="test")
    assert [(e["question"].decode(), e["answer"].decode()) for e in examples] == items
    texts = [abilities.VOCABULARY.decode(e["targets"].tolist()) for e in examples]
    assert cot_task(task.name).role == "general"
    kind = cot_task(task.name).answer_kind
    scores = scoring.score(texts, [answer for _, answer in items], kind=kind, mode="flexible")
    assert all(score.right for score in scores)
    # And another item's answer does not.
    others = [a for _, a in items[1:] + items[:1]]
    scores = scoring.score(texts, others, kind=kind, mode="flexible")
    for score, (_, own), other in zip(scores, items, others, strict=True):
        assert score.right == (own == other)


def test_the_base_mixture_has_all_abilities_and_the_stories_answers_and_no_chains():
    mixture = seqio.MixtureRegistry.get("world_base_mix")
    names = {task.name for task in mixture.tasks}
    assert names == {f"{name}_zero_shot_answer" for name in (*ABILITIES, "stories")}
    assert all(cot_task(name).format == "zero_shot_answer" for name in names)
