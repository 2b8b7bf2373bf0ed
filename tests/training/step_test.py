"""Tests of one optimizer step and of the sums behind its metrics."""

import dataclasses
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cot_flax.objectives.losses import Objective
from cot_flax.students import lora
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.students.parameters import stack_layers
from cot_flax.students.t5 import T5Student
from cot_flax.text.tokenizers import T5_SPECIAL_IDS
from cot_flax.training import optimizers
from cot_flax.training.optimizers import Optimizer
from cot_flax.training.state import TrainState, split_trainable
from cot_flax.training.step import loss_sums, make_train_step, summarize

pytestmark = pytest.mark.filterwarnings("error")

KL = Objective(kl_weight=0.5, temperature=2.0, z_loss=0.01)


def rate(step):
    """1, then 0, then 1: a step at the rate 1 changes the parameters by the gradient."""
    return jnp.where(step == 1, 0.0, 1.0)


DESCENT = Optimizer(optax.sgd(rate), rate)


@pytest.fixture(scope="module")
def params(config):
    return jax.jit(T5Student(config).init)(jax.random.key(0))["params"]


@pytest.fixture(scope="module")
def sums_of(config):
    """The summed loss of a batch, and the sums."""
    return jax.jit(lambda params, batch: loss_sums(T5Student(config), KL, params, batch))


@pytest.fixture(scope="module")
def gradient_of(config):
    """The gradient of the summed loss, and the sums."""
    return jax.jit(
        jax.grad(
            lambda params, batch: loss_sums(T5Student(config), KL, params, batch), has_aux=True
        )
    )


def state_of(config, params, optimizer):
    opt_state = optimizer.transform.init(split_trainable(T5Student(config), params)[0])
    return TrainState(jnp.int32(0), params, opt_state, jax.random.PRNGKey(7))


@cache
def jitted_step(config, optimizer, microbatches):
    return jax.jit(make_train_step(T5Student(config), optimizer, KL, microbatches))


def run(config, params, batch, *, optimizer=DESCENT, microbatches=1, steps=1):
    state, history = state_of(config, params, optimizer), []
    for _ in range(steps):
        state, metrics = jitted_step(config, optimizer, microbatches)(state, batch)
        for flags in ("nonfinite/activations", "nonfinite/gradients"):
            assert not np.any(metrics.pop(flags))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def assert_close(ours, theirs, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


@pytest.fixture(scope="module")
def whole(config, params, batch):
    state, (metrics,) = run(config, params, batch)
    return state, metrics


@pytest.mark.parametrize("microbatches", [2, 4, 8])
def test_microbatches_make_the_step_of_the_whole_batch(microbatches, whole, config, params, batch):
    tokens = batch["decoder_loss_weights"].sum(axis=1)
    parts = [tokens[i::microbatches].sum() for i in range(microbatches)]
    assert len(set(parts)) == microbatches  # a mean of means would differ
    state, (metrics,) = run(config, params, batch, microbatches=microbatches)
    assert_close(state.params, whole[0].params, atol=1e-6)
    assert metrics == pytest.approx(whole[1], rel=1e-5)


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_equal_microbatches_make_the_mean_of_their_means(
    microbatches, config, params, batch, gradient_of
):
    """As Fu et al. 2023 accumulate: each is a batch of its own, and divided by their number."""
    step = make_train_step(T5Student(config), DESCENT, KL, microbatches, equal=True)
    state, metrics = jax.jit(step)(state_of(config, params, DESCENT), batch)
    expected = params
    for part in range(microbatches):
        rows = {name: values[part::microbatches] for name, values in batch.items()}
        tokens = rows["decoder_loss_weights"].sum()
        gradient, _ = gradient_of(params, rows)
        expected = jax.tree.map(
            lambda p, g, tokens=tokens: p - g / tokens / microbatches, expected, gradient
        )
    assert_close(state.params, expected, atol=1e-6)
    assert metrics["tokens"] == 36  # metrics are of tokens all the same


def test_the_step_is_the_summed_gradient_over_all_tokens(whole, params, batch, gradient_of):
    gradient = jax.tree.map(lambda g: np.asarray(g) / 36, gradient_of(params, batch)[0])
    assert batch["decoder_loss_weights"].sum() == whole[1]["tokens"] == 36
    assert_close(whole[0].params, jax.tree.map(lambda p, g: p - g, params, gradient), atol=1e-6)
    squares = sum(np.sum(g.astype(float) ** 2) for g in jax.tree.leaves(gradient))
    assert whole[1]["gradient_norm"] == pytest.approx(math.sqrt(squares), rel=1e-4)
    assert int(whole[0].step) == 1


def test_a_schedule_counts_steps_not_microbatches(config, params, batch):
    state, history = run(config, params, batch, microbatches=4, steps=3)
    assert [row["learning_rate"] for row in history] == [1, 0, 1]
    assert int(state.step) == 3
    # At the rate 0 nothing moved, so the third step saw the loss of the second.
    assert history[0]["loss"] != history[1]["loss"] == history[2]["loss"]


def test_metrics_against_numpy(config, params, batch, sums_of):
    names = "encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens"
    forward = jax.jit(lambda *arrays: T5Student(config).module.apply({"params": params}, *arrays))
    logits = np.asarray(forward(*(batch[name] for name in names)), float)
    targets, ids = batch["decoder_target_tokens"], batch["teacher_top_ids"]
    log_z = np.log(np.exp(logits).sum(axis=-1))
    expected = dict.fromkeys(
        ["loss", "cross_entropy", "token_accuracy", "z_loss", "tokens", "soft_tokens"], 0.0
    )
    names = ("kl", "kl_at_temperature", "teacher_entropy", "teacher_mass", "student_mass")
    expected |= dict.fromkeys([f"soft/{name}" for name in (*names, "agreement")], 0.0)

    def add(**values):
        for name, value in values.items():
            expected[name.replace("soft_", "soft/") if name != "soft_tokens" else name] += value

    p = np.array([0.5, 0.25, 0.125, 0.125])
    for b, t in zip(*np.nonzero(batch["decoder_loss_weights"]), strict=True):
        ce = log_z[b, t] - logits[b, t, targets[b, t]]
        add(tokens=1, cross_entropy=ce, token_accuracy=logits[b, t].argmax() == targets[b, t])
        loss = ce
        if t % 2 == 0:
            q = np.exp(logits[b, t, ids[b, t]] - log_z[b, t])
            q = np.append(q, 1 - q.sum())
            flat_p, flat_q = np.sqrt(p) / np.sqrt(p).sum(), np.sqrt(q) / np.sqrt(q).sum()
            tempered = (flat_p * np.log(flat_p / flat_q)).sum()
            loss = 0.5 * 4 * tempered + 0.5 * ce
            add(
                soft_tokens=1,
                soft_kl=(p * np.log(p / q)).sum(),
                soft_kl_at_temperature=tempered,
                soft_teacher_entropy=-(p * np.log(p)).sum(),
                soft_teacher_mass=0.875,
                soft_student_mass=q[:3].sum(),
                soft_agreement=logits[b, t].argmax() == ids[b, t, 0],
            )
        z_loss = 0.01 * log_z[b, t] ** 2
        add(loss=loss + z_loss, z_loss=z_loss)
    total, sums = sums_of(params, batch)
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(expected, rel=1e-4)
    assert total == sums["loss"]


@pytest.mark.parametrize("tied", [False, True])
def test_equals_the_loss_of_whole_logits_with_its_gradient(tied, config, batch):
    model = T5Student(dataclasses.replace(config, logits_via_embedding=tied))
    names = "encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens"
    inputs = [batch[name] for name in names]
    params = jax.jit(model.init)(jax.random.key(0))["params"]

    def whole(params):
        logits_BTV = model.module.apply({"params": params}, *inputs)
        labels = inputs[2], batch["teacher_top_ids"], batch["teacher_top_logprobs"]
        return jnp.sum(KL(logits_BTV, *labels) * batch["decoder_loss_weights"])

    ours = jax.jit(jax.value_and_grad(lambda params: loss_sums(model, KL, params, batch)[0]))
    theirs = jax.jit(jax.value_and_grad(whole))
    assert_close(ours(params), theirs(params), rtol=1e-5, atol=1e-4)


def test_padding_rows_add_nothing(params, batch, gradient_of):
    """The two halves of a batch, each beside rows of zeros, add up to the batch."""
    halves = [np.arange(8) < 4, np.arange(8) >= 4]
    parts = [
        gradient_of(params, {name: (array.T * kept).T for name, array in batch.items()})
        for kept in halves
    ]
    assert_close(jax.tree.map(jnp.add, *parts), gradient_of(params, batch), rtol=1e-4, atol=1e-4)


def test_a_batch_of_padding_moves_nothing(config, params, batch):
    nothing = {name: np.zeros_like(array) for name, array in batch.items()}
    state, (metrics,) = run(config, params, nothing)
    assert_close(state.params, params, rtol=0)
    assert metrics["gradient_norm"] == metrics["loss"] == 0
    assert summarize(metrics)["loss"] == 0


def test_packed_rows_sum_to_what_their_examples_do(params, batch, sums_of):
    packing = pytest.importorskip("cot_flax.data.packing")
    examples = []
    for b in range(8):
        length = int(batch["decoder_loss_weights"][b].sum())
        inputs = batch["encoder_input_tokens"][b]
        row = {
            name: batch[name][b, :length] for name in ("teacher_top_ids", "teacher_top_logprobs")
        }
        row |= {"inputs": inputs[inputs > 0], "targets": batch["decoder_target_tokens"][b, :length]}
        examples.append(row)
    lengths = {"inputs": 20, "targets": 20}
    rows = list(packing.pack(examples, EncoderDecoder(), lengths))
    assert max(len(row) for row in rows) > 1
    packed = EncoderDecoder().to_batch(rows, lengths, T5_SPECIAL_IDS, top_k=3, packed=True)
    assert_close(sums_of(params, packed), sums_of(params, batch), rtol=1e-5)


def test_dropout_differs_by_step_and_can_be_repeated(config, params, batch):
    dropping = dataclasses.replace(config, dropout_rate=0.2)
    still = Optimizer(optax.sgd(0.0), optax.constant_schedule(0.0))

    def losses():
        _, history = run(dropping, params, batch, optimizer=still, microbatches=2, steps=3)
        return [row["loss"] for row in history]

    first = losses()
    assert len(set(first)) == 3
    assert losses() == first


# LoRA ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(config, params):
    """A config with adapters, and parameters whose adapters all matter."""
    config = dataclasses.replace(config, lora=lora.Lora(rank=2, dropout=0.0))
    tree = jax.jit(T5Student(config).init)(jax.random.key(1))["params"]
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, lora.split(tree)[0])
    return config, lora.join(adapters, params)


def test_adapters_alone_have_gradients_and_optimizer_state(adapted, batch):
    config, params = adapted
    adamw = optimizers.adamw(optimizers.constant(0.01))
    start = jax.eval_shape(lambda: state_of(config, params, adamw))
    moments = start.opt_state[0]
    adapters = jax.tree.structure(lora.split(params)[0])
    assert jax.tree.structure(moments.mu) == jax.tree.structure(moments.nu) == adapters
    end, metrics = jax.eval_shape(make_train_step(T5Student(config), adamw, KL), start, batch)
    assert jax.tree.structure(end) == jax.tree.structure(start)
    # 3 attentions, 2 projections, A and B.
    assert metrics["nonfinite/gradients"].shape == (12,)


def test_a_step_moves_adapters_by_their_part_of_the_whole_gradient(adapted, batch):
    config, params = adapted
    whole = jax.jit(jax.grad(lambda p: loss_sums(T5Student(config), KL, p, batch)[0]))(params)
    gradient = jax.tree.map(lambda g: np.asarray(g) / 36, lora.split(whole)[0])
    state, (metrics,) = run(config, params, batch)
    (before, frozen), (after, kept) = lora.split(params), lora.split(state.params)
    jax.tree.map(np.testing.assert_array_equal, kept, frozen)
    assert_close(jax.tree.map(jnp.subtract, before, after), gradient, rtol=1e-3, atol=1e-5)
    squares = sum(np.sum(g.astype(float) ** 2) for g in jax.tree.leaves(gradient))
    assert metrics["gradient_norm"] == pytest.approx(math.sqrt(squares), rel=1e-4)


def test_adapters_cost_less_than_the_whole_gradient(adapted, config, params, batch):
    """The products that make the gradients of frozen kernels are not in the program."""

    def flops(config, params):
        step = jitted_step(config, DESCENT, 1).lower(state_of(config, params, DESCENT), batch)
        return step.compile().cost_analysis()["flops"]

    # Forward, gradient of activations and gradient of weights are a third each.
    assert flops(*adapted) < 0.85 * flops(config, params)


def test_adapters_with_scan_remat_and_microbatches(adapted, batch):
    config, params = adapted
    plain, history = run(config, params, batch)
    scanned = dataclasses.replace(config, scan_layers=True, remat="full")
    state, ours = run(scanned, stack_layers(params), batch, microbatches=2)
    assert_close(state.params, stack_layers(plain.params), atol=1e-5)
    assert ours[0] == pytest.approx(history[0], rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_of_adapters_needs_no_other_dropout(dropout, adapted, batch):
    config, params = adapted
    config = dataclasses.replace(config, lora=lora.Lora(rank=2, dropout=dropout))
    step = make_train_step(T5Student(config), DESCENT, KL)
    program = str(jax.make_jaxpr(step)(state_of(config, params, DESCENT), batch))
    assert ("random_bits" in program) == (dropout > 0)


def test_summarize():
    sums = {
        "tokens": 8.0,
        "loss": 16.0,
        "cross_entropy": 12.0,
        "token_accuracy": 2.0,
        "z_loss": 0.5,
        "soft_tokens": 2.0,
        "soft/kl": 1.0,
        "soft/agreement": 2.0,
        "learning_rate": 0.5,
        "gradient_norm": 3.0,
    }
    assert summarize(sums) == {
        "loss": 2.0,
        "cross_entropy": 1.5,
        "token_accuracy": 0.25,
        "z_loss": 0.0625,
        "kl": 0.5,
        "agreement": 1.0,
        "teacher_fraction": 0.25,
        "learning_rate": 0.5,
        "gradient_norm": 3.0,
    }


def test_summarize_without_teacher_rows():
    sums = {"tokens": 0.0, "loss": 0.0, "cross_entropy": 0.0, "token_accuracy": 0.0}
    means = {"loss": 0.0, "cross_entropy": 0.0, "token_accuracy": 0.0}
    assert summarize(sums) == summarize(sums | {"soft_tokens": 0.0, "soft/kl": 0.0}) == means
