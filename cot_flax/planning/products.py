"""The matrix products of one forward pass, listed: FLOPs and bytes follow by arithmetic.

XLA's own count takes the body of a loop once, whatever its length, and most of a step happens in
loops: scanned layers, micro-batches, the tiles of the loss.
"""

from cot_flax.students.products import passes
from cot_flax.students.t5.config import T5Config
from cot_flax.students.t5.products import forward


def step_flops(config: T5Config, batch: int, inputs: int, targets: int) -> float:
    """Multiplications and additions of one optimizer step, those of matrix products alone."""
    adapters_only = config.lora is not None
    return sum(
        product.flops * passes(product, config.remat, adapters_only=adapters_only)
        for product in forward(config, batch, inputs, targets)
    )
