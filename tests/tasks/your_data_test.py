"""A data set of one's own by gin alone: tasks, teacher's tasks, several sets side by side."""

import json

import gin
import pytest
import seqio

from cot_flax import configuration
from cot_flax.chains.filtering import Filters
from cot_flax.chains.preparation import Preparation
from cot_flax.data.registration import cot_task
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.store.make import store
from cot_flax.tasks import gsm8k, your_data  # noqa: F401 (its name is taken)
from cot_flax.teacher.questions import training_questions

FORMATS = ("few_shot_cot", "zero_shot_cot", "few_shot_answer", "zero_shot_answer")


@pytest.fixture(autouse=True)
def _leave_gin_as_found():
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture
def bind(tmp_path):
    """Writes 40 tickets, of which every fifth has no chain; binds them as the experiment does."""
    rows = [
        {
            "head": f"ticket {i}",
            "body": f"{i} users wait.",
            "why": f"{i} is {'many' if i > 20 else 'few'}." if i % 5 else "",
            "label": "page" if i > 20 else "queue",
        }
        for i in range(40)
    ]
    path = tmp_path / "tickets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def parse(*bindings, file="experiments/your_data.gin"):
        columns = ["QUESTION='{head}: {body}'", "RATIONALE='why'", "ANSWER='label'"]
        needed = [f"DATA={str(path)!r}", "MODEL_DIR='run'", "LABELS=('page', 'queue')"]
        vocabulary = f"T5_VOCABULARY_FILE={str(VOCABULARY_PATH)!r}"
        configuration.parse([file], [*needed, *columns, vocabulary, *bindings])
        return path

    return parse


def examples(task, split="train"):
    dataset = seqio.get_mixture_or_task(task).get_dataset(None, split, shuffle=False)
    return list(dataset.as_numpy_iterator())


def prompts(task, split="train"):
    return [e["inputs_pretokenized"].decode() for e in examples(task, split)]


def test_the_experiment_makes_the_tasks(bind, capsys):
    bind()
    counts = {
        (format, split): len(examples(f"your_data_{format}", split))
        for format in FORMATS
        for split in ("train", "validation", "test")
    }
    assert {counts[f, "validation"] for f in FORMATS} == {2}
    assert {counts[f, "test"] for f in FORMATS} == {4}
    assert counts["zero_shot_answer", "train"] == counts["few_shot_answer", "train"] == 34
    without = 34 - counts["zero_shot_cot", "train"]
    assert counts["few_shot_cot", "train"] == counts["zero_shot_cot", "train"]
    said = capsys.readouterr().err
    assert said.count("40 records read = 34 train + 2 validation + 4 test") == 1  # read once
    assert f"{without} of train without a chain: for the answer formats alone" in said
    card = cot_task("your_data_few_shot_cot")
    assert (card.answer_kind, card.exemplars, card.shots) == ("one of page, queue", "drawn", 4)
    first, *_ = prompts("your_data_few_shot_cot", "test")
    assert first.count("Let's think step by step") == 5
    assert " users wait.\nLet's think step by step\n" in first
    assert " is many." in first or " is few." in first


def test_labels_that_nobody_named_are_the_kind(bind):
    bind("LABELS=()")
    assert cot_task("your_data_few_shot_cot").answer_kind == "one of page, queue"
    task = seqio.get_mixture_or_task("your_data_zero_shot_cot")
    (measure,) = task.metric_fns
    golds = ["page", "queue"]
    assert measure(golds, ["It waits. The answer is Page.", "The answer is line."]) == {
        "accuracy": 0.5,
        "parse_failures": 0.5,  # of kind `text` it were another answer
    }
    assert len(examples("your_data_zero_shot_answer")) == 34


def test_a_teachers_chains_are_judged_and_read_by_the_same_tasks(bind, tmp_path):
    bind()
    data, _ = your_data.data()
    asked = training_questions(data)
    assert [(q.dataset, q.split) for q in asked] == [("your_data", "train")] * 34
    assert all(q.answer in ("page", "queue") for q in asked)
    samples = tmp_path / "chains.jsonl"
    rows = [
        {
            "id": q.id,
            "question": q.question,
            "text": text,
            "gold_answer": q.answer,
            "dataset": "your_data",
        }
        for q in asked
        for text in (f"So it goes. The answer is {q.answer}.", "The answer is nothing.")
    ]
    rows += [
        rows[0]
        | {
            "id": "x",
            "question": prompts("your_data_zero_shot_cot", "test")[0][3:].partition("\n")[0],
        }
    ]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = cot_task("your_data_teacher_zero_shot_cot").answer_kind
    settings = Preparation(Filters(rules="default", answer_kind=kind), max_unknown=1.0)
    said = store(
        samples=str(samples),
        out=str(tmp_path / "store"),
        task="your_data_teacher_zero_shot_cot",
        settings=settings,
        workers=1,
        max_unknown_chains=1.0,
    )
    assert said.startswith("69 read = 35 kept + 34 dropped + 0 rejected")
    bind(f"TEACHER_STORE={str(tmp_path / 'store')!r}")
    assert len(examples("your_data_teacher_zero_shot_cot")) == 34  # without the tested question


def test_a_second_data_set_stands_under_its_scope(bind, tmp_path):
    path = bind()
    other = tmp_path / "sums.jsonl"
    other.write_text(
        "".join(
            f'{{"question": "{n} + 1?", "text": "So.", "answer": {n + 1}}}\n' for n in range(20)
        )
    )
    file = tmp_path / "two.gin"
    file.write_text(
        "from __gin__ import dynamic_registration\n"
        "from cot_flax.chains import dataset\n"
        "from cot_flax.data import registration\n"
        "from cot_flax.tasks import your_data\n"
        "include 'experiments/your_data.gin'\n"
        "sums/your_data.data.of = @sums/dataset.DataSet()\n"
        "sums/registration.prompting.shots = 2\n"
        "sums/dataset.DataSet:\n"
        f"  data = {str(other)!r}\n"
        "  name = 'sums'\n  question = None\n  rationale = None\n  answer = None\n  labels = ()\n"
    )
    bind(file=str(file))
    assert len(examples("sums_zero_shot_cot")) == 17
    assert cot_task("sums_few_shot_cot").answer_kind == "number"
    assert cot_task("sums_few_shot_cot").shots == 2
    assert cot_task("your_data_few_shot_cot").answer_kind == "one of page, queue"
    assert {task.name for task in seqio.get_mixture_or_task("sums_cot_mix").tasks} == {
        f"sums_{format}" for format in FORMATS
    }
    assert path.exists()


def test_a_scope_with_the_name_of_another_data_set_is_refused(bind):
    bind()
    with pytest.raises(UserError, match="the data set 'gsm8k', whose tasks are there already"):
        your_data.register("gsm8k")
    with pytest.raises(UserError, match="the data set 'A-b'; expected a new name"):
        your_data.register("A-b")


def test_without_chains_the_chain_formats_say_so(bind, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(f'{{"q": "{n} + 1?", "a": {n + 1}}}\n' for n in range(20)))
    columns = "QUESTION='q'", "ANSWER='a'", "RATIONALE=None", "LABELS=()"
    bind(f"DATA={str(path)!r}", *columns)
    assert len(examples("your_data_zero_shot_answer")) == 17
    assert len(examples("your_data_zero_shot_cot", "test")) == 2
    assert examples("your_data_zero_shot_cot") == []


def test_a_run_remembers_its_data_and_columns(bind):
    """So that it does not go on with others."""
    path = bind()
    settings = configuration.run_facts(lambda store: "")["data"]["settings"]
    wanted = {"DATA": str(path), "QUESTION": "{head}: {body}", "ANSWER": "label", "SPLIT_SEED": 0}
    assert settings.items() >= wanted.items()


def test_without_data_it_says_what_to_give():
    with pytest.raises(
        UserError, match=r"no data; expected files of your own; pass --gin\.DATA=FILE"
    ):
        cot_task("your_data_zero_shot_cot")
