"""Whether the accelerator computes what a CPU computes in float32.

An error is the norm of a difference over the norm of what is expected. Letters as in
students/attention_kernels.py.
"""

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache, partial
from threading import Lock

import decoding
import jax
import jax.numpy as jnp
import loss
import numpy as np
from accelerator.stages import Emit, failure

from cot_flax.generation.decoding import decode
from cot_flax.objectives.losses import Objective
from cot_flax.students import attention_kernels
from cot_flax.students.attention_kernels import Bias
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.training import step

FLOAT32 = 1e-4
"""Of products at the highest precision, summed in another order."""
BFLOAT16 = {"loss": 2e-3, "gradients": 4e-2}
"""Of a whole model whose products and activations have 8 bits."""
ATTENTION = 1e-2
"""Of a fused kernel in bfloat16, whose position bias has 8 bits, too."""
OBJECTIVE = Objective(kl_weight=0.5)
TOP_K = 5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the checks; `tiny` are those of a test."""

    model: T5Config
    rows: int
    inputs: int
    targets: int
    heads: int
    length: int
    positions: int
    prompts: int
    new_tokens: int


WHOLE = Sizes(
    model=T5Config(num_heads=8, num_encoder_layers=4, num_decoder_layers=4),
    rows=8,
    inputs=256,
    targets=128,
    heads=8,
    length=512,
    positions=1024,
    prompts=8,
    new_tokens=32,
)
TINY = Sizes(
    model=T5Config(
        vocab_size=512,
        emb_dim=32,
        num_heads=2,
        head_dim=16,
        mlp_dim=64,
        num_encoder_layers=1,
        num_decoder_layers=1,
    ),
    rows=2,
    inputs=32,
    targets=16,
    heads=2,
    length=128,
    positions=64,
    prompts=2,
    new_tokens=4,
)


def run(emit: Emit, tiny: bool) -> None:
    """Emits each check's errors, their bounds and whether it passes."""
    sizes = TINY if tiny else WHOLE
    checks: dict[str, Callable[[], dict]] = {"T5 in float32": partial(float32, sizes)}
    for name, case in attention_cases(sizes.length).items():
        checks[f"fused attention, {name}"] = partial(attention, sizes.heads, **case)
    checks |= {
        "T5 in bfloat16, XLA's attention": partial(bfloat16, sizes, "xla"),
        "T5 in bfloat16, fused attention": partial(bfloat16, sizes, "auto"),
        "top-k KL through the head": partial(head_loss, sizes),
        "greedy tokens in float32": partial(greedy, sizes),
    }
    # Side by side: most of their time the compiler works, on one core each.
    with ThreadPoolExecutor(4) as pool:
        running = {pool.submit(check): name for name, check in checks.items()}
        for done in as_completed(running):
            try:
                emit(["correctness", running[done]], done.result())
            except Exception as error:
                emit(["correctness", running[done]], failure(error) | {"passes": False})


def verdict(errors: dict[str, float], bounds: dict[str, float]) -> dict:
    """An error without a bound is for information; one that is not finite exceeds every bound."""
    passes = all(errors[name] <= bound for name, bound in bounds.items())
    known = {name: error if math.isfinite(error) else None for name, error in errors.items()}
    return {"errors": known, "bounds": bounds, "passes": passes}


def relative(found, expected) -> float:
    """The error of a tree of arrays; NaN or infinity where it has some."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    pairs = [[np.asarray(array, np.float64) for array in pair] for pair in pairs]
    difference = math.sqrt(sum(np.square(a - b).sum() for a, b in pairs))
    return difference / math.sqrt(sum(np.square(b).sum() for _, b in pairs))


def places() -> tuple[jax.Device, jax.Device]:
    """The accelerator, and the CPU that has the expected values."""
    return jax.devices()[0], jax.devices("cpu")[0]


# The whole model.


def float32(sizes: Sizes) -> dict:
    found = loss_and_gradients(student_of(sizes), sizes, places()[0])
    errors = model_errors(found, reference(sizes))
    return verdict(errors, dict.fromkeys(errors, FLOAT32))


def bfloat16(sizes: Sizes, attention: str) -> dict:
    student = student_of(sizes, dtype="bfloat16", attention=attention)
    found = loss_and_gradients(student, sizes, places()[0])
    return verdict(model_errors(found, reference(sizes)), BFLOAT16)


def reference(sizes: Sizes):
    """In float32 on the CPU; computed once."""
    with _REFERENCE:
        return _reference(sizes)


@cache
def _reference(sizes: Sizes):
    return jax.device_get(loss_and_gradients(student_of(sizes), sizes, places()[1]))


_REFERENCE = Lock()


def student_of(sizes: Sizes, **changes) -> T5Student:
    return T5Student(dataclasses.replace(sizes.model, scan_layers=True, **changes))


def loss_and_gradients(student: T5Student, sizes: Sizes, place: jax.Device):
    """Of a packed batch with padding and a teacher, at the highest precision."""
    with jax.default_device(places()[1]):  # the same parameters, wherever they go
        params = jax.jit(student.init)(jax.random.key(0))["params"]
    batch = packed_batch(student, sizes)
    tokens = batch["decoder_loss_weights"].sum()

    def mean_loss(params, batch):
        return step.loss_sums(student, OBJECTIVE, params, batch)[0] / tokens

    with jax.default_matmul_precision("highest"):
        return jax.jit(jax.value_and_grad(mean_loss))(*jax.device_put((params, batch), place))


def packed_batch(student: T5Student, sizes: Sizes) -> dict[str, np.ndarray]:
    """Rows of two examples each; the last quarter of the targets is padding, inputs are full."""
    rng, V = np.random.default_rng(0), student.config.vocab_size

    def example(inputs: int, targets: int) -> dict:
        ids = rng.permuted(np.tile(np.arange(2, V), (targets, 1)), axis=1)[:, :TOP_K]
        return {
            "inputs": rng.integers(2, V, inputs).astype(np.int32),
            "targets": rng.integers(2, V, targets).astype(np.int32),
            "teacher_top_ids": ids.astype(np.int32),
            "teacher_top_logprobs": np.log(rng.dirichlet(np.ones(TOP_K + 1), targets))[:, :TOP_K],
        }

    cut, part = sizes.inputs // 3, sizes.targets // 4
    rows = [[example(cut, part), example(sizes.inputs - cut, 2 * part)] for _ in range(sizes.rows)]
    lengths = {"inputs": sizes.inputs, "targets": sizes.targets}
    return student.layout.to_batch(rows, lengths, student.special_ids, top_k=TOP_K, packed=True)


def model_errors(found, expected) -> dict[str, float]:
    (loss_found, grads), (loss_expected, grads_expected) = jax.device_get((found, expected))
    leaves = jax.tree.map(relative, grads, grads_expected)
    return {
        "loss": relative(loss_found, loss_expected),
        "gradients": relative(grads, grads_expected),
        "worst gradient of a parameter": max(jax.tree.leaves(leaves)),
    }


def greedy(sizes: Sizes) -> dict:
    """Token for token; one prompt after the other is compared up to its end."""
    student = T5Student(sizes.model)
    with jax.default_device(places()[1]):
        params = decoding.random_parameters(student)
    prompts = decoding.random_prompts(sizes.prompts, sizes.inputs, sizes.model.vocab_size)
    with jax.default_matmul_precision("highest"):
        found, expected = (
            np.asarray(
                decode(
                    student, *jax.device_put((params, prompts), place), max_tokens=sizes.new_tokens
                )
            )
            for place in places()
        )
    different = float((found != expected).mean())
    return verdict({"share of different tokens": different}, {"share of different tokens": 0.0})


def head_loss(sizes: Sizes) -> dict:
    """The tiled pass against whole logits, both on the accelerator."""
    arrays = loss.arrays(sizes.positions, sizes.model.emb_dim, sizes.model.vocab_size)
    with jax.default_matmul_precision("highest"):
        found, expected = (
            loss.compiled(form, *arrays)(*arrays) for form in (loss.tiled(loss.TILES), loss.dense)
        )
    ((value, _), grads), ((value_expected, _), grads_expected) = jax.device_get((found, expected))
    errors = {
        "loss": relative(value, value_expected),
        "gradients": relative(grads, grads_expected),
    }
    return verdict(errors, dict.fromkeys(errors, FLOAT32))


# The fused attention.


def attention_cases(length: int) -> dict[str, dict]:
    """Self and cross attention of packed rows whose last queries are padding.

    Inputs without padding leave those queries without any key. With 64 keys more than a multiple
    of 128 cuDNN has given gradients that are not numbers for such rows (pytorch issue 196678);
    `attention_kernels.choose` leaves these lengths to XLA, and this check has no bound there.
    """
    return {
        "encoder": {"queries": length, "keys": length, "position": True},
        "decoder": {"queries": length, "keys": length, "position": True, "causal": True},
        "cross": {"queries": length // 2, "keys": length, "position": False},
        "cross, 64 keys more": {"queries": length // 2, "keys": length + 64, "position": False},
    }


def attention(heads: int, *, queries: int, keys: int, position: bool, causal: bool = False) -> dict:
    """The fused kernel in bfloat16 against XLA's attention in float32, values and gradients."""
    arrays_BTHC, bias, cotangent_BTHC = attention_arrays(heads, queries, keys, position, causal)
    half = [array.astype(jnp.bfloat16) for array in arrays_BTHC]
    exact = [array.astype(jnp.float32) for array in half]
    # JAX's function is the same call everywhere; without a GPU it is computed by XLA.
    on_gpu = jax.default_backend() == "gpu"
    fused = partial(attention_kernels.cudnn, implementation="cudnn" if on_gpu else "xla")
    with jax.default_matmul_precision("highest"):
        expected = values_and_gradients(attention_kernels.xla, exact, bias, cotangent_BTHC)
    errors, of_xla = (
        {key: relative(array, expected[key]) for key, array in found.items()}
        for found in (
            values_and_gradients(form, half, bias, cotangent_BTHC)
            for form in (fused, attention_kernels.xla)
        )
    )
    served = attention_kernels.choose("cudnn", "gpu", half[0], half[1], bias) == "cudnn"
    errors["worst of XLA's in bfloat16"] = max(of_xla.values())
    return verdict(errors, dict.fromkeys(expected, ATTENTION) if served else {})


def attention_arrays(heads: int, queries: int, keys: int, position: bool, causal: bool):
    """Queries, keys and values of unit size; their logits spread as a trained T5's do."""
    rng, B, C = np.random.default_rng(0), 4, 64
    shapes = (B, queries, heads, C), (B, keys, heads, C), (B, keys, heads, C)
    query, *rest = (rng.standard_normal(shape, np.float32) for shape in shapes)
    arrays = jnp.asarray(query / np.sqrt(C)), *map(jnp.asarray, rest)
    segments_BS = np.broadcast_to(1 + (np.arange(keys) >= keys // 3), (B, keys))
    if position:
        segments_BT = segments_BS
    else:
        cuts = (np.arange(queries)[:, None] >= np.array([queries // 3, queries - queries // 4])).T
        segments_BT = np.broadcast_to(np.where(cuts[1], 0, 1 + cuts[0]), (B, queries))
    bias = Bias(
        jnp.asarray(rng.standard_normal((1, heads, queries, keys), np.float32))
        if position
        else None,
        jnp.asarray(segments_BT, jnp.int32),
        jnp.asarray(segments_BS, jnp.int32),
        causal,
    )
    # What padding reads is not learned: nothing comes back to it.
    cotangent = rng.standard_normal(shapes[0], np.float32) * (segments_BT > 0)[:, :, None, None]
    return arrays, bias, jnp.asarray(cotangent)


def values_and_gradients(form, arrays, bias: Bias, cotangent_BTHC) -> dict:
    """Of rows that are no padding: the values; and the gradients of what went in, in float32."""

    @jax.jit
    def total(arrays, position):
        mixed = form(*arrays, bias.replace(position=position)).astype(jnp.float32)
        return jnp.sum(mixed * cotangent_BTHC), mixed

    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    (arrays, position), mixed = gradient(tuple(arrays), bias.position)
    real = (bias.query_segments > 0)[:, :, None, None]
    names = ("d query", "d keys", "d values")
    found = {"output": mixed * real} | dict(zip(names, arrays, strict=True))
    return found if position is None else found | {"d position": position}
