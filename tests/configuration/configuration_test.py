import re
from typing import Any

import gin
import pytest

from cot_flax import configuration
from cot_flax.configuration import draft, signatures
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
    with pytest.raises(UserError, match=r"no gin file mine\.gin within"):
        configuration.parse(["mine.gin"], [])
    configuration.parse([mine], [])  # as given
    assert configuration.macro("MODEL") == "mine"


@pytest.mark.parametrize(
    ("files", "bindings", "message"),
    [
        (["nowhere.gin"], [], "no gin file nowhere.gin within"),
        (BASE, [], "no value for MODEL_DIR; expected one; pass --gin.MODEL_DIR=VALUE"),
        (BASE, ["TRAIN_STEPS=2"], "no value for MODEL_DIR"),
        (BASE, [MODEL_DIR, "TRAIN_STEP=1"], "--gin.TRAIN_STEP; expected a macro"),
        (BASE, [MODEL_DIR, "TRAIN_STEP=1"], "such as TRAIN_STEPS"),
        (
            BASE,
            [MODEL_DIR, "loop.train.step=1"],
            "--gin.loop.train.step; expected a parameter of loop.train, such as",
        ),
        (
            BASE,
            [MODEL_DIR, "loop.test.total_steps=1"],
            "--gin.loop.test.total_steps; .*cot_flax.training.loop has, such as .*loop.train",
        ),
        (
            BASE,
            [MODEL_DIR, "OPTIMIZER=@optimizers.sgd()"],
            "OPTIMIZER = @optimizers.sgd(); .*, such as @optimizers.",
        ),
        (
            BASE,
            [MODEL_DIR, "OPTIMIZER=%SGD"],
            "%SGD for OPTIMIZER; expected a macro that the files define",
        ),
        (BASE, ["MODEL_DIR='run"], "--gin.MODEL_DIR='run ("),
        (BASE, ["MODEL_DIR='run"], "quote the text"),
        (BASE, ["MODEL_DIR=run'"], "without brackets and quotes at its end"),
        (
            BASE,
            [MODEL_DIR, "TRAIN_STEPS=many"],
            "--gin.TRAIN_STEPS=many; expected a whole number or None; correct",
        ),
        (
            BASE,
            [MODEL_DIR, "OPTIMIZER=adamw"],
            "OPTIMIZER=adamw; expected a reference, such as @optimizers.",
        ),
        (BASE, [MODEL_DIR, "TASK_FEATURE_LENGTHS={'inputs': 1"], "EOF in multi-line statement"),
        (
            BASE,
            [MODEL_DIR, "PACK=ture"],
            "--gin.PACK=ture; expected True or False; set --gin.PACK=True",
        ),
        (
            BASE,
            [MODEL_DIR, "PACK=false"],
            "--gin.PACK=false; expected True or False; set --gin.PACK=F",
        ),
        (BASE, [MODEL_DIR, "learning_rate=1"], "--gin.learning_rate; .* such as LEARNING_RATE"),
        (BASE, [MODEL_DIR, "TEACHER_STORE=none"], "TEACHER_STORE=none; expected None, or the text"),
        (
            BASE,
            [MODEL_DIR, "loop.train.seed=one"],
            "--gin.loop.train.seed=one; expected a whole number",
        ),
        (BASE, [MODEL_DIR, "TRAIN_STEPS"], "--gin.TRAIN_STEPS (Couldn't parse statement"),
        (
            ["runs/train.gin"],
            [MODEL_DIR],
            "%MODEL for loop.train.model (runs/train.gin, line .*models/t5_1_1.gin",
        ),
    ],
)
def test_what_gin_does_not_know_is_one_line(files, bindings, message):
    assert_refused(files, bindings, message)


def assert_refused(files, bindings, message):
    """In one line, which has the parts of a message between its `.*` as they are."""
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(UserError, match=pattern) as caught:
        configuration.parse(files, bindings)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            "TRAIN_STEPS='four'",
            "TRAIN_STEPS = 'four'; expected a whole number or None; correct TRAIN_STEPS",
        ),
        (
            "TRAIN_STEPS='4'",
            "TRAIN_STEPS = '4'; expected a whole number or None; set TRAIN_STEPS=4",
        ),
        ("TRAIN_STEPS=1.5", "TRAIN_STEPS = 1.5; expected a whole number"),
        ("TRAIN_STEPS=True", "TRAIN_STEPS = True; expected a whole number"),
        (
            "LEARNING_RATE='1e-3'",
            "LEARNING_RATE = '1e-3'; expected a number; set LEARNING_RATE=0.001",
        ),
        ("PACK='false'", "PACK = 'false'; expected True or False; set PACK=False"),
        ("PACK=0", "PACK = 0; expected True or False"),
        ("ALLOW_PICKLE='false'", "ALLOW_PICKLE = 'false'; expected True or False"),
        ("MODEL_DIR=['x']", "MODEL_DIR = ['x']; expected a text"),
        ("MODEL_DIR=7", "MODEL_DIR = 7; expected a text"),
        (
            "MIXTURE_OR_TASK_NAME=['a', 1]",
            "MIXTURE_OR_TASK_NAME = ['a', 1]; expected a text or a list",
        ),
        (
            "TASK_FEATURE_LENGTHS=[96, 72]",
            "TASK_FEATURE_LENGTHS = [96, 72]; expected a dict whose values are each a whole number",
        ),
        ("TASK_FEATURE_LENGTHS={'inputs': '96'}", "LENGTHS = {'inputs': '96'}; expected a dict"),
        (
            "OPTIMIZER='adamw'",
            "OPTIMIZER = 'adamw'; .*to a Optimizer, such as @optimizers.adafactor()",
        ),
        ("OPTIMIZER=@optimizers.adamw", "OPTIMIZER = @optimizers.adamw; .*@optimizers.adamw()"),
        ("loop.train.total_steps='x'", "loop.train.total_steps = 'x'; expected a whole number"),
        ("EVALUATORS=5", "EVALUATORS = 5; expected a list"),
        ("KEEP_CHECKPOINTS='all'", "KEEP_CHECKPOINTS = 'all'; expected a whole number or None"),
    ],
)
def test_a_value_of_another_type_is_one_line_with_its_macro(binding, message):
    assert_refused(["experiments/world_answer.gin"], [MODEL_DIR, binding], message)


def test_a_float_that_is_whole_is_the_integer_where_one_is_wanted():
    lengths = "TASK_FEATURE_LENGTHS={'inputs': 1e2, 'targets': 16}"
    configuration.parse(BASE, [MODEL_DIR, "TRAIN_STEPS=1e3", "BATCH_SIZE=8.0", lengths])
    found = [configuration.macro(name) for name in ("TRAIN_STEPS", "BATCH_SIZE")]
    assert found == [1000, 8] and all(type(number) is int for number in found)
    assert configuration.macro("TASK_FEATURE_LENGTHS") == {"inputs": 100, "targets": 16}
    assert type(configuration.macro("TASK_FEATURE_LENGTHS")["inputs"]) is int
    configuration.parse(BASE, [MODEL_DIR, "loop.train.total_steps=2e0", "LEARNING_RATE=1"])
    assert gin.query_parameter("loop.train.total_steps") == 2


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            "storys_cot_mix/registration.format_rates.few_shot_cot=0",
            "storys_cot_mix/registration.format_rates, which binds nothing; .*stories_cot_mix",
        ),
        (
            "stories/registration.format_rates.few_shot_cot=0",
            "stories/registration.format_rates, wh",
        ),
        ("storys/registration.prompting.shots=1", "storys/registration.prompting, wh.*stories"),
        (
            "valid/batches.TaskBatches.batch_size=4",
            "valid/batches.TaskBatches, which binds nothing",
        ),
    ],
)
def test_a_scope_that_binds_nothing_is_refused_with_near_ones(binding, message):
    assert_refused(BASE, [MODEL_DIR, binding], message)


def test_scopes_of_tasks_data_sets_mixtures_and_references_are_known():
    names = "stories_cot_mix/registration.format_rates.few_shot_cot", "stories/registration"
    bindings = [f"{names[0]}=0.5", f"{names[1]}.prompting.shots=1"]
    bindings += ["stories_few_shot_cot/registration.prompting.shots=3"]
    configuration.parse(BASE, [MODEL_DIR, *bindings])
    bindings = ["validation/batches.TaskBatches.batch_size=4"]
    configuration.parse(["experiments/gsm8k_human_ce.gin"], [MODEL_DIR, *bindings])


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("models/t5_1_1_base.gin", "experiments/world_answer.gin"),
        ("objectives/topk_kl.gin", "experiments/world_answer.gin"),
    ],
)
def test_a_model_or_objective_that_a_later_file_replaces_is_refused(first, then):
    message = f"{first} before {then}.*--gin_file={then} --gin_file={first}"
    assert_refused([first, then], [MODEL_DIR], message)
    configuration.parse([then, first], [MODEL_DIR])
    # What an experiment had before them is not theirs.
    other = {"models": "objectives/topk_kl.gin", "objectives": "models/world.gin"}
    configuration.parse([then, first, other[first.partition("/")[0]]], [MODEL_DIR])


@pytest.mark.parametrize("binding", ["MODEL_DIR='run", "LORA={'a': 1", "LORA=(1,", "LORA='a' b"])
def test_a_value_that_cannot_be_read_is_named(binding):
    with pytest.raises(UserError, match=re.escape(f"--gin.{binding} (")):
        configuration.parse(BASE, [MODEL_DIR, binding])


def test_what_is_wrong_is_said_before_anything_is_imported():
    def imported():
        raise AssertionError

    with pytest.raises(UserError, match="BATCH_SIZE"):
        configuration.parse(BASE, [MODEL_DIR, "BATCH_SIZE='7'"], before_imports=imported)
    with pytest.raises(AssertionError):
        configuration.parse(BASE, [MODEL_DIR], before_imports=imported)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include 'nowhere.gin'", "no gin file nowhere.gin within"),
        ("import nowhere", "No module named 'nowhere'"),
        (
            "from __gin__ import dynamic_registration\nfrom cot_flax.training import nowhere",
            "nowhere",
        ),
        ("from __gin__ import dynamic_registration\nloop.train.seed = 1", "'loop' was not"),
        ("A = (1,", "EOF in multi-line statement"),
        ("A = (1,", "bad.gin"),
        ("A = 'one", "bad.gin"),
        ("one two", "bad.gin, line 1"),
        ("no.such.thing = 1", 'bad.gin", line 1'),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        configuration.parse([write(tmp_path, "bad.gin", text + "\n")], [])
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_include_each_other_are_one_line(tmp_path):
    first, second = tmp_path / "first.gin", tmp_path / "second.gin"
    first.write_text(f"include '{second}'\n")
    second.write_text(f"include '{first}'\n")
    with pytest.raises(UserError, match=r"first.gin, which includes itself; .*second.gin, line 1"):
        configuration.parse([str(first)], [])


def test_a_module_that_is_not_found_may_lack_its_folder_on_the_path(tmp_path):
    text = "from __gin__ import dynamic_registration\nimport my_task\n"
    with pytest.raises(UserError, match=r"'my_task'.*folder on PYTHONPATH \(PYTHONPATH=\.\)"):
        configuration.parse([write(tmp_path, "mine.gin", text)], [])


@pytest.mark.parametrize(
    ("binding", "name", "value"),
    [
        ("MODEL_DIR=runs/x", "MODEL_DIR", "runs/x"),
        ("MODEL_DIR = gs://bucket/a b-1.5", "MODEL_DIR", "gs://bucket/a b-1.5"),
        ("MODEL_DIR=it's", "MODEL_DIR", "it's"),
        ("MODEL_DIR=~/runs/a,b:c", "MODEL_DIR", "~/runs/a,b:c"),
        ("MODEL_DIR=../runs/x=1", "MODEL_DIR", "../runs/x=1"),
        ("MODEL_DIR=-x #1", "MODEL_DIR", "-x #1"),
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


@pytest.mark.parametrize(
    ("binding", "value"),
    [
        ("TASK_FEATURE_LENGTHS={inputs: 9, 'targets': 7}", {"inputs": 9, "targets": 7}),
        ("t5.T5Config.mlp_activations=(relu, a/b.c)", ("relu", "a/b.c")),
        ("EVALUATORS=(@evaluators.AccuracyEvaluator(),)", None),
        ("TASK_FEATURE_LENGTHS={'inputs': 9, 'a b': 7}", {"inputs": 9, "a b": 7}),
    ],
)
def test_bare_texts_in_brackets_are_strings_too(capsys, binding, value):
    configuration.parse(BASE, [MODEL_DIR, binding])
    name, _, text = binding.partition("=")
    found = gin.query_parameter(name if "." in name else f"{name}/gin.macro.value")
    assert value is None or found == value
    quoted = "'inputs': 9, 'targets'" if "{inputs" in text else "'a/b.c'" if "a/b" in text else ""
    assert (quoted in capsys.readouterr().err) if quoted else capsys.readouterr().err == ""


def test_a_name_of_the_command_line_may_be_that_of_a_file():
    configuration.parse(BASE, [MODEL_DIR, "evaluation.Decoding.max_tokens=4"])
    assert gin.query_parameter("evaluation.Decoding.max_tokens") == 4


def test_bare_texts_are_shown_in_one_line(capsys):
    configuration.parse(BASE, ["MODEL_DIR=runs/x", "TEACHER_STORE=store"])
    assert capsys.readouterr().err == "MODEL_DIR = 'runs/x', TEACHER_STORE = 'store'\n"


def test_a_macro_of_the_users_own_is_of_the_type_that_it_has(tmp_path):
    mine = write(tmp_path, "mine.gin", "NAME = 'a'\nNUMBER = 1\n")
    configuration.parse([mine], ["NAME=b"])
    assert configuration.macro("NAME") == "b"
    with pytest.raises(UserError, match=r"NUMBER=b; expected a number"):
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


def test_what_a_run_is_told_of_itself():
    bindings = [MODEL_DIR, "TRAIN_STEPS=7", "optimizers.adamw.b2=0.95", "TEACHER_STORE=store"]
    bindings += ["optimizers.adafactor.clip_norm=1.0", "WORLD_SEED=3"]
    bindings += ["stories/registration.prompting.shots=1"]
    configuration.parse(BASE, bindings)
    facts = configuration.run_facts({"store": "abc"}.get)
    settings = {"WORLD_SEED": 3, "registration.prompting.shots": 2}
    settings["stories/registration.prompting.shots"] = 1
    assert facts["data"] == {"store": "store", "fingerprint": "abc", "settings": settings}
    assert facts["training"] == {
        "optimizer": "adamw",
        "schedule": "warmup_cosine",
        "learning_rate": 1e-2,
        "settings": {"optimizers.adamw.b2": 0.95, "WARMUP_STEPS": 100},
    }


def test_the_gin_files_lie_beside_or_inside_the_package():
    assert (configuration.gin_root() / "runs" / "train.gin").is_file()


def test_a_users_folder_named_like_one_of_ours_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    configuration.parse(["experiments/world_base.gin"], [f"MODEL_DIR='{tmp_path}'"])
    assert configuration.macro("MIXTURE_OR_TASK_NAME") == "world_base_mix"


def test_windows_line_ends_and_a_byte_order_mark_are_no_mistake(tmp_path):
    text = "\ufeffinclude 'experiments/world_answer.gin'\r\nBATCH_SIZE = 4\r\n"
    (tmp_path / "mine.gin").write_bytes(text.encode())
    configuration.parse([str(tmp_path / "mine.gin")], [MODEL_DIR])
    assert configuration.macro("BATCH_SIZE") == 4


def every_file():
    root = configuration.gin_root()
    folders = ("models", "objectives", "runs", "experiments")
    return [p.relative_to(root).as_posix() for f in folders for p in sorted((root / f).glob("*"))]


@pytest.mark.parametrize("file", every_file())
def test_every_macro_of_ours_has_a_type(file):
    """That of an annotation; a student's config, which may be any, that of its reference."""
    read = draft.read([file])
    for (_, module, name, parameter), binding in read.parameters.items():
        if not module:  # gin's own, such as gin.singleton
            continue
        signature = signatures.signature(module, name)
        assert signatures.is_known(module) and not signature.open, binding
        assert signature.annotations[parameter] is not Any or parameter == "model", binding


def test_a_whole_float_of_a_file_with_an_alias_is_an_integer(tmp_path):
    text = "from __gin__ import dynamic_registration\nfrom cot_flax.training import loop as ours\n"
    mine = write(tmp_path, "mine.gin", text + "ours.train.total_steps = 2e0\n")
    configuration.parse([*BASE, mine], [MODEL_DIR])
    assert repr(gin.query_parameter("loop.train.total_steps")) == "2"


def test_a_name_may_be_another_module_in_another_file(tmp_path):
    text = (
        "from __gin__ import dynamic_registration\nfrom cot_flax.data import batches as weights\n"
    )
    mine = write(tmp_path, "mine.gin", text + "weights.TaskBatches.batch_size = '7'\n")
    with pytest.raises(UserError, match=r"batch_size = '7' \(.*mine\.gin, line 3\)"):
        configuration.parse([*BASE, mine], [MODEL_DIR])
