"""Room in memory for answers that cannot pass as they come: one budget for all of them.

A call takes room as its answer grows. When there is none its model server is no longer read from,
which makes that one wait (TCP), until others are done. The call that holds room longest may always
go on: so somebody gets done, and the budget is exceeded by one answer at most.
"""

from __future__ import annotations

import asyncio

from node.errors import UpstreamUnavailable

MAX_BUFFERED_BYTES = 256 << 20
WAIT_S = 60.0
"""How long a call waits for room, each time."""
FREE_BYTES = 256 << 10
"""Of each answer these do not count: most never take more."""
_RETRY_S = 10


class Room:
    """The budget.

    Args:
        max_bytes: of all answers.
        wait_s: see WAIT_S.
    """

    def __init__(self, max_bytes: int = MAX_BUFFERED_BYTES, *, wait_s: float = WAIT_S) -> None:
        self._max_bytes = max_bytes
        self._wait_s = wait_s
        self._taken_bytes = 0
        self._shares: dict[Share, None] = {}
        """Those that hold room, the oldest first."""
        self._waiting: dict[Share, tuple[int, asyncio.Future[None]]] = {}

    @property
    def taken_bytes(self) -> int:
        return self._taken_bytes

    def share(self) -> Share:
        """For one answer; to be closed."""
        return Share(self)

    async def take(self, share: Share, size_bytes: int) -> None:
        """Give ``share`` so much more. Raises UpstreamUnavailable when it takes too long."""
        self._shares.setdefault(share)
        if self._first(share) or (not self._waiting and self._fits(size_bytes)):
            self._give(share, size_bytes)
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting[share] = (size_bytes, given)
        try:
            async with asyncio.timeout(self._wait_s):
                await given
        except TimeoutError:
            raise UpstreamUnavailable(
                "too many large answers are under way; nothing was charged",
                private="no room for the answer",
                retry_after_s=_RETRY_S,
            ) from None
        finally:
            self._waiting.pop(share, None)

    def give_back(self, share: Share) -> None:
        """All that ``share`` has. Idempotent."""
        self._shares.pop(share, None)
        self._taken_bytes -= share.size_bytes
        share.size_bytes = 0
        for waiting, (size_bytes, given) in list(self._waiting.items()):
            if not (self._first(waiting) or self._fits(size_bytes)):
                continue
            del self._waiting[waiting]
            if not given.done():
                self._give(waiting, size_bytes)
                given.set_result(None)

    def _first(self, share: Share) -> bool:
        return next(iter(self._shares), None) is share

    def _fits(self, size_bytes: int) -> bool:
        return self._taken_bytes + size_bytes <= self._max_bytes

    def _give(self, share: Share, size_bytes: int) -> None:
        self._taken_bytes += size_bytes
        share.size_bytes += size_bytes


class Share:
    """What one answer holds."""

    __slots__ = ("_asked", "_room", "held_bytes", "size_bytes")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._asked = False
        self.held_bytes = 0
        """Of the answer, in memory."""
        self.size_bytes = 0
        """Counted by the room."""

    def more(self, size_bytes: int) -> int:
        """Note that the answer holds so much more, or less; returns what must be taken for it."""
        self.held_bytes = max(0, self.held_bytes + size_bytes)
        return max(0, self.held_bytes - FREE_BYTES - self.size_bytes)

    async def take(self, size_bytes: int) -> None:
        """See ``Room.take``."""
        self._asked = True
        await self._room.take(self, size_bytes)

    def close(self) -> None:
        """Idempotent."""
        if self._asked:
            self._room.give_back(self)
