"""One line from a file of questions to a recipe, and what it says before it spends anything."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.story_server import STORIES, StoryServer

from cot_flax.chains.samples import read_samples, write_samples
from cot_flax.configuration import checks
from cot_flax.distill import questions, recipe, stages, start, write
from cot_flax.distill.questions import Item
from cot_flax.errors import UserError
from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import make_samples
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.teacher.scenario import read_scenario, read_test

WORKED = [
    {"question": f"What is {i} + 3?", "rationale": f"{i} + 3 = {i + 3}.", "answer": str(i + 3)}
    for i in range(40)
]
STUDENT = """
include 'models/world.gin'
from __gin__ import dynamic_registration
from cot_flax.students import t5
t5.T5Config.vocab_size = 384
"""
TICKETS = [
    {"question": f"My {thing} number {i} is late.", "answer": team}
    for i in range(20)
    for thing, team in (("parcel", "Delivery"), ("refund", "Billing"))
]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def write_file(records, name="data.jsonl"):
    with open(name, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return name


def options(data, **more):
    Path("student.gin").write_text(STUDENT)
    student = {"student": "student.gin", "vocabulary": str(VOCABULARY_PATH)}
    return start.Options(**{"data": data, "out": "run"} | student | more)


def started(given, *, dry_run=True, redo=False):
    return start.start(given, ["distill", given.data], dry_run=dry_run, redo=redo)


def macros(file):
    read = recipe.read_recipe([file])
    return {name: recipe.value(read, name) for name in read.macros}


def test_chains_alone_need_no_teacher():
    found = started(options(write_file(WORKED)))
    bound = macros(found.file)
    assert bound["STAGES"] == ("prepare", "train", "evaluate", "report", "export")
    assert bound["SAMPLES_FILE"] == "run/scenario/chains.jsonl"
    # Random weights: chains 0.8, so 40 * 25 / 0.8 examples of 50; 5 questions choose nothing.
    assert bound["EPOCHS"] == 25 and bound["TRAIN_STEPS"] is None
    assert bound["MIXTURE_OR_TASK_NAME"] == {
        "scenario_teacher_zero_shot_cot": 0.8,
        "scenario_teacher_zero_shot_answer": 0.2,
    }
    assert bound["BEST_METRICS"] == () and bound["CHECKPOINT_PATH"] == "run/student"
    assert bound["TEST_TASKS"] == ("scenario_zero_shot_cot", "scenario_zero_shot_answer")
    chains = list(map(json.loads, Path("run/scenario/chains.jsonl").read_text().splitlines()))
    held_out = {item.question for item in read_test("run/scenario")}
    assert len(chains) == 25 and len(held_out) == 10
    assert not held_out & {chain["question"] for chain in chains}
    text = "\n".join(found.lines)
    assert "answers: number" in text and "10 questions for the test" in text
    assert all(line in Path(found.file).read_text() for line in found.lines)
    read = recipe.read_recipe([found.file])
    checks.check_names(read)
    for stage in ("prepare", "train", "evaluate"):
        checks.check_required(read, recipe.needed(read, stage))


def test_a_checkpoint_is_chosen_and_all_formats_are_mixed(monkeypatch):
    """Of a student that has learnt to read; 200 questions have 20 of validation."""
    opened = start.open_student
    monkeypatch.setattr(
        start, "open_student", lambda *names: dataclasses.replace(opened(*names), start="base")
    )
    worked = [
        {"question": f"What is {i} + 3?", "rationale": f"{i} + 3 = {i + 3}.", "answer": str(i + 3)}
        for i in range(200)
    ]
    found = started(options(write_file(worked)))
    bound = macros(found.file)
    metric = "scenario_zero_shot_cot/accuracy"
    assert bound["BEST_METRICS"] == (metric,) and bound["EVAL_TASKS"] == "scenario_zero_shot_cot"
    assert bound["CHECKPOINT_PATH"] == f"run/student/best/{metric}"
    assert bound["EVAL_OUTPUT_DIR"] == "run/student/test"
    rates = bound["MIXTURE_OR_TASK_NAME"]
    assert len(rates) == 4 and rates["scenario_teacher_few_shot_answer"] == 0.1
    zero_shot = recipe.value(recipe.read_recipe([found.file]), "TASK_FEATURE_LENGTHS")["inputs"]
    read = recipe.read_recipe([found.file])
    checks.check_names(read)
    steps = {step.name: step for step in stages.steps_of(read, [found.file], ())}
    assert steps["evaluate"].reads["the student"] == steps["export"].reads["the student"]
    assert steps["export"].reads["the student"] == "run/student"
    assert "run/student" in steps["report"].command
    long = [row | {"rationale": row["rationale"] * 60} for row in worked]
    longer = started(options(write_file(long), out="other"))
    assert len(macros(longer.file)["MIXTURE_OR_TASK_NAME"]) == 2
    assert any("4 worked examples make" in line and "above 1,024" in line for line in longer.lines)
    assert zero_shot > macros(longer.file)["TASK_FEATURE_LENGTHS"]["inputs"]


def test_a_bucket_is_refused_before_anything_is_asked():
    with StoryServer() as server:
        given = options(write_file(TICKETS), out="gs://mine/run", url=server.url, model="story")
        with pytest.raises(
            UserError, match="OUT = 'gs://mine/run'; expected a folder of this mach"
        ):
            started(given, dry_run=False)
        assert not server.bodies


def test_an_answer_of_another_kind_is_left_out_and_said():
    slip = {"question": "What is much?", "rationale": "Much is much.", "answer": "a lot"}
    found = started(options(write_file([*WORKED, slip])))
    text = "\n".join(found.lines)
    assert "questions: 40 of" in text
    assert "1 answers that are none of kind number (such as 'a lot') are left out" in text
    read_scenario("run/scenario")  # which takes no other kind


def test_a_samples_file_keeps_what_its_teacher_gave():
    stories = make_stories(50, split="train", seed=1)
    write_samples("samples.jsonl.gz", make_samples(stories, samples=2, seed=1))
    found = started(options("samples.jsonl.gz"))
    bound = macros(found.file)
    kept = list(read_samples(bound["SAMPLES_FILE"]))
    assert len(kept) == 2 * 35 and kept[0].logprobs is not None
    assert {sample.dataset for sample in kept} == {"run"}
    assert bound["KL_WEIGHT"] == 1.0  # of objectives/topk_kl.gin


def test_labels_are_asked_for_where_no_worked_example_shows_them():
    with StoryServer() as server:
        given = options(write_file(TICKETS), url=server.url, model="story")
        found = started(given)
        assert not server.bodies  # a dry run asks nothing
    bound = macros(found.file)
    assert bound["RECIPE"] == "ho2022" and bound["TEACH_SAMPLES"] == 8
    ask = "Which one is it: billing or delivery?"
    assert all(item.question.endswith(ask) for item in read_test("run/scenario"))
    assert any(ask in line for line in found.lines)
    settings = json.loads(Path("run/scenario/settings.json").read_text())
    assert settings["labels"] == ["billing", "delivery"]


def test_worked_examples_are_shown_and_the_student_gets_the_question_as_it_is():
    worked = {"rationale": "Parcels go there."}
    records = [record | (worked if i % 2 else {}) for i, record in enumerate(TICKETS)]
    found = started(options(write_file(records), model="story", url="http://127.0.0.1:9/v1"))
    assert macros(found.file)["RECIPE"] is None
    scenario = read_scenario("run/scenario")
    assert len(scenario.exemplars) == 4 and "billing, delivery" in scenario.instruction
    assert not any("Which one" in item.question for item in scenario.inputs)


def test_exemplars_are_of_different_answers_first():
    given = [Item(f"q{i}", f"{i}?", answer, ("So.",)) for i, answer in enumerate("aaabbc")]
    assert [item.id for item in write.exemplars(given)] == ["q0", "q3", "q5", "q1"]


def test_a_scenarios_folder_is_taken_as_it_is():
    started(options(write_file(TICKETS), model="m", url="http://127.0.0.1:9/v1"))
    records = [{"input": "A?", "reasoning": "So.", "answer": "billing"}]
    write_file(records, "run/scenario/exemplars.jsonl")
    found = started(options("run/scenario/", out="other", model="m", url="http://127.0.0.1:9/v1"))
    bound = macros(found.file)
    assert bound["SCENARIO"] == "run/scenario" and bound["RECIPE"] is None
    assert not os.path.exists("other/scenario")
    with pytest.raises(UserError, match="without a teacher"):
        started(options("run/scenario", out="third"))


def test_the_same_command_leaves_a_recipe_as_the_user_changed_it():
    given = options(write_file(WORKED))
    file = started(given, dry_run=False).file
    text = Path(file).read_text()
    with open(file, "a") as changed:
        changed.write("EPOCHS = 3\n")
    found = started(given, dry_run=False)
    assert "was changed since" in found.lines[-1] and macros(file)["EPOCHS"] == 3
    with pytest.raises(UserError, match="of another command"):
        started(dataclasses.replace(given, seed=1), dry_run=False)
    assert "EPOCHS = 3\n" in Path(file).read_text()
    started(given, dry_run=False, redo=True)
    assert Path(file).read_text() == text
    # Words that only say how to run leave it the same recipe.
    start.start(given, ["distill", "--accept-changes"], dry_run=False, redo=False)
    assert "--accept-changes" in Path(file).read_text()


@pytest.mark.parametrize(
    ("records", "more", "message"),
    [
        (WORKED[:5], {}, "5 questions with an answer .* 40 or more"),
        (TICKETS, {}, "without chains, and no teacher"),
        ([{"question": f"{i}?"} for i in range(50)], {"model": "m"}, "chain|answer"),
        (WORKED, {"student": "models/t5_1_1_huge.gin"}, "--student"),
        (WORKED, {"vocabulary": None}, "--vocabulary FILE"),
        (WORKED, {"student": "models/world.gin"}, "336 ids .* 256"),
        (WORKED, {"vocabulary": "nothing.model"}, "no file nothing.model"),
        (WORKED, {"student": "./nothing"}, "no folder ./nothing"),
        (WORKED, {"kind": "labl"}, "--kind labl"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(records, more, message):
    with pytest.raises(UserError, match=message):
        started(options(write_file(records), **more))
    assert not os.path.exists("run")


def test_a_server_that_is_not_there_is_one_line(capfd):
    given = options(write_file(TICKETS), url="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(SystemExit) as ended:
        started(given, dry_run=False)
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "127.0.0.1:9" in error
    assert not os.path.exists("run/recipe.gin")


@pytest.mark.slow
def test_one_line_teaches_from_a_servers_chains_to_a_report(tmp_path):
    """In processes, as a user starts it; with a recipe that is changed after a dry run."""
    stories = [{"question": s.question, "answer": str(s.answer)} for s in STORIES]
    write_file(stories)
    Path("student.gin").write_text(STUDENT)
    command = [
        *(sys.executable, "-m", "cot_flax.cli", "distill", "data.jsonl", "--model", "story"),
        *("--student", "student.gin", "--vocabulary", str(VOCABULARY_PATH), "--out", "run"),
        *("--completions", "--price-in", "1", "--price-out", "2"),
    ]
    variables = os.environ | {"COT_FLAX_CACHE": str(tmp_path / "cache")}

    def call(*more):
        done = subprocess.run(
            [*command, "--teacher", server.url, *more], env=variables, text=True, timeout=300,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    with StoryServer() as server:
        printed = call("--dry-run")
        assert not server.bodies
        for words in ("Let's think step by step", "requests to send", "$", "steps", "GiB of disk"):
            assert words in printed, printed
        with open("run/recipe.gin", "a") as file:
            file.write("EPOCHS = None\nTRAIN_STEPS = 2\nTEACH_SAMPLES = 2\nMAX_EXAMPLES = 4\n")
            file.write("MESH_DATA = 1\n")
        printed = call()
        for words in ("changed since it was written", "run/report.html", "no base to compare"):
            assert words in printed, printed
        asked = len(server.bodies)
        again = call()
        assert len(server.bodies) == asked and again.count("done before") == 6
    train = questions.split(questions.read("data.jsonl")[0]).train
    assert len(list(read_samples("run/samples.jsonl.gz"))) == 2 * len(train)
