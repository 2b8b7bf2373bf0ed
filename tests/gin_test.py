"""The gin files: every experiment runs as it stands, every other file in company."""

import inspect
import pickle
import re
from pathlib import Path

import gin
import pytest

from cot_flax import configuration, run_folder
from cot_flax.chains.filtering import Filters
from cot_flax.chains.preparation import Preparation
from cot_flax.data import mixtures
from cot_flax.data.features import pieces
from cot_flax.evaluation import evaluate
from cot_flax.objectives.losses import WHITE_BOX_LOSSES, Objective
from cot_flax.store import make
from cot_flax.students.t5 import T5Config
from cot_flax.teacher import teach
from cot_flax.training import loop
from cot_flax.training.optimizers import Optimizer

ROOT = configuration.gin_root()
REQUIRED = {
    "train": ["MODEL_DIR='run'"],
    "evaluate": ["CHECKPOINT_PATH='run'", "EVAL_OUTPUT_DIR='out'"],
}
OWN = {
    "gsm8k_teacher_kl": ["TEACHER_STORE='store'"],
    "scenario": ["TEACHER_STORE='store'", "SCENARIO='folder'"],
    "scenario_evaluate": ["SCENARIO='folder'"],
    "scenario_with_maths": ["TEACHER_STORE='store'", "SCENARIO='folder'"],
    "scenario_instructed": ["TEACHER_STORE='store'", "SCENARIO='folder'"],
    "scenario_instructed_evaluate": ["SCENARIO='folder'"],
    "scenarios": ["SCENARIOS=('a', 'b')", "TEACHER_STORES=('a-store',)"],
    "scenarios_evaluate": ["SCENARIOS=('c',)"],
    "your_data": ["DATA='a.jsonl'"],
    "your_data_evaluate": ["DATA='a.jsonl'"],
}


@pytest.fixture(autouse=True)
def _leave_gin_as_found():
    gin.clear_config()
    yield
    gin.clear_config()


def names(folder):
    return sorted(path.stem for path in (ROOT / folder).glob("*.gin"))


def kind(experiment):
    return "evaluate" if experiment.endswith("_evaluate") else "train"


def parse(experiment, *bindings):
    required = [*REQUIRED[kind(experiment)], *OWN.get(experiment, [])]
    configuration.parse([f"experiments/{experiment}.gin"], [*required, *bindings])


SHARED = ("world", "gsm8k", "instructed")  # what the experiments of a data set include
EXPERIMENTS = [name for name in names("experiments") if name not in SHARED]
FAMILIES = ("t5_1_0", "t5_1_1")  # what the models of a family include
ADAPTERS = ("lora",)  # what stands after a model
MODELS = [name for name in names("models") if name not in FAMILIES + ADAPTERS]


def test_gin_is_no_package():
    """Or it would shadow the gin library wherever the repository's root is importable."""
    assert EXPERIMENTS
    assert not list(ROOT.rglob("__init__.py"))
    assert Path(gin.__file__).parent != ROOT


@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if kind(e) == "train"])
def test_a_training_experiment_makes_all_that_the_trainer_takes(experiment):
    parse(experiment)
    bound = gin.get_bindings("loop.train")  # makes every object that is referred to
    inspect.signature(loop.train).bind(**bound)
    types = {"model": T5Config, "objective": Objective, "optimizer": Optimizer}
    for name, wanted in types.items():
        assert isinstance(bound[name], wanted), name
    assert bound["model_dir"] == "run"
    assert bound["total_steps"] > 0
    assert bound["data"].has_teacher or not bound["objective"].uses_teacher
    assert all(callable(evaluator) for evaluator in bound["evaluators"])


@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if kind(e) == "evaluate"])
def test_an_evaluating_experiment_makes_all_that_evaluate_takes(experiment):
    parse(experiment)
    bound = gin.get_bindings(evaluate.evaluate)
    inspect.signature(evaluate.evaluate).bind(**bound)
    assert isinstance(bound["decoding"], evaluate.Decoding)
    assert mixtures.task_names(bound["mixture_or_task_name"])


@pytest.mark.parametrize("suite", names("suites"))
def test_a_suite_names_tasks_that_there_are(suite):
    configuration.parse([f"suites/{suite}.gin"], REQUIRED["evaluate"])
    bound = gin.get_bindings(evaluate.evaluate)
    inspect.signature(evaluate.evaluate).bind(**bound)
    assert len(evaluate.task_names(bound["mixture_or_task_name"])) >= 7


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("objective", names("objectives"))
def test_models_objectives_and_the_run_can_be_combined(model, objective):
    files = [f"models/{model}.gin", f"objectives/{objective}.gin", "runs/train.gin"]
    macros = {"MODEL_DIR": "run", "MIXTURE_OR_TASK_NAME": "any", "TRAIN_STEPS": 1}
    macros["TASK_FEATURE_LENGTHS"] = {"inputs": 8, "targets": 8}
    beside = objective in WHITE_BOX_LOSSES
    macros |= {"WHITE_BOX_TEACHER": "runs/teacher"} if beside else {}
    configuration.parse(files, [f"{name}={value!r}" for name, value in macros.items()])
    assert isinstance(gin.get_configurable("t5.T5Config")(), T5Config)
    found = gin.get_configurable("losses.Objective")()
    assert found.uses_teacher == (objective == "topk_kl")
    assert (found.white_box and found.white_box.loss) == (objective if beside else None)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_the_same_macros(model):
    macros = {"DROPOUT_RATE": 0.1, "DTYPE": "float16", "REMAT": "full"}
    macros["SCAN_LAYERS"] = model == "world"  # not what it does unasked
    bindings = [f"{name}={value!r}" for name, value in macros.items()]
    configuration.parse([f"models/{model}.gin", "models/lora.gin"], [*bindings, "LORA_RANK=3"])
    config = gin.get_configurable("t5.T5Config")()
    assert {name: getattr(config, name.lower()) for name in macros} == macros
    assert config.lora.rank == 3


@pytest.mark.parametrize("model", MODELS)
def test_what_a_model_does_for_its_memory_unasked(model):
    configuration.parse([f"models/{model}.gin"], [])
    config = gin.get_configurable("t5.T5Config")()
    large = model.endswith(("_3b", "_11b", "_xl", "_xxl"))
    expected = ("bfloat16", True, "full") if large else ("float32", True, "minimal")
    if model == "world":  # two layers
        expected = ("float32", False, "none")
    assert (config.dtype, config.scan_layers, config.remat) == expected
    assert config.dropout_rate == 0.0 and config.lora is None


def test_the_worlds_model_has_a_row_for_every_piece():
    from cot_flax.tasks.stories import VOCABULARY

    parse("world_answer")
    assert gin.get_configurable("t5.T5Config")().vocab_size >= len(pieces(VOCABULARY))


def test_the_demos_students_have_one_model_and_the_same_steps():
    """It compares what they were told, so nothing else may differ."""
    found = {}
    for experiment in ("world_answer", "world_cot_ce", "world_cot_kl", "world_mix_kl"):
        parse(experiment, "TEACHER_STORE='store'")
        bound = gin.get_bindings("loop.train")
        schedule = bound["optimizer"].schedule
        rates = [float(schedule(step)) for step in (0, 10, bound["total_steps"] - 1)]
        names = ("model", "total_steps", "seed", "microbatches")
        found[experiment] = [bound[name] for name in names] + rates
    assert all(values == found["world_answer"] for values in found.values())


# What a macro means where it is bound to more than one parameter; T5X's own stand in gin/t5x.
MEANINGS = {
    "ANSWER_KIND": "DataSet.answer_kind answer_kind.kind",
    "CHAIN": "DataSet.chain Preparation.chain",
    "DATASET": "DataSet.name sample.dataset task_name.dataset",
    "EVAL_TASKS": "TaskBatches.mixture_or_task_name AccuracyEvaluator.mixture_or_task_name",
    "KL_TEMPERATURE": "Objective.temperature WhiteBox.temperature",
    "LEARNING_RATE": "constant.peak fu2023_cosine.peak inverse_sqrt.peak warmup_cosine.peak",
    "MICROBATCHES": "train.microbatches TaskBatches.microbatches fu2023_cosine.accumulation",
    "MICROBATCHES_BY_TASK": "train.equal_microbatches TaskBatches.by_task",
    "MIXTURE_OR_TASK_NAME": "TaskBatches.mixture_or_task_name evaluate.mixture_or_task_name",
    "MODEL": "steps.model train.model",
    "OBJECTIVE": "LossEvaluator.objective train.objective",
    "OVERWRITE": "evaluate.overwrite store.overwrite",
    "RANDOM_SEED": "TaskBatches.seed Decoding.seed train.seed",
    "SAMPLES_FILE": "probe.out sample.out scenario.out rescore.out store.samples",
    "SCENARIO": "data.directory scenario.folder",
    "SCHEDULE": "adafactor.schedule adamw.schedule",
    "STORE_TASK": "answer_kind.task store.task template.task",
    "TEACHER_CONCURRENCY": "sample.concurrency scenario.concurrency rescore.concurrency",
    "TEACHER_PRICE_IN": "sample.price_in scenario.price_in rescore.price_in",
    "TEACHER_PRICE_OUT": "sample.price_out scenario.price_out rescore.price_out",
    "TEACHER_JOURNAL": "probe.journal sample.journal scenario.journal rescore.journal",
    "TEACHER_BATCH_FILE": "sample.batch_file scenario.batch_file",
    "TEACHER_BATCH_RESULTS": "sample.batch_results scenario.batch_results",
    "TEACHER_MAX_COST": "sample.max_cost scenario.max_cost rescore.max_cost",
    "TEACHER_STORE": "teacher_store.directory store.out",
    "TEACH_CHAT": "probe.chat sample.chat scenario.chat",
    "TEACH_TOP_LOGPROBS": "Overrides.top_logprobs rescore.top_logprobs",
    "WARMUP_STEPS": "constant.warmup_steps inverse_sqrt.warmup_steps warmup_cosine.warmup_steps",
}


def bound_to(text):
    """(macro, Class.parameter) of every parameter that a file binds a macro to."""
    block = ""
    for line in text.splitlines():
        if opened := re.fullmatch(r"([\w./]+):(?: *#.*)?", line):
            block = f"{opened[1]}."
        elif found := re.match(r"( *)([\w./]+) = %([A-Z]\w*)", line):
            name = block + found[2] if found[1] else found[2]
            if "." in name:
                yield found[3], ".".join(name.rpartition("/")[2].split(".")[-2:])


def test_a_macro_has_one_meaning():
    """So that one file can hold all stages of a paper."""
    meanings = {}
    for path in ROOT.rglob("*.gin"):
        for macro, parameter in bound_to("" if path.parent.name == "t5x" else path.read_text()):
            meanings.setdefault(macro, set()).add(parameter)
    assert len(meanings) > 80
    several = {macro: found for macro, found in meanings.items() if len(found) > 1}
    assert several == {macro: set(known.split()) for macro, known in MEANINGS.items()}


SAMPLE = '{"question": "Two?", "text": "One and one.", "finish_reason": "stop"}\n'


@pytest.mark.parametrize(
    ("run", "function"),
    [
        ("teach", teach.sample),
        ("teach_scenario", teach.scenario),
        ("rescore", teach.rescore),
        ("prepare", make.store),
    ],
)
def test_a_stage_of_the_data_half_has_all_that_it_takes(run, function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(SAMPLE)
    names = ("SAMPLES_FILE", "QUESTIONS_FILE", "UNSCORED_FILE", "SCENARIO", "TEACHER_STORE")
    defined = (ROOT / "runs" / f"{run}.gin").read_text() + (ROOT / "runs/teacher.gin").read_text()
    values = dict.fromkeys(names, "a.jsonl") | {"DATASET": "d", "RECIPE": "ho2022"}
    values["STORE_TASK"] = "gsm8k_teacher_zero_shot_cot"
    required = {k: v for k, v in values.items() if f"\n{k} = %gin.REQUIRED" in defined}
    configuration.parse([f"runs/{run}.gin"], [f"{k}={v!r}" for k, v in required.items()])
    bound = gin.get_bindings(function)  # makes every object that is referred to
    signature = inspect.signature(function)
    assert signature.parameters.keys() - bound.keys() <= {"dry_run"}
    for name, parameter in signature.parameters.items():  # the files' defaults are the function's
        if parameter.default is not inspect.Parameter.empty and name != "dry_run":
            assert bound[name] == parameter.default, name


def test_the_data_half_does_by_default_what_its_functions_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(SAMPLE)
    values = "SAMPLES_FILE='a.jsonl'", "TEACHER_STORE='s'"
    task = "STORE_TASK='stories_teacher_zero_shot_cot'"
    configuration.parse(["runs/prepare.gin"], [*values, task])
    settings = gin.get_configurable("preparation.Preparation")()
    assert settings == Preparation(Filters(rules="own"))
    assert pickle.loads(pickle.dumps(settings)) == settings  # it goes to other processes


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.gin")), ids=lambda path: path.stem)
def test_every_file_says_what_it_is_for(path):
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_saved_configuration_is_the_same_again(experiment, tmp_path):
    parse(experiment, "RANDOM_SEED=7")
    saved = gin.config_str()
    run_folder.write_config(tmp_path, saved, 0)
    configuration.parse([str(tmp_path / "config.gin")], [])
    assert gin.config_str() == saved
    assert gin.query_parameter("RANDOM_SEED/gin.macro.value") == 7
