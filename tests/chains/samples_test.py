import copy
import dataclasses
import gzip
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.chains.records import BadRecord
from cot_flax.chains.samples import (
    Logprobs,
    Sample,
    merge_samples,
    read_samples,
    sample_from_record,
    to_line,
    write_samples,
)
from cot_flax.errors import UserError
from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import make_samples

RECORD = {
    "id": "gsm8k-train-0",
    "dataset": "gsm8k",
    "split": "train",
    "question": "What is 1 + 1?",
    "gold_answer": "2",
    "format": "few_shot_cot",
    "prompt_hash": "abc",
    "teacher": {"model": "code-davinci-002", "params": {"temperature": 0.5}},
    "sample": 0,
    "text": "Two.\nIt is 2",
    "logprobs": {
        "tokens": ["Two", ".\n", "It is 2"],
        "token_logprobs": [-0.5, 0, -9999.0],
        "top_logprobs": [{"Two": -0.5, " 2": -1.5}, {}, {"é": -0.25}],
    },
    "finish_reason": "stop",
}
SAMPLE = Sample(
    id="gsm8k-train-0",
    dataset="gsm8k",
    split="train",
    question="What is 1 + 1?",
    gold_answer="2",
    format="few_shot_cot",
    prompt_hash="abc",
    teacher={"model": "code-davinci-002", "params": {"temperature": 0.5}},
    sample=0,
    text="Two.\nIt is 2",
    logprobs=Logprobs(
        ("Two", ".\n", "It is 2"),
        (-0.5, 0.0, -9999.0),
        ({"Two": -0.5, " 2": -1.5}, {}, {"é": -0.25}),
    ),
    finish_reason="stop",
)


THINKING = RECORD | {
    "thought": "1 and 1.",
    "thought_logprobs": {
        "tokens": ["1 and", " 1."],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{}, {" 2": -2.0}],
    },
}


def test_a_thought_has_log_probabilities_of_its_own():
    sample = sample_from_record(THINKING, "x")
    assert sample.thought_logprobs.token_logprobs == (-0.5, -1.0)
    assert json.loads(to_line(sample)) == THINKING
    with pytest.raises(BadRecord, match="tokens that do not join"):
        sample_from_record(THINKING | {"thought": "1 and 2."}, "x")
    with pytest.raises(BadRecord, match="tokens that do not join"):
        sample_from_record({k: v for k, v in THINKING.items() if k != "thought"}, "x")


def changed(path, value):
    """RECORD with one place changed; a value of `...` removes it."""
    record = copy.deepcopy(RECORD)
    *parents, last = path
    place = record
    for step in parents:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return record


def read_line(tmp_path, line):
    """Reads a file that has a good line and then `line`."""
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + line + "\n")
    return list(read_samples(path))


def test_reads_the_contract(tmp_path):
    line = json.dumps(RECORD | {"logprobs": None})
    first, second = read_line(tmp_path, line)
    assert first == SAMPLE
    assert second.logprobs is None


def test_writes_the_contract(tmp_path):
    path = tmp_path / "new" / "samples.jsonl"
    write_samples(path, [SAMPLE])
    assert json.loads(path.read_text()) == RECORD
    assert "é" in path.read_text(encoding="utf-8")  # for a person to read


def test_a_thought_is_in_the_file_where_there_is_one(tmp_path):
    thinking = dataclasses.replace(SAMPLE, thought="Hm. 1 and 1.")
    write_samples(tmp_path / "s.jsonl", [thinking, SAMPLE])
    first, second = map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())
    assert (first, second) == (RECORD | {"thought": "Hm. 1 and 1."}, RECORD)
    assert list(read_samples(tmp_path / "s.jsonl")) == [thinking, SAMPLE]


def test_rounding_may_lift_the_mass_of_a_position(tmp_path):
    tops = [{"Two": math.log(0.6), " 2": math.log(0.405)}, {}, {}]
    record = changed(["logprobs", "top_logprobs"], tops)
    assert sample_from_record(record, "here").logprobs.top_logprobs[0] == tops[0]


TEXT = st.text(max_size=8)
LOGPROB = st.floats(max_value=-1.4, allow_infinity=False)  # four of them: at most 1


@st.composite
def logprobs(draw):
    steps = draw(st.lists(st.tuples(TEXT, LOGPROB, st.dictionaries(TEXT, LOGPROB, max_size=3))))
    return Logprobs(*zip(*steps, strict=True)) if steps else Logprobs((), (), ())


@st.composite
def samples(draw):
    strings = {name: draw(TEXT) for name, value in RECORD.items() if isinstance(value, str)}
    values = draw(st.none() | logprobs())
    if values:
        strings["text"] = "".join(values.tokens)
    teacher = {"model": draw(TEXT), "params": {"temperature": draw(LOGPROB), "stop": ["\n"]}}
    rest = {"sample": draw(st.integers(0)), "thought": draw(TEXT)}
    return Sample(**strings, teacher=teacher, logprobs=values, **rest)


@given(st.lists(samples(), min_size=1, max_size=3), st.sampled_from(["s.jsonl", "s.jsonl.gz"]))
def test_round_trip(tmp_path_factory, written, name):
    path = tmp_path_factory.getbasetemp() / name
    write_samples(path, written)
    assert list(read_samples(path)) == written


def test_round_trip_of_a_lone_surrogate(tmp_path):
    sample = Sample(**vars(SAMPLE) | {"text": "half \ud83d", "logprobs": None})
    write_samples(tmp_path / "s.jsonl", [sample])
    assert list(read_samples(tmp_path / "s.jsonl")) == [sample]


def test_gzip_goes_by_the_name_and_has_the_same_bytes_every_time(tmp_path):
    paths = [tmp_path / name for name in ("a.jsonl.gz", "b.jsonl.gz", "plain.jsonl")]
    for path in paths:
        write_samples(path, [SAMPLE])
    first, second, plain = [path.read_bytes() for path in paths]
    assert first == second
    assert gzip.decompress(first) == plain
    assert first[4:8] == bytes(4)  # the time of RFC 1952, section 2.3


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz"])
def test_a_broken_write_leaves_the_old_file_and_nothing_else(tmp_path, name):
    def breaks_off():
        yield SAMPLE
        raise KeyboardInterrupt

    write_samples(tmp_path / name, [SAMPLE])
    before = (tmp_path / name).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path / name, breaks_off())
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        *[(changed([name], ...), f"no field '{name}'") for name in RECORD],
        *[(changed(["logprobs", n], ...), f"no field '{n}'") for n in RECORD["logprobs"]],
        *[(changed(["teacher", n], ...), f"no field '{n}'") for n in RECORD["teacher"]],
        (changed(["text"], None), "'text' of type NoneType"),
        (changed(["gold_answer"], 2), "'gold_answer' of type int"),
        (changed(["sample"], "0"), "'sample' of type str"),
        (changed(["sample"], True), "'sample' of type bool"),
        (changed(["teacher"], "gpt"), "'teacher' of type str"),
        (changed(["logprobs"], []), "'logprobs' of type list"),
        (changed(["extra"], 1), "unknown fields ['extra']"),
        (changed(["logprobs", "tokens"], ["a"]), "1 tokens, 3 token_logprobs, 3 top_logprobs"),
        (changed(["logprobs", "token_logprobs"], [-1]), "3 tokens, 1 token_logprobs, 3 top"),
        (changed(["logprobs", "top_logprobs"], []), "3 tokens, 3 token_logprobs, 0 top_logprobs"),
        (changed(["logprobs", "tokens", 1], "."), "tokens that do not join to the text"),
        (changed(["logprobs", "tokens", 1], 7), "tokens that do not join to the text"),
        (changed(["logprobs", "token_logprobs", 1], 0.1), "log-probability 0.1"),
        (changed(["logprobs", "token_logprobs", 1], None), "log-probability None"),
        (changed(["logprobs", "token_logprobs", 1], False), "log-probability False"),
        (changed(["logprobs", "token_logprobs", 1], float("nan")), "log-probability nan"),
        (changed(["logprobs", "token_logprobs", 1], -float("inf")), "log-probability -inf"),
        (changed(["logprobs", "top_logprobs", 0, "Two"], 0.5), "log-probability 0.5"),
        (changed(["logprobs", "top_logprobs", 0, "Two"], "-1"), "log-probability '-1'"),
        (changed(["logprobs", "top_logprobs", 0], [["a", -1]]), "top_logprobs that are no objects"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, record, message):
    with pytest.raises(UserError, match=re.escape(f"samples.jsonl, line 2: {message}")):
        read_line(tmp_path, json.dumps(record))


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"id": ', "no JSON"), ("[1]", "JSON of type list")],
)
def test_what_is_no_json_object_is_named(tmp_path, line, message):
    with pytest.raises(UserError, match=f"samples.jsonl, line 2: {message}"):
        read_line(tmp_path, line)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "s.jsonl").write_bytes(json.dumps(RECORD).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"s.jsonl, line 2: no JSON"):
        list(read_samples(tmp_path / "s.jsonl"))


def test_the_lines_before_a_wrong_one_are_read(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(RECORD) + "\nbroken\n")
    assert next(read_samples(path)) == SAMPLE


def test_files_that_cannot_be_read_are_named(tmp_path):
    write_samples(tmp_path / "cut.jsonl.gz", [SAMPLE] * 3)
    packed = (tmp_path / "cut.jsonl.gz").read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-9])
    (tmp_path / "empty.jsonl").touch()
    for name, message in {
        "missing.jsonl": "No such file",
        "cut.jsonl.gz": "after line",
        "empty.jsonl": "an empty file",
    }.items():
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            list(read_samples(tmp_path / name))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (["question"], ..., "missing_field"),
        (["extra"], 1, "unknown_field"),
        (["sample"], "0", "wrong_type"),
        (["logprobs", "tokens"], ["a"], "lengths_differ"),
        (["logprobs", "tokens", 1], ".", "tokens_do_not_join"),
        (["logprobs", "top_logprobs", 0], [], "wrong_type"),
        (["logprobs", "token_logprobs", 1], None, "wrong_type"),
        (["logprobs", "token_logprobs", 1], 0.1, "probability_above_1"),
        (["logprobs", "top_logprobs", 0, "Two"], 1, "probability_above_1"),
        (["logprobs", "top_logprobs", 0], {"Two": -0.1, " 2": -0.1}, "mass_above_1"),
        (["logprobs", "top_logprobs", 0], {" 2": -0.5}, "mass_above_1"),  # and "Two": -0.5
        (["thought"], None, "wrong_type"),
        (["logprobs", "token_logprobs", 1], float("nan"), "nan_or_infinite"),
        (["logprobs", "token_logprobs", 1], -(10**400), "nan_or_infinite"),
        (["logprobs", "top_logprobs", 0, "Two"], -float("inf"), "nan_or_infinite"),
    ],
)
def test_the_reason_has_a_name(path, value, reason):
    with pytest.raises(BadRecord) as caught:
        sample_from_record(changed(path, value), "here")
    assert caught.value.reason == reason


def test_a_dropped_samples_line_is_its_own_with_the_reason_before_it():
    line = to_line(SAMPLE, reason="too_long")
    assert json.loads(line) == {"reason": "too_long", **RECORD}
    assert line.startswith(b'{"reason": ')


# Merging ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs():
    """Two runs over the same stories, with other chains but the same numbers."""
    stories = make_stories(20, split="train")
    return [list(make_samples(stories, samples=3, seed=seed)) for seed in (1, 2)]


def test_chains_of_a_question_come_together_in_the_order_of_their_files(runs, tmp_path):
    paths = [tmp_path / f"{i}.jsonl" for i in range(2)]
    for path, run in zip(paths, runs, strict=True):
        write_samples(path, run)
    out = tmp_path / "all.jsonl.gz"
    assert merge_samples(paths, out) == 120
    merged = list(read_samples(out))
    blocks = [merged[i : i + 6] for i in range(0, 120, 6)]
    assert len({block[0].id for block in blocks}) == 20
    for block in blocks:
        own = [s for run in runs for s in run if s.id == block[0].id]
        expected = [dataclasses.replace(s, sample=i) for i, s in enumerate(own)]
        assert block == expected
    assert {path.name for path in tmp_path.iterdir()} == {"0.jsonl", "1.jsonl", "all.jsonl.gz"}


def test_a_file_may_be_merged_onto_itself(runs, tmp_path):
    path = tmp_path / "samples.jsonl"
    scattered = runs[0][::3] + runs[0][1::3] + runs[0][2::3]
    write_samples(path, scattered)
    merge_samples([path], path)
    ids = [s.id for s in read_samples(path)]
    assert sorted(ids) == sorted(s.id for s in scattered)
    assert [ids[i] for i in range(0, 60, 3)] == list(dict.fromkeys(ids))


def test_a_bad_line_leaves_the_old_file(runs, tmp_path):
    path, out = tmp_path / "samples.jsonl", tmp_path / "out.jsonl"
    write_samples(out, runs[1])
    before = out.read_bytes()
    path.write_text("{}\n")
    with pytest.raises(UserError, match="line 1: no field 'id'"):
        merge_samples([path], out)
    assert out.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
