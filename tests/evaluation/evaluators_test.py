"""Tests of held-out losses, with a student that knows nothing: every token is as likely as any."""

import math
from dataclasses import dataclass

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cot_flax.data.batches import TaskBatches
from cot_flax.evaluation import evaluators
from cot_flax.evaluation.evaluators import LossEvaluator
from cot_flax.objectives.losses import Objective
from cot_flax.students.student import build
from cot_flax.students.t5 import T5Config
from cot_flax.tasks import stories  # noqa: F401 (registers)
from cot_flax.training.sharding import MeshConfig, make_mesh, replicated

V = 256
CONFIG = T5Config(
    vocab_size=V,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=32,
)
MESH = make_mesh(MeshConfig(data=2))
PROBABILITIES = np.array([0.5, 0.25, 0.125])
EVEN = {"loss": math.log(V), "cross_entropy": math.log(V), "token_accuracy": 0.0}


@pytest.fixture(scope="module")
def blank():
    student = build(CONFIG)
    params = jax.jit(student.init)(jax.random.key(0))["params"]
    return student, jax.device_put(jax.tree.map(jnp.zeros_like, params), replicated(MESH))


@dataclass(frozen=True)
class Held:
    """Two batches of two rows; the teacher's rows all have `PROBABILITIES`."""

    has_teacher: bool = True
    batch_size: int = 2
    shards: int = 1

    def batches(self, layout, start, shards):
        lengths = {"inputs": 4, "targets": 3}
        example = {
            "inputs": np.array([5, 6, 1]),
            "targets": np.array([7, 8, 1]),
            "teacher_top_ids": np.tile([7, 8, 9], (3, 1)),
            "teacher_top_logprobs": np.tile(np.log(PROBABILITIES), (3, 1)),
        }
        rows, special_ids = [[example]] * 2, build(CONFIG).special_ids
        top_k = 3 if self.has_teacher else 0
        yield from [layout.to_batch(rows, lengths, special_ids, top_k=top_k, packed=False)] * 2


def evaluated(evaluator, student, params):
    with jax.set_mesh(MESH):
        return evaluator(student, params)


def test_cross_entropy_of_tasks(blank):
    gin.clear_config()
    gin.bind_parameter("cot_flax.tasks.stories.size.validation", 10)
    lengths = {"inputs": 96, "targets": 72}
    data = TaskBatches(
        "stories_zero_shot_cot", lengths, batch_size=2, split="validation", shuffle=False
    )
    assert evaluated(LossEvaluator(data, batches=3), *blank) == pytest.approx(EVEN)
    gin.clear_config()


def test_the_kl_of_held_out_teacher_rows(blank):
    """The rest of the teacher's mass, 1/8, is one more outcome, to the student (V - 3) / V."""
    objective = Objective(kl_weight=1.0, tail="bucket")
    found = evaluated(LossEvaluator(Held(), objective=objective), *blank)
    theirs, ours = np.append(PROBABILITIES, 0.125), np.array([1 / V] * 3 + [(V - 3) / V])
    assert found["loss"] == pytest.approx((theirs * np.log(theirs / ours)).sum(), rel=1e-5)
    assert found["cross_entropy"] == pytest.approx(math.log(V))
    assert found["teacher_fraction"] == 1.0


def test_without_teacher_rows_a_run_with_kl_sees_cross_entropy(blank):
    evaluator = LossEvaluator(Held(has_teacher=False), objective=Objective(kl_weight=1.0))
    assert evaluated(evaluator, *blank) == pytest.approx(EVEN)


def test_a_run_compiles_once(blank):
    student, params = blank
    evaluators._loss_sums.cache_clear()
    for scale in (0.0, 1.0):  # the trainer's parameters are new arrays every time
        moved = jax.tree.map(lambda leaf, scale=scale: leaf + scale, params)
        evaluated(LossEvaluator(Held()), student, moved)
    assert evaluators._loss_sums.cache_info().misses == 1
    objective = LossEvaluator(Held()).objective
    assert evaluators._loss_sums(student, objective, MESH)._cache_size() == 1
