"""A user's questions: what is read of a file, what the answers are, what is held out."""

import json

import pytest

from cot_flax.distill import questions
from cot_flax.distill.questions import Item
from cot_flax.errors import UserError


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def items(count, answer="yes"):
    return [Item(f"q{i}", f"Is {i} even?", answer) for i in range(count)]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "A?", "answer": "yes"}, ("A?", "yes", ())),
        ({"input": "A?", "label": 3}, ("A?", "3", ())),
        ({"question": "A?", "answer": "1+1=<<1+1=2>>2\n#### 2"}, ("A?", "2", ("1+1=2",))),
        (
            {"instruction": "A?", "input": "B", "output": "So.", "answer": 1},
            ("A?\n\nB", "1", ("So.",)),
        ),
        (
            {"messages": [{"role": "user", "content": "A?"},
                          {"role": "assistant", "content": "1 + 1. The answer is 2."}]},
            ("A?", "2", ("1 + 1. The answer is 2.",)),
        ),
        ({"question": "A?", "rationale": "So.", "answer": "2"}, ("A?", "2", ("So.",))),
        (
            {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B"}],
             "answer": "2"},
            ("A?", "2", ("B",)),
        ),
    ],
)  # fmt: skip
def test_shapes_of_records(tmp_path, record, expected):
    (found,), notes = questions.read(write(tmp_path / "a.jsonl", [record]))
    question, answer, rationales = expected
    assert (found.question, found.answer) == (question, answer) and not notes
    assert found.rationales == rationales


def test_fields_are_named_and_a_missing_one_is_said(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"ticket": "A?", "why": "So.", "team": "x"}])
    columns = {"question": "ticket", "text": "why", "gold_answer": "team"}
    assert questions.read(file, columns)[0] == [Item("q0", "A?", "x", ("So.",))]
    with pytest.raises(UserError, match=r"--answer label; expected a field of .*: ticket, why"):
        questions.read(file, columns | {"gold_answer": "label"})
    with pytest.raises(UserError, match="--question FIELD"):
        questions.read(file)


def test_a_question_counts_once_with_all_its_chains_and_what_is_left_out_is_said(tmp_path):
    records = [
        {"id": "a", "question": "A?", "rationale": "One.", "answer": "1"},
        {"id": "b", "question": "a", "rationale": "Two.", "answer": "1"},
        {"id": "c", "question": "B?", "rationale": "One."},
        {"id": "a", "question": "C?", "rationale": "One.", "answer": "1"},
    ]
    found, notes = questions.read(write(tmp_path / "a.jsonl", records))
    assert [item.question for item in found] == ["A?", "C?"]
    assert found[0].rationales == ("One.", "Two.")
    assert len({item.id for item in found}) == 2
    assert notes == ["1 records repeat a question", "1 questions without an answer are left out"]


def test_records_that_cannot_be_read_are_counted_and_too_many_stop(tmp_path):
    good = [{"question": f"{i}?", "answer": "1"} for i in range(40)]
    bad = {"question": ["x"], "answer": "1"}
    found, notes = questions.read(write(tmp_path / "a.jsonl", [*good, bad]))
    assert len(found) == 40 and notes[0].startswith("1 records that cannot be read")
    with pytest.raises(UserError, match="3 of 43 records"):
        questions.read(write(tmp_path / "b.jsonl", [*good, bad, bad, bad]))


def test_answers_of_another_kind_are_left_out_and_too_many_stop():
    given = [*items(39, "12"), Item("odd", "How many?", "some, 3 or 4")]
    kept, (note,) = questions.of_kind(given, "number", "a.jsonl")
    assert kept == given[:39]
    assert note == ("1 answers that are none of kind number (such as 'some, 3 or 4') are left out")
    assert questions.of_kind(kept, "number", "a.jsonl") == (kept, [])
    with pytest.raises(UserError, match=r"3 answers .*'\(b\)'\) of 42 in a.jsonl; .*--kind KIND"):
        questions.of_kind([*kept, *items(3, "(b)")], "number", "a.jsonl")


def test_what_is_held_out_depends_on_wording_and_seed_alone():
    given = items(300)
    first = questions.split(given)
    assert tuple(map(len, first)) == (210, 30, 60)
    again = questions.split(given[::-1])
    for one, other in zip(first, again, strict=True):
        assert {item.id for item in one} == {item.id for item in other}
    assert questions.split(given, seed=1).test != first.test
    everything = [item.id for part in first for item in part]
    assert sorted(everything) == sorted(item.id for item in given)
    longer = questions.split(items(330))
    kept = {item.id for item in first.test} & {item.id for item in longer.test}
    assert len(kept) > 50  # what was measured with is not learnt from when the file grows


@pytest.mark.parametrize(("count", "validation", "test"), [(40, 5, 10), (10**6, 500, 1000)])
def test_sizes_have_limits(count, validation, test):
    assert questions.sizes(count) == (validation, test)


@pytest.mark.parametrize("count", [0, 39])
def test_too_few_questions_are_refused(count):
    with pytest.raises(UserError, match="without answers" if not count else "40 or more"):
        questions.check_enough(items(count), "a.jsonl")
    questions.check_enough(items(40), "a.jsonl")


def test_a_question_that_does_not_name_the_labels_is_asked_for_them():
    labels = ("billing", "login", "other")
    assert questions.ask_for(labels, items(3)) == "Which one is it: billing, login or other?"
    named = [Item("a", "Billing, login or other: my card?", "billing")]
    assert questions.ask_for(labels, named) == questions.ask_for((), items(3)) == ""
    assert questions.with_ask(items(1), "So?")[0].question == "Is 0 even?\n\nSo?"
