"""A data set of one's own: columns, kinds, splits; every record is accounted for."""

import json

import pytest

from cot_flax.chains.dataset import SPLITS, DataSet
from cot_flax.errors import UserError
from cot_flax.text.prompts import normalize_question


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(numbers):
    return [
        {"question": f"{n} + 1?", "rationale": f"{n} and 1 is {n + 1}.", "answer": n + 1}
        for n in numbers
    ]


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "sums.jsonl", sums(range(100)))


def questions(reading, split):
    return [item.question for item in reading.splits[split]]


def test_shares_are_drawn_by_question_and_seed(data, tmp_path):
    reading = DataSet(data).read()
    assert [len(reading.splits[split]) for split in SPLITS] == [85, 5, 10]
    whole = [q for split in SPLITS for q in questions(reading, split)]
    assert sorted(whole) == sorted(f"{n} + 1?" for n in range(100))
    assert DataSet(data).read().splits == reading.splits
    other = DataSet(data, seed=1).read()
    assert questions(other, "test") != questions(reading, "test")
    # A question's chains stay together however it is written, and so do its repetitions.
    twice = [row | {"question": row["question"].upper()} for row in sums(range(100))]
    doubled = write(tmp_path / "b.jsonl", sums(range(100)) + twice)
    again = DataSet(doubled, name="b").read()
    keys = [set(map(normalize_question, questions(again, split))) for split in SPLITS]
    assert sum(map(len, keys)) == 100
    assert questions(again, "test") == questions(reading, "test")
    assert len(again.splits["train"]) == 170
    assert sum(item.first for item in again.splits["train"]) == 85
    assert "left out of test: 10 whose question stands there already" in again.summary


def test_a_few_training_questions_are_drawn_with_all_their_chains(tmp_path):
    rows = [row | {"rationale": f"{n}."} for row in sums(range(100)) for n in range(3)]
    data = write(tmp_path / "c.jsonl", rows)
    whole = DataSet(data).read()
    drawn = {n: DataSet(data, train_questions=n).read() for n in (8, 32, 85)}
    for n, reading in drawn.items():
        assert len(reading.splits["train"]) == 3 * n
        assert sum(item.first for item in reading.splits["train"]) == n
        assert [reading.splits[s] for s in SPLITS[1:]] == [whole.splits[s] for s in SPLITS[1:]]
    assert drawn[85].splits == whole.splits
    few, more = (set(questions(drawn[n], "train")) for n in (8, 32))
    assert few < more < set(questions(whole, "train"))
    # The order of the file is not what is drawn by, and another seed draws others.
    backwards = write(tmp_path / "d.jsonl", rows[::-1])
    again = DataSet(backwards, train_questions=8).read()
    assert set(questions(again, "train")) == few
    assert set(questions(DataSet(data, train_questions=8, seed=1).read(), "train")) != few
    # 300 = 24 + 5 validation + 10 test + 30 repeated there + 231 that were not drawn.
    assert "300 records read = 24 train + 5 validation + 10 test + 261 left out" in (
        drawn[8].summary
    )
    assert "left out of train: 231, for 8 questions (TRAIN_QUESTIONS) were drawn" in (
        drawn[8].summary
    )
    with pytest.raises(UserError, match="train_questions 86 of the 85 training questions"):
        DataSet(data, train_questions=86).read()


def test_splits_by_mapping_by_names_of_files_and_by_column(tmp_path):
    folder = tmp_path / "set"
    (folder / "main" / "test").mkdir(parents=True)
    train = write(folder / "main" / "train-00000-of-00001.jsonl", sums(range(40)))
    test = write(folder / "main" / "test" / "0000.jsonl", sums(range(38, 50)))
    column = [row | {"fold": "dev" if i < 3 else "TRAIN"} for i, row in enumerate(sums(range(40)))]
    column += [row | {"fold": "test"} for row in sums(range(38, 50))]
    rows = write(tmp_path / "rows.jsonl", column)
    by_name = DataSet(str(folder)).read()
    mapped = DataSet({"train": train, "test": [test]}).read()
    for split in SPLITS:
        assert sorted(questions(mapped, split)) == sorted(questions(by_name, split))
    # What is tested is not trained on; the validation share is drawn from the rest.
    assert [len(by_name.splits[split]) for split in SPLITS] == [36, 2, 12]
    assert questions(by_name, "test") == [f"{n} + 1?" for n in range(38, 50)]
    assert "left out of train: 2 whose question stands in test, too" in by_name.summary
    by_column = DataSet(rows, split_column="fold").read()
    assert [len(by_column.splits[split]) for split in SPLITS] == [35, 3, 12]
    assert questions(by_column, "validation") == ["0 + 1?", "1 + 1?", "2 + 1?"]


@pytest.mark.parametrize(
    ("row", "columns", "found"),
    [
        ({"question": "a", "answer": "Two.\n#### 2"}, {}, ("a", "Two.", "2")),
        ({"problem": "a", "solution": r"So \boxed{2}."}, {}, ("a", r"So \boxed{2}.", "2")),
        (
            {"prompt": "a", "response": "<think>Hm.</think>1 + 1 = 2. The answer is 2."},
            {},
            ("a", "1 + 1 = 2. The answer is 2.", "2"),
        ),
        (
            {"prompt": "a", "response": "<think>Hm.</think>The answer is 2."},
            {"chain": "thought"},
            ("a", "Hm.", "2"),
        ),
        (
            {"prompt": "a", "response": "It is.", "reasoning_content": "Hm.", "label": "2"},
            {"chain": "both"},
            ("a", "Hm.\nIt is.", "2"),
        ),
        (
            {"title": "T", "body": "b", "why": "w", "label": 2},
            {"question": "{title}: {body}", "rationale": "why", "answer": "{label}"},
            ("T: b", "w", "2"),
        ),
        ({"question": "a", "answer": "2"}, {}, ("a", "", "2")),
        (
            {"question": "a", "answer": "One and one. The answer is 2."},
            {},
            ("a", "One and one. The answer is 2.", "2"),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "#### 2"},
                ]
            },
            {},
            ("a", "", "2"),
        ),
    ],
)
def test_where_question_chain_and_answer_stand(tmp_path, row, columns, found):
    question, rationale, answer = found
    rows = [
        json.loads(json.dumps(row).replace('"a"', f'"a{i}"').replace('"T"', f'"T{i}"'))
        for i in range(3)
    ]
    reading = DataSet(write(tmp_path / "a.jsonl", rows), **columns).read()
    items = [item for split in SPLITS for item in reading.splits[split]]
    first = question[0]
    assert {item.question for item in items} == {f"{first}{i}{question[1:]}" for i in range(3)}
    assert {(item.rationale, item.answer) for item in items} == {(rationale, answer)}
    assert reading.answer_kind == "number"


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["1", "2.5", "3 kg"], "number"),
        (["yes", "no", True], "yes_no"),
        (["(A)", "B", "c"], "choice"),
        (["page", "today", "12"], "text"),
        (["Page", "today", "page"] * 3, "one of page, today"),
        (["1"] * 39 + ["few"], "number"),
    ],
)
def test_the_answers_show_their_kind(tmp_path, answers, kind):
    rows = [{"question": f"q{i}", "answer": a, "text": "b"} for i, a in enumerate(answers)]
    reading = DataSet(write(tmp_path / "a.jsonl", rows)).read()
    assert reading.answer_kind == kind
    assert f"answers are of kind {kind}, for " in reading.summary


def test_records_without_a_chain_are_counted(tmp_path):
    rows = sums(range(40))
    for row in rows[::4]:
        row["rationale"] = ""
    reading = DataSet(write(tmp_path / "a.jsonl", rows)).read()
    without = sum(not item.rationale for item in reading.splits["train"])
    assert f"{without} of train without a chain: for the answer formats alone" in reading.summary
    for row in rows:
        del row["rationale"]
    summary = DataSet(write(tmp_path / "a.jsonl", rows)).read().summary
    assert "no record of train has a chain: name RATIONALE" in summary


def test_labels_are_all_answers_that_there_are(tmp_path):
    rows = [
        {"question": f"q{i}", "answer": a, "text": "b"}
        for i, a in enumerate(["Page", "queue", "page"] * 20 + ["later"])
    ]
    reading = DataSet(write(tmp_path / "a.jsonl", rows), labels=("page", "queue")).read()
    assert reading.answer_kind == "one of page, queue"
    assert "unusable: unreadable_gold_answer 1, the first: got " in reading.summary
    assert "line 61: the answer 'later'" in reading.summary
    with pytest.raises(UserError, match="labels and an answer kind; expected one of the two"):
        DataSet("a", labels=("a", "b"), answer_kind="number")


def test_every_bad_record_is_counted_and_named(tmp_path):
    good = sums(range(100))
    bad = [
        {"question": "2 + 2?", "rationale": "b", "answer": [4]},
        {"question": "2 + 3?", "rationale": "b", "answer": "a few"},
        {"question": " ", "rationale": "b", "answer": 4},
        {"question": "2 + 4?", "rationale": "b", "answer": None},
    ]
    path = write(tmp_path / "a.jsonl", [row | {"id": i} for i, row in enumerate(good + bad)])
    twice = write(tmp_path / "b.jsonl", [good[1] | {"id": 0}])
    summary = DataSet([path, twice], max_unusable=0.05).read().summary
    assert summary.startswith("your_data: 105 records read = 85 train + 5 validation + 10 test + ")
    assert "0 left out + 5 unusable" in summary
    for named in (
        "wrong_type 1, the first: got {a}, line 101: 'answer' of type list",
        "unreadable_gold_answer 1, the first: got {a}, line 102: the answer 'a few'",
        "no_question 1, the first: got {a}, line 103",
        "no_answer 1, the first: got {a}, line 104",
        "duplicate_id 1, the first: got {b}, line 1: another question of the id '0'",
    ):
        assert f"unusable: {named.format(a=path, b=twice)}" in summary
    with pytest.raises(UserError, match=r"5 of 105 records of your_data .*'wrong_type': 1.*1\.0%"):
        DataSet([path, twice], max_unusable=0.01).read()


def test_a_file_that_breaks_off_is_named(tmp_path):
    import zstandard

    lines = "".join(json.dumps(row) + "\n" for row in sums(range(60_000))).encode()
    packed = zstandard.ZstdCompressor().compress(lines)
    (tmp_path / "a.jsonl.zst").write_bytes(packed[: len(packed) * 2 // 3])
    summary = DataSet(str(tmp_path / "a.jsonl.zst")).read().summary
    assert f"unusable: truncated_file 1, the first: got {tmp_path}/a.jsonl.zst, after " in summary


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"question": "ticket"}, r"with the fields question, rationale, answer; .*QUESTION"),
        ({"answer": "{answer} {unit}"}, "with the fields question, rationale, answer"),
        ({"split_column": "fold"}, "with the fields question, rationale, answer"),
        ({"test_share": 0}, "test_share 0; expected a share between 0 and 1"),
        ({"train_questions": 0}, "train_questions 0; expected 1 or more, or None"),
        ({"chain": "all"}, "chain 'all'; expected one of text, thought, both"),
        ({"data": None}, "no data for your_data; expected files of your own"),
        ({"data": {"trian": "a"}}, "splits trian; expected names of train"),
    ],
)
def test_what_cannot_be_is_said(data, settings, message):
    with pytest.raises(UserError, match=message):
        DataSet(**{"data": data} | settings).read()


def test_a_split_without_a_record_is_named(data, tmp_path):
    nobody = write(tmp_path / "none.jsonl", sums(range(2)))
    with pytest.raises(UserError, match=r"no record in the split 'train' of your_data \(102 read"):
        DataSet({"train": nobody, "test": data}).read()
    with pytest.raises(UserError, match="no record in the split 'train'"):
        DataSet(nobody).read()


def test_splits_of_a_column_that_have_no_name_are_counted(tmp_path):
    rows = [
        row | {"split": "unsupervised" if i == 7 else "train"}
        for i, row in enumerate(sums(range(40)))
    ]
    assert "unknown_split 1" in DataSet(write(tmp_path / "a.jsonl", rows)).read().summary
