import re

import gin
import pytest

from cot_flax import configuration
from cot_flax.errors import UserError

BASE = ["experiments/world_answer.gin"]
MODEL_DIR = "MODEL_DIR='run'"


@pytest.fixture(autouse=True)
def _leave_gin_as_found():
    gin.clear_config()
    yield
    gin.clear_config()


def write(folder, name, text):
    (folder / name).write_text(text)
    return str(folder / name)


def test_files_then_bindings_then_macros():
    configuration.parse(BASE, [MODEL_DIR, "TRAIN_STEPS=7", "losses.Objective.z_loss=0.5"])
    assert configuration.macro("TRAIN_STEPS") == 7
    assert configuration.macro("MODEL_DIR") == "run"
    assert gin.query_parameter("losses.Objective.z_loss") == 0.5


def test_a_second_call_replaces_the_first():
    configuration.parse(BASE, [MODEL_DIR, "TRAIN_STEPS=7"])
    configuration.parse(BASE, [MODEL_DIR])
    assert configuration.macro("TRAIN_STEPS") != 7


def test_search_paths_come_before_our_own_files_and_last_for_one_call(tmp_path):
    (tmp_path / "models").mkdir()
    mine = write(tmp_path / "models", "world.gin", "MODEL = 'mine'\n")
    other = tmp_path / "other"
    other.mkdir()
    write(other, "mine.gin", "MODEL = 'other'\n")
    configuration.parse(["models/world.gin"], [], [str(tmp_path)])
    assert configuration.macro("MODEL") == "mine"
    configuration.parse(["models/world.gin"], [])
    assert configuration.macro("MODEL") != "mine"
    configuration.parse(["mine.gin"], [], [str(other)])
    assert configuration.macro("MODEL") == "other"
    with pytest.raises(UserError, match=r"Unable to open file: mine\.gin"):
        configuration.parse(["mine.gin"], [])
    configuration.parse([mine], [])  # as given
    assert configuration.macro("MODEL") == "mine"


@pytest.mark.parametrize(
    ("files", "bindings", "message"),
    [
        (["nowhere.gin"], [], "Unable to open file: nowhere.gin"),
        (BASE, [], "no value for MODEL_DIR; expected one; pass --gin.MODEL_DIR=VALUE"),
        (BASE, ["TRAIN_STEPS=2"], "no value for MODEL_DIR"),
        (BASE, [MODEL_DIR, "TRAIN_STEP=1"], "--gin.TRAIN_STEP; expected a macro"),
        (BASE, [MODEL_DIR, "TRAIN_STEP=1"], "such as TRAIN_STEPS"),
        (BASE, [MODEL_DIR, "loop.train.step=1"], "--gin.loop.train.step=1 (Configurable"),
        (BASE, [MODEL_DIR, "loop.test.total_steps=1"], "No configurable matching 'loop.test'"),
        (BASE, [MODEL_DIR, "OPTIMIZER=@optimizers.sgd()"], "reference '@optimizers.sgd()'"),
        (BASE, [MODEL_DIR, "OPTIMIZER=%SGD"], "'SGD/gin.macro'"),
        (BASE, ["MODEL_DIR='run"], "--gin.MODEL_DIR='run ("),
        (BASE, ["MODEL_DIR='run"], "quote the text"),
        (BASE, ["MODEL_DIR=run'"], "without brackets and quotes at its end"),
        (BASE, [MODEL_DIR, "TRAIN_STEPS=many"], "--gin.TRAIN_STEPS=many; expected a Python value"),
        (BASE, [MODEL_DIR, "OPTIMIZER=adamw"], "--gin.OPTIMIZER=adamw; expected a Python value"),
        (BASE, [MODEL_DIR, "TASK_FEATURE_LENGTHS={'inputs': 1"], "EOF in multi-line statement"),
        (BASE, [MODEL_DIR, "PACK=ture"], "--gin.PACK=ture; expected True, or the text in quotes"),
        (BASE, [MODEL_DIR, "TEACHER_STORE=none"], "TEACHER_STORE=none; expected None, or the text"),
        (BASE, [MODEL_DIR, "loop.train.seed=one"], "--gin.loop.train.seed=one; expected a Python"),
        (BASE, [MODEL_DIR, "TRAIN_STEPS"], "--gin.TRAIN_STEPS (Couldn't parse statement"),
        (["runs/train.gin"], [MODEL_DIR], "MODEL/gin.macro"),
    ],
)
def test_what_gin_does_not_know_is_one_line(files, bindings, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        configuration.parse(files, bindings)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include 'nowhere.gin'", "Unable to open file: nowhere.gin"),
        ("import nowhere", "No module named 'nowhere'"),
        (
            "from __gin__ import dynamic_registration\nfrom cot_flax.training import nowhere",
            "nowhere",
        ),
        ("from __gin__ import dynamic_registration\nloop.train.seed = 1", "'loop' was not"),
        ("A = (1,", "EOF in multi-line statement"),
        ("A = 'one", "bad.gin"),
        ("one two", "bad.gin, line 1"),
        ("no.such.thing = 1", 'bad.gin", line 1'),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        configuration.parse([write(tmp_path, "bad.gin", text + "\n")], [])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("binding", "name", "value"),
    [
        ("MODEL_DIR=runs/x", "MODEL_DIR", "runs/x"),
        ("MODEL_DIR = gs://bucket/a b-1.5", "MODEL_DIR", "gs://bucket/a b-1.5"),
        ("MODEL_DIR=it's", "MODEL_DIR", "it's"),
        ("REMAT=none", "REMAT", "none"),  # its type has no None
        ("TEACHER_STORE=store", "TEACHER_STORE", "store"),
        ("EVAL_TASKS=stories_zero_shot_cot", "EVAL_TASKS", "stories_zero_shot_cot"),
        ("loop.train.model_dir=runs/x", "loop.train.model_dir", "runs/x"),
    ],
)
def test_a_bare_text_is_a_string_and_is_shown(capsys, binding, name, value):
    configuration.parse(BASE, [MODEL_DIR, binding])
    macro = "" if "." in name else "/gin.macro.value"
    assert gin.query_parameter(f"{name}{macro}") == value
    assert capsys.readouterr() == ("", f"{name} = {value!r}\n")


def test_what_is_no_bare_text_stays_what_it_is_and_is_not_shown(capsys):
    bindings = ["MODEL_DIR='runs/x'", "TRAIN_STEPS=7", "EVALUATORS=()", "PACK=True", "LORA=None"]
    configuration.parse(
        BASE, [*bindings, "LEARNING_RATE=1e-3", "OPTIMIZER=@optimizers.adafactor()"]
    )
    found = [configuration.macro(name.partition("=")[0]) for name in bindings]
    assert found == ["runs/x", 7, (), True, None]
    assert gin.query_parameter("OPTIMIZER/gin.macro.value").selector == "optimizers.adafactor"
    assert capsys.readouterr() == ("", "")


def test_bare_texts_are_shown_in_one_line(capsys):
    configuration.parse(BASE, ["MODEL_DIR=runs/x", "TEACHER_STORE=store"])
    assert capsys.readouterr().err == "MODEL_DIR = 'runs/x', TEACHER_STORE = 'store'\n"


def test_a_macro_of_the_users_own_is_of_the_type_that_it_has(tmp_path):
    mine = write(tmp_path, "mine.gin", "NAME = 'a'\nNUMBER = 1\n")
    configuration.parse([mine], ["NAME=b"])
    assert configuration.macro("NAME") == "b"
    with pytest.raises(UserError, match=r"NUMBER=b; expected a Python value"):
        configuration.parse([mine], ["NUMBER=b"])


def test_what_no_file_brings_cannot_be_called():
    configuration.parse([], [])
    with pytest.raises(UserError, match=r"gin files without nowhere\.train"):
        configuration.call("nowhere.train")


def test_scoped_bindings_and_references():
    configuration.parse(
        BASE, [MODEL_DIR, "small/t5.T5Config.emb_dim=8", "MODEL=@small/t5.T5Config()"]
    )
    assert gin.query_parameter("small/t5.T5Config.emb_dim") == 8


def test_a_macro_without_a_value_is_named():
    configuration.parse([], [])
    with pytest.raises(UserError, match=r"no value for MODEL_DIR.*--gin\.MODEL_DIR=VALUE"):
        configuration.macro("MODEL_DIR")


def test_call_runs_what_is_bound():
    configuration.parse(BASE, [MODEL_DIR, "losses.Objective.z_loss=0.25"])
    assert configuration.call("losses.Objective").z_loss == 0.25
    assert configuration.call("losses.Objective", z_loss=0.5).z_loss == 0.5


def test_save_makes_folders_and_writes_what_was_bound(tmp_path):
    configuration.parse(BASE, [MODEL_DIR, "TRAIN_STEPS=7"])
    configuration.save(tmp_path / "new")
    configuration.parse([str(tmp_path / "new" / "config.gin")], [])
    assert configuration.macro("TRAIN_STEPS") == 7
    assert configuration.macro("MODEL_DIR") == "run"


def test_the_gin_files_lie_beside_or_inside_the_package():
    assert (configuration.gin_root() / "runs" / "train.gin").is_file()


def test_a_users_folder_named_like_one_of_ours_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    configuration.parse(["experiments/world_base.gin"], [f"MODEL_DIR='{tmp_path}'"])
    assert configuration.macro("MIXTURE_OR_TASK_NAME") == "world_base_mix"
