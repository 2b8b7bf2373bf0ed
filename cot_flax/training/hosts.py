"""Several processes as one JAX program: TPU pods, GKE, Slurm, or processes that name each other."""

import contextlib
import glob
import os
import socket
import sys
import time
from collections.abc import Iterator

import jax

from cot_flax.errors import UserError, report_error

_REMEDY = "start every process with the same address and count, and an index of its own"


@contextlib.contextmanager
def initialize_distributed(
    address: str | None, count: int | None, index: int | None, *, timeout: int = 300
) -> Iterator[None]:
    """Makes this process one of its run's, before JAX looks for devices; alone where it is alone.

    One that fails among several ends at once: to leave as usual it would wait for the others,
    which wait for it. They end when they miss it (JAX's heartbeat, 100 seconds) or are told to.

    Args:
        address: host:port at which process 0 waits for the others. All three are given, or none:
            then the environment says it, of Slurm, GKE or a Cloud TPU.
        count: of processes.
        index: of this one, from 0.
        timeout: seconds to wait for the others.

    Raises:
        UserError: some of the three are missing or wrong, or the others do not come.
    """
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    named = [value is not None for value in given.values()]
    if any(named):
        _check(address, count, index)
        if index:
            _wait_for(address, timeout)
        _initialize(timeout, **given)
    elif _has_company(os.environ):
        _initialize(timeout)
    elif _may_have_company(os.environ):
        with contextlib.suppress(ValueError):  # JAX knows no cluster: a TPU by itself, say
            jax.distributed.initialize(initialization_timeout=timeout)
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        code = report_error(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def is_first() -> bool:
    """Whether this process is the one that writes what all of them know."""
    return jax.process_index() == 0


def _check(address, count, index):
    def refuse(expected):
        got = f"coordinator_address {address}, process_count {count}, process_index {index}"
        return UserError(got, expected, _REMEDY)

    if None in (address, count, index):
        raise refuse("all three")
    if not address.rpartition(":")[2].isdigit() or ":" not in address:
        raise refuse("an address as HOST:PORT")
    if not 0 <= index < count:
        raise refuse("an index from 0, below the count")


def _wait_for(address, timeout):
    """Waits until process 0 listens: JAX would abort with the whole of its stack."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        time.sleep(0.2)
    raise UserError(f"no answer at {address} for {timeout} seconds", "process 0 there", _REMEDY)


def _initialize(timeout, **given):
    try:
        jax.distributed.initialize(initialization_timeout=timeout, **given)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no run to join ({reason})", "its other processes", _REMEDY) from error


def _has_company(environment) -> bool:
    """Whether Slurm or GKE say that there are other processes.

    JAX would take a single task of Slurm, too, for a cluster, and give it one GPU.
    """
    if "SLURM_STEP_NODELIST" in environment:
        return int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if int(environment.get("MEGASCALE_NUM_SLICES", "1")) > 1:
        return True
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    return "," in hosts


def _may_have_company(environment) -> bool:
    """Whether this is a Cloud TPU: its metadata server, which JAX asks, lists its workers."""
    on_tpu = bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    listed = "TPU_WORKER_HOSTNAMES" in environment or "TPU_PROCESS_ADDRESSES" in environment
    return on_tpu and not listed and "tpu" in environment.get("JAX_PLATFORMS", "tpu")
