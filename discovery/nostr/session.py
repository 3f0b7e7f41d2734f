"""One live connection to a relay: reading and writing frames, OKs, AUTH (NIP-42).

Reading is synchronous and cheap until the signature check; all that is sent goes through one
bounded queue, so a relay that does not read can stop neither reading nor the program.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import structlog
from websockets.client import WebSocketClientProtocol

from discovery.errors import InvalidEvent, RelayError
from discovery.nostr.event import Event
from discovery.nostr.filters import Matcher
from discovery.nostr.keys import Keys
from discovery.nostr.limits import Counters, PublishResult, RelayLimits
from discovery.nostr.pacing import RoundTrip
from discovery.nostr.subscription import Subscription

_AUTH_KIND: Final = 22242
_MAX_CHALLENGE_CHARS: Final = 1_024
_MAX_NOTICE_CHARS: Final = 300
_AUTH_REQUIRED: Final = "auth-required"  # strfry writes "ERROR: auth-required: …"
_RESTRICTED: Final = "restricted"
_RESEND_GROWTH: Final = 1.5

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


@dataclass(slots=True)
class _Publish:
    frame: str
    answer: asyncio.Future[PublishResult] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    waiting: int = 0
    refused: bool = False
    auth_retried: bool = False


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
        self._publishes: dict[str, _Publish] = {}
        self._outbox: asyncio.Queue[str] = asyncio.Queue(limits.max_queued_frames)
        self._drained = asyncio.Event()
        self._round_trip = RoundTrip(limits.ok_patience_min_s, limits.ok_patience_max_s)
        self._ok_without_id = False
        self._resent_in_vain = 0
        self._auth_id: str | None = None
        self._auth_denied = False
        self._auths = 0
        self._auth_timer: asyncio.TimerHandle | None = None
        self._lost = asyncio.Event()

    async def run(self, subscriptions: Iterable[Subscription]) -> None:
        """Send the subscriptions, then read and write until the connection ends.

        Raises RelayError, OSError or a websockets exception that says why it ended.
        """
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        try:
            for subscription in subscriptions:
                self.open(subscription)
            done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._lost.set()
            self._drained.set()
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

        Waits without a limit of its own: the caller brings the deadline. Sent again when the OK
        takes far longer than it does otherwise.
        """
        publish = self._publishes.get(event_id)
        if publish is None:
            if len(self._publishes) >= self._limits.max_pending_oks:
                return PublishResult(False, "busy: too many events wait for this relay's answer")
            publish = self._publishes[event_id] = _Publish(frame)
            first = True
        else:
            first = False
        publish.waiting += 1
        lost = asyncio.create_task(self._lost.wait())
        either: set[asyncio.Future[Any]] = {publish.answer, lost}
        try:
            if first:
                await self._deliver(publish, either)
            else:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return publish.answer.result() if publish.answer.done() else None
        finally:
            lost.cancel()
            publish.waiting -= 1
            if publish.waiting == 0:
                self._publishes.pop(event_id, None)

    async def _deliver(self, publish: _Publish, either: set[asyncio.Future[Any]]) -> None:
        """Send it until one of ``either`` is done."""
        clock = asyncio.get_running_loop().time
        for attempt in itertools.count():
            await self._has_room()
            self._send_text(publish.frame)
            sent_at = clock()
            if self._may_resend:
                wait_s = self._round_trip.patience_s * _RESEND_GROWTH**attempt
            else:
                wait_s = None
            done, _ = await asyncio.wait(
                either, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                if attempt == 0 and publish.answer.done() and not publish.auth_retried:
                    self._round_trip.took(clock() - sent_at)
                return
            self._counters.resent += 1
            if not self._round_trip.known:
                self._resent_in_vain += 1

    @property
    def _may_resend(self) -> bool:
        if self._ok_without_id:  # one more OK would count for another event
            return False
        known = self._round_trip.known
        return known or self._resent_in_vain < self._limits.max_unanswered_events

    async def _has_room(self) -> None:
        """Events fill at most half of the queue, so that what must not wait finds room."""
        while self._outbox.qsize() >= self._limits.max_queued_frames // 2:
            if self._lost.is_set():
                return
            self._drained.clear()
            await self._drained.wait()

    # reading

    async def _read(self) -> None:
        async for frame in self._socket:
            self._receive(frame)
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
        if event_id:
            publish = self._publishes.get(event_id)
        else:  # nostr-relay refuses with an empty id; it works through events in their order
            self._ok_without_id = True
            open_ones = (p for p in self._publishes.values() if not p.answer.done())
            publish = next(open_ones, None)
        if publish is None or publish.answer.done():
            return
        if not accepted and self._wants_auth(message) and not publish.auth_retried:
            self._note(message)
            if self.authenticated:
                publish.auth_retried = True
                self._send_text(publish.frame)
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
        for publish in self._publishes.values():
            if publish.refused and not publish.answer.done():
                publish.refused = False
                if accepted:
                    publish.auth_retried = True
                    self._send_text(publish.frame)
                else:
                    publish.answer.set_result(PublishResult(False, f"auth-required: {message}"))
        for request in list(self._requests.values()):
            if accepted and (request.refused or not request.answered):
                request.auth_retried = True
                self.open(request.subscription)
            elif request.refused:
                self._give_up(request)

    # writing

    def _send(self, message: list[Any]) -> None:
        self._send_text(orjson.dumps(message).decode())

    def _send_text(self, text: str) -> None:
        if self._lost.is_set():
            return
        try:
            self._outbox.put_nowait(text)
        except asyncio.QueueFull:
            log.warning("relay_does_not_read", relay=self._url)
            self._socket.fail_connection()

    async def _write(self) -> None:
        while True:
            text = await self._outbox.get()
            self._drained.set()
            try:
                async with asyncio.timeout(self._limits.send_timeout_s):
                    await self._socket.send(text)
            except TimeoutError:
                raise RelayError("the relay does not read what we send") from None

    # small things

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
