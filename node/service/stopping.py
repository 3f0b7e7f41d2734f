"""Waits that end early when a request is told to stop (``Request.stop``)."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Stopped(Exception):
    """The signal is set."""


class StopScope:
    """``async with scope: await one_thing()``, again and again, one at a time.

    Entered with a signal set, or one set meanwhile: raises Stopped, after what was awaited has
    been cancelled. Without signals (None does not count) it does nothing. ``close`` when done.
    """

    def __init__(self, *signals: asyncio.Event | None) -> None:
        self._signals = [signal for signal in signals if signal is not None]
        self._scope: asyncio.Timeout | None = None
        self._watchers: list[asyncio.Task[None]] = []

    @property
    def armed(self) -> bool:
        """Whether there are signals: without, entering it 200 times a stream can be saved."""
        return bool(self._signals)

    async def __aenter__(self) -> None:
        if not self._signals:
            return
        if any(signal.is_set() for signal in self._signals):
            raise Stopped
        if not self._watchers:
            self._watchers = [asyncio.create_task(self._watch(s)) for s in self._signals]
        # A timeout without a deadline: it knows how to cancel this wait and nothing else.
        self._scope = asyncio.timeout(None)
        await self._scope.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        scope, self._scope = self._scope, None
        if scope is None:
            return
        try:
            await scope.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise Stopped from None

    def close(self) -> None:
        """End the watch. Idempotent."""
        for watcher in self._watchers:
            watcher.cancel()
        self._watchers.clear()

    async def _watch(self, signal: asyncio.Event) -> None:
        await signal.wait()
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())
