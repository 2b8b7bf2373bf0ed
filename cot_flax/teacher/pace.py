"""How fast requests go to a server: by the limits that the user gave, and by its own refusals.

All requests of a connection share one pace. Requests and tokens are spread evenly over the minute
(the generic cell rate algorithm, as in ATM's traffic contracts), for a server may count in seconds,
in windows or in whole minutes. One refusal pauses all; after it one request goes ahead, and every
answer lets one more be on its way (TCP's slow start), for many servers count what they refuse, too.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from cot_flax.errors import UserError

MINUTE = 60.0
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
            wait_initial: seconds of the first pause; they double with every refusal in a row.
            wait_max: seconds, the longest pause unless the server asks for more.
            attempts: refusals in a row after which the server is not waited for any more.
        """
        for name, limit in (("rpm", rpm), ("tpm", tpm)):
            if limit is not None and not limit > 0:
                raise UserError(f"{name} {limit}", "more than 0", "leave it out for no limit")
        self._request_seconds = MINUTE / rpm if rpm else 0.0
        self._token_seconds = MINUTE / tpm if tpm else 0.0
        self._wait_initial, self._wait_max, self._attempts = wait_initial, wait_max, attempts
        self._next_request = self._next_token = self._paused_until = 0.0
        self._refused_at = 0.0
        self._refusals = 0  # in a row, of any requests
        self._doublings = 0  # of the first pause in a row
        self._in_flight, self._width = 0, math.inf
        self._gate, self._change = asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def turn(self, tokens: int) -> AsyncIterator[Turn]:
        """Waits until a request of about so many tokens may go; it is over with the context.

        What it took in the end is to be written into the turn.
        """
        async with self._gate:  # In the order of arrival.
            turn = await self._begin(tokens)
        try:
            yield turn
        finally:
            self._in_flight -= 1
            self._next_token += (turn.tokens - tokens) * self._token_seconds
            self._change.set()

    async def _begin(self, tokens: int) -> Turn:
        while True:
            now = time.monotonic()
            wait = max(self._next_request, self._next_token, self._paused_until) - now
            if wait <= 0 and self._in_flight < self._width:
                break
            self._change.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._change.wait(), wait if wait > 0 else None)
        self._in_flight += 1
        self._next_request = now + self._request_seconds
        self._next_token = now + tokens * self._token_seconds
        return Turn(now, tokens)

    def answered(self, turn: Turn, headers: Mapping[str, str]) -> None:
        """A request was answered; where the server says that nothing is left, all wait for more."""
        self._width += 1
        if turn.start >= self._refused_at and self._refusals:
            # The next row of refusals begins with about the pause that was long enough.
            self._doublings = max(0, self._doublings + self._refusals - 2)
            self._refusals = 0
        for kind, needed in (("requests", 1), ("tokens", turn.tokens)):
            names = (f"x-ratelimit-{name}-{kind}" for name in ("remaining", "limit", "reset"))
            left, limit, reset = (_seconds(headers.get(name)) for name in names)
            if left is None or reset is None or left >= needed:
                continue
            # The reset is that of the whole limit, a day's maybe, which may come back bit by bit.
            part = (needed - left) / limit if kind == "tokens" and limit else 1.0
            self._pause(min(reset, part * MINUTE))

    def refused(self, turn: Turn, retry_after: float | None) -> float | None:
        """A request was refused for a limit: all pause.

        Refusals of requests that were on their way when the pause began count as one.

        Returns:
            The seconds of the pause; None where it is time to give up.
        """
        self._width = 1.0
        if turn.start >= self._refused_at:
            self._refusals += 1
            self._refused_at = time.monotonic()
        if self._refusals >= self._attempts:
            return None
        doublings = self._doublings + self._refusals - 1
        pause = min(self._wait_initial * 2**doublings, self._wait_max)
        if retry_after is not None:
            # A server that was wrong about it is asked later.
            pause = retry_after if self._refusals == 1 else max(retry_after, pause)
        self._pause(pause)
        return pause

    def _pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)


def _seconds(text: str | None) -> float | None:
    """A plain number, or of OpenAI's `6m0s` and `120ms` the seconds; None where it is neither."""
    try:
        return float(text or "")
    except ValueError:
        parts = _DURATION.findall(text or "")
        return sum(float(count) * _UNITS[unit] for count, unit in parts) if parts else None
