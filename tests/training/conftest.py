"""A tiny student, batches of it, and settings that keep hundreds of compilations short."""

import jax
import numpy as np
import pytest

from cot_flax.students.t5 import T5Config


@pytest.fixture(scope="package", autouse=True)
def _quick_compilation(tmp_path_factory):
    """The same programs are compiled again by every run of the trainer."""
    cache = str(tmp_path_factory.mktemp("compiled"))
    settings = {
        "jax_disable_most_optimizations": (True, False),
        "jax_compilation_cache_dir": (cache, None),
        "jax_persistent_cache_min_compile_time_secs": (0.0, 1.0),
        "jax_persistent_cache_min_entry_size_bytes": (-1, 0),
    }
    for name, (ours, _) in settings.items():
        jax.config.update(name, ours)
    yield
    for name, (_, default) in settings.items():
        jax.config.update(name, default)


@pytest.fixture(scope="session")
def config() -> T5Config:
    return T5Config(
        vocab_size=24,
        emb_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=4,
        mlp_dim=32,
    )


@pytest.fixture(scope="session")
def batch() -> dict[str, np.ndarray]:
    """8 rows of 1 to 8 target tokens; a teacher's top 3 on every other token."""
    rng = np.random.default_rng(0)
    lengths = np.array([3, 8, 1, 5, 6, 7, 4, 2])
    real = np.arange(8) < lengths[:, None]
    targets = np.where(real, rng.integers(2, 24, (8, 8)), 0).astype(np.int32)
    inputs = np.where(np.arange(6) < lengths[::-1, None], rng.integers(2, 24, (8, 6)), 0)
    shifted = np.where(real, np.pad(targets, ((0, 0), (1, 0)))[:, :-1], 0)
    taught = (real & (np.arange(8) % 2 == 0))[..., None]
    ids = np.stack([rng.permutation(np.arange(2, 24))[:3] for _ in range(64)]).reshape(8, 8, 3)
    return {
        "encoder_input_tokens": inputs.astype(np.int32),
        "decoder_input_tokens": shifted.astype(np.int32),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": real.astype(np.float32),
        "teacher_top_ids": np.where(taught, ids, -1).astype(np.int32),
        "teacher_top_logprobs": np.where(taught, np.log([0.5, 0.25, 0.125]), 0).astype(np.float32),
    }
