"""What tests beside T5X need: its networks broadcast between ranks; it leaves loops unclosed."""

import asyncio
import contextlib
import gc
import warnings

import jax
import pytest

LEAVES_LOOPS = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module", autouse=True)
def _beside_t5x():
    with jax.numpy_rank_promotion("allow"):
        yield
    _close_the_loop()
    gc.collect()  # here, and not amid somebody else's test


def _close_the_loop():
    """T5X's checkpointer sets one for the thread; the next `asyncio.run` would drop it unclosed."""
    with warnings.catch_warnings(), contextlib.suppress(RuntimeError):
        warnings.simplefilter("ignore", DeprecationWarning)  # where there is none
        asyncio.get_event_loop().close()
    asyncio.set_event_loop(None)
