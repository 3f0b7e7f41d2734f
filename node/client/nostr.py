"""A client of nodes that are reached through relays only.

    async with NostrClient(["wss://relay.example.com"]) as client:
        reply = await client.request(npub, "POST", "/v1/chat/completions",
                                     headers={"x-cashu": token}, body=b"{…}")
        async with client.stream(npub, "POST", "/v1/chat/completions", body=b"{…}") as stream:
            async for data in stream: …
            change = stream.trailers.get("x-cashu")

Loss, reordering and repetition on the way are handled here: what is missing is asked for again,
and the request itself is sent again under the same id, which the node answers once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any, Self
from uuid import uuid4

from discovery.errors import DiscoveryError
from discovery.nostr.event import Rumor
from discovery.nostr.giftwrap import (
    EPHEMERAL_GIFT_WRAP,
    GIFT_WRAP,
    MAX_BACKDATE_S,
    unwrap,
    wrap,
)
from discovery.nostr.keys import Keys, parse_pubkey
from discovery.nostr.pool import RelayPool, Subscription
from node.client.stream import ClientReply, Patience, ReplyStream, ReplyTimeout
from node.transport.dm.assembly import ReplyError
from node.transport.dm.codec import (
    REPLY_KIND,
    REQUEST_KIND,
    BadMessage,
    build_request,
    parse_reply,
)

__all__ = ["ClientReply", "NostrClient", "Patience", "ReplyError", "ReplyStream", "ReplyTimeout"]

_MAX_REPLY_RELAYS = 5
_MAX_LIFETIME_S = 86_400
_EPHEMERAL_OVERLAP_S = 300
_STORED_OVERLAP_S = MAX_BACKDATE_S + 900
_BOTH_KINDS = [EPHEMERAL_GIFT_WRAP, GIFT_WRAP]


class NostrClient:
    """Sends requests as gift wraps. ``async with``; one receiving loop serves all requests.

    Args:
        relays: ws:// or wss:// URLs where the nodes listen; the first five are named for replies.
        keys: the session's keys; fresh ones when omitted, which is what privacy asks for.
        stored: send stored wraps (1059), for nodes that may be offline; else ephemeral (21059).
        take_stored: also listen for stored copies, which carry change that got lost.
        max_reply_bytes: the longest reply taken.
    """

    def __init__(
        self,
        relays: Sequence[str],
        *,
        keys: Keys | None = None,
        stored: bool = False,
        take_stored: bool = True,
        max_reply_bytes: int = 64 * 2**20,
        patience: Patience | None = None,
    ) -> None:
        self._keys = keys or Keys.generate()
        self._patience = patience or Patience()
        self._kind = GIFT_WRAP if stored else EPHEMERAL_GIFT_WRAP
        self._kinds = [EPHEMERAL_GIFT_WRAP] if not (stored or take_stored) else _BOTH_KINDS
        self._max_reply_bytes = max_reply_bytes
        self._pool = RelayPool(
            relays, keys=self._keys, connect_timeout_s=self._patience.connect_timeout_s
        )
        self._streams: dict[tuple[str, str], ReplyStream] = {}
        self._loops: list[asyncio.Task[None]] = []

    @property
    def pubkey(self) -> str:
        """The session's public key, hex."""
        return self._keys.pubkey

    async def __aenter__(self) -> Self:
        await self._pool.start()
        subscriptions = [self._pool.subscribe(partial(self._filters, kind)) for kind in self._kinds]
        self._loops = [
            asyncio.create_task(self._listen(subscription)) for subscription in subscriptions
        ]
        # A request must not be answered before we listen; a relay without EOSE costs the deadline.
        await subscriptions[0].eose(self._patience.connect_timeout_s)
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in list(self._streams.values()):
            await stream.aclose()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._pool.close()

    async def request(
        self,
        provider: str,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 120.0,
        plain: bool = False,
        message_id: str | None = None,
    ) -> ClientReply:
        """Send a request and wait for the whole answer; the arguments are those of ``stream``.

        Raises ReplyTimeout, ReplyError, ValueError, InvalidKey.
        """
        async with self.stream(
            provider,
            method,
            url,
            headers=headers,
            body=body,
            timeout_s=timeout_s,
            plain=plain,
            message_id=message_id,
        ) as stream:
            return await stream.read()

    def stream(
        self,
        provider: str,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 120.0,
        plain: bool = False,
        message_id: str | None = None,
    ) -> ReplyStream:
        """A request whose answer is read as it comes.

        Args:
            provider: the node's npub or hex public key.
            url: path and query, such as ``/v1/models``.
            timeout_s: for the whole answer.
            plain: ask for http2nostr's format, which comes only when the answer is complete.
            message_id: repeats an earlier request when given: same id, same answer.

        Raises InvalidKey; ValueError when headers are too large for an event or the id is in use.
        """
        pubkey = parse_pubkey(provider)
        message_id = message_id or uuid4().hex
        key = (pubkey, message_id)
        if key in self._streams:
            raise ValueError("a request of this id is under way")
        contents = build_request(
            message_id,
            method,
            url,
            headers or {},
            body,
            frames=not plain,
            expires=int(time.time()) + min(ceil(timeout_s), _MAX_LIFETIME_S),
            relays=self._pool.urls[:_MAX_REPLY_RELAYS],
            wrap=self._kinds,
        )
        stream = ReplyStream(
            message_id,
            contents,
            publish=partial(self._publish_all, pubkey),
            forget=partial(self._streams.pop, key, None),
            timeout_s=timeout_s,
            max_reply_bytes=self._max_reply_bytes,
            patience=self._patience,
        )
        self._streams[key] = stream
        return stream

    async def _publish_all(self, provider: str, contents: Sequence[str]) -> bool:
        """Send kind 80 rumors; True when of each at least one relay took the wrap."""
        taken = await asyncio.gather(*(self._publish(provider, content) for content in contents))
        return all(taken)

    async def _publish(self, provider: str, content: str) -> bool:
        rumor = Rumor.new(self._keys.pubkey, REQUEST_KIND, content)
        stored = self._kind == GIFT_WRAP
        expiration = rumor.created_at + _MAX_LIFETIME_S if stored else None
        event = wrap(
            rumor, self._keys, provider, kind=self._kind, expiration=expiration, backdate=stored
        )
        results = await self._pool.publish(
            event, timeout_s=self._patience.publish_timeout_s, enough=1
        )
        return any(result.ok for result in results.values())

    def _filters(self, kind: int) -> list[dict[str, Any]]:
        overlap_s = _STORED_OVERLAP_S if kind == GIFT_WRAP else _EPHEMERAL_OVERLAP_S
        since = int(time.time()) - overlap_s
        return [{"kinds": [kind], "#p": [self._keys.pubkey], "since": since}]

    async def _listen(self, subscription: Subscription) -> None:
        async for event in subscription:
            try:
                rumor = unwrap(event, self._keys)
                if rumor.kind != REPLY_KIND:
                    continue
                piece = parse_reply(rumor.content)
            except (DiscoveryError, BadMessage):
                continue
            stream = self._streams.get((rumor.pubkey, piece.id))
            if stream is not None:
                stream.receive(piece)
