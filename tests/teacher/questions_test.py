import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_flax.errors import UserError
from cot_flax.teacher.questions import Question, read_exemplars, read_questions, validation_of


def read(tmp_path, *records, name="q.jsonl"):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (tmp_path / name).write_text("\n".join(lines))
    return list(read_questions(tmp_path / name, dataset="d", split="train"))


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (
            {"question": "How many?", "answer": "He has 2*3 = <<2*3=6>>6.\nTwice: 12.\n#### 1,200"},
            {"answer": "1,200", "rationale": "He has 2*3 = 6.\nTwice: 12."},
        ),
        ({"input": "How many?", "target": 51.0}, {"answer": "51"}),
        ({"input": "How many?", "target": -0.6666666667}, {"answer": "-0.6666666667"}),
        ({"input": "How many?", "target": 0}, {"answer": "0"}),
        ({"question": "How many?", "answer": "A", "level": 3}, {"answer": "A"}),
        ({"question": "How many?"}, {}),
        ({"question": "How many?", "answer": None}, {}),
        ({"question": " How many?\n", "id": 0}, {"id": "0"}),
        (
            {"input": "How many?", "reasoning": "As 1.\n", "answer": "x", "category": "c"},
            {"rationale": "As 1.", "answer": "x", "category": "c"},
        ),
        (
            {"question": "How many?", "answer": "by hand #### 4", "rationale": "Better."},
            {"rationale": "Better.", "answer": "4"},
        ),
    ],
)
def test_reads_the_shapes_of_the_data_sets(tmp_path, record, fields):
    expected = {"id": "d-train-0", "dataset": "d", "split": "train", "question": "How many?"}
    assert read(tmp_path, record) == [Question(**expected | fields)]


def test_reads_gzip_and_lists(tmp_path):
    records = [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}]
    expected = read(tmp_path, *records)
    assert [question.id for question in expected] == ["d-train-0", "d-train-1"]
    assert read(tmp_path, json.dumps(records, indent=1), name="q.json") == expected
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress((tmp_path / "q.jsonl").read_bytes()))
    packed = read_questions(tmp_path / "q.jsonl.gz", dataset="d", split="train")
    assert list(packed) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answer": "1"}, "no question"),
        ({"question": "  "}, "no question"),
        ({"question": 3}, "'question' of type int"),
        ({"question": "a", "answer": ["1"]}, "'answer' of type list"),
        ({"question": "a", "answer": True}, "'answer' of type bool"),
        ({"question": "a", "answer": float("nan")}, "the answer nan"),
        ({"question": "a", "answer": "steps #### "}, "nothing behind ####"),
        ({"question": "a", "rationale": 1}, "'rationale' of type int"),
        ({"question": "a", "id": "d-train-0"}, "the id 'd-train-0' again"),
        ("broken", "no JSON"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, record, message):
    with pytest.raises(UserError, match=rf"q\.jsonl, line 2: .*{message}"):
        read(tmp_path, {"question": "fine"}, record)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"question": "fine"}, {}]', r"q\.json, item 2: no question"),
        ('[{"question": "fine"}, 7]', r"q\.json, item 2: JSON of type int"),
        ("{}", r"q\.json: no records"),
        ("[]", r"q\.json: no records"),
        ("[", r"q\.json, behind the last record that was read: "),
    ],
)
def test_a_wrong_list_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text, name="q.json")


def test_a_missing_file_is_named(tmp_path):
    for name in ("no.jsonl", "no.json"):
        with pytest.raises(UserError, match=f"{name}.*No such file"):
            list(read_questions(tmp_path / name, dataset="d", split="s"))


@settings(deadline=None)  # it opens files
@given(st.text(min_size=1).filter(str.strip), st.text(), st.integers())
def test_any_text_comes_back(tmp_path_factory, question, rationale, answer):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    record = {"question": question, "answer": answer, "rationale": rationale}
    path.write_text(json.dumps(record))
    (found,) = read_questions(path, dataset="d", split="s")
    assert (found.question, found.answer) == (question.strip(), str(answer))
    assert "<<" in rationale or found.rationale == rationale.strip()


def test_gsm8ks_last_500_training_questions_are_its_tasks_validation_split():
    def asked(count, dataset="gsm8k", split="train"):
        return [Question(str(i), dataset, split, f"{i}?") for i in range(count)]

    assert [q.id for q in validation_of(asked(7473))] == [str(i) for i in range(6973, 7473)]
    for others in (asked(7472), asked(7473, split="more"), asked(7473, dataset="svamp"), []):
        assert validation_of(others) == ()


def test_real_data(shared_data):
    counts = {
        "gsm8k/train.jsonl": 7473,
        "pal/svamp.jsonl": 1000,
        "reasoning_teacher/dataset/coin_flip.json": 500,
    }
    for name, count in counts.items():
        found = list(read_questions(shared_data / name, dataset="d", split="s"))
        assert len(found) == count
        assert all(question.answer and "<<" not in question.rationale for question in found)


def test_the_first_of_gsm8k(shared_data):
    path = shared_data / "gsm8k" / "train.jsonl"
    found = next(read_questions(path, dataset="gsm8k", split="train"))
    assert found.id == "gsm8k-train-0"
    assert found.answer == "72"
    assert found.rationale == (
        "Natalia sold 48/2 = 24 clips in May.\n"
        "Natalia sold 48+24 = 72 clips altogether in April and May."
    )


# Prompts ------------------------------------------------------------------------------------------

COMPLEX = """Question: A pen costs 2.
How much are 3?
Let's think step by step
Each pen is 2.
3 * 2 = 6.
The answer is 6

Question: Ann has 4 and gets 5.
Let's think step by step
4 + 5 = 9.
The answer is 9

"""
WEI = """Q: Is fire cold?
A: Fire is hot. So the answer is no.
Q: "ab cd" last letters?
A: b and d make "bd". The answer is bd.
"""
BBH = """-----
Evaluate it.

Q: not True is
A: Let's think step by step.
not True = False. So the answer is False.
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            COMPLEX,
            [
                ("A pen costs 2.\nHow much are 3?", "Each pen is 2.\n3 * 2 = 6.", "6"),
                ("Ann has 4 and gets 5.", "4 + 5 = 9.", "9"),
            ],
        ),
        (
            WEI,
            [
                ("Is fire cold?", "Fire is hot.", "no"),
                ('"ab cd" last letters?', 'b and d make "bd".', "bd"),
            ],
        ),
        (BBH, [("not True is", "not True = False.", "False")]),
    ],
)
def test_reads_exemplars_of_a_prompt(tmp_path, text, expected):
    (tmp_path / "prompt.txt").write_text(text)
    found, is_prompt = read_exemplars(tmp_path / "prompt.txt", dataset="d")
    assert [(item.question, item.rationale, item.answer) for item in found] == expected
    assert is_prompt and found[0].id == "d-exemplars-0"


def test_reads_the_prompt_of_a_data_set(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"single_eq": {"prompt": WEI}, "coin_flip": {"prompt": BBH}}))
    assert len(read_exemplars(file, dataset="singleeq")[0]) == 2
    with pytest.raises(UserError, match="without a prompt of gsm8k; expected one of single_eq, co"):
        read_exemplars(file, dataset="gsm8k")


def test_other_exemplar_files_are_no_prompts(tmp_path):
    file = tmp_path / "worked.json"
    file.write_text(json.dumps([{"question": "1 + 1?", "rationale": "Two.", "answer": "2"}]))
    found, is_prompt = read_exemplars(file, dataset="d")
    assert ([item.answer for item in found], is_prompt) == (["2"], False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Just words.", "no line `Question: ...` or `Q: ...`; expected worked questions"),
        (
            WEI + "Q: And?\nA: So it is.\n",
            "item 2: 'And\\?.*; expected question, chain and `The answ",
        ),
        ("Q: What?\n", "item 0: 'What\\?'; expected question, chain"),
    ],
)
def test_what_is_no_prompt(tmp_path, text, message):
    (tmp_path / "prompt.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_exemplars(tmp_path / "prompt.txt", dataset="d")
