import gin
import pytest


@pytest.fixture(autouse=True)
def _leave_gin_as_found():
    gin.clear_config()
    yield
    gin.clear_config()
