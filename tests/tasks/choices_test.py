"""Made-up files in the forms of AQuA, CommonsenseQA, StrategyQA and BIG-bench."""

import json

import gin
import pyarrow
import pyarrow.parquet
import pytest

from cot_flax import hub
from cot_flax.data.registration import cot_task
from cot_flax.errors import UserError
from cot_flax.tasks import (
    aqua,
    commonsense_qa,
    date_understanding,
    strategy_qa,
    tracking_shuffled_objects,
)


def bind(module, directory):
    gin.bind_parameter(f"{module.__name__}.data.directory", str(directory))


def write_lines(path, records):
    path.write_text("\n".join(map(json.dumps, records)))


def test_aqua_is_written_with_its_choices(tmp_path):
    item = {"question": "2 + 2?", "options": ["A)3", "B)4 "], "rationale": "Four.", "correct": "B"}
    write_lines(tmp_path / "dev.json", [item, item | {"correct": "A"}])
    bind(aqua, tmp_path)
    first, second = aqua.read("validation")
    assert first == {
        "id": "aqua-validation-0",
        "question": "2 + 2? Answer choices: (A) 3, (B) 4.",
        "rationale": "Four.",
        "answer": "B",
    }
    assert second["answer"] == "A"
    with pytest.raises(UserError, match=r"train.json\(l\); expected this file of .*AQuA \(Apach"):
        aqua.read("train")


ONCE = {"label": ["A", "B"], "text": ["bank", "library"]}
LISTED = [{"label": "A", "text": "bank"}, {"label": "B", "text": "library"}]


@pytest.mark.parametrize(
    "record",
    [
        {"question": {"stem": "Where? ", "choices": LISTED}, "answerKey": "B"},
        {"question": "Where? ", "choices": ONCE, "answerKey": "B"},
    ],
)
def test_commonsense_qa_of_the_authors_and_of_the_hub(tmp_path, record):
    write_lines(tmp_path / "dev_rand_split.jsonl", [record])
    write_lines(tmp_path / "train_rand_split.jsonl", [record] * 1001)
    bind(commonsense_qa, tmp_path)
    (found,) = commonsense_qa.SOURCE._make("test")
    assert found["question"] == "Where? Answer choices: (A) bank, (B) library."
    assert found["answer"] == "B"
    assert len(commonsense_qa.SOURCE._make("train")) == 1
    assert len(commonsense_qa.SOURCE._make("validation")) == 1000
    write_lines(tmp_path / "train_rand_split.jsonl", [record] * 1000)
    with pytest.raises(UserError, match="1000 training questions of CommonsenseQA"):
        commonsense_qa.SOURCE._make("train")


def test_parquet_of_the_hub_is_read_by_name(tmp_path, monkeypatch):
    table = {"question": ["Where?"], "choices": [ONCE], "answerKey": ["A"]}
    path = tmp_path / "validation-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    asked = []

    def data_files(name, *, revision=None, patterns=()):
        asked.append((name, patterns))
        return [str(path)]

    monkeypatch.setattr(hub, "data_files", data_files)
    (found,) = commonsense_qa.SOURCE._make("test")
    assert found["answer"] == "A"
    assert asked == [("tau/commonsense_qa", ("*validation*.parquet",))]


def test_what_the_hub_does_not_give_is_named_with_its_origin(monkeypatch):
    def data_files(name, *, revision=None, patterns=()):
        raise UserError("no connection", "one", "connect")

    monkeypatch.setattr(hub, "data_files", data_files)
    with pytest.raises(
        UserError, match=r"hub: no connection; expected .*tau-nlp.*\(MIT\); set COM"
    ):
        commonsense_qa.SOURCE._make("test")


def test_strategy_qa_is_divided_70_to_30_with_facts_as_rationale(tmp_path):
    items = [{"question": f"{i}?", "answer": i % 2 == 0, "facts": ["A.", "B. "]} for i in range(20)]
    (tmp_path / "strategyqa_train.json").write_text(json.dumps(items))
    bind(strategy_qa, tmp_path)
    sizes = {s: len(strategy_qa.SOURCE._make(s)) for s in strategy_qa.SOURCE.splits}
    assert sizes == {"train": 12, "validation": 2, "test": 6}
    found = [r for s in sizes for r in strategy_qa.SOURCE._make(s)]
    assert len({record["id"] for record in found}) == 20
    for record in found:
        assert record["rationale"] == "A. B."
        assert record["answer"] == ("no" if int(record["question"][:-1]) % 2 else "yes")


@pytest.mark.parametrize("module", [date_understanding, tracking_shuffled_objects])
def test_big_benchs_choices_get_letters_in_an_order_of_a_seed(tmp_path, module):
    scores = {"01/02/2021": 0, "02/02/2021": 1, "03/02/2021": 0}
    task = {"name": "x", "examples": [{"input": "When? ", "target_scores": scores}] * 8}
    (tmp_path / "task.json").write_text(json.dumps(task))
    bind(module, tmp_path)
    found = module._records("test")
    assert found == module._records("test")
    assert len({record["answer"] for record in found}) > 1
    for record in found:
        assert record["question"].startswith("When?\nWhich choice is true? Answer choices: (A) ")
        assert f"({record['answer']}) 02/02/2021" in record["question"]


def test_hos_and_bbhs_items_are_read_as_they_are(tmp_path):
    bind(date_understanding, tmp_path)
    path = tmp_path / "date_understanding.json"
    path.write_text(json.dumps([{"question": "When? (A) now", "answer": "A"}]))
    assert date_understanding._records("test")[0]["answer"] == "A"
    path.write_text(json.dumps({"examples": [{"input": "When? (A) now", "target": "(A)"}]}))
    assert date_understanding._records("test")[0]["answer"] == "(A)"
    path.write_text(json.dumps({"examples": []}))
    with pytest.raises(UserError, match="without examples"):
        date_understanding._records("test")


def test_cards():
    roles = {"aqua": "train", "commonsense_qa": "train", "strategy_qa": "train"}
    roles |= {"date_understanding": "transfer", "tracking_shuffled_objects": "transfer"}
    for name, role in roles.items():
        assert cot_task(f"{name}_zero_shot_cot").role == role
