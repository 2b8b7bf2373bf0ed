"""A student small enough to count by hand, and one run with it."""

import dataclasses

import pytest

from cot_flax.objectives.losses import Objective
from cot_flax.planning.experiment import Experiment
from cot_flax.students.t5 import T5Config
from cot_flax.training import optimizers
from cot_flax.training.sharding import MeshConfig

MODEL = T5Config(
    vocab_size=512,
    emb_dim=128,
    num_heads=4,
    num_encoder_layers=3,
    num_decoder_layers=2,
    head_dim=32,
    mlp_dim=256,
    scan_layers=True,
    remat="full",
)


@pytest.fixture
def experiment() -> Experiment:
    return Experiment(
        model=MODEL,
        objective=Objective(kl_weight=1.0),
        optimizer=optimizers.adamw(optimizers.constant(1e-3)),
        batch_size=16,
        inputs=64,
        targets=32,
        steps=1000,
        mesh=MeshConfig(2, 2, fsdp=True),
    )


@pytest.fixture
def changed(experiment):
    """Returns the run with other settings, those of its model included."""

    def change(**settings):
        model = {k: settings.pop(k) for k in list(settings) if hasattr(MODEL, k)}
        model = dataclasses.replace(MODEL, **model)
        return dataclasses.replace(experiment, model=model, **settings)

    return change
