"""What all tests share: simulated devices, quiet libraries, and where shared data lies."""

import os
import signal
import sys
from pathlib import Path

import pytest
from support import xla

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Eight simulated devices, of which most tests use one; and of what makes compilation short, what
# the installed XLA knows: the last flag, the CPU's older emitters, is gone from jax 0.12. What
# starts as a user would, such as the demo, has the default.
if "XLA_FLAGS" not in os.environ:  # pytest-xdist's workers inherit it
    quick = xla.known(
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
    )
    flags = [*quick, "--xla_force_host_platform_device_count=8"]
    os.environ["XLA_FLAGS"] = " ".join(flags)

# Arrays of different ranks meet by a broadcast that is written out. Processes that tests start
# inherit it, too: they run the same code.
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

# Buckets are read through gcsfs: TensorFlow's client, which epath takes at its first path where it
# is there, cannot be led to the emulator.
os.environ.setdefault("EPATH_USE_TF", "false")

# The compiler of PyTorch's wheels for GPUs crashes where TensorFlow was imported before it; what
# our references compute on the CPU does without it.
sys.modules["triton"] = None

# A shell's background jobs, and what they start, ignore Ctrl-C; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# What takes longest; begun last, it would keep one worker of two waiting.
LONGEST = (
    "tests/lab/demo_test.py",
    "tests/training/hosts_test.py",
    "tests/docs_test.py",
    "tests/cli_test.py",
    "tests/tasks/cot_collection_test.py",
    "tests/training/white_box_test.py",
    "tests/training/loop_test.py",
    "tests/data/",
    "tests/example_package_test.py",
    "tests/mistakes_test.py",
    "tests/cli_environment_test.py",
    "tests/accelerator_test.py",
    "tests/launch_test.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The longest files first (launch/test.sh has pytest-xdist keep this order)."""

    def place(item):
        return next((n for n, name in enumerate(LONGEST) if item.nodeid.startswith(name)), 99)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _short_shuffles():
    """SeqIO shuffles among 1,000 examples, all of which are made before the first batch.

    Tests have some twenty. What they start as processes of their own shuffles as a user's does.
    """
    import seqio

    name = "_shuffle_buffer_size"
    short = property(
        lambda task: task.__dict__[name] and min(task.__dict__[name], 32),
        lambda task, size: task.__dict__.update({name: size}),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqio.Task, name, short, raising=False)
        yield


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
