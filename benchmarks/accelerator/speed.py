"""Training steps, decoding and the head's loss: seconds, tokens, memory, share of the peak.

The training step is the trainer's own program (`planning.program.lower_step`), with the settings of
gin/models/: bfloat16 products, float32 parameters, scanned layers, Adafactor.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import decoding as decoding_benchmark
import jax
import loss
import numpy as np
import step as step_benchmark
from accelerator.stages import Clock, Emit, failure
from harness import spread

from cot_flax.generation.decoding import decode
from cot_flax.objectives.losses import Objective
from cot_flax.planning import formula, plan, program, targets
from cot_flax.planning.experiment import AXES, Experiment, abstract_state
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.training import optimizers, sharding, state

LOSSES = {"KL": 1.0, "cross entropy": 0.0}
GROUPS = 5
"""Of steps, after each of which the host waits; a figure is the median group's."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and how it is measured.

    Attributes:
        positions: at most, of a batch: inputs and targets.
        lengths: of inputs and targets, the most valuable pair first.
        seconds: of a measurement.
    """

    model: T5Config
    positions: int
    lengths: tuple[tuple[int, int], ...] = ((1024, 256), (512, 128))
    seconds: float = 4.0


def t5(emb_dim: int, num_heads: int, layers: int, mlp_dim: int) -> T5Config:
    """T5 1.1 as gin/models/ has it, in bfloat16."""
    return T5Config(
        emb_dim=emb_dim,
        num_heads=num_heads,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        mlp_dim=mlp_dim,
        dtype="bfloat16",
        scan_layers=True,
        remat="minimal",
    )


SIZES = {
    "base": Size(t5(768, 12, 12, 2048), positions=65_536),
    "large": Size(t5(1024, 16, 24, 2816), positions=65_536),
    "xl": Size(t5(2048, 32, 24, 5120), positions=32_768),
}
TINY = Size(
    dataclasses.replace(t5(32, 2, 1, 64), vocab_size=512, head_dim=16),
    positions=192,
    lengths=((64, 32),),
    seconds=0.2,
)


def device(tiny: bool) -> dict:
    """What the figures were measured on."""
    found, known = jax.devices()[0], chip()
    return {
        "kind": found.device_kind,
        "platform": found.platform,
        "devices": jax.device_count(),
        "memory_gib": round(capacity() / targets.GIB, 2),
        "tiny": tiny or found.platform == "cpu",
        "peak_flops": known and known.flops,
    }


def chip() -> targets.Chip | None:
    """What the planner knows of this device."""
    kind = jax.devices()[0].device_kind.lower()
    if kind == "cpu":
        return targets.host()
    return next((chip for name, chip in targets.GPUS.items() if name in kind), None)


def capacity() -> float:
    """Bytes that JAX may use."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or targets.host().memory


def peak_gib() -> float | None:
    """The most that this process has had in use at a time."""
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return used and round(used / targets.GIB, 2)


# Training.


def training(name: str, emit: Emit, clock: Clock, tiny: bool) -> None:
    """Every pair of lengths with both losses; base with XLA's attention, too."""
    size = TINY if tiny else SIZES[name]
    runs = {
        f"{name} {inputs}/{outputs}, {kind}": experiment(size, inputs, outputs, kind)
        for inputs, outputs in size.lengths
        for kind in LOSSES
    }
    if name == "base" and not tiny:
        first = next(iter(runs))
        runs[f"{first}, XLA's attention"] = with_model(runs[first], attention="xla")
    programs = in_threads(compiled, {case: (run,) for case, run in runs.items()})
    train = Training()
    for case, run in runs.items():
        if clock.left < 2 * size.seconds:
            emit(["training", case], {"error": "left out: no time left"})
            continue
        emit(["training", case], train.measured(run, programs[case].result, size.seconds))


def experiment(size: Size, inputs: int, outputs: int, kind: str) -> Experiment:
    """The largest batch, a power of two, that by the planner's formula takes 4/5 of the memory."""
    run = Experiment(
        model=size.model,
        objective=Objective(kl_weight=LOSSES[kind]),
        optimizer=optimizers.adafactor(optimizers.constant(step_benchmark.LEARNING_RATE)),
        batch_size=2 ** int(math.log2(size.positions / (inputs + outputs))),
        inputs=inputs,
        targets=outputs,
        steps=1,
        mesh=sharding.MeshConfig(data=1),
        packed=False,
    )
    while run.batch_size > 1 and planned_bytes(run) > 0.8 * capacity():
        run = halved(run)
    return run


def planned_bytes(run: Experiment) -> int:
    return formula.memory(run, capacity(), jax.default_backend()).total


def halved(run: Experiment) -> Experiment:
    return dataclasses.replace(run, batch_size=run.batch_size // 2)


def with_model(run: Experiment, **changes) -> Experiment:
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **changes))


def in_threads(function: Callable, arguments: dict) -> dict[object, Future]:
    """Calls a function with each of the arguments at once, and waits: the compiler takes a core."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        return {name: pool.submit(function, *given) for name, given in arguments.items()}


def compiled(run: Experiment):
    """The trainer's step, and the seconds that it took to compile."""
    begun = time.monotonic()
    return program.lower_step(run, jax.devices()[:1]).compile(), time.monotonic() - begun


class Training:
    """The state that goes from one measurement of a model to the next."""

    def __init__(self):
        self._state: state.TrainState | None = None

    def measured(self, run: Experiment, program: Callable, seconds: float) -> dict:
        """A row; with a smaller batch, or XLA's attention, where the run as it is fails.

        Args:
            program: gives what `compiled` does, or raises what the compiler raised.
        """
        failed: list[str] = []
        while True:
            try:
                return self._row(run, *program(), seconds) | {"failed before": failed}
            except Exception as error:
                self._state = None  # its memory may be gone: a step takes the state's
                failed.append(f"batch {run.batch_size}: {failure(error)['error']}")
                smaller = fallback(run, error)
                if smaller is None:
                    return {"error": failed.pop(), "failed before": failed}
                run, program = smaller, partial(compiled, smaller)

    def _row(self, run: Experiment, step, compile_seconds: float, seconds: float) -> dict:
        take = self.stepping(run, step)
        losses = [take(1)]
        take(2)
        each = timed(take, 2)
        steps = max(1, round(seconds / GROUPS / each))
        groups = [timed(take, steps) for _ in range(GROUPS)]
        losses.append(take(1))
        if not all(map(math.isfinite, losses)):
            raise FloatingPointError(f"a loss that is not finite: {losses}")
        memory = step.memory_analysis()
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        return speed_of(run, groups) | {
            "steps": GROUPS * steps,
            "program_gib": round(used / targets.GIB, 2),
            "peak_gib_so_far": peak_gib(),
            "planned_gib": round(planned_bytes(run) / targets.GIB, 2),
            "fused_attentions": step.as_text().count("__cudnn$fmha"),
            "compile_seconds": round(compile_seconds, 1),
            "loss": losses,
        }

    def stepping(self, run: Experiment, step) -> Callable[[int], float]:
        """Returns a function that takes some steps and waits for the last one's loss."""
        mesh = jax.sharding.Mesh(sharding.arrange(jax.devices()[:1], 1, 1), AXES)
        if self._state is None:
            abstract = abstract_state(run, mesh)
            self._state = state.create(run.student, run.optimizer, 0, abstract)
        sizes = run.model.vocab_size, run.batch_size, run.inputs, run.targets
        batch = step_benchmark.make_batch(*sizes)
        if not run.objective.uses_teacher:
            batch = step_benchmark.without_teacher(batch)
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))

        def take(steps: int) -> float:
            for _ in range(steps):
                self._state, sums = step(self._state, batch)
            return float(sums["loss"] / sums["tokens"])

        return take


def timed(take: Callable[[int], object], steps: int) -> float:
    """Seconds a step; the host waits for the last one alone, as it does in training."""
    begun = time.perf_counter()
    take(steps)
    return (time.perf_counter() - begun) / steps


def fallback(run: Experiment, error: Exception) -> Experiment | None:
    """What to try where a run failed: half the rows if memory ran out, else XLA's attention."""
    if "RESOURCE_EXHAUSTED" in str(error):
        return halved(run) if run.batch_size > 1 else None
    return with_model(run, attention="xla") if run.model.attention == "auto" else None


def speed_of(run: Experiment, seconds: list[float]) -> dict:
    """Figures of a step that took so long, time and again.

    MFU counts the products of the planner's formula, without what is recomputed, and attention in
    full also where it is causal; it is a share of the chip's peak in bfloat16.
    """
    step = spread(seconds)
    flops = formula.step_flops(run.with_remat("none"))
    figures = {
        "batch": run.batch_size,
        "remat": run.model.remat,
        "step_seconds": step,
        "tokens_per_second": round(run.tokens / step["median"]),
        "sequences_per_second": round(run.batch_size / step["median"], 1),
        "flops_of_the_model": flops,
    }
    if known := chip():
        planned = plan.modelled(run, targets.Target("this", known, 1)).estimate.step
        figures |= {"mfu": flops / step["median"] / known.flops, "planned_seconds": planned}
    return figures


# Decoding.


def decoding(emit: Emit, clock: Clock, tiny: bool) -> None:
    """Prompts, and samples of each; the first token apart from the others."""
    few, all_cases = [(1, 1), (8, 8)], [(1, 1), (8, 1), (64, 1), (8, 8), (64, 8)]
    models = [("base", SIZES["base"].model, all_cases), ("xl", SIZES["xl"].model, few)]
    length, new_tokens = (32, 8) if tiny else (512, 128)
    for name, model, cases in [("tiny", TINY.model, few)] if tiny else models:
        params = decoding_benchmark.random_parameters(T5Student(model))
        decoder = T5Student(model).for_decoding(params)
        programs = in_threads(
            partial(compiled_decoder, *decoder, length),
            {(*case, tokens): (*case, tokens) for case in cases for tokens in (1, new_tokens)},
        )
        for prompts, samples in cases:
            place = ["decoding", f"{name}, {length}/{new_tokens}, {prompts} x {samples}"]
            if clock.left < 5:
                emit(place, {"error": "left out: no time left"})
                continue
            try:
                first, whole = (programs[prompts, samples, n].result() for n in (1, new_tokens))
                emit(place, decoding_speed(first, whole, prompts * samples, new_tokens))
            except Exception as error:
                emit(place, failure(error))


def compiled_decoder(student, params, length: int, prompts: int, samples: int, max_tokens: int):
    """Returns a function that decodes, greedily where a prompt has one sample, and waits."""
    tokens = decoding_benchmark.random_prompts(prompts, length, student.config.vocab_size)
    tokens = jax.device_put(tokens)
    temperature = 0.0 if samples == 1 else 1.0
    lowered = decode.lower(
        student, params, tokens, max_tokens=max_tokens, samples=samples, temperature=temperature
    )
    made = lowered.compile()
    return lambda: made(params, tokens, temperature=temperature).block_until_ready()


def decoding_speed(first: Callable, whole: Callable, texts: int, new_tokens: int) -> dict:
    """Figures of two programs: one stops after a token, the other after all of them."""
    written = np.asarray(whole())
    first()
    seconds = {
        run: spread([timed(lambda _, run=run: run(), 1) for _ in range(GROUPS)])
        for run in (first, whole)
    }
    begin, total = seconds[first]["median"], seconds[whole]["median"]
    return {
        "seconds": seconds[whole],
        "first_token_seconds": seconds[first],
        "token_seconds": (total - begin) / (new_tokens - 1),
        "tokens_per_second": round(texts * new_tokens / total),
        "written": float((written != 0).mean()),  # an end leaves padding behind
        "peak_gib_so_far": peak_gib(),
    }


# The loss through the head.


def head_loss(emit: Emit, tiny: bool) -> None:
    """T5's vocabulary and one of 262,144 pieces; fused, and as one would write it down."""
    positions, width = (64, 32) if tiny else (4096, 1024)
    for vocab_size in (512,) if tiny else (32_128, 262_144):
        place = ["head loss", f"V {vocab_size:,}, {positions:,} positions, D {width:,}"]
        try:
            emit(place, loss.measure(positions, width, [loss.TILES], GROUPS, vocab_size))
        except Exception as error:
            emit(place, failure(error))
