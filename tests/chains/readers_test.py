import csv
import dataclasses
import gzip
import io
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from cot_flax.chains.readers import (
    NAMES,
    SAMPLES,
    columns_of,
    find_format,
)
from cot_flax.chains.records import BadRecord
from cot_flax.chains.samples import (
    Sample,
    read_samples,
    to_line,
    write_samples,
)
from cot_flax.errors import UserError

SAMPLE = Sample(
    id="sums-0",
    dataset="sums",
    split="train",
    question="One and one?",
    gold_answer="2",
    format="zero_shot_cot",
    prompt_hash="",
    teacher={"model": "nobody", "params": {}},
    sample=0,
    text="Two.",
    logprobs=None,
    finish_reason="stop",
)


def parsed(path, columns=None):
    """The samples of a file, and (place, reason, error) of what cannot be used."""
    format = find_format(path, columns)
    samples, bad = [], []
    for raw in format.read(path):
        try:
            samples.append(format.parse(raw))
        except BadRecord as error:
            bad.append((raw.place, error.reason, str(error)))
    return samples, bad


def line(**fields):
    return to_line(dataclasses.replace(SAMPLE, **fields))


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz"])
def test_samples_are_read(tmp_path, name):
    content = line() + line(sample=1, text="é") + line(id='"q"\\')
    packed = gzip.compress(content) if name.endswith("gz") else content
    (tmp_path / name).write_bytes(packed)
    samples, bad = parsed(tmp_path / name)
    assert [to_line(s) for s in samples] == content.splitlines(keepends=True)
    assert bad == []


def test_the_chains_of_a_question_are_told_from_others_before_they_are_parsed(tmp_path):
    reordered = json.dumps(dict(reversed(json.loads(line(sample=1)).items()))).encode() + b"\n"
    spaced = b'  { "id" :\t"sums-0", "text'  # cut: it goes with the line before it
    lines = [line(), reordered, spaced + b"\n", line(id="sums-1"), b"?\n", b'{"id": 7}\n']
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"".join(lines))
    questions = [raw.question for raw in SAMPLES.read(path)]
    assert questions[:4] == [b"sums-0"] * 3 + [b"sums-1"]
    assert questions[5] == b"7"
    assert questions[4] == b"sums-1"  # nobody's: it must not part the chains around it


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "bad_json"),
        (b'{"id": "\xff"}', "bad_json"),
        (b"[1]", "bad_json"),
        (b'{"id": "a"}', "missing_field"),
        (line().replace(b'"sample": 0', b'"sample": "0"'), "wrong_type"),
        (line().replace(b'"sample": 0', b'"sample": 0, "x": 1'), "unknown_field"),
    ],
)
def test_a_bad_line_has_a_reason_and_a_place(tmp_path, content, reason):
    path = tmp_path / "s.jsonl"
    path.write_bytes(line() + content.rstrip(b"\n") + b"\n" + line(id="last"))
    samples, ((place, found, error),) = parsed(path)
    assert [s.id for s in samples] == ["sums-0", "last"]
    assert (place, found) == (f"{path}, line 2", reason)
    assert error.startswith(f"got {path}, line 2: ")


def test_of_a_gzip_file_that_breaks_off_the_first_lines_are_read(tmp_path):
    path = tmp_path / "s.jsonl.gz"
    path.write_bytes(gzip.compress(line() + line(id="last"))[:-8])
    samples, ((_, reason, error),) = parsed(path)
    assert [s.id for s in samples] == ["sums-0", "last"]
    assert reason == "truncated_file"
    assert f"{path}, after line 2: " in error


@pytest.mark.parametrize("name", ["none.jsonl", "none.tsv", "none.json"])
def test_a_missing_file_stops(tmp_path, name):
    with pytest.raises(UserError, match=rf"{name}: No such file") as caught:
        list(find_format(name).read(tmp_path / name))
    assert not isinstance(caught.value, BadRecord)


def test_a_folder_in_place_of_a_file_stops(tmp_path):
    (tmp_path / "c.json").mkdir()
    with pytest.raises(UserError, match=r"c\.json: Is a directory"):
        list(find_format(tmp_path / "c.json").read(tmp_path / "c.json"))


def human(dataset, number, question, answer, chain):
    return Sample(
        id=f"{dataset}-{number}",
        dataset=dataset,
        split="train",
        question=question,
        gold_answer=answer,
        format="zero_shot_cot",
        prompt_hash="",
        teacher={"model": "given rationales", "params": {}},
        sample=0,
        text=chain,
        logprobs=None,
        finish_reason="stop",
    )


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_tsv_of_rationales(tmp_path, end):
    path = tmp_path / "aqua_train.tsv"
    lines = ["Which?\\n(A) 1 (B) 2\t(B)\tOne,\\n then two.", "one column", "é?\té\té é", "\t\t\t"]
    path.write_bytes(end.join(lines).encode() + end.encode() + b"\xff\tb\tc")
    samples, bad = parsed(path)
    assert samples == [
        human("aqua_train", 1, "Which?\n(A) 1 (B) 2", "(B)", "One,\n then two."),
        human("aqua_train", 3, "é?", "é", "é é"),
    ]
    assert [(place, reason) for place, reason, _ in bad] == [
        (f"{path}, line 2", "columns"),
        (f"{path}, line 4", "columns"),
        (f"{path}, line 5", "bad_text"),
    ]
    assert "1 columns" in bad[0][2] and "4 columns" in bad[1][2]


ENTRIES = {
    "0": {"source": "One?", "target": "1", "rationale": "So.", "task": "sums", "type": "CoT"},
    "x": {"source": "Two?", "target": "2", "rationale": "é"},
}


def test_the_cot_collections_json(tmp_path):
    path = tmp_path / "c.json"
    bad_entries = {
        "1": {"target": "1", "rationale": "So."},
        "2": {"source": "One?", "target": [1], "rationale": "So."},
        "3": ["One?", "1", "So."],
    }
    path.write_text(json.dumps(ENTRIES | bad_entries, indent=1))
    samples, bad = parsed(path)
    assert samples == [
        human("sums", 0, "One?", "1", "So."),
        human("cot_collection", "x", "Two?", "2", "é"),
    ]
    assert [(place, reason) for place, reason, _ in bad] == [
        (f"{path}, entry 1", "missing_field"),
        (f"{path}, entry 2", "wrong_type"),
        (f"{path}, entry 3", "wrong_type"),
    ]


@pytest.mark.parametrize("name", ["c.json", "c.jsonl"])
@pytest.mark.parametrize("rationale", [{}, {"rationale": None}, {"rationale": " "}])
def test_an_entry_without_a_rationale_is_its_answer_alone(tmp_path, name, rationale):
    path = tmp_path / name
    rows = [ENTRIES["0"], {"source": "Two?", "target": "2"} | rationale]
    if name.endswith("l"):
        write(path, *rows)
    else:
        path.write_text(json.dumps(dict(enumerate(rows))))
    (chain, direct), bad = parsed(path)
    assert (chain.format, chain.is_direct) == ("zero_shot_cot", False)
    assert (direct.format, direct.is_direct) == ("zero_shot_answer", True)
    assert (direct.question, direct.gold_answer, direct.text.strip()) == ("Two?", "2", "")
    write_samples(tmp_path / "samples.jsonl", [direct])
    assert list(read_samples(tmp_path / "samples.jsonl")) == [direct]
    assert bad == []


def test_an_entry_with_half_a_character_is_refused(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"source": "One?", "target": "1", "rationale": "half \\ud83d"}\n')
    _, ((_, reason, _),) = parsed(path)
    assert reason == "bad_text"


def test_the_cot_collections_json_may_be_gzipped(tmp_path):
    path = tmp_path / "c.json.gz"
    path.write_bytes(gzip.compress(json.dumps(ENTRIES).encode()))
    samples, bad = parsed(path)
    assert ([s.id for s in samples], bad) == (["sums-0", "cot_collection-x"], [])


def test_of_a_json_file_that_breaks_off_the_first_entries_are_read(tmp_path):
    """Wherever: inside a key, a string, between two entries, before the last brace."""
    whole = json.dumps(ENTRIES).encode()
    second = whole.index(b'"x"') + len('"x"')  # where it is known that the first one is whole
    for cut in range(1, len(whole)):
        path = tmp_path / "c.json"
        path.write_bytes(whole[:cut])
        samples, bad = parsed(path)
        assert [s.id for s in samples] == ["sums-0"] * (cut >= second)
        assert [reason for _, reason, _ in bad] == ["truncated_file"]


def test_all_of_flans_rationales_are_read(shared_data):
    counts = {}
    for path in sorted((shared_data / "flan_cot").glob("*.tsv")):
        samples, bad = parsed(path)
        counts[path.name] = len(samples)
        assert bad == []
        assert all(s.question and s.gold_answer and s.text for s in samples)
    assert sum(counts.values()) == 33_443  # SOURCES.md
    assert counts["gsm8k_train.tsv"] == 7_473


# Chains of one's own ------------------------------------------------------------------------------


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat(*turns, key="messages", names=("role", "content")):
    return {key: [dict(zip(names, turn, strict=True)) for turn in turns]}


ASKED = {"question": "2 + 2?", "text": "2 + 2 = 4.", "gold_answer": ""}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4.\n#### 4"}, {"gold_answer": "4"}),
        ({"question": "2 + 2?", "rationale": "2 + 2 = 4.", "answer": 4}, {"gold_answer": "4"}),
        ({"input": "2 + 2?", "reasoning": "2 + 2 = 4.", "label": "4.50"}, {"gold_answer": "4.50"}),
        ({"problem": "2 + 2?", "solution": "2 + 2 = 4.", "answer": 4.0}, {"gold_answer": "4"}),
        ({"prompt": "2 + 2?", "completion": "2 + 2 = 4."}, {}),
        ({"instruction": "2 + 2?", "input": "", "output": "2 + 2 = 4."}, {}),
        (
            {"instruction": "Add.", "input": "2 2", "output": "2 + 2 = 4."},
            {"question": "Add.\n\n2 2"},
        ),
        ({"question": "2 + 2?", "answer": "2 + 2 = 4.", "level": 3}, {}),
        (chat(("user", "2 + 2?"), ("assistant", "2 + 2 = 4.")), {}),
        (chat(("system", "Add."), ("user", "2 + 2?\n"), ("assistant", "2 + 2 = 4.")), {}),
        (
            chat(("user", "2 + 2?"), ("assistant", "2 + 2 = 4.")) | {"answer": "4"},
            {"gold_answer": "4"},
        ),
        (
            chat(
                ("human", "2 + 2?"),
                ("gpt", "2 + 2 = 4."),
                key="conversations",
                names=("from", "value"),
            ),
            {},
        ),
        (
            chat(("user", [{"type": "text", "text": "2 + 2?"}]), ("assistant", ["2 + 2", " = 4."])),
            {},
        ),
    ],
)
def test_usual_shapes_need_no_names(tmp_path, record, expected):
    path = write(tmp_path / "sums.jsonl", record)
    ((sample,), bad) = parsed(path)
    assert bad == []
    assert sample == dataclasses.replace(
        SAMPLE, id="sums-1", teacher={"model": "unknown", "params": {}}, **ASKED | expected
    )


TICKETS = [
    {"ticket": "No pay!", "reasoning_of_desk": "Wages\nare late.", "queue": "page", "nr": 7},
    {"ticket": "Logo?", "reasoning_of_desk": "It can wait.", "queue": "queue", "nr": 8},
]
COLUMNS = "question=ticket,text=reasoning_of_desk, gold_answer = queue,id=nr"


def as_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def test_columns_are_named(tmp_path):
    write(tmp_path / "desk.jsonl", *TICKETS)
    (tmp_path / "desk.csv").write_text(as_csv(TICKETS))
    parquet.write_table(pa.Table.from_pylist(TICKETS), tmp_path / "desk.parquet")
    columns = columns_of(COLUMNS)
    for name in ("desk.jsonl", "desk.csv", "desk.parquet"):
        samples, bad = parsed(tmp_path / name, columns)
        assert bad == []
        assert [(s.id, s.dataset, s.question, s.text, s.gold_answer) for s in samples] == [
            ("7", "desk", "No pay!", "Wages\nare late.", "page"),
            ("8", "desk", "Logo?", "It can wait.", "queue"),
        ]


def test_unknown_fields_are_listed_with_the_remedy(tmp_path):
    path = write(tmp_path / "desk.jsonl", *TICKETS)
    with pytest.raises(UserError) as caught:
        find_format(path)
    message = str(caught.value)
    assert f"got {path} with the fields ticket, reasoning_of_desk, queue, nr; " in message
    assert "expected question and text, gold_answer where it is known, or messages" in message
    assert "--columns question=FIELD,text=FIELD,gold_answer=FIELD" in message
    with pytest.raises(UserError, match="with the fields ticket"):
        find_format(path, {"question": "tickets", "text": "reasoning_of_desk"})


@pytest.mark.parametrize(
    "text", ["question", "question=", "quest=ticket", "question=a,,text=b", ""]
)
def test_columns_that_are_none_are_named(text):
    with pytest.raises(UserError, match=f"--columns {text}; expected NAME=FIELD.*question, text"):
        columns_of(text)


def test_a_tsv_with_names_is_no_flan(tmp_path):
    (tmp_path / "a.tsv").write_text("question\tanswer\trationale\nTwo?\t2\tOne and one.\n")
    ((sample,), bad) = parsed(tmp_path / "a.tsv")
    assert (sample.question, sample.gold_answer, sample.text) == ("Two?", "2", "One and one.")
    assert bad == []
    (tmp_path / "b.tsv").write_text("ticket\treasoning\tqueue\nTwo?\t2\tOne and one.\n")
    with pytest.raises(UserError, match=r"b\.tsv with the fields ticket, reasoning, queue"):
        find_format(tmp_path / "b.tsv")
    (tmp_path / "c.tsv").write_text("\ufeffTwo?\t2\tOne and one.\n\n", encoding="utf-8")
    ((sample,), bad) = parsed(tmp_path / "c.tsv")
    assert (sample.question, bad) == ("Two?", [])


def test_chains_of_one_question_that_follow_each_other_are_its_samples(tmp_path):
    rows = [{"question": q, "text": t} for q, t in (("a", "1"), ("a", "2"), ("b", "3"), ("a", "4"))]
    path = write(tmp_path / "c.jsonl", *rows)
    samples, _ = parsed(path)
    assert [(s.id, s.sample) for s in samples] == [("c-1", 0), ("c-1", 1), ("c-3", 0), ("c-4", 0)]
    raws = list(find_format(path).read(path))
    assert [raws[0].question == raw.question for raw in raws] == [True, True, False, False]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"question": "a"}, "missing_field"),
        ({"question": None, "text": "b"}, "missing_field"),
        ({"question": ["a"], "text": "b"}, "wrong_type"),
        ({"question": "a", "text": True}, "wrong_type"),
        ({"question": "a", "text": "b", "answer": float("inf")}, "no_answer"),
        ([1], "bad_json"),
    ],
)
def test_a_chain_that_cannot_be_used_is_counted(tmp_path, record, reason):
    path = write(tmp_path / "c.jsonl", {"question": "a", "text": "b", "answer": "c"}, record)
    samples, bad = parsed(path)
    assert (len(samples), [found for _, found, _ in bad]) == (1, [reason])


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")], "several_turns"),
        ([("user", "a")], "no_answer"),
        ([("user", "a"), ("assistant", " ")], "no_answer"),
        ([("assistant", "b")], "several_turns"),
        ([], "several_turns"),
        ([("user", "a"), ("assistant", None)], "wrong_type"),
        ([("user", "a"), ("assistant", [{"type": "image"}])], "wrong_type"),
    ],
)
def test_a_conversation_that_cannot_be_used_is_counted(tmp_path, turns, reason):
    fine = chat(("user", "a"), ("assistant", "b"))
    _, ((_, found, _),) = parsed(write(tmp_path / "c.jsonl", fine, chat(*turns)))
    assert found == reason


@pytest.mark.parametrize(
    ("records", "rules"),
    [
        ([{"question": "a", "text": "So it is b.", "answer": "b"}], "none"),
        ([{"question": "a", "text": "So. The answer is b.", "answer": "c"}], "default"),
        ([{"question": "a", "text": "So it is b."}], "default"),
        ([{"question": "a", "answer": "So.\n#### 4"}], "none"),
    ],
)
def test_what_gives_its_own_answer_is_judged(tmp_path, records, rules):
    assert find_format(write(tmp_path / "c.jsonl", *records)).rules == rules


def test_samples_that_are_no_lines_are_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([json.loads(line())]))
    with pytest.raises(UserError, match=r"a\.json, samples in a JSON list; expected JSON Lines"):
        find_format(tmp_path / "a.json")


def test_names_of_samples_are_read(tmp_path):
    row = {
        "question": "a",
        "text": "b",
        "gold_answer": "c",
        "id": 5,
        "dataset": "d",
        "split": "test",
    }
    ((sample,), _) = parsed(write(tmp_path / "c.jsonl", row | {"teacher": "t"}))
    assert {name: str(getattr(sample, name)) for name in row} == {k: str(v) for k, v in row.items()}
    assert sample.teacher == {"model": "t", "params": {}}
    assert set(row) | {"teacher", "messages", "thought", "answer_kind"} == set(NAMES)


def test_a_column_may_be_a_template_of_several(tmp_path):
    columns = columns_of("question={title}, urgent?\n{body} {},text=why,gold_answer=label")
    assert columns["question"] == "{title}, urgent?\n{body} {}"
    rows = [
        {"title": "Fan", "body": 2, "why": "b", "label": True},
        {"title": "Fan", "body": None, "why": "b", "label": "no"},
        {"title": "Fan", "body": [1], "why": "b", "label": "no"},
    ]
    (sample,), bad = parsed(write(tmp_path / "c.jsonl", *rows), columns)
    assert (sample.question, sample.gold_answer) == ("Fan, urgent?\n2 {}", "yes")
    assert [reason for _, reason, _ in bad] == ["missing_field", "wrong_type"]
    assert "line 2: no body; expected the fields of '{title}" in bad[0][2]
    with pytest.raises(UserError, match="with the fields title, body, why, label"):
        find_format(tmp_path / "c.jsonl", columns | {"question": "{title} {boddy}"})


def test_one_id_for_two_questions_is_named(tmp_path):
    rows = [{"id": 7, "question": q, "text": t} for q, t in ("ab", "ac", "xd", "ae")]
    samples, ((place, reason, error),) = parsed(write(tmp_path / "c.jsonl", *rows))
    assert [(s.id, s.sample, s.text) for s in samples] == [
        ("7", 0, "b"),
        ("7", 1, "c"),
        ("7", 2, "e"),
    ]
    assert (place, reason) == (f"{tmp_path}/c.jsonl, line 3", "duplicate_id")
    assert "another question of the id '7'" in error


@pytest.mark.parametrize(
    ("solution", "text", "gold"),
    [
        ("2 + 2 = 4\n#### 4", "2 + 2 = 4", "4"),
        (r"So $\\boxed{3}$, no: \\boxed{\\frac{1}{2}}.", None, r"\\frac{1}{2}"),
        (r"So \\boxed{3} or \\boxed{\\frac{1}{2}", None, "3"),
        ("Two.", None, ""),
    ],
)
def test_a_solution_has_its_answer_behind_a_mark_or_in_a_box(tmp_path, solution, text, gold):
    ((sample,), _) = parsed(write(tmp_path / "c.jsonl", {"problem": "a", "answer": solution}))
    assert (sample.text, sample.gold_answer) == (text or solution, gold)


def test_records_may_say_of_what_kind_their_answer_is(tmp_path):
    rows = [{"question": "a", "text": "b", "answer_kind": k} for k in ("yes_no", None, "maybe")]
    samples, ((_, reason, error),) = parsed(write(tmp_path / "c.jsonl", *rows))
    assert [sample.answer_kind for sample in samples] == ["yes_no", ""]
    assert [json.loads(to_line(s)).get("answer_kind") for s in samples] == ["yes_no", None]
    assert reason == "answer_kind"
    assert "expected one of ('number', 'choice', 'yes_no', 'text'" in error


def test_what_is_thought_apart_is_not_the_chain(tmp_path):
    asked = ("user", "2 + 2?")
    path = write(
        tmp_path / "c.jsonl",
        chat(asked, ("assistant", "<think>\nHm, 4.\n</think>\n\n2 + 2 = 4.")),
        chat(asked, ("assistant", "Hm, 4.</think>2 + 2 = 4.")),
        chat(asked, ("assistant", "2 + 2 = 4.")) | {"reasoning_content": "Hm, 4."},
        {
            "messages": [
                {"role": "user", "content": "2 + 2?"},
                {"role": "assistant", "content": "2 + 2 = 4.", "reasoning_content": "Hm, 4."},
            ]
        },
        chat(asked, ("assistant", "2 + 2 = 4.")),
    )
    samples, _ = parsed(path)
    assert [sample.text for sample in samples] == ["2 + 2 = 4."] * 5
    assert [sample.thought for sample in samples] == ["Hm, 4."] * 4 + [""]
    assert [sample.sample for sample in samples] == [0, 1, 2, 3, 4]
