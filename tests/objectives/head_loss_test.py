"""Tests of the loss through the LM head: the numbers of whole logits, without whole logits."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cot_flax.objectives.head_loss import distillation_loss
from cot_flax.objectives.losses import Objective
from cot_flax.objectives.statistics import statistics_of

pytestmark = pytest.mark.filterwarnings("error")

OBJECTIVES = {
    "cross entropy": Objective(),
    "all of cross entropy": Objective(z_loss=0.02, label_smoothing=0.1),
    "bucket": Objective(kl_weight=1.0),
    "bucket, warm": Objective(kl_weight=0.5, temperature=2.0, z_loss=0.01, label_smoothing=0.1),
    "ignore": Objective(kl_weight=0.7, tail="ignore"),
    "renormalize": Objective(kl_weight=1.0, tail="renormalize", z_loss=0.01),
    "renormalize, warm": Objective(kl_weight=0.5, tail="renormalize", temperature=2.0),
    "renormalize, cool": Objective(1.0, "renormalize", 0.5, 0.01, 0.1),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def case(batch=4, length=7, width=16, vocab=48, k=3):
    """Hidden states, a head and labels: weights of 0 and 0.5, rows with part of a teacher or none.

    The first position's student is sure of one token (a logit 40 above the others).
    """
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((batch, length, width)).astype(np.float32)
    head = rng.standard_normal((width, vocab)).astype(np.float32) / math.sqrt(width)
    hidden[0, 0] = 40 * head[:, 5] / np.sum(head[:, 5] ** 2)
    shape = (batch, length)
    weights = rng.choice(np.float32([0, 0.5, 1]), shape)
    weights[0, 0] = 1
    ids = np.stack([rng.permutation(vocab)[:k] for _ in range(batch * length)])
    ids = np.where(rng.random((*shape, k)) < 0.8, ids.reshape(*shape, k), -1)
    ids[:, 1::3] = -1
    logprobs = np.log(rng.dirichlet(np.ones(k + 1), shape)[..., :k])
    targets = np.where(
        (ids[..., 0] >= 0) & (rng.random(shape) < 0.5), ids[..., 0], rng.integers(0, vocab, shape)
    )
    labels = targets.astype(np.int32), weights, ids.astype(np.int32), logprobs.astype(np.float32)
    return hidden, head, labels


def dense(objective, hidden, head, labels):
    """The loss and the metrics from [B, T, V]."""
    targets, weights, ids, logprobs = labels
    logits = hidden @ head
    loss = jnp.sum(objective(logits, targets, ids, logprobs) * weights)
    taught = ids if objective.uses_teacher else None
    metrics = objective.metrics(statistics_of(logits, targets, taught), targets, ids, logprobs)
    if objective.tail == "renormalize":
        warm = statistics_of(logits, targets, ids, temperature=objective.temperature)
        metrics = objective.metrics(warm, targets, ids, logprobs)
    metrics = {n: v for n, v in metrics.items() if objective.uses_teacher or "soft" not in n}
    soft = weights * np.any(ids >= 0, axis=-1)
    sums = {"tokens": weights.sum(), "nonfinite": 0.0}
    for name, values in metrics.items():
        some = soft if "soft" in name else weights
        sums[name] = jnp.sum(jnp.where(some > 0, values * some, 0))
    if objective.uses_teacher:
        sums["soft_tokens"] = soft.sum()
    return loss, sums


def tiled(objective, hidden, head, labels, **kwargs):
    return distillation_loss(hidden, head, *labels, objective=objective, **kwargs)


def with_gradients(function, objective, labels, **kwargs):
    """The jitted value (loss, metrics) and gradients of `tiled` or `dense`."""
    call = lambda hidden, head: function(objective, hidden, head, labels, **kwargs)  # noqa: E731
    return jax.jit(jax.value_and_grad(call, (0, 1), has_aux=True))


def assert_close(ours, theirs, tolerance=1e-5):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@every_objective
def test_equals_the_dense_form(objective):
    hidden, head, labels = case()  # 28 positions, which 8 tiles do not divide
    ours = with_gradients(tiled, objective, labels)
    theirs = with_gradients(dense, objective, labels)
    assert_close(ours(hidden, head), theirs(hidden, head))


@pytest.mark.parametrize("tiles", [1, 5, 28, 30])
def test_any_number_of_tiles_does(tiles):
    hidden, head, labels = case()
    ours = with_gradients(tiled, OBJECTIVES["bucket, warm"], labels, tiles=tiles)
    theirs = with_gradients(dense, OBJECTIVES["bucket, warm"], labels)
    assert_close(ours(hidden, head), theirs(hidden, head))


def test_evaluation_gives_the_same_numbers_and_forms_no_gradient():
    hidden, head, labels = case()
    objective = OBJECTIVES["renormalize, cool"]
    alone = jax.jit(lambda h, w: tiled(objective, h, w, labels))
    both = with_gradients(tiled, objective, labels)
    assert_close(alone(hidden, head), both(hidden, head)[0], 1e-6)
    assert len(products(alone, hidden, head)) == 1
    assert len(products(both, hidden, head)) == 3


def test_a_frozen_head_has_no_gradient_formed():
    """With LoRA only the hidden states lead to parameters that move."""
    hidden, head, labels = case()
    objective = OBJECTIVES["bucket"]
    some = jax.jit(jax.grad(lambda h: tiled(objective, h, head, labels)[0]))
    whole = jax.grad(lambda h, w: tiled(objective, h, w, labels)[0], (0, 1))
    assert len(products(some, hidden)) == 2
    assert_close(some(hidden), whole(hidden, head)[0])


def test_gradients_scale_with_what_follows_and_metrics_have_none():
    hidden, head, labels = case()
    objective = OBJECTIVES["bucket, warm"]
    whole = jax.grad(lambda h: tiled(objective, h, head, labels)[0])(hidden)

    def halved(h):
        loss, metrics = tiled(objective, h, head, labels)
        return loss / 2 + metrics["cross_entropy"]

    assert_close(jax.grad(halved)(hidden), whole / 2)


def test_positions_without_weight_are_not_looked_at():
    """They may hold anything, and where they fill tiles those are not made."""
    hidden, head, labels = case()
    hidden = np.where(labels[1][..., None] > 0, hidden, np.nan)
    ours = with_gradients(tiled, OBJECTIVES["bucket"], labels)(hidden, head)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(ours))
    nothing = (labels[0], np.zeros_like(labels[1]), *labels[2:])
    ours = with_gradients(tiled, OBJECTIVES["bucket"], nothing)(hidden, head)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(ours))


def test_counts_positions_whose_logits_are_not_finite():
    hidden, head, labels = case()
    seen = np.argwhere(labels[1] > 0)
    for b, t in seen[:3]:
        hidden[b, t, 0] = np.inf
    assert tiled(Objective(), hidden, head, labels)[1]["nonfinite"] == 3


def test_agreement_and_accuracy_take_the_first_of_equals():
    labels = (np.int32([[0, 2]]), np.ones((1, 2)), np.int32([[[2], [2]]]), np.zeros((1, 2, 1)))
    _, metrics = tiled(Objective(kl_weight=1.0), np.ones((1, 2, 4)), np.zeros((4, 6)), labels)
    assert (metrics["token_accuracy"], metrics["soft/agreement"]) == (1, 0)


def test_bfloat16_is_computed_in_float32():
    hidden, head, labels = case()
    hidden, head = (jnp.asarray(x, jnp.bfloat16) for x in (hidden, head))
    objective = OBJECTIVES["bucket"]
    loss = with_gradients(tiled, objective, labels)
    value, gradients = loss(hidden, head)
    whole, expected = loss(hidden.astype(jnp.float32), head.astype(jnp.float32))
    assert_close(value, whole)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.bfloat16]
    assert_close(gradients, jax.tree.map(lambda g: g.astype(jnp.bfloat16), expected))


def test_temporaries_do_not_grow_with_the_logits():
    """All but one tile of logits, and the product that is added to the head's gradient."""
    hidden, head, labels = case(batch=8, length=64, width=8, vocab=4096)
    ours = with_gradients(tiled, OBJECTIVES["bucket"], labels)
    used = ours.lower(hidden, head).compile().memory_analysis().temp_size_in_bytes
    assert used < 8 * 64 * 4096 * 4 / 2


# On a mesh ----------------------------------------------------------------------------------------

RULES = [("batch", "data"), ("vocab", "model")]
SETTINGS = {"batch": 8, "length": 64, "width": 8, "vocab": 4096}


def on_mesh(data, model, objective, fsdp=False, **kwargs):
    """The compiled loss with gradients on a mesh, and its results."""
    hidden, head, labels = case(**kwargs)
    mesh = Mesh(np.array(jax.devices()[: data * model]).reshape(data, model), ("data", "model"))
    rows = NamedSharding(mesh, P("data"))
    columns = NamedSharding(mesh, P("data" if fsdp else None, "model"))
    loss = lambda h, w, labels: tiled(objective, h, w, labels)  # noqa: E731
    with jax.set_mesh(mesh), partitioning.axis_rules(RULES):
        run = jax.jit(
            jax.value_and_grad(loss, (0, 1), has_aux=True),
            in_shardings=(rows, columns, rows),
            out_shardings=(None, (rows, columns)),
        )
        arrays = jax.device_put((hidden, head, labels), (rows, columns, rows))
        compiled = run.lower(*arrays).compile()
        return compiled, compiled(*arrays)


def products(function, *arguments):
    """The matrix products of a traced program, loops counted once."""
    return re.findall("dot_general", str(jax.make_jaxpr(function)(*arguments)))


def collectives(compiled) -> list[tuple[str, int]]:
    """Kind and largest operand (numbers) of every collective of a program."""
    found = []
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    for shape, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", compiled.as_text()):
        sizes = [
            math.prod(map(int, s.split(","))) if s else 1 for s in re.findall(r"\[(.*?)\]", shape)
        ]
        found.append((kind, max(sizes)))
    return found


@pytest.mark.parametrize(("data", "model"), [(8, 1), (4, 2), (1, 8)])
def test_eight_devices_give_the_numbers_of_one(data, model):
    objective = OBJECTIVES["renormalize, cool"]
    _, ours = on_mesh(data, model, objective, batch=8)
    hidden, head, labels = case(batch=8)
    theirs = with_gradients(dense, objective, labels)(hidden, head)
    assert_close(ours, theirs)


@pytest.mark.parametrize("objective", ["bucket", "renormalize, cool"])
def test_neither_logits_nor_head_travel(objective):
    compiled, _ = on_mesh(4, 2, OBJECTIVES[objective], **SETTINGS)
    tile, width, columns, k = 8 * 64 // 4 // 8, 8, 4096 // 2, 3
    # Numbers of a tile's positions and the gradients of their hidden states over `model`, that of
    # the head's own columns over `data`; nothing else.
    allowed = {tile, tile * k, tile * width, width * columns, 1}
    found = collectives(compiled)
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert {size for _, size in found} <= allowed
    assert width * columns in {size for _, size in found}


def test_a_head_split_both_ways_is_gathered_over_data_alone():
    """As with any parameter split over `data`: its own columns, never all."""
    compiled, _ = on_mesh(4, 2, OBJECTIVES["bucket"], fsdp=True, **SETTINGS)
    gathered = [size for kind, size in collectives(compiled) if kind == "all-gather"]
    assert gathered == [8 * 4096 // 2]


def test_temporaries_shrink_with_the_mesh():
    def used(*mesh):
        compiled, _ = on_mesh(*mesh, OBJECTIVES["bucket"], **SETTINGS)
        return compiled.memory_analysis().temp_size_in_bytes

    alone = used(1, 1)
    assert all(used(*mesh) < alone / 3 for mesh in [(8, 1), (1, 8), (4, 2)])


def test_axes_that_do_not_divide_split_nothing():
    """3 rows over 2 devices, 45 tokens over 2: as on one device."""
    objective = OBJECTIVES["bucket"]
    hidden, head, labels = case(batch=3, vocab=45)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    ours = with_gradients(tiled, objective, labels)
    with jax.set_mesh(mesh), partitioning.axis_rules(RULES):
        split = ours(hidden, head)
    theirs = with_gradients(dense, objective, labels)(hidden, head)
    assert_close(split, theirs)
