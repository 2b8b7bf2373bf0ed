import json
import pickle
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from cot_flax.chains.filtering import Filters, rejection
from cot_flax.chains.samples import Sample
from cot_flax.errors import UserError
from cot_flax.teacher.requests import Completion, Request
from cot_flax.teacher.scenario import Settings, read_scenario, scenario_recipe
from cot_flax.text.answers import ADDED, answers_match, extract_answer
from cot_flax.text.wording import Wording

TRIAGE = Path(__file__).resolve().parents[2] / "examples" / "triage"

FILES = {
    "instruction.md": "Say who acts.\n",
    "exemplars.jsonl": '{"input": "No heat.", "reasoning": "It is cold.", "answer": "Today"}\n'
    '{"input": "Thanks!", "reasoning": "Nothing to do.\\nThe answer is close.",'
    ' "answer": "close"}\n',
    "inputs.jsonl": '{"input": "No light."}\n{"input": "Bye.", "answer": "close", "id": "b"}\n',
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "desk"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def test_reads_a_folder(folder):
    instruction, exemplars, inputs, settings, notes, validation = read_scenario(folder)
    assert instruction == "Say who acts."
    assert [(item.question, item.rationale, item.answer) for item in exemplars] == [
        ("No heat.", "It is cold.", "Today"),
        ("Thanks!", "Nothing to do.\nThe answer is close.", "close"),
    ]
    assert [(item.id, item.question, item.answer) for item in inputs] == [
        ("desk-train-0", "No light.", ""),
        ("b", "Bye.", "close"),
    ]
    assert settings == Settings("desk", "text", (), 8, 0.7, 512, "en", "", "", ())
    assert notes == validation == []


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_reads_other_kinds_of_files(folder, mark):
    expected = read_scenario(folder)
    exemplars = [json.loads(line) for line in FILES["exemplars.jsonl"].splitlines()]
    parquet.write_table(pa.Table.from_pylist(exemplars), folder / "exemplars.parquet")
    (folder / "exemplars.jsonl").unlink()
    (folder / "inputs.jsonl").rename(folder / "inputs.old")
    (folder / "inputs.csv").write_bytes(mark + b"input,answer,id\nNo light.,,\nBye.,close,b\n\n")
    (folder / "instruction.md").write_bytes(mark + b"Say who acts.\n")
    (folder / "settings.json").write_bytes(mark + b'{"samples": 8}')
    assert read_scenario(folder) == expected


def test_what_is_tested_is_not_asked(folder):
    tested = '{"input": "no LIGHT", "answer": "page"}\n{"input": "Other.", "answer": "page"}\n'
    (folder / "test.jsonl").write_text(tested)
    _, _, inputs, _, notes, _ = read_scenario(folder)
    assert [item.id for item in inputs] == ["b"]
    assert notes == ["left out 1 of 2 inputs, whose text stands in the test file too: desk-train-0"]
    (folder / "test.jsonl").write_text('{"input": "Thanks", "answer": "close"}\n')
    with pytest.raises(UserError, match="the exemplar desk-exemplars-1, which stands in the test"):
        read_scenario(folder)


def labelled(folder, settings='{"labels": ["Today", "close", "not today"]}'):
    (folder / "settings.json").write_text(settings)
    return read_scenario(folder).settings


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It can wait. The answer is close.", "close"),
        ("The answer is Today, as wages are late.", "today"),
        ("The answer is NOT  today.", "not today"),
        ("The answer is disclosed.", None),
        ("The answer is unknown.", None),
        ("Priority: TODAY.", "today"),
        ("**close**, I think", "close"),
        ("So close it today", None),
        ("They close at noon; wages are late, so somebody has to act today.", None),
        ("It can wait.\nclose", None),  # of kind `text` neither
        ("nothing", None),
    ],
)
def test_only_labels_are_answers(folder, text, answer):
    settings = labelled(folder)
    assert settings.answer_kind == "one of close, not today, today"
    assert extract_answer(text, kind=settings.answer_kind, mode="flexible") == answer
    assert labelled(folder) == settings  # the kind is there already


CHINESE = {
    "instruction.md": "请一步一步地推理。最后一行写“答案是……”。",
    "exemplars.jsonl": '{"input": "3个加5个？", "reasoning": "3+5=8个。", "answer": "8"}\n',
    "inputs.jsonl": '{"input": "2元买6支？", "answer": "12"}\n',
}


@pytest.fixture
def chinese(folder):
    for name, text in CHINESE.items():
        (folder / name).write_text(text)
    return folder


def settle(folder, **settings):
    (folder / "settings.json").write_text(json.dumps({"answer_kind": "number"} | settings))
    return read_scenario(folder)


def test_a_language_words_prompt_and_chat(chinese):
    scenario = settle(chinese, language="zh")
    assert scenario.notes == []
    prompt = scenario_recipe(scenario).prompt(scenario.inputs[0])
    assert prompt == (
        "请一步一步地推理。最后一行写“答案是……”。\n\n"
        "Q: 3个加5个？\n让我们一步一步地思考\n3+5=8个。\n答案是8\n\n"
        "Q: 2元买6支？\n让我们一步一步地思考"
    )
    chat = scenario_recipe(scenario, chat=True).prompt(scenario.inputs[0])
    assert [turn["content"] for turn in chat][1:3] == ["3个加5个？", "3+5=8个。\n答案是8"]


def test_words_of_ones_own_cut_what_follows_the_answer(chinese):
    scenario = settle(chinese, cue="想", closing="结论是{answer}。", markers=["总计"])
    assert scenario.settings.wording == Wording("想", "结论是{answer}。", ("总计",))
    recipe = scenario_recipe(scenario)
    assert "\n想\n3+5=8个。\n结论是8。\n" in recipe.prompt(scenario.inputs[0])
    for head in ("结论是", "总计"):
        written = Completion(f"2×6=12\n{head}12元\nQ: 3?", None, "stop")
        assert recipe.clean(written).text == f"2×6=12\n{head}12元"


def test_texts_in_another_language_than_the_words_are_said(chinese):
    (note,) = settle(chinese).notes
    assert note.startswith(
        "prompts and targets say \"Let's think step by step\" and 'The answer is"
    )
    assert '{"language": "zh"} in settings.json makes them' in note
    assert settle(chinese, closing="结论是").notes == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "tlh"}, "settings.json: language 'tlh'; expected one of en, es, fr"),
        ({"closing": "："}, "settings.json: cue, closing or markers with '：'; expected words"),
        ({"markers": ["-"]}, "settings.json: cue, closing or markers with '-'; expected words"),
        ({"markers": [3]}, r"settings.json: markers \[3\]; expected a list of texts"),
    ],
)
def test_wordings_that_cannot_be_are_refused(folder, settings, message):
    with pytest.raises(UserError, match=message):
        settle(folder, **settings)


def test_a_long_label_is_an_answer_without_a_marker(folder):
    long = "Not urgent, but look at it this week"
    kind = labelled(folder, json.dumps({"labels": [long, "today", "close"]})).answer_kind
    for text in (long, f"{long}.", f"The answer is {long}"):
        assert answers_match(extract_answer(text, kind=kind, mode="flexible"), long, kind=kind)
    assert extract_answer(f"I say {long}", kind=kind, mode="flexible") is None


def test_labels_are_known_in_other_processes(folder):
    kind = labelled(folder).answer_kind
    find, _ = pickle.loads(pickle.dumps(ADDED[kind]))
    assert find("close, TODAY") == ["close", "today"]


def test_few_answers_are_said_to_be_labels(folder):
    lines = [json.dumps({"input": str(i), "answer": ("page", "Close")[i % 2]}) for i in range(12)]
    (folder / "inputs.jsonl").write_text("\n".join(lines))
    (note,) = read_scenario(folder).notes
    assert note.startswith(
        "answers: labels, for 3 different ones come again and again among 14 (close 7, page 6, "
        'today 1); {"labels": ["close", "page", "today"]} in settings.json'
    )
    assert labelled(folder, '{"labels": ["close", "page", "today"]}').labels
    assert read_scenario(folder).notes == []


def test_numbers_are_said_to_be_numbers(folder):
    numbered = [json.dumps({"input": str(i), "reasoning": "So.", "answer": str(i)}) for i in (1, 2)]
    (folder / "exemplars.jsonl").write_text("\n".join(numbered))
    lines = [json.dumps({"input": f"{i}.5", "answer": f"{i} kg"}) for i in range(9)]
    (folder / "inputs.jsonl").write_text("\n".join(lines))
    (note,) = read_scenario(folder).notes
    assert note.startswith(
        "answers: number, for all of 11 are numbers (11 different ones); "
        '{"answer_kind": "number"} in settings.json'
    )
    (folder / "settings.json").write_text('{"answer_kind": "number"}')
    assert read_scenario(folder).notes == []


def test_asks_with_instruction_and_exemplars(folder):
    scenario = read_scenario(folder)
    assert scenario_recipe(scenario).first(scenario.inputs[0]) == Request(
        "Say who acts.\n\n"
        "Q: No heat.\nLet's think step by step\nIt is cold.\nThe answer is Today\n\n"
        "Q: Thanks!\nLet's think step by step\nNothing to do.\nThe answer is close.\n\n"
        "Q: No light.\nLet's think step by step",
        n=8,
        max_tokens=512,
        temperature=0.7,
        stop=("\nQ:",),
    )


def test_asks_a_chat_in_turns(folder):
    scenario = read_scenario(folder)
    request = scenario_recipe(scenario, chat=True).first(scenario.inputs[0])
    turns = [(message["role"], message["content"]) for message in request.prompt]
    assert turns == [
        ("system", "Say who acts."),
        ("user", "No heat."),
        ("assistant", "It is cold.\nThe answer is Today"),
        ("user", "Thanks!"),
        ("assistant", "Nothing to do.\nThe answer is close."),
        ("user", "No light."),
    ]
    assert request.stop == ()


def test_settings_and_then_the_caller_decide(folder):
    settings = {"samples": 3, "temperature": 1, "max_tokens": 64, "dataset": "calls"}
    (folder / "settings.json").write_text(json.dumps(settings))
    scenario = read_scenario(folder)
    assert scenario.inputs[0].id == "calls-train-0"
    request = scenario_recipe(scenario, temperature=0.2, top_logprobs=5).first(scenario.inputs[0])
    asked = (request.n, request.temperature, request.max_tokens, request.top_logprobs)
    assert asked == (3, 0.2, 64, 5)


def test_an_input_is_not_shown_its_own_answer(folder):
    (folder / "inputs.jsonl").write_text('{"input": "no heat"}')
    scenario = read_scenario(folder)
    request = scenario_recipe(scenario).first(scenario.inputs[0])
    assert "It is cold" not in request.prompt
    (folder / "exemplars.jsonl").write_text(FILES["exemplars.jsonl"].splitlines()[0])
    scenario = read_scenario(folder)
    with pytest.raises(UserError, match="0 worked questions to show before desk-train-0"):
        scenario_recipe(scenario).first(scenario.inputs[0])


def test_keeps_the_chain_up_to_its_answer(folder):
    scenario = read_scenario(folder)
    recipe, asked = scenario_recipe(scenario), scenario.inputs[0]
    text = "\nWhat the answer is depends.\nIt is dark.\nThe answer is today.\n\nQ: x"
    found = recipe.sample_of(asked, Completion(text, None, "length"), None, None)
    kept = "What the answer is depends.\nIt is dark.\nThe answer is today."
    assert found == Completion(kept, None, "stop")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("instruction.md", None, r"instruction\.md: .*No such file"),
        ("instruction.md", " \n", r"instruction\.md: an empty file"),
        ("exemplars.jsonl", None, r"exemplars\.jsonl.*No such file"),
        ("exemplars.jsonl", '{"input": "a", "answer": "b"}', r"exemplars\.jsonl, line 1: an exem"),
        ("exemplars.jsonl", '{"input": "a", "reasoning": "b"}', r"exemplars\.jsonl, line 1: an ex"),
        ("inputs.jsonl", None, r"inputs\.jsonl.*No such file"),
        ("inputs.jsonl", '{"input": "a"}\n{"inptu": "b"}', r"inputs\.jsonl, line 2: no question"),
        ("inputs.jsonl", '{"input": "a", "answer": "b\\nc"}', r"inputs\.jsonl, line 1: the answer"),
        ("settings.json", "{", r"settings\.json: Expecting"),
        ("settings.json", "[]", r"settings\.json: \[\]; expected an object with only dataset"),
        ("settings.json", '{"sample": 3}', r"settings\.json: \{'sample': 3\}; expected an object"),
        ("settings.json", '{"samples": "3"}', r"settings\.json: 'samples' of type str"),
        ("settings.json", '{"samples": true}', r"settings\.json: 'samples' of type bool"),
        ("settings.json", '{"answer_kind": "word"}', r"settings\.json: answer_kind 'word'"),
        ("settings.json", '{"labels": "a"}', r"settings\.json: 'labels' of type str"),
        ("settings.json", '{"labels": ["a"]}', r"settings\.json: labels \['a'\]"),
        ("settings.json", '{"labels": ["a", "A"]}', r"settings\.json: labels \['a', 'A'\]"),
        ("settings.json", '{"labels": ["a", 1]}', r"settings\.json: labels \['a', 1\]"),
        ("settings.json", '{"labels": ["a", "b"], "answer_kind": "text"}', "one of the two"),
        (
            "settings.json",
            '{"labels": ["Today", "page"]}',
            r"exemplars\.jsonl, line 2: the answer 'close'; expected one of kind 'one of page, tod",
        ),
        (
            "settings.json",
            '{"answer_kind": "number"}',
            r"exemplars\.jsonl, line 1: the answer 'Today'; expected one of kind 'number'",
        ),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(folder, name, text, message):
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_scenario(folder)


def test_the_triage_example_runs_through():
    scenario = read_scenario(TRIAGE)
    assert scenario.settings.dataset == "triage"
    labels = Counter(bool(item.answer) for item in scenario.inputs)
    assert labels == {True: 6, False: 6}
    recipe = scenario_recipe(scenario)
    for asked in scenario.inputs:
        request = recipe.first(asked)
        assert request.prompt.endswith(f"Q: {asked.question}\nLet's think step by step")
        written = f"\nSomebody waits.\nThe answer is {asked.answer or 'queue'}\n\nQ: "
        chain = recipe.sample_of(asked, Completion(written, None, "length"), None, None)
        sample = Sample(
            asked.id,
            asked.dataset,
            asked.split,
            asked.question,
            asked.answer or "queue",
            recipe.format,
            request.key("teacher"),
            {"model": "teacher", "params": recipe.params},
            0,
            chain.text,
            chain.logprobs,
            chain.finish_reason,
        )
        assert rejection(sample, Filters(answer_kind=scenario.settings.answer_kind)) is None


def test_the_triage_exemplars_show_every_answer():
    scenario = read_scenario(TRIAGE)
    request = scenario_recipe(scenario).first(scenario.inputs[0])
    blocks = request.prompt.split("\n\nQ: ")[1:-1]
    kind = scenario.settings.answer_kind
    assert kind == "one of close, page, queue, today"
    answers = [extract_answer(block, kind=kind, mode="strict") for block in blocks]
    assert answers == ["page", "queue", "today", "close"]
    assert all(
        any(answers_match(answer, item.answer, kind=kind) for answer in answers)
        for item in scenario.inputs
        if item.answer
    )
