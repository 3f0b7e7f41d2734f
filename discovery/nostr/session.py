"""One live connection to a relay: reading and writing frames, OKs, AUTH (NIP-42).

Reading is synchronous and cheap until the signature check; all that is sent goes through one
bounded queue, so a relay that does not read can stop neither reading nor the program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog
from websockets.client import WebSocketClientProtocol

from discovery.errors import InvalidEvent, RelayError
from discovery.nostr.event import Event
from discovery.nostr.filters import Matcher
from discovery.nostr.keys import Keys
from discovery.nostr.limits import Counters, PublishResult, RelayLimits
from discovery.nostr.outgoing import Outgoing
from discovery.nostr.pacing import Inflow
from discovery.nostr.publishes import Publishes
from discovery.nostr.quick_ack import quick_ack
from discovery.nostr.subscription import Subscription

_AUTH_KIND: Final = 22242
_MAX_CHALLENGE_CHARS: Final = 1_024
_MAX_NOTICE_CHARS: Final = 300
_AUTH_REQUIRED: Final = "auth-required"  # strfry writes "ERROR: auth-required: …"
_RESTRICTED: Final = "restricted"

log = structlog.get_logger()


@dataclass(slots=True)
class _Request:
    subscription: Subscription
    matches: Matcher
    answered: bool = False
    refused: bool = False
    """Waits for AUTH."""
    stored: int = 0
    auth_retried: bool = False
    pause_s: float = 0
    silences: int = 0
    retry: asyncio.TimerHandle | None = None


class Session:
    """Drives an open websocket until it ends. ``run`` is called once, by Relay."""

    def __init__(
        self,
        socket: WebSocketClientProtocol,
        url: str,
        *,
        keys: Keys | None,
        limits: RelayLimits,
        counters: Counters,
    ) -> None:
        self.authenticated = False
        self._socket = socket
        self._url = url
        self._keys = keys
        self._limits = limits
        self._counters = counters
        self._requests: dict[str, _Request] = {}
        self._outgoing = Outgoing(socket, url, limits)
        self._publishes = Publishes(self._outgoing, limits, counters)
        self._auth_id: str | None = None
        self._auth_denied = False
        self._auths = 0
        self._auth_timer: asyncio.TimerHandle | None = None

    async def run(self, subscriptions: Iterable[Subscription]) -> None:
        """Send the subscriptions, then read and write until the connection ends.

        Raises RelayError, OSError or a websockets exception that says why it ended.
        """
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._outgoing.write())
        try:
            for subscription in subscriptions:
                self.open(subscription)
            done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._outgoing.end()
            self._publishes.lost()
            self._cancel_timers()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        for task in done:
            task.result()

    # subscriptions

    def open(self, subscription: Subscription) -> None:
        """Send REQ, with filters of this moment."""
        filters = subscription.filters()
        old = self._requests.get(subscription.id)
        request = _Request(subscription, Matcher(filters))
        if old is not None:
            request.pause_s, request.auth_retried = old.pause_s, old.auth_retried
            request.silences = old.silences
            if old.retry is not None:
                old.retry.cancel()
        self._requests[subscription.id] = request
        subscription.asked(self._url)
        self._send(["REQ", subscription.id, *filters])
        if subscription.standing and request.silences < self._limits.max_silent_retries:
            loop = asyncio.get_running_loop()
            wait_s = self._limits.retry_after_silence_s * 2**request.silences
            request.retry = loop.call_later(wait_s, self._ask_again, request)

    def _ask_again(self, request: _Request) -> None:
        """The relay has not answered: the REQ may have got lost."""
        if not request.answered:
            request.silences += 1
            self.open(request.subscription)

    def close(self, subscription: Subscription) -> None:
        """Send CLOSE and forget the subscription."""
        request = self._requests.pop(subscription.id, None)
        if request is None:
            return
        if request.retry is not None:
            request.retry.cancel()
        self._send(["CLOSE", subscription.id])

    # publishing

    async def publish(self, event_id: str, frame: str) -> PublishResult | None:
        """Send an EVENT frame and wait for its OK; None when the connection ends first.

        Waits without a limit of its own: the caller brings the deadline.
        """
        return await self._publishes.publish(event_id, frame)

    # reading

    async def _read(self) -> None:
        acknowledge = quick_ack(self._socket.transport)
        inflow = Inflow(self._limits.max_frames_per_s, self._limits.burst_s)
        clock = asyncio.get_running_loop().time
        async for frame in self._socket:
            acknowledge()
            self._receive(frame)
            if (pause_s := inflow.pause_s(len(frame), clock())) > 0:
                await asyncio.sleep(pause_s)
        raise RelayError("the relay closed the connection")

    def _receive(self, frame: str | bytes) -> None:
        try:
            message = orjson.loads(frame)
        except ValueError:
            self._counters.invalid += 1
            return
        match message:
            case ["EVENT", str(subscription_id), obj]:
                self._on_event(subscription_id, obj)
            case ["OK", str(event_id), bool(accepted), *rest]:
                self._on_ok(event_id, accepted, _text(rest))
            case ["EOSE", str(subscription_id), *_]:
                self._on_eose(subscription_id)
            case ["CLOSED", str(subscription_id), *rest]:
                self._on_closed(subscription_id, _text(rest))
            case ["AUTH", str(challenge), *_]:
                self._on_auth(challenge)
            case ["NOTICE", *rest]:
                self._note(_text(rest))
            case [str(), *_]:
                pass  # a message of a later NIP
            case _:
                self._counters.invalid += 1

    def _on_event(self, subscription_id: str, obj: object) -> None:
        """Cheap checks first; the signature, which costs most, last."""
        request = self._requests.get(subscription_id)
        if request is None:
            self._counters.unmatched += 1
            return
        subscription = request.subscription
        claimed = obj.get("id") if type(obj) is dict else None
        if type(claimed) is str and subscription.has_seen(claimed):
            self._counters.duplicates += 1
            return
        limit = self._limits.max_event_bytes
        try:
            event = Event.shape(obj, max_bytes=limit)
            if not request.matches(event):
                self._counters.unmatched += 1
                return
            event.verify(max_bytes=limit)
        except InvalidEvent:
            self._counters.invalid += 1
            return
        if not request.answered:
            request.stored += 1
            if subscription.max_stored is not None and request.stored > subscription.max_stored:
                self._on_eose(subscription_id)
                self.close(subscription)
                return
        self._counters.events += 1
        subscription.push(event)

    def _on_eose(self, subscription_id: str) -> None:
        request = self._requests.get(subscription_id)
        if request is not None:
            request.answered = True
            request.pause_s = 0
            request.subscription.answered(self._url)

    def _on_closed(self, subscription_id: str, message: str) -> None:
        request = self._requests.get(subscription_id)
        if request is None:
            return
        self._note(message)
        if self._wants_auth(message) and not request.auth_retried:
            if self.authenticated:
                request.auth_retried = True
                self.open(request.subscription)
            else:
                request.refused = True
            return
        self._give_up(request)

    def _give_up(self, request: _Request) -> None:
        """The relay does not serve this now: nobody waits for it; a standing one is sent later."""
        request.answered, request.refused = True, False
        request.subscription.answered(self._url)
        if not request.subscription.standing:
            return
        first, longest = self._limits.retry_after_closed_s, self._limits.backoff_max_s
        request.pause_s = min(max(request.pause_s * 2, first), longest)
        loop = asyncio.get_running_loop()
        request.retry = loop.call_later(request.pause_s, self.open, request.subscription)

    def _on_ok(self, event_id: str, accepted: bool, message: str) -> None:
        if event_id == self._auth_id:
            self._auth_settled(accepted, message)
            return
        publish = self._publishes.answered(event_id)
        if publish is None:
            return
        if not accepted and self._wants_auth(message) and not publish.auth_retried:
            self._note(message)
            if self.authenticated:
                publish.auth_retried = True
                self._outgoing.send(publish.frame)
            else:
                publish.refused = True
            return
        publish.answer.set_result(
            PublishResult(accepted or message.startswith("duplicate:"), message)
        )

    # authentication

    def _wants_auth(self, message: str) -> bool:
        """Whether the refusal may end with AUTH; some call it "restricted" before AUTH too."""
        if self._keys is None or self._auth_denied:
            return False
        text = message.lower()
        return _AUTH_REQUIRED in text or (self._auth_id is not None and _RESTRICTED in text)

    def _on_auth(self, challenge: str) -> None:
        if self._keys is None or self._auths >= self._limits.max_auths:
            return
        if not challenge or len(challenge) > _MAX_CHALLENGE_CHARS:
            self._counters.invalid += 1
            return
        try:
            event = self._keys.sign(
                _AUTH_KIND, "", [["relay", self._url], ["challenge", challenge]]
            )
        except InvalidEvent:
            self._counters.invalid += 1
            return
        self._auths += 1
        self._auth_id = event.id
        self._auth_denied = False
        self._send(["AUTH", event.to_dict()])
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        loop = asyncio.get_running_loop()
        self._auth_timer = loop.call_later(
            self._limits.auth_grace_s, self._auth_settled, True, "no answer"
        )

    def _auth_settled(self, accepted: bool, message: str) -> None:
        """Send again what was refused, and what may have been dropped without a word."""
        self._auth_id = None
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        self.authenticated = accepted
        self._auth_denied = not accepted
        if not accepted:
            self._note(message)
            log.info("relay_auth_refused", relay=self._url, reason=message)
        for publish in self._publishes.refused():
            publish.refused = False
            if accepted:
                publish.auth_retried = True
                self._outgoing.send(publish.frame)
            else:
                publish.answer.set_result(PublishResult(False, f"auth-required: {message}"))
        for request in list(self._requests.values()):
            if accepted and (request.refused or not request.answered):
                request.auth_retried = True
                self.open(request.subscription)
            elif request.refused:
                self._give_up(request)

    # small things

    def _send(self, message: list[Any]) -> None:
        self._outgoing.send(orjson.dumps(message).decode())

    def _note(self, message: str) -> None:
        self._counters.last_notice = message

    def _cancel_timers(self) -> None:
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        for request in self._requests.values():
            if request.retry is not None:
                request.retry.cancel()


def _text(rest: list[object]) -> str:
    """The message that ends OK, CLOSED and NOTICE, shortened; relays leave it out at times."""
    return rest[0][:_MAX_NOTICE_CHARS] if rest and isinstance(rest[0], str) else ""
