"""A family that planning has never heard of: decoder-only, its figures counted by hand."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import pytest
from flax.linen.partitioning import AxisMetadata

from cot_flax.objectives.head_loss import TILES
from cot_flax.objectives.losses import Objective
from cot_flax.planning import formula, plan, search
from cot_flax.planning.experiment import Experiment
from cot_flax.planning.targets import Chip, Target
from cot_flax.students import student as students
from cot_flax.students.layouts import DecoderOnly
from cot_flax.students.products import Product
from cot_flax.students.student import CacheShape, Stack
from cot_flax.training import optimizers
from cot_flax.training.sharding import MeshConfig

V, D, F, H, C, LAYERS = 64, 16, 32, 2, 4, 3
"""Vocabulary, width, mlp width, heads, width of a head."""
B, S, T = 8, 5, 3
N, X = B * (S + T), H * C
WEIGHTS = {
    "qkv": ((LAYERS, D, 3 * X), ("layers", "embed", "joined_kv")),
    "out": ((LAYERS, X, D), ("layers", "joined_kv", "embed")),
    "wi": ((LAYERS, D, F), ("layers", "embed", "mlp")),
    "wo": ((LAYERS, F, D), ("layers", "mlp", "embed")),
}
LAYER = 3 * D * X + X * D + 2 * D * F
FOUR = Target("four", Chip("gpu", 1e9, 1e12, 1e10, 1e9), 4)


@dataclasses.dataclass(frozen=True)
class Config:
    """All else that a student's config has is fixed."""

    vocab_size: int = V
    emb_dim: int = D
    dtype = residual_dtype = "float32"
    remat = "none"
    scan_layers = True
    lora = None


@dataclasses.dataclass(frozen=True)
class DecoderOnlyStudent:
    """Only what a plan by formula needs: a tied head, one product for queries, keys and values."""

    config: Config
    special_ids: object

    family = "hand-written"
    config_class = Config
    layout = DecoderOnly()
    lora = None
    cache_shape = CacheShape(LAYERS, H, C, "float32")
    vocabulary_weights = V * D

    def init(self, key):
        params = {name: jnp.zeros(shape) for name, (shape, _) in WEIGHTS.items()}
        axes = {f"{name}_axes": AxisMetadata(names) for name, (_, names) in WEIGHTS.items()}
        return {
            "params": {"embedding": jnp.zeros((V, D)), "decoder": {"layers": params}},
            "params_axes": {
                "embedding_axes": AxisMetadata(("vocab", "embed")),
                "decoder": {"layers": axes},
            },
        }

    def products(self, batch, inputs, targets, platform):
        length = inputs + targets
        tokens, heads = batch * length, batch * H * LAYERS
        fused = platform == "gpu"
        return [
            Product("dense", tokens, D, 3 * X, LAYERS, "columns"),
            Product("attention", length, C, length, heads, "copies", fused=fused),
            Product("attention", length, length, C, heads, "copies", fused=fused),
            Product("dense", tokens, X, D, LAYERS, "inner"),
            Product("dense", tokens, D, F, LAYERS, "columns"),
            Product("dense", tokens, F, D, LAYERS, "inner", last=True),
            Product("head", tokens, D, V, 1, "columns"),
        ]

    def stacks(self, batch, inputs, targets):
        return [Stack(batch * (inputs + targets), LAYERS)]


@pytest.fixture
def run():
    students.add_family(DecoderOnlyStudent)
    yield Experiment(
        model=Config(),
        objective=Objective(kl_weight=1.0),
        optimizer=optimizers.adamw(optimizers.constant(1e-3)),
        batch_size=B,
        inputs=S,
        targets=T,
        steps=100,
        mesh=MeshConfig(2, 2),
    )
    del students.families()[DecoderOnlyStudent.family]


def test_parameters_and_flops_of_a_step(run):
    assert plan.modelled(run, FOUR).parameters == LAYERS * LAYER + V * D
    attention = 2 * B * H * (S + T) ** 2 * C * LAYERS
    forward = 2 * (N * LAYER * LAYERS + attention + N * D * V)
    assert formula.step_flops(run) == 3 * forward
    assert formula.work(run, "cpu", 0, 0.0).flops == 3 * forward / 4


def test_bytes_that_a_chip_moves(run):
    """Operands and results of every product, three times, in float32; half of either axis."""
    columns = (N / 2 * (D + 3 * X / 2) + D * 3 * X / 2) + (N / 2 * (D + F / 2) + D * F / 2)
    inner = (N / 2 * (X / 2 + D) + X / 2 * D) + (N / 2 * (F / 2 + D) + F / 2 * D)
    attention = 2 * B * H / 4 * (2 * (S + T) * C + (S + T) ** 2)
    head = N / 2 * (D + V / 2) + TILES * D * V / 2
    moved = 3 * 4 * (LAYERS * (columns + inner + attention) + head)
    assert formula.work(run, "cpu", 0, 0.0).memory == moved
    fused = 2 * B * H / 4 * (S + T) * (S + T)
    assert formula.work(run, "gpu", 0, 0.0).memory == moved - 3 * 4 * LAYERS * fused
    assert formula.work(run, "cpu", 1000, 0.0).memory == moved + 3000


def test_bytes_that_a_chip_sends(run):
    gradients = 2 * 4 * (LAYERS * LAYER + V * D) / 2 * 1 / 2
    sublayers = 2 * LAYERS * N / 2 * D * 4 * 2
    hidden = N / 2 * D * 4
    assert formula.wire_bytes(run) == gradients + 2 * (sublayers + hidden) * 1 / 2


def test_bytes_that_a_chip_holds(run):
    found = formula.memory(run, 1e9, "cpu")
    assert found.parameters == found.gradients == 4 * (LAYERS * LAYER + V * D) // 2
    assert found.optimizer == pytest.approx(2 * found.parameters, abs=16)  # AdamW: two moments
    assert found.batch == N // 2 * 4 * (5 + 2 * 5)  # tokens twice, weights, segments, places; KL
    columns = N // 2 * (3 * X + F) // 2 + B // 2 * H // 2 * ((S + T) ** 2 + (S + T) * C)
    results = LAYERS * (columns + N // 2 * 2 * D)
    assert found.activations == 4 * (N // 2 * D * LAYERS + 2 * results)
    tile = V // 2 * (2 * N // 2 // TILES + D)
    assert found.temporaries == 4 * (results // LAYERS + tile)
    fused = 4 * 2 * LAYERS * B // 2 * H // 2 * (S + T) ** 2
    assert formula.memory(run, 1e9, "gpu").activations == found.activations - fused


def test_the_bill_counts_one_side(run):
    found = plan.modelled(run, FOUR, price=2.0).bill
    assert found.teacher_bytes == 100 * N * 5 * 4
    assert found.tokens_per_second * found.hours * 3600 == pytest.approx(100 * N)


def test_a_search_leaves_alone_what_the_family_fixes(run):
    options = list(search.fastest(run, FOUR, partial(plan.modelled, target=FOUR)))
    assert options and all("REMAT" not in option.flags for option in options)
    # Four along model would split two heads.
    assert {mesh.model for mesh in search.meshes(run, 4)} == {1, 2}
    tiny = dataclasses.replace(FOUR, chip=dataclasses.replace(FOUR.chip, memory=2e4))
    too_large = plan.modelled(run, tiny)
    options = list(search.remedies(too_large, partial(plan.modelled, target=tiny)))
    assert options and all("REMAT" not in option.flags for option in options)
