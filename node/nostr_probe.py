"""Asks a node that has relays only who it is: a free ``GET /v1/info`` as an encrypted message.

The answer is sealed with the node's key, so that an answer alone proves who is there.
"""

from __future__ import annotations

import time

import orjson

from discovery.announcement import Announcement
from discovery.errors import DiscoveryError
from discovery.nostr.keys import parse_pubkey
from discovery.nostr.limits import STRANGERS
from discovery.nostr.relay import Guard
from discovery.probe import ProbeResult
from node.client.nostr import NostrClient, ReplyError, ReplyTimeout
from node.client.stream import Patience

_MAX_RELAYS = 3
_MAX_INFO_BYTES = 8_192


class NostrProber:
    """Probes over relays; its own key is a fresh one each time.

    Args:
        guard: judges the announced relays' addresses.
        timeout_s: deadline of one probe, connecting included.
        connect_timeout_s: of that, for the relays.
    """

    def __init__(
        self, guard: Guard, *, timeout_s: float = 10.0, connect_timeout_s: float = 5.0
    ) -> None:
        self._guard = guard
        self._timeout_s = timeout_s
        self._patience = Patience(connect_timeout_s=connect_timeout_s)

    async def probe(self, announcement: Announcement) -> ProbeResult:
        """Never raises for what the other side does."""
        relays = announcement.relays[:_MAX_RELAYS]
        try:
            async with NostrClient(
                relays,
                take_stored=False,
                max_reply_bytes=_MAX_INFO_BYTES * 4,
                patience=self._patience,
                guard=self._guard,
                limits=STRANGERS,
            ) as client:
                began = time.monotonic()
                reply = await client.request(
                    announcement.pubkey, "GET", "/v1/info", timeout_s=self._timeout_s
                )
                latency_ms = round(1000 * (time.monotonic() - began))
        except ReplyTimeout:
            return ProbeResult(False, False, None, "no answer over its relays")
        except (ReplyError, DiscoveryError, OSError, ValueError) as error:
            return ProbeResult(
                False, False, None, f"cannot be asked over relays: {type(error).__name__}"
            )
        info = _object(reply.body)
        if reply.status != 200 or info is None:
            reason = f"/v1/info answers {reply.status} over its relays"
            return ProbeResult(False, True, latency_ms, reason)
        kept = orjson.dumps(info)
        return ProbeResult(
            verified=_names(info, announcement.pubkey),
            reachable=True,
            latency_ms=latency_ms,
            reason="" if _names(info, announcement.pubkey) else "/v1/info names another key",
            info=kept if len(kept) <= _MAX_INFO_BYTES else b"",
        )


def _object(body: bytes) -> dict[str, object] | None:
    try:
        document = orjson.loads(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _names(info: dict[str, object], pubkey: str) -> bool:
    """The seal has proved the key; an npub that is named must be the same."""
    named = info.get("npub")
    try:
        return not named or (isinstance(named, str) and parse_pubkey(named) == pubkey)
    except DiscoveryError:
        return False
