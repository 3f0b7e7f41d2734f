"""The relays, what they said to the announcement, and announcing now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from discovery.announcer import Announcer, EventOutcome
from discovery.errors import InvalidAnnouncement
from discovery.nostr.limits import PublishResult
from node.admin.exchange import AdminRequest, AdminRoute
from node.admin.parts import DeskParts
from node.errors import InvalidValue, NotConfigured
from node.ops.redaction import redact

MAX_MESSAGE_CHARS = 300
"""Of what a relay says."""


class RelaysSection:
    """``/relays`` and ``/announce``."""

    def __init__(self, parts: DeskParts) -> None:
        self._parts = parts

    def routes(self) -> Iterable[AdminRoute]:
        yield AdminRoute("GET", "/relays", answer=self._relays)
        yield AdminRoute("POST", "/announce", answer=self._announce)

    async def _relays(self, request: AdminRequest) -> dict[str, Any]:
        del request
        announcer = self._parts.announcer()
        outcomes = {} if announcer is None else announcer.outcomes()
        health = {} if self._parts.pool is None else self._parts.pool.health()
        relays = []
        for url, relay in health.items():
            outcome = outcomes.get(url)
            took = None if outcome is None else outcome.at
            relays.append(
                {
                    "url": url,
                    "connected": relay.connected,
                    "authenticated": relay.authenticated,
                    "trouble": relay.trouble,
                    "oks": relay.published,
                    "refused": relay.refused,
                    "limited": relay.limited,
                    "events": relay.events,
                    "invalid": relay.invalid,
                    "connects": relay.connects,
                    "connected_at": _seconds(relay.connected_at),
                    "last_alive_at": _seconds(relay.last_alive_at),
                    "last_ok_at": _seconds(took) if outcome and outcome.ok else None,
                    "last_error": _text(relay.last_error),
                    "last_notice": _text(relay.last_notice),
                    "announced": (
                        None
                        if outcome is None
                        else {
                            "ok": outcome.ok,
                            "accepted": outcome.accepted,
                            "total": outcome.total,
                            "attempts": outcome.attempts,
                            "message": _text(outcome.message),
                            "at": _seconds(outcome.at),
                        }
                    ),
                }
            )
        learnt = [
            {
                "url": url,
                "connected": relay.connected,
                "trouble": relay.trouble,
                "events": relay.events,
                "last_alive_at": _seconds(relay.last_alive_at),
                "last_error": _text(relay.last_error),
            }
            for url, relay in self._parts.learnt().items()
        ]
        return {"relays": relays, "learnt": learnt, "announcement": _announcement(announcer)}

    async def _announce(self, request: AdminRequest) -> dict[str, Any]:
        """Publish once more, now; relays that fail are tried again as always."""
        del request
        announcer = self._parts.announcer()
        if announcer is None:
            raise NotConfigured("this node does not announce itself: see node.announce")
        try:
            await announcer.publish_once()
        except (InvalidAnnouncement, ValueError) as error:
            raise InvalidValue(f"this cannot be announced: {error}") from None
        return _announcement(announcer)


def _announcement(announcer: Announcer | None) -> dict[str, Any]:
    if announcer is None:
        return {"enabled": False, "d": None, "events": [], "last_at": None}
    last_at = max((outcome.at for outcome in announcer.outcomes().values()), default=None)
    return {
        "enabled": True,
        "d": announcer.identifier,
        "events": [_event(event) for event in announcer.event_outcomes()],
        "last_at": _seconds(last_at),
    }


def _event(event: EventOutcome) -> dict[str, Any]:
    return {
        "id": event.id,
        "kind": event.kind,
        "d": event.d,
        "relays": [
            {"url": url, "ok": _took(result), "message": _text(result.message)}
            for url, result in event.relays.items()
        ],
    }


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)


def _text(message: str) -> str | None:
    return redact(message)[:MAX_MESSAGE_CHARS] or None


def _took(result: PublishResult) -> bool:
    """Whether the relay has the event now."""
    return result.ok or result.message.startswith("duplicate:")
