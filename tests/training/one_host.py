"""One process of the runs of hosts_test.py: python one_host.py FOLDER [ADDRESS COUNT INDEX]."""

import itertools
import sys
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.experimental import multihost_utils

from cot_flax.objectives.losses import Objective
from cot_flax.students.t5 import T5Config
from cot_flax.text.tokenizers import T5_SPECIAL_IDS, SpecialIds
from cot_flax.training import hosts, loop, optimizers
from cot_flax.training.sharding import MeshConfig

CONFIG = T5Config(
    vocab_size=24,
    emb_dim=16,
    num_heads=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=32,
    dropout_rate=0.1,
)
STEPS = 4, 7


@dataclass
class Shards:
    """8 rows of 4 shards, with a teacher's top 2; says which shards were asked for."""

    batch_size: int = 8
    shards: int = 4
    vocabulary: str = "numbers"
    vocabulary_files: dict = field(default_factory=lambda: {"spiece.model": b"numbers"})
    special_ids: SpecialIds = T5_SPECIAL_IDS
    facts: dict = field(default_factory=dict)

    def check(self, objective, vocab_size):
        """Serves every objective."""

    def batches(self, layout, skip, shards):
        print(f"process {jax.process_index()} reads {shards} from row {skip} on", flush=True)
        for number in itertools.count(skip // self.batch_size):
            parts = [self._rows(np.random.default_rng((shard, number))) for shard in shards]
            yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def report(self):
        return ""

    def _rows(self, rng):
        tokens = rng.integers(2, 24, (2, 6)).astype(np.int32)
        real = np.arange(6) < rng.integers(1, 7, (2, 1))
        return {
            "encoder_input_tokens": tokens,
            "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": np.where(real, tokens, 0),
            "decoder_loss_weights": real.astype(np.float32),
            "teacher_top_ids": rng.permuted(np.tile(np.arange(2, 24), (2, 6, 1)), axis=2)[..., :2],
            "teacher_top_logprobs": np.log(rng.dirichlet([1, 1, 1], (2, 6))[..., :2]),
        }


MEASURED = itertools.count()


class Worsening:
    """A loss that grows with every evaluation: the first step stays the best."""

    goals, split = {"worse": "min"}, "validation"

    def __call__(self, student, params):
        return {"worse": float(next(MEASURED))}


def train(folder, steps, mesh, data):
    return loop.train(
        model_dir=str(folder),
        model=CONFIG,
        data=data,
        objective=Objective(kl_weight=0.5),
        optimizer=optimizers.adafactor(optimizers.constant(1e-2)),
        total_steps=steps,
        mesh=mesh,
        checkpoint_period=2,
        log_period=1,
        eval_period=2,
        evaluators=[Worsening()],
        best_metrics=("worse",),
    )


def main(folder, address=None, count=None, index=None):
    jax.config.update("jax_disable_most_optimizations", True)
    with hosts.initialize_distributed(
        address, count and int(count), index and int(index), timeout=60
    ):
        if folder != "fail":
            for steps in STEPS:  # stops, and goes on
                train(folder, steps, MeshConfig(model=2, fsdp=True), Shards())
        elif jax.process_index():
            raise OSError("a disk that only this process has")
        else:
            multihost_utils.sync_global_devices("which the other one never reaches")


if __name__ == "__main__":
    main(*sys.argv[1:])
