"""Our student within T5X: its trainer, its evaluation and inference; where T5X is importable.

Last run whole with T5X at cc342d41 (2026-04-21).
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seqio
import tensorflow as tf
from flax.core import freeze, unfreeze
from support.t5x import LEAVES_LOOPS, _beside_t5x  # noqa: F401

reason = "T5X is not on PyPI: bash launch/setup_t5x.sh makes it importable"
pytest.importorskip("t5x.models", reason=reason, exc_type=ImportError)
from t5x import eval as t5x_eval  # noqa: E402
from t5x import gin_utils, partitioning, utils  # noqa: E402
from t5x import infer as t5x_infer  # noqa: E402
from t5x import train as t5x_train  # noqa: E402
from t5x import trainer as t5x_trainer  # noqa: E402

from cot_flax.chains.preparation import Preparation  # noqa: E402
from cot_flax.chains.samples import write_samples  # noqa: E402
from cot_flax.configuration import gin_root  # noqa: E402
from cot_flax.errors import UserError  # noqa: E402
from cot_flax.evaluation.evaluate import Decoding  # noqa: E402
from cot_flax.generation.beam import beam_search  # noqa: E402
from cot_flax.generation.decoding import decode  # noqa: E402
from cot_flax.hosts import t5x  # noqa: E402
from cot_flax.hosts.t5x import DistillationModel  # noqa: E402
from cot_flax.lab.world.stories import make_stories  # noqa: E402
from cot_flax.lab.world.teacher import make_samples  # noqa: E402
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH  # noqa: E402
from cot_flax.objectives.losses import Objective  # noqa: E402
from cot_flax.reports import card  # noqa: E402
from cot_flax.store.prepare import prepare  # noqa: E402
from cot_flax.students.lora import Lora  # noqa: E402
from cot_flax.students.parameters import flatten, unstack_layers  # noqa: E402
from cot_flax.students.t5 import T5Student  # noqa: E402
from cot_flax.students.t5.config import T5Config  # noqa: E402
from cot_flax.tasks import gsm8k  # noqa: E402
from cot_flax.tasks.stories import VOCABULARY  # noqa: E402
from cot_flax.text.prompts import FORMATS  # noqa: E402
from cot_flax.training import optimizers, step  # noqa: E402
from cot_flax.training.optimizers import Optimizer  # noqa: E402
from cot_flax.training.state import TrainState, abstract_variables  # noqa: E402
from cot_flax.weights.export import export  # noqa: E402
from cot_flax.weights.opening import open_source  # noqa: E402
from cot_flax.weights.source import load  # noqa: E402

pytestmark = LEAVES_LOOPS

CONFIG = T5Config(
    vocab_size=256,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=32,
)
KL = Objective(kl_weight=0.7, temperature=2.0, z_loss=0.01)
LENGTHS = {"inputs": 96, "targets": 72}
TAUGHT, UNTAUGHT = "stories_teacher_zero_shot_cot", "stories_zero_shot_cot"
B = 8
ROOT = Path(__file__).resolve().parents[2]
T5X_ROOT = Path(utils.__file__).parents[1]
SUBMESH = (1, 2 if jax.device_count() > 1 else 1)
DESCENT = Optimizer(optax.sgd(1.0), lambda step: 1.0)  # moves parameters by the gradient


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation(tmp_path_factory):
    """T5X compiles the same programs again in every run."""
    settings = {
        "jax_disable_most_optimizations": (True, False),
        "jax_compilation_cache_dir": (str(tmp_path_factory.mktemp("compiled")), None),
        "jax_persistent_cache_min_compile_time_secs": (0.0, 1.0),
        "jax_persistent_cache_min_entry_size_bytes": (-1, 0),
    }
    for name, (ours, _) in settings.items():
        jax.config.update(name, ours)
    yield
    for name, (_, default) in settings.items():
        jax.config.update(name, default)


@pytest.fixture(autouse=True)
def _leave_gin_as_found():
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """The world's teacher on 16 stories."""
    folder = tmp_path_factory.mktemp("prepared")
    samples = make_samples(make_stories(16, split="train"), samples=2)
    write_samples(folder / "samples.jsonl", samples)
    prepare(
        [str(folder / "samples.jsonl")],
        str(folder / "store"),
        vocabulary=VOCABULARY,
        settings=Preparation(),
        workers=1,
    )
    return str(folder / "store")


# One batch ----------------------------------------------------------------------------------------


def make_model(**settings):
    return DistillationModel(**{"config": CONFIG, "vocabulary": VOCABULARY} | settings)


@pytest.fixture(scope="module")
def params():
    drawn = jax.jit(T5Student(CONFIG).init)(jax.random.key(3))["params"]
    # Small beside what the layers add: an input would be repeated for ever.
    return drawn | {"token_embedder": jax.tree.map(lambda x: 0.1 * x, drawn["token_embedder"])}


def first_batch(task, *, pack):
    gin.bind_parameter("cot_flax.tasks.stories.size.train", 16)
    cfg = utils.DatasetConfig(task, LENGTHS, "train", B, shuffle=False, seed=0, pack=pack)
    dataset = utils.get_dataset(cfg, 0, 1, DistillationModel.FEATURE_CONVERTER_CLS)
    return next(dataset.take(1).as_numpy_iterator())


@pytest.fixture(scope="module")
def batch(store):
    """Packed rows, all but one with a teacher."""
    gin.bind_parameter("cot_flax.tasks.stories.teacher_store.directory", store)
    found = first_batch(TAUGHT, pack=True)
    taught = np.arange(B)[:, None, None] > 0
    return found | {"teacher_top_ids": np.where(taught, found["teacher_top_ids"], -1)}


def make_partitioner():
    return partitioning.PjitPartitioner(
        model_parallel_submesh=SUBMESH, logical_axis_rules=t5x.axis_rules()
    )


def train_in_t5x(model, params, batch, *, steps=1, microbatches=None):
    """What T5X's Trainer makes of parameters on its mesh, and the metrics of its summaries."""
    partitioner = make_partitioner()
    initializer = utils.TrainStateInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={name: array.shape for name, array in batch.items()},
        partitioner=partitioner,
    )
    state = initializer.from_scratch(jax.random.PRNGKey(0)).replace_params(freeze(params))
    place = jax.sharding.NamedSharding(partitioner.mesh, partitioner.data_partition_spec)
    trainer = t5x_trainer.Trainer(
        model=model,
        train_state=jax.tree.map(jnp.array, state),  # a copy: the step takes its argument over
        partitioner=partitioner,
        eval_names=[],
        summary_dir=None,
        train_state_axes=initializer.train_state_axes,
        rng=jax.random.PRNGKey(0),
        learning_rate_fn=lambda step: 0.0,
        num_microbatches=microbatches,
    )
    with trainer:
        batches = (jax.device_put(batch, place) for _ in range(steps))
        found = trainer.train(batches, steps, start_step=0).result()
        values = {name: float(metric.value) for name, metric in found.items()}
        return unfreeze(jax.device_get(trainer.train_state.params)), values


def train_in_ours(objective, optimizer, params, batch, *, steps=1):
    run = jax.jit(step.make_train_step(T5Student(CONFIG), optimizer, objective))
    opt_state = optimizer.transform.init(params)
    state, sums = TrainState(jnp.int32(0), params, opt_state, jax.random.PRNGKey(0)), {}
    for _ in range(steps):
        state, metrics = run(state, batch)
        flags = [name for name in metrics if name.startswith("nonfinite/")]
        for name, value in metrics.items():
            if name not in flags:
                sums[name] = sums.get(name, 0.0) + float(value)
    return state.params, step.summarize(sums)


def assert_close(found, expected, **tolerance):
    assert flatten(found).keys() == flatten(expected).keys()
    for name, leaf in flatten(expected).items():
        np.testing.assert_allclose(flatten(found)[name], leaf, err_msg=name, **tolerance)


def assert_same_metrics(found, expected):
    skipped = ("learning_rate", "gradient_norm")
    for name, value in expected.items():
        if name not in skipped:
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_loss_and_gradients_are_our_trainers(params, batch):
    """On T5X's mesh of several devices, ours on one: packed rows with a teacher."""
    assert (batch["decoder_segment_ids"] > 1).any()
    moved, metrics = train_in_t5x(make_model(objective=KL, optimizer=DESCENT), params, batch)
    expected, means = train_in_ours(KL, DESCENT, params, batch)
    assert_close(moved, expected, atol=1e-5)
    assert_same_metrics(metrics, means)
    assert metrics["z_loss"] > 0
    assert metrics["kl"] > 0 and 0.5 < metrics["teacher_fraction"] < 1
    change = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), moved, params)
    assert min(jax.tree.leaves(change)) > 1e-4  # every gradient is larger than the tolerance


@pytest.mark.skipif(jax.device_count() == 1, reason="one device has nothing to split")
def test_the_loss_is_split_over_t5xs_mesh(params, batch):
    """By ourselves, not by XLA's choice: T5X enters its mesh in another way than our trainer."""
    loss = lambda params, batch: make_model(objective=KL).loss_fn(params, batch, None)[0]  # noqa: E731
    split = make_partitioner().partition(loss, (None, None), None).lower(params, batch).as_text()
    whole = jax.jit(loss).lower(params, batch).as_text()
    assert "manual_computation" in split and "manual_computation" not in whole


def test_our_adafactor_moves_as_in_our_trainer(params, batch):
    """Its state is partitioned and factored, of which T5X's own wrapper knows nothing."""
    optimizer = optimizers.adafactor(optimizers.constant(1e-2))
    model = make_model(objective=KL, optimizer=optimizer)
    moved, metrics = train_in_t5x(model, params, batch, steps=2)
    expected, means = train_in_ours(KL, optimizer, params, batch, steps=2)
    assert_same_metrics(metrics, means)
    assert_close(moved, expected, atol=2e-4)  # steps of 1e-2, of gradients over their size


def test_without_rows_the_loss_is_plain_cross_entropy(params):
    plain = first_batch(UNTAUGHT, pack=False)
    objective = Objective(z_loss=KL.z_loss)
    moved, metrics = train_in_t5x(make_model(objective=objective, optimizer=DESCENT), params, plain)
    expected, means = train_in_ours(objective, DESCENT, params, plain)
    assert_close(moved, expected, atol=1e-5)
    assert_same_metrics(metrics, means)
    assert "kl" not in metrics and "teacher_fraction" not in metrics
    # To evaluate a KL's student on it is one thing, to train it another.
    model = make_model(objective=KL, optimizer=DESCENT)
    loss, _ = model.eval_fn(params, plain)
    np.testing.assert_allclose(float(loss), metrics["loss"], rtol=1e-5)
    with pytest.raises(UserError, match="training data without a teacher's rows"):
        train_in_t5x(model, params, plain)


def test_summaries_have_t5xs_own_figures(params, batch):
    """By name, those that T5X's own model has; the fractions by counting."""
    model = make_model(objective=KL, optimizer=DESCENT)
    _, metrics = train_in_t5x(model, params, batch)
    for name in ("steps_per_second", "seqs_per_second", "target_tokens_per_second_per_core"):
        assert metrics[f"timing/{name}"] > 0
    weights, packed = batch["decoder_loss_weights"], batch["encoder_segment_ids"]
    assert metrics["non_padding_fraction/loss_weights"] == pytest.approx(weights.mean())
    assert metrics["non_padding_fraction/encoder"] == pytest.approx((packed > 0).mean())
    assert metrics["effective_batch_size/encoder"] == packed.max(axis=1).sum()
    assert metrics["accuracy"] == metrics["token_accuracy"]
    assert metrics["loss_per_nonpadding_target_token"] == pytest.approx(metrics["loss"])


def test_microbatches_of_as_many_tokens_are_the_whole_batch(params, batch):
    """Else T5X gives each as much weight, whatever its tokens."""
    twice = {k: np.concatenate([v[: B // 2]] * 2) for k, v in batch.items()}
    whole, _ = train_in_ours(KL, DESCENT, params, twice)
    model = make_model(objective=KL, optimizer=DESCENT, microbatches=2)
    parts, metrics = train_in_t5x(model, params, twice, microbatches=2)
    assert_close(parts, whole, atol=1e-5)
    assert metrics["kl"] > 0


# Decoding -----------------------------------------------------------------------------------------


def test_predictions_are_our_decoders(params, batch):
    prompts = batch["encoder_input_tokens"]
    model = make_model(decoding=Decoding(max_tokens=9))
    tokens, aux = jax.jit(model.predict_batch_with_aux)(freeze(params), batch)
    expected = decode(T5Student(CONFIG), params, prompts, max_tokens=9)[:, 0]
    np.testing.assert_array_equal(tokens, expected)
    # The scores are the tokens' log-likelihood by teacher forcing.
    shifted = np.pad(expected, ((0, 0), (1, 0)))[:, :-1]
    logits = T5Student(CONFIG).module.apply({"params": params}, prompts, shifted, expected)
    chosen = np.take_along_axis(jax.nn.log_softmax(logits), expected[..., None], -1)[..., 0]
    np.testing.assert_allclose(aux["scores"], (chosen * (expected > 0)).sum(1), rtol=1e-4)


def test_samples_depend_on_the_key(params, batch):
    model = make_model(decoding=Decoding(max_tokens=9, temperature=1.0))
    draw = jax.jit(model.predict_batch)
    one, again, other = (draw(params, batch, jax.random.PRNGKey(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (np.asarray(one) != np.asarray(other)).any()


def test_beams_are_our_beam_search(params, batch):
    model = make_model(decoding=Decoding(max_tokens=6, beams=2, beam_rule="t5x"))
    tokens, aux = jax.jit(model.predict_batch_with_aux)(params, batch)
    output, scores = beam_search(
        T5Student(CONFIG), params, batch["encoder_input_tokens"], max_tokens=6, beams=2, rule="t5x"
    )
    np.testing.assert_array_equal(tokens, output[:, 0])
    np.testing.assert_allclose(aux["scores"], scores[:, 0], rtol=1e-5)


# T5X's own commands -------------------------------------------------------------------------------

KL_FILES = ["experiments/world_cot_kl.gin", "t5x/train.gin"]
TEST_FILES = ["experiments/world_evaluate.gin", "models/world.gin"]
MESH = [f"MODEL_PARALLEL_SUBMESH = {SUBMESH}", "MESH_MODEL = None"]
WORLD = [f"stories.size.{split} = 8" for split in ("train", "validation", "test")]


def launch(function, files, *bindings, **macros):
    """What `python -m t5x.<function> --gin_file=... --gin.NAME=VALUE` does, in this process."""
    bindings = [*WORLD, *MESH, *bindings, *(f"{k} = {v!r}" for k, v in macros.items())]
    gin.clear_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], function.__name__, function, raising=False)
        gin_utils.parse_gin_flags([str(gin_root())], files, bindings)
        return gin.get_configurable(function)()


@pytest.mark.parametrize("size", ["small", "base", "large", "xl", "xxl"])
def test_a_flan_t5_of_each_size_is_read_by_t5x(size):
    files = ["experiments/gsm8k_human_ce.gin", "t5x/train.gin", f"t5x/flan_t5_{size}.gin"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "train", t5x_train.train, raising=False)
        gin_utils.parse_gin_flags([str(gin_root())], files, ["MODEL_DIR = 'run'"])
    start = gin.query_parameter("INITIAL_CHECKPOINT_PATH/gin.macro.value")
    assert f"t5x/flan_t5_{size}/checkpoint_" in start
    config = gin.get_configurable("t5.T5Config")()
    assert not config.scan_layers and start in (gin_root() / f"t5x/flan_t5_{size}.gin").read_text()
    known = start.removeprefix("gs://t5-data/pretrained_models/t5x/")
    assert known in (gin_root() / f"models/t5_1_1_{size}.gin").read_text()


def train(folder, store, *bindings, **macros):
    shared = {"TRAIN_STEPS": 20, "BATCH_SIZE": 8, "EVAL_STEPS": 1, "WARMUP_STEPS": 0}
    shared |= {"MODEL_DIR": str(folder), "TEACHER_STORE": store, "CHECKPOINT_PERIOD": 10}
    small = "evaluation.Decoding.max_tokens = 8"
    return launch(t5x_train.train, KL_FILES, small, *bindings, **shared | macros)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """20 steps, interrupted after ten: the folder and T5X's last state."""
    folder = tmp_path_factory.mktemp("runs") / "kl"
    train(folder, store, TRAIN_STEPS=10)
    last_step, state = train(folder, store)
    assert last_step == 20
    return folder, state


def summaries(folder):
    """The scalars of TensorBoard files: {name: {step: value}}."""
    found = {}
    for file in sorted(folder.glob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                if value.tensor.dtype in (tf.float32, tf.float64):
                    number = float(tf.make_ndarray(value.tensor))
                    found.setdefault(value.tag, {})[event.step] = number
    return found


def test_twenty_steps_leave_kl_in_the_summaries(trained):
    scalars = summaries(trained[0] / "train")
    for name in ("loss", "kl", "kl_at_temperature", "agreement", "teacher_mass", "learning_rate"):
        assert {10, 20} <= scalars[name].keys(), name
        assert all(np.isfinite(value) for value in scalars[name].values()), name
    assert scalars["kl"][20] < scalars["kl"][10]
    assert scalars["teacher_fraction"][20] == 1.0


def test_train_eval_has_cross_entropy_where_no_teacher_is(trained):
    scalars = summaries(trained[0] / "training_eval" / UNTAUGHT)
    assert scalars["cross_entropy"][20] > 0
    assert "kl" not in scalars


def test_infer_eval_scores_chains(trained):
    (metrics,) = (trained[0] / "inference_eval").glob(f"{UNTAUGHT}-metrics.jsonl")
    line = json.loads(metrics.read_text().splitlines()[-1])
    assert line["step"] == 20 and 0 <= line["accuracy"] <= 1


def read(path):
    """Its student, as we open it."""
    source = open_source(str(path))
    return source, load(source, abstract_variables(T5Student(source.student.config))["params"])


def test_we_open_what_t5x_saved(trained):
    folder, state = trained
    source, params = read(folder)
    assert source.place.startswith(str(folder / "checkpoint_20"))
    assert source.student.config.emb_dim == 64
    assert_close(params, unfreeze(jax.device_get(state.params)), atol=0)


def test_we_open_what_t5x_saved_of_a_scanned_student(store, tmp_path):
    """The layout that fits where the unrolled one does not; export and evaluation open it alike."""
    _, state = train(tmp_path, store, TRAIN_STEPS=1, SCAN_LAYERS=True, REMAT="full")
    saved = unfreeze(jax.device_get(state.params))
    assert saved["decoder"]["layers"]["mlp"]["wo"]["kernel"].ndim == 3
    source, params = read(tmp_path)
    assert source.student.config.num_decoder_layers == 2
    assert_close(params, unstack_layers(saved), atol=0)
    scanned = dataclasses.replace(source.student.config, scan_layers=True)
    wanted = abstract_variables(T5Student(scanned))["params"]
    assert_close(load(source, wanted), saved, atol=0)


def test_t5x_starts_from_what_we_export(trained, store, tmp_path):
    """Without a step's effect: parameters are ours, the count begins at zero."""
    export(str(trained[0]), str(tmp_path / "exported"), format="t5x", card=card.write)
    (exported,) = (tmp_path / "exported").glob("checkpoint_*")
    initial = {"INITIAL_CHECKPOINT_PATH": str(exported), "LEARNING_RATE": 0.0}
    last_step, state = train(tmp_path / "run", store, TRAIN_STEPS=1, **initial)
    assert last_step == 1
    assert_close(unfreeze(jax.device_get(state.params)), read(trained[0])[1], atol=0)


def evaluate(function, end, trained, folder, *bindings, **macros):
    checkpoint = str(trained[0] / "checkpoint_20")
    macros |= {"CHECKPOINT_PATH": checkpoint, "EVAL_OUTPUT_DIR": str(folder)}
    macros |= {"DECODE_BATCH_SIZE": 8, "MAX_DECODE_LENGTH": 8}
    launch(function, [*TEST_FILES, end], *bindings, **macros)


def test_eval_scores_all_tasks_of_an_experiment(trained, tmp_path):
    names = (UNTAUGHT, "stories_zero_shot_answer")
    evaluate(t5x_eval.evaluate, "t5x/eval.gin", trained, tmp_path, MIXTURE_OR_TASK_NAME=names)
    for name in names:
        (metrics,) = (tmp_path / "inference_eval").glob(f"{name}-metrics.jsonl")
        assert 0 <= json.loads(metrics.read_text())["accuracy"] <= 1


def test_eval_reads_answers_as_bound(trained, tmp_path):
    """Strictly, what names no answer has none; flexibly, any number is one."""
    failures = {}
    for mode in ("strict", "flexible"):
        settings = {"MIXTURE_OR_TASK_NAME": UNTAUGHT, "ANSWER_MODE": mode}
        evaluate(t5x_eval.evaluate, "t5x/eval.gin", trained, tmp_path / mode, **settings)
        (metrics,) = (tmp_path / mode / "inference_eval").glob(f"{UNTAUGHT}-metrics.jsonl")
        failures[mode] = json.loads(metrics.read_text())["parse_failures"]
    assert failures["strict"] == 1.0 > failures["flexible"]  # eight tokens reach no answer


def test_infer_writes_predictions(trained, tmp_path):
    macros = {"MIXTURE_OR_TASK_NAME": UNTAUGHT, "TASK_FEATURE_LENGTHS": LENGTHS}
    evaluate(t5x_infer.infer, "t5x/infer.gin", trained, tmp_path, **macros)
    (file,) = Path(tmp_path).glob(f"{UNTAUGHT}-predict.jsonl-*-of-00001")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 8
    assert all(isinstance(line["prediction"], str) for line in lines)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """`python -m t5x.train` with these flags, in the environment of launch/setup_t5x.sh."""
    if not all((T5X_ROOT.parent / name / name).is_dir() for name in ("t5x", "airio", "jestimator")):
        pytest.skip("the three checkouts are not in one folder, as launch/setup_t5x.sh wants them")
    venv = tmp_path_factory.mktemp("script") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    installed = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in installed]
    (packages / "ours.pth").write_text("\n".join(lines))
    shutil.copy(ROOT / "setup.py", venv / "installed-t5x")  # so that nothing is installed here
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"VENV": str(venv), "PYTHON": sys.executable}
    environment |= {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment["JAX_NUMPY_RANK_PROMOTION"] = "allow"  # T5X's networks broadcast between ranks

    def run(folder, *command):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]

    run(ROOT, "bash", "launch/setup_t5x.sh", T5X_ROOT.parent)
    return lambda folder, *flags: run(folder, venv / "bin" / "python", "-m", "t5x.train", *flags)


def test_the_plain_command_works_beside_folders_of_our_names(plain, tmp_path):
    for name in ("experiments", "models", "objectives", "runs", "t5x"):
        (tmp_path / name).mkdir()
    macros = {"MODEL_DIR": str(tmp_path / "run"), "TRAIN_STEPS": 2, "CHECKPOINT_PERIOD": 2}
    macros |= {"BATCH_SIZE": 2, "EVAL_STEPS": 1, "WARMUP_STEPS": 0, "EVALUATOR_NUM_EXAMPLES": 2}
    flags = ["--gin_file=experiments/world_answer.gin", "--gin_file=t5x/train.gin"]
    flags += [f"--gin.{name}={value!r}" for name, value in macros.items()]
    flags += [f"--gin.{binding}" for binding in [*WORLD, "evaluation.Decoding.max_tokens = 4"]]
    plain(tmp_path, f"--gin_search_paths={gin_root()}", *flags)
    assert (tmp_path / "run" / "checkpoint_2").is_dir()


# T5X's own models and run files -------------------------------------------------------------------


GSM8K_TASKS = tuple(f"gsm8k_{form}" for form in FORMATS)


@pytest.fixture
def team(tmp_path):
    """The gin files of docs/hosts.md, with GSM8K, a vocabulary and a store beside them."""
    text = (ROOT / "docs" / "hosts.md").read_text()
    pages = re.findall(r"```gin\n# needs: T5X.*?\n(from __gin__.*?)```", text, re.S)
    for name, page in zip(("gsm8k_finetune.gin", "gsm8k_kl.gin"), pages, strict=True):
        (tmp_path / name).write_text(page)
    (tmp_path / "spiece.model").write_bytes(VOCABULARY_PATH.read_bytes())
    (tmp_path / "gsm8k").mkdir()
    for file, count in (("train", 516), ("test", 8)):
        lines = [
            json.dumps({"question": f"{file} {n} + {n}?", "answer": f"{2 * n}\n#### {2 * n}"})
            for n in range(count)
        ]
        (tmp_path / "gsm8k" / f"{file}.jsonl").write_text("\n".join(lines))
    seqio.TaskRegistry.add(
        "team_sums",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
                {"inputs": ["1 + 1"] * 8, "targets": ["2"] * 8}
            ),
            splits=["train", "validation"],
        ),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={
            name: seqio.Feature(seqio.SentencePieceVocabulary(str(tmp_path / "spiece.model"), 100))
            for name in ("inputs", "targets")
        },
        metric_fns=[lambda targets, predictions: {"count": len(targets)}],
    )
    seqio.MixtureRegistry.add("team_mix", ["gsm8k_cot_mix", "team_sums"], default_rate=1.0)
    yield tmp_path
    seqio.MixtureRegistry.remove("team_mix")
    seqio.TaskRegistry.remove("team_sums")


def small_finetuning(team, network="network", **macros):
    """Bindings of two steps of a tiny network."""
    small = {"num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1, "emb_dim": 16}
    small |= {"vocab_size": 384, "head_dim": 4, "mlp_dim": 32, "dtype": "float32"}
    macros = {
        "MODEL_DIR": str(team / "run"),
        "TRAIN_STEPS": 2,
        "BATCH_SIZE": 8,
        "TASK_FEATURE_LENGTHS": {"inputs": 288, "targets": 32},
        "EVAL_STEPS": 1,
        "EVAL_PERIOD": 2,
        "EVALUATOR_NUM_EXAMPLES": 8,
        "INITIAL_CHECKPOINT_PATH": (),
    } | macros
    values = {f"{network}.T5Config.{name}": value for name, value in small.items()} | macros
    return [f"{name} = {value!r}" for name, value in values.items()]


def finetune(team, *bindings, file="gsm8k_finetune.gin", network="network", **macros):
    """`python -m t5x.train` as docs/hosts.md has it."""
    bindings = [*bindings, *small_finetuning(team, network, **macros)]
    mesh = {"num_partitions": None, "model_parallel_submesh": SUBMESH}
    bindings += [f"partitioning.PjitPartitioner.{name} = {value}" for name, value in mesh.items()]
    gin.clear_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(team)
        patch.setattr(sys.modules["__main__"], "train", t5x_train.train, raising=False)
        paths = [str(team), str(T5X_ROOT), str(gin_root())]
        gin_utils.parse_gin_flags(paths, [file], bindings)
        return gin.get_configurable(t5x_train.train)()


def assert_trained_and_scored(run, *others):
    assert np.isfinite(summaries(run / "train")["loss"][2])
    scored = {file.name for file in (run / "inference_eval").glob("*-metrics.jsonl")}
    assert scored == {f"{task}-metrics.jsonl" for task in (*GSM8K_TASKS, *others)}


@pytest.mark.parametrize(("name", "others"), [("gsm8k_cot_mix", ()), ("team_mix", ("team_sums",))])
def test_t5xs_own_model_finetunes_on_our_mixtures(team, name, others):
    last_step, _ = finetune(team, MIXTURE_OR_TASK_NAME=name)
    assert last_step == 2
    assert_trained_and_scored(team / "run", *others)


def test_t5xs_own_model_finetunes_on_a_mixture_by_gin_alone(team):
    lines = ["include 'gsm8k_finetune.gin'", "include 'runs/mixture.gin'"]
    (team / "mixed.gin").write_text("\n".join(lines))
    rates = {"gsm8k_cot_mix": 2, "team_sums": 1}
    last_step, _ = finetune(team, file="mixed.gin", MIXTURE=rates)
    assert last_step == 2
    assert_trained_and_scored(team / "run", "team_sums")


def test_t5xs_own_model_finetunes_on_the_cot_collection(team, tmp_path, monkeypatch):
    """By the mixture's name alone; the module is imported as docs/data.md has it."""
    monkeypatch.setenv("COT_FLAX_CACHE", str(tmp_path / "cache"))
    entries = {
        str(n): {
            "source": f"{n} + {n}?",
            "target": str(2 * n),
            "rationale": f"{n} + {n} = {2 * n}" if n % 5 else "",
            "task": "sums",
        }
        for n in range(60)
    }
    (team / "collection.json").write_text(json.dumps(entries))
    lines = [
        "from __gin__ import dynamic_registration",
        "from cot_flax.tasks import cot_collection",
        "include 'gsm8k_finetune.gin'",
        'MIXTURE_OR_TASK_NAME = "cot_collection_mix"',
        'cot_collection.data.directory = "collection.json"',
        "cot_collection.data.validation = 0.2",
    ]
    (team / "collection.gin").write_text("\n".join(lines))
    lengths = {"inputs": 48, "targets": 32}
    last_step, _ = finetune(team, file="collection.gin", TASK_FEATURE_LENGTHS=lengths)
    assert last_step == 2
    assert np.isfinite(summaries(team / "run" / "train")["loss"][2])
    scored = {file.name for file in (team / "run" / "inference_eval").glob("*-metrics.jsonl")}
    assert scored == {f"cot_collection_{name}-metrics.jsonl" for name in ("cot", "direct")}


def test_kl_trains_on_a_teachers_tasks_beside_others(team):
    """The store has rows, the other task none; T5X's evaluator scores both by their names."""
    prepare_gsm8k(team)
    (team / "mixed.gin").write_text("include 'gsm8k_kl.gin'\ninclude 'runs/mixture.gin'")
    lengths = {"inputs": 96, "targets": 128}
    rates = {"gsm8k_teacher_zero_shot_cot": 1, "team_sums": 1}
    short = "evaluation.Decoding.max_tokens = 8"
    macros = {"MIXTURE": rates, "TASK_FEATURE_LENGTHS": lengths}
    last_step, _ = finetune(team, short, file="mixed.gin", network="t5", **macros)
    assert last_step == 2
    assert 0 < summaries(team / "run" / "train")["teacher_fraction"][2] < 1
    scored = {file.name for file in (team / "run" / "inference_eval").glob("*-metrics.jsonl")}
    assert scored == {f"{task}-metrics.jsonl" for task in rates}


def test_t5xs_scalable_model_finetunes_on_our_mixture(team, plain):
    """In its own process: gin does not tell two modules `network` apart."""
    page = (team / "gsm8k_finetune.gin").read_text()
    scalable = page.replace("t5x/examples/t5/", "t5x/examples/scalable_t5/")
    assert scalable != page
    (team / "gsm8k_finetune.gin").write_text(scalable)
    flags = [f"--gin.{binding}" for binding in small_finetuning(team)]
    plain(team, "--gin_search_paths=.", "--gin_file=gsm8k_finetune.gin", *flags)
    assert (team / "run" / "checkpoint_2").is_dir()
    assert_trained_and_scored(team / "run")


def distil(team, *bindings, **macros):
    short = "evaluation.Decoding.max_tokens = 8"
    return finetune(team, short, *bindings, file="gsm8k_kl.gin", network="t5", **macros)


def test_kl_runs_under_t5xs_own_run_file_by_one_name(team):
    """Trained on a store, evaluated on the data set's own validation split."""
    prepare_gsm8k(team)
    lengths = {"inputs": 96, "targets": 128}
    task = "gsm8k_teacher_zero_shot_cot"
    last_step, _ = distil(team, MIXTURE_OR_TASK_NAME=task, TASK_FEATURE_LENGTHS=lengths)
    assert last_step == 2
    scalars = summaries(team / "run" / "train")
    assert scalars["teacher_fraction"][2] > 0 and np.isfinite(scalars["kl"][2])
    assert scalars["learning_rate"][2] == pytest.approx(1e-3)
    held_out = summaries(team / "run" / "training_eval" / task)
    assert held_out["cross_entropy"][2] > 0 and np.isnan(held_out["kl"][2])
    assert (team / "run" / "inference_eval" / f"{task}-metrics.jsonl").exists()


def prepare_gsm8k(team, **changes):
    """A store of chains on the first sixteen questions, with the teacher's log-probabilities."""
    samples = [
        dataclasses.replace(sample, question=f"train {n} + {n}?", **changes)
        for n, sample in enumerate(make_samples(make_stories(16, split="train"), samples=1))
    ]
    write_samples(team / "samples.jsonl", samples)
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", str(VOCABULARY_PATH))
    out = str(team / "store")
    inputs = [str(team / "samples.jsonl")]
    prepare(inputs, out, vocabulary=gsm8k.VOCABULARY, settings=Preparation(), workers=1)


@pytest.mark.parametrize("task", ["gsm8k_zero_shot_cot", "gsm8k_teacher_zero_shot_cot"])
def test_kl_without_a_teacher_stops_under_t5xs_own_run_file(team, task):
    """On the data set itself, and on a store of chains alone."""
    prepare_gsm8k(team, logprobs=None)
    with pytest.raises(UserError, match=f"no teacher log-probabilities in {task}"):
        distil(team, MIXTURE_OR_TASK_NAME=task)


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["google/flan-t5-small", "runs/kl", "runs/kl/checkpoints/600"])
def test_a_checkpoint_of_others_names_the_export(store, tmp_path, path):
    message = f"got {path} under T5X.*--checkpoint {path} --format t5x"
    with pytest.raises(UserError, match=message):
        train(tmp_path, store, INITIAL_CHECKPOINT_PATH=path)


def test_kl_without_a_teacher_stops_the_run(store, tmp_path):
    with pytest.raises(UserError, match=f"no teacher log-probabilities in {UNTAUGHT}"):
        train(tmp_path, store, MIXTURE_OR_TASK_NAME=UNTAUGHT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": T5Config(lora=Lora())}, "LoRA under T5X"),
        ({"decoding": Decoding(samples=4, temperature=1.0)}, "4 samples a prompt under T5X"),
    ],
)
def test_what_t5x_cannot_serve_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_model(**settings)
