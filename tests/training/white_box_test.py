"""Tests of runs with a teacher beside the student: what it gives, what of it is saved, refusals."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.objectives.losses import Objective, WhiteBox, hidden_mse
from cot_flax.planning import formula
from cot_flax.planning.experiment import Experiment
from cot_flax.students.lora import Lora
from cot_flax.students.student import build
from cot_flax.training import optimizers, state, step, white_box
from cot_flax.training.sharding import MeshConfig
from cot_flax.training.white_box import Projecting, Teacher
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import load

from .loop_test import Copying, assert_same, rows_of, run, steps_in  # noqa: F401 (fixtures)

LOSSES = ("softmax_kl", "logit_mse", "hidden_mse")


@pytest.fixture(scope="module")
def teacher(run, config, tmp_path_factory):  # noqa: F811
    """A wider student that has learned to copy."""
    folder = tmp_path_factory.mktemp("teacher")
    run(folder, model=dataclasses.replace(config, emb_dim=24), total_steps=60)
    return Teacher(str(folder), dtype="float32")


def objective(loss, weight=1.0):
    return Objective(white_box=WhiteBox(loss, weight))


def opened(teacher, loss, config):
    """The student that is trained, the teacher and the teacher's parameters."""
    student = build(config)
    source, theirs = white_box.beside(teacher, objective(loss), student, "copying")
    params = load(source, state.abstract_variables(theirs)["params"])
    return white_box.trained(student, objective(loss), theirs), theirs, params


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_that_of_both_forward_passes(teacher, config, loss):
    student, theirs, their_params = opened(teacher, loss, config)
    params = jax.jit(student.init)(jax.random.key(0))["params"]
    batch = {name: jnp.asarray(x) for name, x in Copying().batch(1).items()}
    total, sums = step.loss_sums(
        student, objective(loss, 0.75), params, batch, teacher=(theirs, their_params)
    )
    hidden, their_hidden = student.hidden(params, batch), theirs.hidden(their_params, batch)
    logits, their_logits = hidden @ student.head(params), their_hidden @ theirs.head(their_params)
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    if loss == "hidden_mse":
        assert params["projection"]["projection"].shape == (16, 24)
        values = hidden_mse(hidden, their_hidden, params["projection"]["projection"])
        rest = Objective()(logits, targets, None, None)
        expected = np.sum((0.75 * values + 0.25 * rest) * weights)
    else:
        values = objective(loss)(logits, targets, None, None, their_logits)
        expected = np.sum(
            objective(loss, 0.75)(logits, targets, None, None, their_logits) * weights
        )
        own = -jnp.take_along_axis(jax.nn.log_softmax(their_logits), targets[..., None], 2)[..., 0]
        assert float(sums["teacher_cross_entropy"]) == pytest.approx(float(jnp.sum(own * weights)))
    assert float(total) == pytest.approx(float(expected), rel=1e-4)
    assert float(sums[loss]) == pytest.approx(float(jnp.sum(values * weights)), rel=1e-4)


@pytest.mark.parametrize(
    "loss", ["softmax_kl", pytest.param("logit_mse", marks=pytest.mark.slow), "hidden_mse"]
)
def test_a_student_comes_nearer_to_its_teacher(teacher, run, tmp_path, loss, capsys):  # noqa: F811
    run(tmp_path, objective=objective(loss), teacher=teacher, total_steps=40)
    rows = rows_of(tmp_path)
    assert rows[-1][loss] < 0.6 * rows[0][loss]
    assert rows[-1]["loss"] == pytest.approx(rows[-1][loss], rel=1e-5)
    assert f"objective: {loss} x 1 of {teacher.checkpoint_path}; " in capsys.readouterr().err
    assert run_folder.read_facts(tmp_path)["taught_by"] == teacher.checkpoint_path


@pytest.fixture(scope="module")
def projected(teacher, run, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("projected")
    settings = {"objective": objective("hidden_mse", 0.5), "teacher": teacher}
    return folder, run(folder, total_steps=20, **settings), settings


def test_it_resumes_bit_for_bit_with_its_projection(projected, run, tmp_path):  # noqa: F811
    _, last, settings = projected
    run(tmp_path, total_steps=10, **settings)
    assert steps_in(tmp_path) == [10]
    assert_same(run(tmp_path, total_steps=20, **settings), last)
    moved = last.params["projection"]["projection"]
    first = run(tmp_path, total_steps=1, overwrite=True, **settings).params["projection"]
    assert not np.allclose(moved, first["projection"], atol=1e-3)


def test_a_checkpoint_is_read_without_projection_and_teacher(projected, run, tmp_path):  # noqa: F811
    folder, last, _ = projected
    source = open_source(str(folder))
    assert source.tensors.keys() == source.student.parameter_shapes().keys()
    still = optimizers.adamw(optimizers.constant(0.0))
    started = run(tmp_path, initial_checkpoint_path=str(folder), total_steps=1, optimizer=still)
    kept = {name: tree for name, tree in last.params.items() if name != "projection"}
    assert_same(started.params, kept)


def test_with_lora_the_projection_moves_beside_the_adapters(projected, run, config, tmp_path):  # noqa: F811
    folder, last, settings = projected
    model = dataclasses.replace(config, lora=Lora(rank=2, dropout=0.0))
    start = {"model": model, "initial_checkpoint_path": str(folder)} | settings
    one, two = (run(tmp_path / str(n), total_steps=n, **start).params for n in (1, 4))
    name = ("projection", "projection")
    assert not np.allclose(one[name[0]][name[1]], two[name[0]][name[1]])
    embedding = [tree["token_embedder"]["embedding"] for tree in (last.params, one, two)]
    assert_same(embedding[0], embedding[2])  # frozen


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 (simulated) devices")
@pytest.mark.parametrize("loss", [pytest.param("softmax_kl", marks=pytest.mark.slow), "hidden_mse"])
def test_four_devices_have_the_losses_of_one(teacher, run, config, tmp_path, loss):  # noqa: F811
    settings = {"model": config, "objective": objective(loss, 0.5), "teacher": teacher}
    meshes = {"one": MeshConfig(data=1), "four": MeshConfig(data=2, model=2, fsdp=True)}
    rows = []
    for name, mesh in meshes.items():
        run(tmp_path / name, total_steps=5, log_period=1, mesh=mesh, **settings)
        rows.append([row["loss"] for row in rows_of(tmp_path / name)])
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)


def test_microbatches_and_bfloat16_do(teacher, run, config, tmp_path):  # noqa: F811
    low = dataclasses.replace(teacher, dtype="bfloat16")
    losses = []
    for name, one, parts in (("a", teacher, 1), ("b", teacher, 4), ("c", low, 1)):
        # Without dropout, whose draws differ by micro-batch.
        settings = {"model": config, "objective": objective("softmax_kl"), "teacher": one}
        settings["microbatches"] = parts
        run(tmp_path / name, total_steps=1, log_period=1, **settings)
        losses.append(rows_of(tmp_path / name)[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=0.05) and losses[2] != losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "objective softmax_kl without a teacher.* set WHITE_BOX_TEACHER"),
        ({"data": Copying(vocabulary="reversing")}, "teacher with vocabulary copying of 24 rows"),
        ({"vocab_size": 32}, r"of 24 rows \(.*\) at .*; expected the student's, copying of 32"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(teacher, run, config, tmp_path, changes, message):  # noqa: F811
    settings = {"objective": objective("softmax_kl"), "teacher": teacher} | changes
    if size := settings.pop("vocab_size", None):
        settings["model"] = dataclasses.replace(config, vocab_size=size)
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_another_teacher_or_weight_is_another_run(projected, run, teacher):  # noqa: F811
    folder, _, settings = projected
    other = settings | {"objective": objective("hidden_mse", 0.25)}
    with pytest.raises(UserError, match=r"WHITE_BOX_WEIGHT 0\.5, not 0\.25"):
        run(folder, total_steps=30, **other)
    elsewhere = dataclasses.replace(teacher, checkpoint_path=f"{teacher.checkpoint_path}/")
    with pytest.raises(UserError, match="WHITE_BOX_TEACHER"):
        run(folder, total_steps=30, **settings | {"teacher": elsewhere})


def test_a_plan_counts_the_teacher(teacher, config):
    """Its parameters in its dtype, and its forward pass."""
    low = dataclasses.replace(teacher, dtype="bfloat16")
    plain = Experiment(
        model=config,
        objective=Objective(),
        optimizer=optimizers.adamw(optimizers.constant(1e-3)),
        batch_size=8,
        inputs=8,
        targets=8,
        steps=1,
        mesh=MeshConfig(data=1),
    )
    beside = dataclasses.replace(plain, objective=objective("softmax_kl"), teacher=low)
    own, both = (formula.memory(e, 1e9, "cpu").parameters for e in (plain, beside))
    theirs = open_source(teacher.checkpoint_path).student
    count = sum(map(math.prod, theirs.parameter_shapes().values()))
    assert both - own == 2 * count
    forward = sum(product.flops for product in theirs.products(8, 8, 8, "cpu"))
    assert formula.step_flops(beside) - formula.step_flops(plain) == forward


def test_the_projection_does_not_disturb_the_student(config):
    student = build(config)
    key = jax.random.key(3)
    with_it, without = Projecting(student, 5).init(key), student.init(key)
    assert_same(
        {k: v for k, v in with_it["params"].items() if k != "projection"}, without["params"]
    )
    kernel = with_it["params"]["projection"]["projection"]
    assert float(jnp.std(kernel)) == pytest.approx(0.25, rel=0.25)  # 1 / sqrt(16)
