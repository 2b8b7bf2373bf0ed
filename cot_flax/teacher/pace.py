"""How fast requests go to a server: by the limits that the user gave, and by its own refusals.

All requests of a connection share one pace. Requests and tokens are spread evenly over the minute
(the generic cell rate algorithm, as in ATM's traffic contracts), for a server may count in seconds,
in windows or in whole minutes. One refusal pauses all; after it one request goes ahead, and the
others follow its answer.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

MINUTE = 60.0
_STEP = 1.0  # Seconds after which one who waits looks again: others may have used less.
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


@dataclass
class Turn:
    """A request on its way.

    Attributes:
        start: when it was sent, by the monotonic clock.
        tokens: that it takes; reserved at first, then as the server counts.
    """

    start: float
    tokens: int


class Pace:
    """One server's pace. It belongs to one event loop."""

    def __init__(
        self,
        rpm: float | None = None,
        tpm: float | None = None,
        *,
        wait_initial: float = 1.0,
        wait_max: float = 60.0,
        attempts: int = 8,
    ):
        """Knows nothing of the server yet.

        Args:
            rpm: requests a minute; None is no limit.
            tpm: tokens a minute; None is no limit.
            wait_initial: seconds of the first pause; they double with every further refusal.
            wait_max: seconds, the longest pause unless the server asks for more.
            attempts: refusals in a row after which the server is not waited for any more.
        """
        self._request_seconds = MINUTE / rpm if rpm else 0.0
        self._token_seconds = MINUTE / tpm if tpm else 0.0
        self._wait_initial, self._wait_max, self._attempts = wait_initial, wait_max, attempts
        self._next_request = self._next_token = self._paused_until = 0.0
        self._refused_at = 0.0
        self._refusals = 0  # in a row, of any requests
        self._gate = asyncio.Lock()

    @asynccontextmanager
    async def turn(self, tokens: int) -> AsyncIterator[Turn]:
        """Waits until a request of about so many tokens may go; it is over with the context.

        What it took in the end is to be written into the turn.
        """
        async with self._gate:  # In the order of arrival.
            turn = await self._begin(tokens)
            goes_ahead = self._refusals > 0
            if goes_ahead:
                async with self._settling(turn):
                    yield turn
        if not goes_ahead:
            async with self._settling(turn):
                yield turn

    async def _begin(self, tokens: int) -> Turn:
        while True:
            now = time.monotonic()
            wait = max(self._next_request, self._next_token, self._paused_until) - now
            if wait <= 0:
                break
            await asyncio.sleep(min(wait, _STEP))
        self._next_request = now + self._request_seconds
        self._next_token = now + tokens * self._token_seconds
        return Turn(now, tokens)

    @asynccontextmanager
    async def _settling(self, turn: Turn) -> AsyncIterator[None]:
        reserved = turn.tokens
        try:
            yield
        finally:
            self._next_token += (turn.tokens - reserved) * self._token_seconds

    def answered(self, turn: Turn, headers: Mapping[str, str]) -> None:
        """A request was answered; where the server says that nothing is left, all wait for more."""
        if turn.start >= self._refused_at:
            self._refusals = 0
        for kind, needed in (("requests", 1), ("tokens", turn.tokens)):
            names = (f"x-ratelimit-{name}-{kind}" for name in ("remaining", "limit", "reset"))
            left, limit, reset = (_seconds(headers.get(name)) for name in names)
            if left is None or reset is None or left >= needed:
                continue
            # The reset is that of the whole limit, which comes back bit by bit.
            is_part = kind == "tokens" and limit
            self._pause(min(reset, (needed - left) / limit * MINUTE) if is_part else reset)

    def refused(self, turn: Turn, retry_after: float | None) -> tuple[int, float] | None:
        """A request was refused for a limit: all pause.

        Refusals of requests that were on their way when the pause began count as one.

        Returns:
            refusals in a row and seconds of the pause; None where it is time to give up.
        """
        if turn.start >= self._refused_at:
            self._refusals += 1
            self._refused_at = time.monotonic()
        if self._refusals >= self._attempts:
            return None
        pause = min(self._wait_initial * 2 ** (self._refusals - 1), self._wait_max)
        if retry_after is not None:
            # A server that was wrong about it is asked later.
            pause = retry_after if self._refusals == 1 else max(retry_after, pause)
        self._pause(pause)
        return self._refusals, pause

    def _pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)


def _seconds(text: str | None) -> float | None:
    """A plain number, or of OpenAI's `6m0s` and `120ms` the seconds; None where it is neither."""
    try:
        return float(text or "")
    except ValueError:
        parts = _DURATION.findall(text or "")
        return sum(float(count) * _UNITS[unit] for count, unit in parts) if parts else None
