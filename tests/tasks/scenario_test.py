"""A scenario's tasks: the settings of its folder say what counts as an answer."""

import json
import shutil

import gin
import pytest

from cot_flax import configuration
from cot_flax.chains.filtering import Filters
from cot_flax.chains.preparation import Preparation
from cot_flax.data.mixtures import find_task
from cot_flax.data.registration import cot_task, prompter_of
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.store import layout
from cot_flax.store.make import answer_kind, template
from cot_flax.store.prepare import prepare
from cot_flax.tasks import scenario
from cot_flax.tasks.stories import VOCABULARY
from cot_flax.teacher.scenario import read_scenario, read_test, scenario_recipe
from cot_flax.text import scoring
from cot_flax.text.tokenizers import SentencePieceTokenizer

TASK = "scenario_zero_shot_cot"
INSTRUCTION = "Work out the amount that is due."
SCENARIO = "cot_flax.tasks.scenario"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "bills"
    folder.mkdir()
    (folder / "instruction.md").write_text(INSTRUCTION)
    exemplars = [
        {"input": f"{i} at 10.", "reasoning": f"{i} * 10 = {i}0.", "answer": f"{i}0.00"}
        for i in range(2, 6)
    ]
    write(folder / "exemplars.jsonl", *exemplars)
    write(folder / "inputs.jsonl", {"input": "7 at 10.", "answer": "70"})
    write(folder / "test.jsonl", {"input": "1,008 at 10.", "answer": "10,080"})
    (folder / "settings.json").write_text('{"answer_kind": "number"}')
    gin.bind_parameter("cot_flax.tasks.scenario.data.directory", str(folder))
    vocabulary = "cot_flax.data.features.t5_vocabulary_file.path"
    gin.bind_parameter(vocabulary, str(VOCABULARY_PATH))
    return folder


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def store_of(texts, folder):
    """Prepares chains whose gold answer is 40, of which the last is wrong."""
    rows = ({"question": f"{i}?", "text": t, "answer": "40"} for i, t in enumerate(texts))
    write(folder / "own.jsonl", *rows)
    settings = Preparation(Filters(answer_kind=answer_kind(TASK)), template=template(TASK))
    store = str(folder / "store")
    kept = prepare(
        [str(folder / "own.jsonl")], store, vocabulary=VOCABULARY, settings=settings, workers=1
    )
    assert dict(kept.fates) == {"kept": 2, "wrong_answer": 1}
    return store


def test_the_settings_rule_the_task(folder):
    assert cot_task(TASK).answer_kind == "number"
    assert answer_kind("scenario_teacher_zero_shot_cot") == "number"
    (metric,) = find_task(TASK).metric_fns
    found = metric(["10,080", "40.00"], ["The answer is $10080.", "The answer is 40"])
    assert found == {"accuracy": 1.0, "parse_failures": 0.0}
    (folder / "settings.json").unlink()
    assert cot_task(TASK).answer_kind == "text"


def test_right_chains_of_numbers_are_kept(folder, tmp_path):
    texts = ["4 * 10 = 40. The answer is 40", "The answer is $40.00.", "The answer is 41"]
    write(
        tmp_path / "own.jsonl",
        *({"question": f"{i}?", "text": text, "answer": "40.00"} for i, text in enumerate(texts)),
    )
    settings = Preparation(Filters(answer_kind=answer_kind(TASK)))
    kept = prepare(
        [str(tmp_path / "own.jsonl")],
        str(tmp_path / "store"),
        vocabulary=VOCABULARY,
        settings=settings,
        workers=1,
    )
    assert (kept.kept, dict(kept.fates)) == (2, {"kept": 2, "wrong_answer": 1})


def test_the_settings_word_the_task(folder, tmp_path):
    settings = {"answer_kind": "number", "cue": "Rechnen wir", "closing": "Zu zahlen sind"}
    (folder / "settings.json").write_text(json.dumps(settings | {"markers": ["Summe"]}))
    card = cot_task(TASK)
    assert card.answer_kind == "number behind summe, zu zahlen sind"
    assert (template(TASK).closing, card.cue) == ("Zu zahlen sind {answer}", "Rechnen wir")
    (example,) = find_task(TASK).get_dataset(split="test").as_numpy_iterator()
    assert (
        example["inputs_pretokenized"].decode() == f"{INSTRUCTION} ### Q: 1,008 at 10.\nRechnen wir"
    )
    (metric,) = find_task(TASK).metric_fns
    texts = ["Zu zahlen sind 10080 von 5", "Summe: 40, nicht 30"]
    assert metric(["10,080", "40.00"], texts)["accuracy"] == 1.0
    texts = ["4 * 10 = 40.\nSumme: 40 von 90", "Zu zahlen sind 40.", "Zu zahlen sind 41."]
    store = store_of(texts, tmp_path)
    targets = [
        SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=0).decode(record["targets"].tolist())
        for record in layout.dataset(store).as_numpy_iterator()
    ]
    assert [target.count("sind 40") for target in targets] == [1, 1]


def test_bytes_lack_no_script(folder):
    (folder / "settings.json").write_text('{"answer_kind": "number", "language": "zh"}')
    write(folder / "test.jsonl", {"input": "5盒鸡蛋有多少个？", "answer": "50"})
    task = find_task("scenario_bytes_zero_shot_cot")
    (example,) = task.get_dataset(split="test").as_numpy_iterator()
    assert example["targets_pretokenized"].decode() == "答案是50"
    vocabulary = task.output_features["inputs"].vocabulary
    assert vocabulary.decode(example["inputs"].tolist()).startswith(
        f"{INSTRUCTION} ### Q: 5盒鸡蛋有多少个？\n让我们"
    )
    assert vocabulary.unk_id not in example["inputs"]
    assert answer_kind("scenario_bytes_teacher_few_shot_cot") == "number"


def test_labels_rule_the_task(folder):
    (folder / "settings.json").write_text('{"labels": ["20.00", "30.00", "40.00", "50.00"]}')
    kind = cot_task(TASK).answer_kind
    assert kind == "one of 20.00, 30.00, 40.00, 50.00"
    texts = ["The answer is 40.00", "The answer is 60"]
    scored = scoring.score(texts, ["40.00"] * 2, kind=kind, mode="strict")
    assert [score.extracted for score in scored] == ["40.00", None]


def test_without_a_folder_the_remedy_is_named():
    with pytest.raises(UserError, match=r"no scenario; expected its folder; pass --gin\.SCENARIO="):
        cot_task(TASK)


def test_the_test_split_may_be_a_table(folder):
    (folder / "test.jsonl").unlink()
    (folder / "test.csv").write_text('input,answer\n"1,008 at 10.","10,080"\n')
    (record,) = scenario.SOURCE.get_dataset("test", shuffle=False).as_numpy_iterator()
    assert (record["question"], record["answer"]) == (b"1,008 at 10.", b"10,080")


def test_the_chains_of_a_store_have_the_tasks_template(folder, tmp_path):
    gin.bind_parameter("cot_flax.data.registration.prompting.template", "ho2022")
    texts = ["4 * 10 = 40. The answer is 40", "4 * 10 = 40. --> 40", "4 * 10 = 41. --> 41"]
    store = store_of(texts, tmp_path)
    tokenizer = SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=0)
    records = layout.dataset(store).as_numpy_iterator()
    assert {tokenizer.decode(record["targets"].tolist()) for record in records} == {
        "4 * 10 = 40. The answer is 40 --> 40",
        "4 * 10 = 40. --> 40",
    }


# Prompts ------------------------------------------------------------------------------------------


def shown(i):
    """An exemplar of the folder, as the default template writes it."""
    return f"Q: {i} at 10.\nLet's think step by step\n{i} * 10 = {i}0.\nThe answer is {i}0.00"


def prompt_of(task, split="test"):
    (example,) = find_task(task).get_dataset(split=split, shuffle=False).as_numpy_iterator()
    return example["inputs_pretokenized"].decode()


def test_instruction_and_all_exemplars_reach_the_student_as_the_teacher(folder):
    asked = "Q: 1,008 at 10.\nLet's think step by step"
    prompt = " ### ".join([INSTRUCTION, *map(shown, range(2, 6)), asked])
    assert prompt_of("scenario_few_shot_cot") == prompt
    assert prompter_of("scenario_few_shot_cot")("1,008 at 10.", "any") == prompt
    assert prompt_of(TASK) == f"{INSTRUCTION} ### {asked}"
    recipe = scenario_recipe(read_scenario(folder))
    (question,) = read_test(folder)
    assert recipe.prompt(question) == prompt.replace(" ### ", "\n\n")
    card = cot_task("scenario_few_shot_cot")
    assert (card.exemplars, card.shots, card.instructed) == ("fixed", 4, True)
    gin.bind_parameter("cot_flax.data.registration.prompting.shots", 1)  # of other tasks
    assert prompt_of("scenario_few_shot_cot") == prompt


def test_drawn_exemplars_by_settings_or_gin(folder):
    (folder / "settings.json").write_text(
        '{"answer_kind": "number", "shots": 2, "instruct": false}'
    )
    assert prompt_of("scenario_few_shot_cot").count("Q: ") == 3
    assert prompt_of(TASK).startswith("Q: 1,008")
    (question,) = read_test(folder)
    assert scenario_recipe(read_scenario(folder)).prompt(question).count("Q: ") == 3
    gin.bind_parameter(f"{SCENARIO}.exemplars.shots", 3)
    assert prompt_of("scenario_few_shot_cot").count("Q: ") == 4
    gin.bind_parameter(f"{SCENARIO}.exemplars.shots", 0)
    assert cot_task("scenario_few_shot_cot").exemplars == "fixed"


def test_an_instruction_may_be_left_out_of_a_format(folder):
    gin.parse_config(
        f"{TASK}/cot_flax.data.registration.prompting.instruction = ''\n"
        "scenario_zero_shot_answer/cot_flax.data.registration.prompting.instruction = 'Be brief.'\n"
    )
    assert prompt_of(TASK) == "Q: 1,008 at 10.\nLet's think step by step"
    assert prompt_of("scenario_zero_shot_answer") == "Be brief. ### Q: 1,008 at 10. A:"
    assert not cot_task(TASK).instructed


@pytest.mark.parametrize("own", ["ho2022", {"cot_target": "{rationale} => {answer}"}])
def test_the_settings_template_is_the_students_and_the_teachers(folder, own):
    (folder / "settings.json").write_text(json.dumps({"answer_kind": "number", "template": own}))
    marker = "-->" if own == "ho2022" else "=>"
    assert prompt_of("scenario_few_shot_cot").count(f". {marker} ") == 4
    (question,) = read_test(folder)
    prompt = scenario_recipe(read_scenario(folder)).prompt(question)
    assert prompt.count(f". {marker} ") == prompt.count("\n\n") - 1 == 4
    (metric,) = find_task(TASK).metric_fns
    assert metric(["10,080"], [f"7 * 10 = 70. {marker} 10080"])["accuracy"] == 1.0


def vocabulary():
    """That of the task, which has sentinels besides."""
    return find_task(TASK).output_features["targets"].vocabulary


# Validation ---------------------------------------------------------------------------------------


def add_inputs(folder, n):
    rows = [{"id": f"i{i}", "input": f"{i} at 7.", "answer": str(7 * i)} for i in range(n)]
    write(folder / "inputs.jsonl", *rows)


def held_out(folder):
    return {item.id for item in read_scenario(folder).validation}


def test_a_share_of_the_inputs_with_answers_is_held_out_by_question(folder):
    add_inputs(folder, 19)
    assert held_out(folder) == set()  # too few
    add_inputs(folder, 400)
    scenario = read_scenario(folder)
    chosen = held_out(folder)
    assert 25 < len(chosen) < 55  # 40 expected, standard deviation 6
    assert {item.id for item in scenario.inputs} == {f"i{i}" for i in range(400)} - chosen
    assert scenario.notes[0].startswith(f"held out {len(chosen)} of 400 inputs for validation")
    found = find_task(TASK).get_dataset(split="validation").as_numpy_iterator()
    assert {example["id"].decode() for example in found} == chosen
    add_inputs(folder, 200)  # what is held out does not depend on the others
    assert held_out(folder) == {i for i in chosen if int(i[1:]) < 200}
    (folder / "settings.json").write_text('{"answer_kind": "number", "validation": 0}')
    assert held_out(folder) == set()


def test_a_validation_file_is_held_out(folder):
    add_inputs(folder, 30)
    write(folder / "validation.jsonl", {"input": "3 AT 7", "answer": "21", "id": "v"})
    scenario = read_scenario(folder)
    assert [item.id for item in scenario.validation] == ["v"]
    assert "i3" not in {item.id for item in scenario.inputs} and len(scenario.inputs) == 29
    assert scenario.notes == [
        "left out 1 of 30 inputs, whose text stands in the validation file too: i3"
    ]


def test_chains_on_validation_questions_are_not_trained_on(folder, tmp_path):
    add_inputs(folder, 100)
    rows = [
        {"question": f"{i} at 7.", "text": f"The answer is {7 * i}", "answer": str(7 * i)}
        for i in range(100)
    ]
    write(tmp_path / "own.jsonl", *rows)
    settings = Preparation(Filters(answer_kind=answer_kind(TASK)), template=template(TASK))
    store = str(tmp_path / "store")
    files = [str(tmp_path / "own.jsonl")]
    kept = prepare(files, store, vocabulary=vocabulary(), settings=settings, workers=1).kept
    gin.bind_parameter(f"{SCENARIO}.teacher_store.directory", store)
    trained = list(find_task("scenario_teacher_zero_shot_cot").get_dataset().as_numpy_iterator())
    assert (kept, len(trained)) == (100, 100 - len(held_out(folder)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 1}, "validation 1; expected a share from 0 up to 1"),
        ({"shots": -1}, "shots -1; expected 0 or more"),
        ({"shots": 4}, "4 shots of 4 exemplars; expected fewer shots than exemplars"),
        ({"instruct": "no"}, "instruct 'no'; expected true or false"),
        ({"template": "ho"}, "template 'ho'; expected one of t5"),
        ({"template": {"stop": 1}}, "stop 1 of a template; expected a text"),
    ],
)
def test_what_the_settings_cannot_be(folder, settings, message):
    (folder / "settings.json").write_text(json.dumps({"answer_kind": "number"} | settings))
    with pytest.raises(UserError, match=message):
        read_scenario(folder)


# Several scenarios --------------------------------------------------------------------------------


@pytest.fixture
def three(folder, tmp_path):
    """Folders of bills, tips and rents; the last one has no store."""
    folders = [folder]
    for name in ("tips", "rents"):
        copied = shutil.copytree(folder, tmp_path / name)
        (copied / "instruction.md").write_text(f"Work out the {name}.")
        folders.append(copied)
    return folders


def test_several_scenarios_have_their_own_prompts_and_one_mixture(three, tmp_path):
    stores = []
    for folder in three[:2]:
        file, store = tmp_path / f"{folder.name}.jsonl", tmp_path / f"{folder.name}-store"
        write(file, {"question": f"9 at {folder.name}", "text": "The answer is 9", "answer": "9"})
        settings = Preparation(Filters(answer_kind="number"))
        prepare([str(file)], str(store), vocabulary=vocabulary(), settings=settings, workers=1)
        stores.append(str(store))
    gin.bind_parameter(f"{SCENARIO}.several.folders", [str(folder) for folder in three])
    gin.bind_parameter(f"{SCENARIO}.several.stores", stores)
    assert prompt_of("scenario_tips_zero_shot_cot").startswith("Work out the tips. ### Q: ")
    mixture = find_task("scenarios_teacher_cot_mix")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert len(rates) == 8
    assert rates["scenario_bills_teacher_few_shot_cot"] == pytest.approx(0.4)
    names = {task.name for task in find_task("scenarios_held_out").tasks}
    assert names == {"scenario_rents_zero_shot_cot", "scenario_rents_few_shot_cot"}
    read = (task.get_dataset(shuffle=False).as_numpy_iterator() for task in mixture.tasks)
    prompts = {e["inputs_pretokenized"].decode() for examples in read for e in examples}
    begins = {"bills": INSTRUCTION, "tips": "Work out the tips."}
    for name, begin in begins.items():
        found = [prompt for prompt in prompts if f"9 at {name}" in prompt]
        assert len(found) == 4 and all(prompt.startswith(begin) for prompt in found)
    assert not any("rents" in prompt for prompt in prompts)
    gin.bind_parameter(f"{SCENARIO}.several.stores", stores[:1])  # as a notebook goes on
    mixture = find_task("scenarios_teacher_cot_mix")
    assert {task.name.split("_")[1] for task in mixture.tasks} == {"bills"}


def test_scenarios_of_one_name_are_refused(three, tmp_path):
    again = shutil.copytree(three[1], tmp_path / "more" / "tips")
    gin.bind_parameter(f"{SCENARIO}.several.folders", [str(three[1]), str(again)])
    with pytest.raises(UserError, match=r"several scenarios called tips; expected a name for each"):
        find_task("scenario_none_zero_shot_cot")
    gin.bind_parameter(f"{SCENARIO}.several.folders", str(three[1]))
    with pytest.raises(UserError, match="expected a list of folders, and a store or None for each"):
        find_task("scenario_none_zero_shot_cot")


# An instruction for chains alone ------------------------------------------------------------------


def test_chains_are_asked_for_by_the_instruction_alone(folder):
    files = ["experiments/scenario_instructed_evaluate.gin"]
    macros = {"SCENARIO": str(folder), "CHECKPOINT_PATH": "c", "EVAL_OUTPUT_DIR": "o"}
    macros["T5_VOCABULARY_FILE"] = str(VOCABULARY_PATH)
    configuration.parse(files, [f"{name}={value!r}" for name, value in macros.items()])
    asked = prompt_of("scenario_zero_shot_answer")
    assert asked == "Q: 1,008 at 10. A:"
    assert prompt_of(TASK) == f"{INSTRUCTION} ### {asked}"
    for format in ("few_shot_cot", "few_shot_answer"):
        prompt = prompt_of(f"scenario_{format}")
        assert prompt.endswith(asked)
        assert prompt.startswith(INSTRUCTION) == format.endswith("cot")
        assert ("5 * 10 = 50." in prompt) == format.endswith("cot")
