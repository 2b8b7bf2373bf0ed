"""A run with a tiny student of random parameters on the world's vocabulary."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import pytest

from cot_flax import run_folder
from cot_flax.data.mixtures import find_task
from cot_flax.data.registration import prompts_of
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.students.student import build
from cot_flax.students.t5 import T5Config
from cot_flax.tasks import stories  # noqa: F401 (registers them)
from cot_flax.text.prompts import FORMATS
from cot_flax.text.tokenizers import open_tokenizer
from cot_flax.training.checkpoints import Checkpointer, Metadata
from cot_flax.training.state import TrainState

CONFIG = T5Config(
    vocab_size=256,
    emb_dim=32,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=16,
)


@pytest.fixture(scope="session", autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def write_run(tmp_path_factory):
    """Writes a run whose mixture had these tasks."""
    student = build(CONFIG)
    params = jax.jit(student.init)(jax.random.key(0))["params"]
    params = jax.tree.map(lambda leaf: leaf * 2.0, params)

    def write(tasks, **data):
        folder = tmp_path_factory.mktemp("run")
        checkpointer = Checkpointer(str(folder), period=1, keep=1)
        vocabulary = open_tokenizer(VOCABULARY_PATH).fingerprint
        state = TrainState(jnp.int32(7), params, (), jax.random.PRNGKey(0))
        checkpointer.save(state, Metadata(dataclasses.asdict(CONFIG), vocabulary, 7), step=7)
        checkpointer.close()
        shutil.copy(VOCABULARY_PATH, folder / "spiece.model")
        prompts = prompts_of([find_task(task) for task in tasks])
        facts = {"data": {"prompts": prompts, "lengths": {"inputs": 96, "targets": 24}, **data}}
        run_folder.write_facts(folder, facts)
        return folder

    return write


@pytest.fixture(scope="session")
def run(write_run):
    return write_run([f"stories_{format}" for format in FORMATS])
