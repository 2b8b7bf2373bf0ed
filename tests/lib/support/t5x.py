"""What tests beside T5X need: its networks broadcast between ranks; it leaves loops unclosed."""

import gc

import jax
import pytest

LEAVES_LOOPS = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module", autouse=True)
def _beside_t5x():
    with jax.numpy_rank_promotion("allow"):
        yield
    gc.collect()  # here, and not amid somebody else's test
