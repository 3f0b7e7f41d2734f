"""What is due when: a heap of keys with one due time each, in two lanes."""

from __future__ import annotations

import heapq
import itertools


class Schedule:
    """Keys by due time. Planning a key again replaces its earlier plan; ties go in order."""

    def __init__(self) -> None:
        self._due: dict[str, tuple[float, int]] = {}
        self._lanes: tuple[list[tuple[float, int, str]], ...] = ([], [])
        self._number = itertools.count()

    def __len__(self) -> int:
        return len(self._due)

    def plan(self, key: str, at: float, *, preferred: bool = False) -> None:
        """Make ``key`` due at time ``at``, in the preferred lane or the ordinary one."""
        stamp = (at, next(self._number))
        self._due[key] = stamp
        heapq.heappush(self._lanes[preferred], (*stamp, key))

    def cancel(self, key: str) -> None:
        """Forget ``key``; nothing happens when it is not planned."""
        self._due.pop(key, None)

    def pop(self, now: float, *, preferred_only: bool = False) -> str | None:
        """Take the key that is due longest, None when none is; the preferred lane goes first."""
        for lane in (1,) if preferred_only else (1, 0):
            head = self._head(lane)
            if head is not None and head[0] <= now:
                key = heapq.heappop(self._lanes[lane])[2]
                del self._due[key]
                return key
        return None

    def next_at(self, *, preferred_only: bool = False) -> float | None:
        """When the next key is due."""
        heads = [self._head(lane) for lane in ((1,) if preferred_only else (1, 0))]
        return min((head[0] for head in heads if head is not None), default=None)

    def _head(self, lane: int) -> tuple[float, int, str] | None:
        """The next valid item; plans that were replaced are dropped on the way."""
        heap = self._lanes[lane]
        while heap and self._due.get(heap[0][2]) != heap[0][:2]:
            heapq.heappop(heap)
        return heap[0] if heap else None
