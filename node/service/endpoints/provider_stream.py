"""``GET /v1/providers/stream``: what changes among the other nodes, as server-sent events."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

import orjson

from discovery.documents import Change, changes, provider_item
from discovery.snapshot import DirectorySnapshot, Provider
from node.core.exchange import Chunk, Receipt, ReplyEvent, Request, Started
from node.errors import InvalidValue, NotFound, RateLimitExceeded
from node.service.endpoints.providers import Query

_MAX_REMEMBERED = 8


class Followed(Protocol):
    """The directory, as far as it is followed here."""

    closed: bool

    def snapshot(self) -> DirectorySnapshot: ...

    async def changed(self) -> DirectorySnapshot: ...


class ProviderStream:
    """The streams that are open.

    Args:
        directory: what is followed; None when this node keeps none.
        item: shows one provider as the list does.
        max_streams: open at the same time, ``max_per_peer`` of them of one address.
        pause_s: how long changes are gathered.
        lifetime_s: a stream ends after this; clients of server-sent events connect again.
    """

    def __init__(
        self,
        directory: Followed | None,
        item: Callable[[Provider], Any] = provider_item,
        *,
        max_streams: int = 256,
        max_per_peer: int = 4,
        pause_s: float = 0.5,
        lifetime_s: float = 3_600.0,
    ) -> None:
        self._directory = directory
        self._item = item
        self._changes: OrderedDict[tuple[str, str], list[Change]] = OrderedDict()
        """Between two snapshots, by their ETags: all streams tell the same."""
        self._max_streams = max_streams
        self._max_per_peer = max_per_peer
        self._pause_s = pause_s
        self._lifetime_s = lifetime_s
        self._open: Counter[str] = Counter()

    async def stream(self, request: Request) -> AsyncGenerator[ReplyEvent, None]:
        """``ready`` with the ETag changes count from, then ``provider`` and ``removed``.

        The filters are those of the list; a provider that no longer fits is ``removed``. Raises
        InvalidValue, NotFound, RateLimitExceeded before the first event.
        """
        directory = self._directory
        wanted = Query.parse(request.query)
        if directory is None:
            raise NotFound("this node keeps no directory")
        if request.carriage != "http":
            raise InvalidValue("changes are streamed over HTTP only; ask /v1/providers again")
        if (
            self._open.total() >= self._max_streams
            or self._open[request.peer] >= self._max_per_peer
        ):
            raise RateLimitExceeded("too many open streams", retry_after_s=60)
        self._open[request.peer] += 1
        try:
            headers = {"content-type": "text/event-stream", "cache-control": "no-store"}
            yield Started(200, headers, live=True)
            before = directory.snapshot()
            ready = {"etag": before.etag, "providers": len(before.providers)}
            if request.method != "HEAD":
                yield _event("ready", before.etag, ready)
                async for after in self._snapshots(directory, before):
                    earlier = before.keyed()
                    for kind, provider in self._between(before, after):
                        key = (provider.pubkey, provider.announcement.d)
                        if kind == "provider" and wanted.matches(provider):
                            yield _event("provider", after.etag, self._item(provider))
                        elif key in earlier and wanted.matches(earlier[key]):
                            gone = {"pubkey": provider.pubkey, "npub": provider.npub, "id": key[1]}
                            yield _event("removed", after.etag, gone)
                    before = after
            yield Receipt()
        finally:
            self._open[request.peer] -= 1
            self._open += Counter()  # keeps those above zero only

    def _between(self, before: DirectorySnapshot, after: DirectorySnapshot) -> list[Change]:
        key = (before.etag, after.etag)
        if key not in self._changes:
            self._changes[key] = list(changes(before, after))
            if len(self._changes) > _MAX_REMEMBERED:
                self._changes.popitem(last=False)
        return self._changes[key]

    async def _snapshots(
        self, directory: Followed, last: DirectorySnapshot
    ) -> AsyncGenerator[DirectorySnapshot, None]:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._lifetime_s
        while not directory.closed:
            now = directory.snapshot()
            if now is last:
                try:
                    async with asyncio.timeout_at(ends_at):
                        await directory.changed()
                except TimeoutError:
                    return
                # others may change in the same moment
                await asyncio.sleep(self._pause_s)
                now = directory.snapshot()
            if now is not last and not directory.closed:
                yield now
            last = now


def _event(kind: str, etag: str, document: object) -> Chunk:
    return Chunk(
        b"event: %b\nid: %b\ndata: %b\n\n"
        % (
            kind.encode(),
            etag.encode(),
            orjson.dumps(document),
        )
    )
