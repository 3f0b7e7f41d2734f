"""Getting one sealed message to somebody over relays that each have their own rules.

A message goes to all relays at once and is out when one took it; the others are seen to in the
background. A relay that refuses a kind of gift wrap gets the other kind, if the recipient takes it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from discovery.nostr.event import Event, Rumor
from discovery.nostr.giftwrap import GIFT_WRAP, wrap
from discovery.nostr.keys import Keys
from discovery.nostr.pacing import is_rate_limit
from discovery.nostr.pool import PublishResult, RelayPool

MAX_BACKGROUND = 2_000
"""Messages that may still go to slower relays after the first took them."""
_RETRY_FIRST_S = 1.0
_RETRY_MAX_S = 8.0
_REMEMBER_S = 600.0
_MAX_REMEMBERED = 1_000
_TOO_LARGE = re.compile(r"too (large|big|long)|size|exceeds|max(imum)?[ _-]?length")
_OTHER_KIND = re.compile(r"blocked|restricted|invalid|unsupported|kind")


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a message."""

    taken: bool
    """At least one relay took it."""
    limited: bool = False
    """A relay complained of our pace."""
    too_large: bool = False
    """No relay took it, and at least one because of its size."""


class Publisher:
    """Seals, wraps and publishes rumors.

    Args:
        keys: of the author.
        timeout_s: for one relay to take a message, reconnecting and pacing included.
        stored_lifetime_s: expiration of stored wraps.
        clock: Unix seconds.
    """

    def __init__(
        self,
        pool: RelayPool,
        keys: Keys,
        *,
        timeout_s: float,
        stored_lifetime_s: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._keys = keys
        self._timeout_s = timeout_s
        self._stored_lifetime_s = stored_lifetime_s
        self._clock = clock
        self._background: set[asyncio.Task[PublishResult]] = set()
        self._refused: OrderedDict[tuple[str, int], float] = OrderedDict()  # until when

    async def publish(
        self,
        rumor: Rumor,
        recipient: str,
        kinds: Sequence[int],
        *,
        urls: Sequence[str] | None = None,
        attempts: int = 1,
    ) -> Delivery:
        """Send ``rumor`` to ``recipient`` (hex) and wait until a relay took it.

        Args:
            kinds: of gift wraps that the recipient takes, the one to prefer first.
            urls: relays, by default those of the pool.
            attempts: how often all of them are tried before giving up.

        Raises what ``wrap`` does: InvalidKey, EncryptError.
        """
        parcel = _Parcel(rumor, self._keys, recipient, self._stored_lifetime_s)
        limited = too_large = False
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(min(_RETRY_FIRST_S * 2 ** (attempt - 1), _RETRY_MAX_S))
            results = await self._send(parcel, kinds, self._pool.urls if urls is None else urls)
            limited = limited or any(result.limited for result in results)
            if any(result.ok for result in results):
                return Delivery(True, limited)
            too_large = any(_is_size(result.message) for result in results)
            if too_large:
                break
        return Delivery(False, limited, too_large)

    async def close(self) -> None:
        """Give up what is still under way to slower relays."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _send(
        self, parcel: _Parcel, kinds: Sequence[int], urls: Sequence[str]
    ) -> list[PublishResult]:
        """Results so far, as soon as a relay took it or all have answered."""
        different = list(dict.fromkeys(urls))
        if len(different) == 1:
            return [await self._send_to(different[0], parcel, kinds)]
        waiting = {asyncio.create_task(self._send_to(url, parcel, kinds)) for url in different}
        results: list[PublishResult] = []
        try:
            while waiting and not any(result.ok for result in results):
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                results += [task.result() for task in done]
        except BaseException:
            for task in waiting:
                task.cancel()
            raise
        for task in waiting:
            if len(self._background) >= MAX_BACKGROUND:
                task.cancel()
                continue
            self._background.add(task)
            task.add_done_callback(self._background.discard)
        return results

    async def _send_to(self, url: str, parcel: _Parcel, kinds: Sequence[int]) -> PublishResult:
        now = time.monotonic()
        order = sorted(kinds, key=lambda kind: self._refused.get((url, kind), now) > now)
        for kind in order:
            event = parcel.event(kind, int(self._clock()))
            result = await self._pool.publish_to(url, event, timeout_s=self._timeout_s)
            if result.ok or len(order) == 1 or not _is_kind(result.message):
                break
            self._refused[url, kind] = time.monotonic() + _REMEMBER_S
            while len(self._refused) > _MAX_REMEMBERED:
                self._refused.popitem(last=False)
        return result


class _Parcel:
    """A rumor and the wraps made of it, each kind once."""

    def __init__(self, rumor: Rumor, keys: Keys, recipient: str, stored_lifetime_s: int) -> None:
        self._rumor = rumor
        self._keys = keys
        self._recipient = recipient
        self._stored_lifetime_s = stored_lifetime_s
        self._events: dict[int, Event] = {}

    def event(self, kind: int, now: int) -> Event:
        if kind not in self._events:
            stored = kind == GIFT_WRAP
            self._events[kind] = wrap(
                self._rumor,
                self._keys,
                self._recipient,
                kind=kind,
                expiration=now + self._stored_lifetime_s if stored else None,
                backdate=stored,
                now=now,
            )
        return self._events[kind]


def _is_size(message: str) -> bool:
    return not is_rate_limit(message) and _TOO_LARGE.search(message.lower()) is not None


def _is_kind(message: str) -> bool:
    """Whether a relay may take another kind of the same message."""
    if _is_size(message) or is_rate_limit(message):
        return False
    return _OTHER_KIND.search(message.lower()) is not None
