import json

import gin
import pytest

from cot_flax import run_folder
from cot_flax.data.batches import TaskBatches
from cot_flax.data.leaks import find_leaks, of_tasks, template_of
from cot_flax.data.mixtures import find_task
from cot_flax.data.registration import add_cot_task, cot_task
from cot_flax.data.sources import records_source
from cot_flax.errors import UserError
from cot_flax.run_folder import Leaks
from cot_flax.tasks.stories import VOCABULARY
from cot_flax.training import resume

LENGTHS = {"inputs": 288, "targets": 72}
TRAIN = [
    "Faye had 35 apples and gave 4 away. How many are left?",
    "The old mill on the hill grinds ten sacks of corn before the sun is up.",
    "How many legs have six cats?",
]


@pytest.mark.parametrize(
    ("question", "template"),
    [
        ("Faye had 1,035 apples. How many?", "@ had # apples @ many"),
        ("Tom's car costs $3.50", "@ car costs #"),
        ("小明有5个苹果", "小明有 # 个苹果"),
        ("Wie viel? Ändert Jörg 3kg?", "@ viel @ @ # kg"),
        ("12 + 5 = ?", ""),
        ("", ""),
    ],
)
def test_a_template_has_neither_numbers_nor_names(question, template):
    assert template_of(question) == template


@pytest.mark.parametrize(
    ("question", "same", "template", "overlap"),
    [
        ("faye had 35 apples, and gave 4 away; how many are left", 1, 1, 1),
        ("Dan had 7 apples and gave 6 away. How many are left?", 0, 1, 0),
        # Of its nine 8-grams seven are known, then six, which are less than 70%.
        ("The old mill on the hill grinds ten sacks of corn before the sun sets late.", 0, 0, 1),
        ("The old mill on the hill grinds ten sacks of corn before the moon sets late.", 0, 0, 0),
        ("How many legs have six dogs?", 0, 0, 0),
        ("How many legs have six cats?", 1, 1, 0),  # of six words
        ("Something else altogether, which nobody has ever asked before in any book.", 0, 0, 0),
    ],
)
def test_three_measures(question, same, template, overlap):
    found = find_leaks(iter(TRAIN), {"test": [question, "Nothing of the kind?"], "none": []})
    assert found == {"test": Leaks(2, same, template, overlap), "none": Leaks()}


def test_n_grams_do_not_cross_questions():
    train = ["one two three four five six", "seven eight nine ten eleven twelve"]
    asked = "one two three four five six seven eight nine ten eleven twelve"
    assert find_leaks(train, {"test": [asked]})["test"].overlap == 0
    assert find_leaks([" ".join(train)], {"test": [asked]})["test"] == Leaks(1, 1, 1, 1)


@pytest.mark.parametrize(("split", "expected"), [
    ("default", Leaks(180, 5, 180, 13)), ("template", Leaks(187, 0, 0, 0)),
])  # fmt: skip
def test_multiarith_of_paper_3(shared_data, split, expected):
    """All test questions of its default split are training questions with other numbers."""
    folder = shared_data / "reasoning_teacher"
    if not folder.is_dir():
        pytest.skip("no reasoning_teacher in ../shared/data: paper [3]'s data sets")
    questions = [
        r["question"] for r in json.loads((folder / "dataset/multiarith.json").read_text())
    ]
    places = json.loads((folder / f"split/multiarith__{split}.json").read_text())
    train, test = ([questions[i] for i in places[name]] for name in ("train", "test"))
    assert find_leaks(train, {"test": test})["test"] == expected


# Tasks --------------------------------------------------------------------------------------------


def record(n, question, answer):
    return {"id": str(n), "question": question, "rationale": "So.", "answer": answer}


SPLITS = {
    "train": [record(n, f"Ann has {n} apples. How many?", str(n)) for n in range(6)],
    "validation": [record(7, "Why is it so?", "7")],
    "test": [
        record(1, "ann has 1 apples; how many?", "1"),
        record(9, "Bo has 9 apples. How many?", "9"),
    ],
}


@pytest.fixture
def leaky():
    """A data set of which a test question stands in the train split."""

    def add(name="leaky", **settings):
        source = records_source(SPLITS.__getitem__, SPLITS)
        add_cot_task(name, source, vocabulary=VOCABULARY, **settings)

    return add


def test_every_data_set_is_compared_with_all_held_out_splits(leaky, add_sums):
    leaky()
    add_sums()
    tasks = find_task("leaky_cot_mix").tasks + find_task("sums_cot_mix").tasks
    assert of_tasks(tasks) == {
        "leaky/validation": Leaks(1, 0, 0, 0),
        "leaky/test": Leaks(2, 1, 2, 0),
        "sums/validation": Leaks(1, 0, 0, 0),
        "sums/test": Leaks(2, 0, 2, 0),
    }


def test_a_store_is_compared_with_its_data_set(bound_store):
    found = of_tasks([find_task("stories_teacher_zero_shot_cot")])
    assert set(found) == {"stories/validation", "stories/test"}
    assert (found["stories/test"].questions, found["stories/test"].same) == (400, 0)


def test_only_so_many_are_looked_at(leaky, caplog):
    leaky()
    assert of_tasks([find_task("leaky_zero_shot_cot")], limit=1)["leaky/test"].same == 0
    assert "the first 1 questions of leaky_zero_shot_cot/train alone" in caplog.text


def test_a_split_that_cannot_be_read_stops_no_run(caplog):
    def read(split):
        if split == "test":
            raise UserError("no file test.jsonl", "one", "bring it")
        return SPLITS[split]

    add_cot_task("partly", records_source(read, SPLITS), vocabulary=VOCABULARY)
    found = of_tasks([find_task("partly_zero_shot_cot")])
    assert set(found) == {"partly/validation"}
    assert "partly_zero_shot_cot/test not read" in caplog.text


def test_a_run_keeps_what_it_gives_away(leaky):
    leaky()
    data = TaskBatches("leaky_zero_shot_cot", LENGTHS, 2)
    facts = json.loads(json.dumps(data.facts))
    said = "of 2 questions 1 stand in the training data, 2 with numbers and names masked, "
    assert str(run_folder.leaks_in({"data": facts})["leaky/test"]).startswith(said)
    assert facts["leaks"]["leaky/test"] == {"questions": 2, "same": 1, "template": 2, "overlap": 0}
    without = TaskBatches("leaky_zero_shot_cot", LENGTHS, 2, max_leak_questions=0)
    assert without.facts["leaks"] == {}
    assert not resume.changes({"data": facts}, {"data": without.facts})
    held_out = TaskBatches("leaky_zero_shot_cot", LENGTHS, 2, split="validation")
    assert held_out.facts["leaks"] == {}


# A split that leaks -------------------------------------------------------------------------------


def few_shot(name, split):
    gin.bind_parameter("cot_flax.data.registration.prompting.shots", 4)
    dataset = find_task(f"{name}_few_shot_cot").get_dataset(split=split, shuffle=False)
    return list(dataset.as_numpy_iterator())


def test_a_split_that_leaks_is_used_by_a_flag_alone(leaky):
    leaky()
    with pytest.raises(UserError, match=r"1 held-out question.*may_leak of add_cot_task"):
        few_shot("leaky", "test")
    leaky("known", may_leak="the split of paper [3]")
    assert cot_task("known_few_shot_cot").to_json()["may_leak"] == "the split of paper [3]"
    for split in SPLITS:
        for example in few_shot("known", split):
            prompt, question = (example[n].decode() for n in ("inputs_pretokenized", "question"))
            own = question.casefold().replace(";", ".")
            assert prompt.casefold().replace(";", ".").count(own) == 1
