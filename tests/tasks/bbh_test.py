"""BIG-Bench Hard: made-up items for the form, the real files for numbers and prompts."""

import json

import gin
import pytest

from cot_flax.data.mixtures import find_task
from cot_flax.data.registration import cot_task
from cot_flax.errors import UserError
from cot_flax.evaluation.evaluate import task_names
from cot_flax.tasks import bbh
from cot_flax.text.answers import extract_answer, is_kind
from cot_flax.text.prompts import build_input, build_target
from cot_flax.text.scoring import score

DIRECTORY = "cot_flax.tasks.bbh.data.directory"
PROMPT = """BENCHMARK DATA ... canary GUID 0000
-----
Count things.

Q: I have a cat and a dog. How many animals?
A: Let's think step by step.
One cat and
one dog are two. So the answer is 2.

Q: I have a pear. How many fruits?
A: Let's think step by step.
One. So the answer is 1."""
COT = """Count things.

Q: I have a cat and a dog. How many animals?
A: Let's think step by step.
One cat and
one dog are two. So the answer is 2.

Q: I have a pear. How many fruits?
A: Let's think step by step.
One. So the answer is 1.

Q: I have two figs. How many fruits?
A: Let's think step by step."""
ANSWER = """Count things.

Q: I have a cat and a dog. How many animals?
A: 2

Q: I have a pear. How many fruits?
A: 1

Q: I have two figs. How many fruits?
A:"""


@pytest.fixture
def small(tmp_path):
    for folder in ("bbh", "cot-prompts"):
        (tmp_path / folder).mkdir()
    item = {"input": "I have two figs. How many fruits?", "target": "2"}
    value = {"canary": "x", "examples": [item]}
    (tmp_path / "bbh" / "object_counting.json").write_text(json.dumps(value))
    (tmp_path / "cot-prompts" / "object_counting.txt").write_text(PROMPT)
    gin.bind_parameter(DIRECTORY, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("format", "expected"), [("few_shot_cot", COT), ("few_shot_answer", ANSWER)]
)
def test_a_prompt_is_the_authors_without_the_canary(small, shared_data, format, expected):
    spiece = str(shared_data / "t5_vocab" / "spiece.model")
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", spiece)
    task = find_task(f"bbh_object_counting_{format}")
    (e,) = task.get_dataset(None, split="test", shuffle=False).as_numpy_iterator()
    assert e["inputs_pretokenized"].decode() == expected
    card = cot_task(task.name)
    assert (card.role, card.exemplars, card.shots) == ("general", "fixed", 2)
    assert (card.answer_kind, card.instructed) == ("number", True)


def test_the_mixtures_are_all_tasks():
    assert len(bbh.KINDS) == 27
    assert task_names("bbh_cot") == [f"bbh_{task}_few_shot_cot" for task in sorted(bbh.KINDS)]
    assert len(task_names("bbh")) == 54
    assert all(map(is_kind, bbh.KINDS.values()))


def test_what_is_missing_is_named_with_its_origin(small):
    with pytest.raises(UserError, match=r"navigate.json.*suzgunmirac/BIG-Bench-Hard \(MIT\)"):
        find_task("bbh_navigate_zero_shot_answer").source.get_dataset("test")
    with pytest.raises(UserError, match=r"cot-prompts/navigate.txt.*BBH_DIRECTORY"):
        bbh.exemplars("navigate")


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("option", "So the answer is (D).", "D"),
        ("option", "The answer is Monsters, Inc.", "monsters, inc"),
        ("validity", "So the argument is not valid. So the answer is invalid.", "invalid"),
        ("validity", "The answer is not valid.", "invalid"),
        ("truth", "not ( True ) = False. So the answer is False.", "false"),
        ("truth", "True", "true"),
    ],
)
def test_its_own_kinds_of_answers(kind, text, answer):
    assert extract_answer(text, kind=kind, mode="flexible") == answer


@pytest.fixture
def real(shared_data):
    gin.bind_parameter(DIRECTORY, str(shared_data / "bbh"))
    return shared_data / "bbh"


def golds(task):
    return [r["answer"] for r in find_task(f"bbh_{task}_zero_shot_cot").source._make("test")]


def test_6511_questions_whose_golds_are_right_in_every_target(real):
    count = 0
    for task in bbh.KINDS:
        kind = cot_task(f"bbh_{task}_few_shot_cot").answer_kind
        found = golds(task)
        count += len(found)
        for format in ("few_shot_cot", "few_shot_answer"):
            texts = [build_target("Because.", gold, format, bbh.LAYOUTS[task]) for gold in found]
            scores = score(texts, found, kind=kind, mode="flexible")
            assert all(one.right for one in scores), task
    assert count == 6511


def test_all_27_prompts_are_the_authors_byte_for_byte(real):
    for task, layout in bbh.LAYOUTS.items():
        shown = bbh.exemplars(task)
        assert len(shown) == 3
        text = build_input("Why?", "few_shot_cot", shown, layout, instruction=bbh.instruction(task))
        raw = (real / "cot-prompts" / f"{task}.txt").read_text().partition("-----\n")[2]
        assert text == f"{raw.strip()}\n\nQ: Why?\nA: Let's think step by step."
        assert "canary" not in text


def test_fu2023s_answer_prompts_are_malformed_for_all_27(real):
    """They have the first answer, then the second question with its chain up to `So `."""
    malformed = 0
    for task in bbh.KINDS:
        raw = (real / "cot-prompts" / f"{task}.txt").read_text()
        answers_only = raw.split("A:")[0] + "A: the answer is " + raw.split("the answer is ")[1]
        second = bbh.exemplars(task)[1]
        malformed += second.question in answers_only and answers_only.endswith(
            f"{second.rationale} So "
        )
    assert malformed == 27
