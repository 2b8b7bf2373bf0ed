"""Which flags the installed XLA knows: one that it does not know ends the process that reads it."""

import os
import subprocess
import sys

_READ = "from jaxlib import xla_client; xla_client.CompileOptions()"


def known(*flags: str) -> list[str]:
    """Those of `flags` (such as "--xla_cpu_max_isa=AVX2") that this jaxlib takes, in their order.

    Each is tried in a process of its own, of about 0.1 seconds.
    """
    tried = [
        subprocess.Popen(
            [sys.executable, "-c", _READ],
            env=os.environ | {"XLA_FLAGS": flag},
            stderr=subprocess.DEVNULL,
        )
        for flag in flags
    ]
    return [flag for flag, process in zip(flags, tried, strict=True) if process.wait() == 0]
