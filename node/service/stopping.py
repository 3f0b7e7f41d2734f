"""Waits that end early when a request is told to stop (``Request.stop``)."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Stopped(Exception):
    """The signal is set."""


class StopScope:
    """``async with scope: await one_thing()``, again and again, one at a time.

    Entered with the signal set, or the signal set meanwhile: raises Stopped, after what was
    awaited has been cancelled. Without a signal it does nothing. ``close`` when done.
    """

    def __init__(self, signal: asyncio.Event | None) -> None:
        self._signal = signal
        self._scope: asyncio.Timeout | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        if self._signal is None:
            return
        if self._signal.is_set():
            raise Stopped
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch(self._signal))
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
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def _watch(self, signal: asyncio.Event) -> None:
        await signal.wait()
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())
