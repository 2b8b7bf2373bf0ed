"""What ends a run from outside: a signal, which first lets it save, and a device without memory."""

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from cot_flax.errors import UserError

_SIGNALS = signal.SIGTERM, signal.SIGINT


class Stopped(BaseException):
    """A signal asks the run to end.

    Attributes:
        name: of the signal.
        code: the exit code by which a shell knows it.
    """

    def __init__(self, number: int):
        self.name, self.code = signal.Signals(number).name, 128 + number
        super().__init__(self.name)


class Signals:
    """Raises `Stopped` on SIGTERM (preemption) and SIGINT (Ctrl-C), a second one ends at once.

    Among several processes nothing is changed: JAX tells all of them of a preemption.
    """

    def __init__(self):
        self._deferred, self._came = False, None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block."""
        here = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        heard = [s for s in _SIGNALS if here and signal.getsignal(s) is not signal.SIG_IGN]
        before = {s: signal.signal(s, self._take) for s in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Raises at the end of the block, which must not be left half done."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._came is not None:
            raise Stopped(self._came)

    def _take(self, number, frame):
        self._came = number
        if not self._deferred:
            raise Stopped(number)


_FITS = (
    "lower BATCH_SIZE, raise MICROBATCHES, set REMAT=full or spread it (MESH_MODEL, FSDP); "
    "`cot-flax plan` says beforehand what fits"
)


def check_memory(state) -> None:
    """Raises UserError where what must stay on a device is more than the device can hold.

    Where an allocation fails, XLA raises on accelerators, but may wait for ever on a CPU.

    Args:
        state: a tree of `ShapeDtypeStruct`s with shardings.
    """
    leaves = jax.tree.leaves(state)
    each = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    if device.platform == "cpu":  # its devices share the machine's memory
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    if limit and each > limit:
        raise UserError(
            f"no memory for parameters and optimizer: {each / 1e9:,.1f} GB a device",
            f"at most {limit / 1e9:,.1f} GB, which a {device.device_kind} has",
            f"take a smaller model or LORA; {_FITS}",
        )


@contextmanager
def memory_named(remedy: str = _FITS) -> Iterator[None]:
    """Raises UserError where a device has no memory left for what the block does."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"no memory left ({str(error).splitlines()[0]})",
            "what fits",
            remedy,
        ) from error
