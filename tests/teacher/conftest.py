"""No keys from outside."""

import pytest


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    """No test depends on, or sends, a key of the person who runs it."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def key(monkeypatch) -> str:
    """A key that is found again wherever it appears."""
    key = "sk-W7#q%+only/for=the.server"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    return key
