"""How many calls one upstream works on at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence


class Slots:
    """Places for calls; who finds none may wait, at several upstreams at once.

    Args:
        limit: places; 0 for any number.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.running = 0
        self._waiting: deque[asyncio.Future[Slots]] = deque()

    @property
    def waiting(self) -> int:
        return sum(not future.done() for future in self._waiting)

    def take(self) -> bool:
        """Take a place if there is one."""
        if self.limit and self.running >= self.limit:
            return False
        self.running += 1
        return True

    def release(self) -> None:
        """Give a place back: to the first who waits, if anybody does."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(self)
                return
        self.running -= 1

    @staticmethod
    async def first(several: Sequence[Slots], timeout_s: float) -> Slots:
        """Wait for a place at any of ``several``; it is taken already.

        Raises TimeoutError. A place that comes while the waiter is cancelled goes on to the next.
        """
        future: asyncio.Future[Slots] = asyncio.get_running_loop().create_future()
        for slots in several:
            slots._waiting.append(future)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except BaseException:
            if future.done() and not future.cancelled():
                future.result().release()
            raise
        finally:
            for slots in several:
                if future in slots._waiting:
                    slots._waiting.remove(future)
