"""What all tests share: simulated devices, quiet libraries, and where shared data lies."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Eight simulated devices, of which most tests use one; and XLA's older emitters for the CPU, which
# compile in half the time. What starts as a user would, such as the demo, has the default.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_force_host_platform_device_count=8",
)

# Arrays of different ranks meet by a broadcast that is written out. Processes that tests start
# inherit it, too: they run the same code.
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

# Buckets are read through gcsfs: TensorFlow's client, which epath takes at its first path where it
# is there, cannot be led to the emulator.
os.environ.setdefault("EPATH_USE_TF", "false")

import pytest


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Tiny models that T5X and Hugging Face wrote, with their outputs; see README.md there."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that need it skip on other clones."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside this checkout: real data sets, T5's vocabulary")
    return path
