"""The last things that happened, for those who look and for those who go on looking."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from node.errors import RateLimitExceeded

T = TypeVar("T")

MAX_FOLLOWERS = 16
"""Streams at a time, of one ring."""
MAX_WAITING = 500
"""Items kept for a follower who is slow; of more, the oldest are left out."""


class _Follower(Generic[T]):
    __slots__ = ("items", "loop", "news")

    def __init__(self, most: int) -> None:
        self.items: deque[T] = deque(maxlen=most)
        self.loop = asyncio.get_running_loop()
        self.news = asyncio.Event()

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self.loop.call_soon_threadsafe(self.news.set)


class Ring(Generic[T]):
    """A bounded memory. ``add`` may be called on any thread, and never waits.

    Args:
        size: items remembered.
    """

    def __init__(
        self, size: int, *, max_followers: int = MAX_FOLLOWERS, max_waiting: int = MAX_WAITING
    ) -> None:
        self._items: deque[T] = deque(maxlen=size)
        self._max_followers = max_followers
        self._max_waiting = max_waiting
        self._followers: tuple[_Follower[T], ...] = ()
        """Replaced, never changed: ``add`` may be looking at it."""
        self._closed = False

    def add(self, item: T) -> None:
        """Remember ``item`` and tell the followers."""
        self._items.append(item)
        for follower in self._followers:
            follower.items.append(item)
            follower.wake()

    def last(self, most: int) -> list[T]:
        """At most ``most`` items, the newest first."""
        newest = list(self._items.copy())
        newest.reverse()
        return newest[:most]

    async def follow(self) -> AsyncIterator[T]:
        """What is added from now on, until the ring is closed.

        Raises RateLimitExceeded when too many follow already.
        """
        if len(self._followers) >= self._max_followers:
            raise RateLimitExceeded("too many streams are open", retry_after_s=5)
        me: _Follower[T] = _Follower(self._max_waiting)
        self._followers = (*self._followers, me)
        try:
            while True:
                while me.items:
                    yield me.items.popleft()
                if self._closed:
                    return
                me.news.clear()
                if not me.items:
                    await me.news.wait()
        finally:
            self._followers = tuple(other for other in self._followers if other is not me)

    def close(self) -> None:
        """End every stream, those to come as well."""
        self._closed = True
        for follower in self._followers:
            follower.wake()
