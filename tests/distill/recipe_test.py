"""A recipe's file: what it leaves to its folder, what a stage needs of it."""

import pytest

from cot_flax.configuration import checks
from cot_flax.distill import recipe
from cot_flax.errors import UserError

HEAD = """
include 'runs/recipe.gin'
include 'models/world.gin'
include 'objectives/topk_kl.gin'
"""


@pytest.fixture
def written(tmp_path):
    def write(text, name="r.gin"):
        (tmp_path / name).write_text(HEAD + text)
        return str(tmp_path / name)

    return write


def test_what_has_no_value_stands_in_the_folder(written):
    read = recipe.read_recipe([written("OUT = 'runs/x/'")])
    found = {name: recipe.value(read, name) for name in read.macros}
    assert found["SAMPLES_FILE"] == "runs/x/samples.jsonl.gz"
    assert found["TEACHER_STORE"] == "runs/x/store"
    assert found["MODEL_DIR"] == found["CHECKPOINT_PATH"] == "runs/x/student"
    assert found["EVAL_OUTPUT_DIR"] == "runs/x/student/test"
    assert found["INITIAL_CHECKPOINT_PATH"] is None


def test_a_value_of_the_files_or_of_a_flag_stays(written):
    file = written("OUT = 'runs/x'\nSAMPLES_FILE = 'mine.jsonl'")
    read = recipe.read_recipe([file], ["MODEL_DIR=elsewhere"])
    assert recipe.value(read, "SAMPLES_FILE") == "mine.jsonl"
    assert recipe.value(read, "CHECKPOINT_PATH") == "elsewhere"


def test_the_best_checkpoint_is_what_is_evaluated(written):
    file = written("OUT = 'runs/x'\nBEST_METRICS = ('a/accuracy', 'loss')")
    read = recipe.read_recipe([file])
    assert recipe.value(read, "CHECKPOINT_PATH") == "runs/x/student/best/a/accuracy"
    assert recipe.value(read, "EVAL_OUTPUT_DIR") == "runs/x/student/test"
    assert recipe.run_of(read) == "runs/x/student"
    newest = recipe.read_recipe([file], ["CHECKPOINT_PATH=runs/x/student"])
    assert recipe.run_of(newest) == recipe.value(newest, "CHECKPOINT_PATH") == "runs/x/student"
    other = recipe.read_recipe([file], ["CHECKPOINT_PATH=runs/x/students"])
    assert recipe.run_of(other) == "runs/x/students"


@pytest.mark.parametrize("out", ["gs://mine/run", "s3://mine/run"])
def test_a_bucket_is_no_folder_of_a_recipe(out):
    recipe.check_folder("runs/x")
    with pytest.raises(UserError, match=f"OUT = '{out}'; expected a folder of this machine"):
        recipe.check_folder(out)


def test_stages_that_are_not_there_leave_no_files(written):
    file = written("OUT = 'runs/x'\nSTAGES = ('train', 'evaluate')")
    bindings, needed = recipe.of_stage("train", [file], [])
    assert not any(binding.startswith(("SAMPLES_FILE", "TEACHER_STORE")) for binding in bindings)
    assert "TRAIN_STEPS" in needed and "STORE_TASK" not in needed


@pytest.mark.parametrize(
    ("scenario", "asks"), [("", set(recipe.QUESTIONS)), ("SCENARIO = 'folder'", set())]
)
def test_teaching_needs_questions_or_a_scenario(written, scenario, asks):
    _, needed = recipe.of_stage("teach", [written(f"OUT = 'x'\n{scenario}")], [])
    assert set(needed) - {"SAMPLES_FILE"} == asks


def test_a_second_recipe_starts_from_the_student_of_the_first(written):
    first = written("OUT = 'runs/one'", "one.gin")
    second = written(f"OUT = 'runs/two'\nINITIAL_RECIPE = {first!r}", "two.gin")
    read = recipe.read_recipe([second])
    assert recipe.value(read, "INITIAL_CHECKPOINT_PATH") == "runs/one/student"


@pytest.mark.parametrize("stages", ["('train', 'teach')", "('cook',)", "()", "('train', 'train')"])
def test_stages_that_cannot_be_are_refused(written, stages):
    with pytest.raises(UserError, match="STAGES"):
        recipe.read_recipe([written(f"OUT = 'x'\nSTAGES = {stages}")])


def test_a_recipe_without_a_folder_is_refused(written):
    with pytest.raises(checks.NoValue, match="OUT"):
        recipe.read_recipe([written("")])


def test_an_experiment_is_no_recipe():
    assert recipe.of_stage("train", ["experiments/world_base.gin"], []) is None
    with pytest.raises(UserError, match=r"runs/recipe\.gin"):
        recipe.read_recipe(["experiments/world_base.gin"])
