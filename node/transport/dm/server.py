"""The node's Nostr carriage: gift wraps in, the shared dispatcher, gift wraps out.

    subscriptions ─▶ unwrap ─▶ parse ─▶ assemble ─▶ ExchangeRunner ─▶ outbox ─▶ relays

What comes in was written by strangers. Whatever is wrong with it ends as an error reply or a
counted drop; nothing ends the loops but ``stop``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import structlog

from discovery.errors import DiscoveryError
from discovery.nostr.event import Event, Rumor
from discovery.nostr.giftwrap import EPHEMERAL_GIFT_WRAP, GIFT_WRAP, MAX_BACKDATE_S, unwrap
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool, Subscription
from node.core.exchange import Request
from node.errors import (
    IdempotencyConflict,
    InvalidValue,
    NodeError,
    RequestIncomplete,
    ServerDraining,
)
from node.ports import MessageLog
from node.transport.dm.assembly import CompleteRequest, RequestAssembler
from node.transport.dm.codec import (
    REQUEST_KIND,
    BadMessage,
    Cancel,
    Nack,
    RequestPart,
    parse_request,
)
from node.transport.dm.gate import Gate, Ticket
from node.transport.dm.limits import DmLimits, Pacing
from node.transport.dm.outbox import Outbox, Recipient, SentReplies, recipient_of
from node.transport.dm.reply import Channel, error_contents
from node.transport.dm.runner import ExchangeRunner, Handler, to_request
from node.transport.dm.writing import build_nack

_log = structlog.get_logger()

_EPHEMERAL_OVERLAP_S = 300
"""Some relays keep ephemeral events that long, so a short outage loses nothing."""
_STORED_OVERLAP_S = MAX_BACKDATE_S + 900
_SETTLED_S = 300
"""A stored request answered that long before the last healthy moment is not answered again."""
_RESUBSCRIBE_S = 1.0
_MAX_FAILED = 4096
_CANCEL_S = 5.0

_Key = tuple[str, str]


@dataclass(slots=True)
class _Running:
    digest: str
    channel: Channel
    request: Request


class DmServer:
    """Serves requests that arrive as gift wraps for ``keys``.

    Args:
        pool: started and closed by the caller. It should have a guard: replies also go to relays
            that clients name.
        dispatcher: the entry point shared with HTTP.
        log: durable memory of (sender, id).
        load_healthy, store_healthy: keep the last moment (Unix seconds) at which every relay
            was connected over a restart; without them a restart begins with now.
        clock: Unix seconds.
    """

    def __init__(
        self,
        pool: RelayPool,
        keys: Keys,
        dispatcher: Handler,
        log: MessageLog,
        *,
        load_healthy: Callable[[], Awaitable[int | None]] | None = None,
        store_healthy: Callable[[int], Awaitable[None]] | None = None,
        limits: DmLimits | None = None,
        pacing: Pacing | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._keys = keys
        self._load_healthy = load_healthy
        self._store_healthy = store_healthy
        self._limits = limits = limits or DmLimits()
        self._clock = clock
        self._runner = ExchangeRunner(dispatcher, log, limits, pacing or Pacing())
        self._assembler = RequestAssembler(limits.assembly)
        self._outbox = Outbox(pool, keys, limits, clock)
        self._sent = SentReplies(limits.max_sent_bytes, limits.sent_lifetime_s)
        self._gate = Gate(limits)
        self._running: dict[_Key, _Running] = {}
        self._waiting: dict[_Key, Recipient] = {}  # of what the assembler holds
        self._failed: OrderedDict[_Key, float] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._subscriptions: dict[int, Subscription] = {}
        self._healthy_at = 0
        self._settled_before = 0
        self._draining = False
        self.counts: Counter[str] = Counter()
        """What happened, by name: requests, replays and each kind of drop."""

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._running)

    @property
    def undelivered(self) -> int:
        """Reply messages that no relay took."""
        return self._outbox.undelivered

    @property
    def omitted(self) -> int:
        """Replies of which a header was too large to send."""
        return self._outbox.omitted

    async def start(self) -> None:
        """Subscribe and begin to serve."""
        now = int(self._clock())
        loaded = await self._load_healthy() if self._load_healthy is not None else None
        self._healthy_at = min(now, loaded) if loaded is not None else now
        self._settled_before = self._healthy_at - _SETTLED_S
        for kind in (EPHEMERAL_GIFT_WRAP, GIFT_WRAP):
            self._subscribe(kind)
        self._loops = [
            asyncio.create_task(self._listen(EPHEMERAL_GIFT_WRAP)),
            asyncio.create_task(self._listen(GIFT_WRAP)),
            asyncio.create_task(self._sweep()),
            asyncio.create_task(self._watch_health()),
        ]

    async def ready(self, timeout_s: float = 10.0) -> bool:
        """Wait until the relays in reach have our subscriptions; False: none has so far.

        An ephemeral request that comes before is lost.
        """
        heard = await asyncio.gather(
            *(subscription.eose(timeout_s) for subscription in self._subscriptions.values())
        )
        return all(heard)

    async def stop(self, deadline_s: float = 30.0) -> None:
        """Refuse what is new, finish what runs, at most ``deadline_s``; then close.

        Cancels and nacks are still heard while the rest is finished.
        """
        self._draining = True
        end = time.monotonic() + deadline_s
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=deadline_s)
        await _cancel(self._tasks)
        await self._outbox.drain(end - time.monotonic())
        await _cancel(self._loops)
        self._loops = []

    # -------------------------------------------------------------- loops

    def _filter(self, kind: int) -> dict[str, Any]:
        now = int(self._clock())
        if kind == EPHEMERAL_GIFT_WRAP:
            since = now - _EPHEMERAL_OVERLAP_S
        else:
            # Older than its longest validity nothing is worth reading, however long we were away.
            since = max(self._healthy_at, now - self._limits.max_lifetime_s) - _STORED_OVERLAP_S
        return {"kinds": [kind], "#p": [self._keys.pubkey], "since": since}

    def _subscribe(self, kind: int) -> None:
        self._subscriptions[kind] = self._pool.subscribe(
            lambda: [self._filter(kind)], queue_size=self._limits.queue_size
        )

    async def _listen(self, kind: int) -> None:
        while True:
            try:
                async with self._subscriptions[kind] as subscription:
                    await self._read(subscription)
            except Exception as error:
                _log.error("dm_subscription_failed", kind=kind, reason=type(error).__name__)
            await asyncio.sleep(_RESUBSCRIBE_S)
            self._subscribe(kind)

    async def _read(self, subscription: Subscription) -> None:
        async for event in subscription:
            # The queue before us is bounded and drops its oldest while we hold back.
            await asyncio.sleep(self._gate.unwrap_delay_s(time.monotonic()))
            try:
                self._receive(event)
            except Exception as error:
                self.counts["failed"] += 1
                _log.error("dm_event_failed", reason=type(error).__name__)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._limits.sweep_s)
            now = time.monotonic()
            for sender, part in self._assembler.expire(now):
                recipient = self._waiting.pop((sender, part.id), None)
                if recipient is not None:
                    self._refuse(recipient, part.id, RequestIncomplete(), frames=part.frames)
            self._ask_for_parts(now)
            self._sent.expire(now)
            while self._failed and next(iter(self._failed.values())) <= now:
                self._failed.popitem(last=False)

    def _ask_for_parts(self, now: float) -> None:
        for sender, part, missing in self._assembler.wanting(now):
            recipient = self._waiting.get((sender, part.id))
            if recipient is not None and self._gate.may_ask(now):
                self.counts["asked_for_parts"] += 1
                self._outbox.post(recipient, build_nack(part.id, missing))

    async def _watch_health(self) -> None:
        while True:
            health = self._pool.health().values()
            if health and all(relay.connected for relay in health):
                self._healthy_at = int(self._clock())
                if self._store_healthy is not None:
                    try:
                        await self._store_healthy(self._healthy_at)
                    except Exception as error:
                        _log.error("dm_health_not_stored", reason=type(error).__name__)
            await asyncio.sleep(self._limits.health_s)

    # -------------------------------------------------------------- messages

    def _receive(self, event: Event) -> None:
        try:
            rumor = unwrap(event, self._keys)
        except DiscoveryError:
            self.counts["undecryptable"] += 1
            return
        if rumor.kind != REQUEST_KIND:
            self.counts["other_kind"] += 1
            return
        try:
            message = parse_request(rumor.content)
        except BadMessage as bad:
            self._malformed(event.kind, rumor, bad)
            return
        expires = message.expires if isinstance(message, RequestPart) else None
        if not self._is_fresh(event.kind, rumor.created_at, expires):
            self.counts["stale"] += 1
            return
        key = (rumor.pubkey, message.id)
        match message:
            case RequestPart():
                self._take_part(key, message, event.kind, rumor.created_at)
            case Nack():
                self._send_again(key, message.seqs)
            case Cancel():
                running = self._running.get(key)
                if running is not None and running.request.stop is not None:
                    self.counts["cancelled"] += 1
                    running.request.stop.set()

    def _malformed(self, kind: int, rumor: Rumor, bad: BadMessage) -> None:
        self.counts["malformed"] += 1
        if bad.id is None or not self._is_fresh(kind, rumor.created_at, None):
            return
        key = (rumor.pubkey, bad.id)
        if key not in self._failed:
            self._note_failed(key)
            recipient = recipient_of(rumor.pubkey, kind)
            self._refuse(recipient, bad.id, bad.error, frames=bad.frames)

    def _is_fresh(self, kind: int, created_at: int, expires: int | None) -> bool:
        now = self._clock()
        skew = self._limits.clock_skew_s
        if created_at > now + skew or (expires is not None and expires < now):
            return False
        if kind == GIFT_WRAP and expires is not None:
            return True
        return created_at >= now - skew

    def _take_part(self, key: _Key, part: RequestPart, kind: int, created_at: int) -> None:
        # One error for one broken request, not one for each of its parts.
        if part.index and key in self._failed:
            self.counts["rest_of_failed"] += 1
            return
        self._failed.pop(key, None)
        recipient = recipient_of(key[0], kind, part.head, part.relays, part.wrap)
        self._waiting.pop(key, None)
        try:
            if part.expires is not None and part.expires > created_at + self._max_lifetime_s:
                raise InvalidValue("expires is too far ahead", param="expires")
            complete = self._assembler.add(key[0], part, time.monotonic())
            if complete is None:
                self._waiting[key] = recipient
                return
            recipient = recipient_of(key[0], kind, complete.head, complete.relays, complete.wrap)
            # Relays hand out stored wraps again and again: what was answered then stays answered.
            old = kind == GIFT_WRAP and created_at < self._settled_before
            self._accept(key, complete, recipient, replay=not old)
        except NodeError as error:
            self._note_failed(key)
            self._refuse(recipient, key[1], error, frames=part.frames)

    def _note_failed(self, key: _Key) -> None:
        self._failed[key] = time.monotonic() + self._limits.assembly.deadline_s
        while len(self._failed) > _MAX_FAILED:
            self._failed.popitem(last=False)

    @property
    def _max_lifetime_s(self) -> int:
        return self._limits.max_lifetime_s + self._limits.clock_skew_s

    def _accept(
        self, key: _Key, complete: CompleteRequest, recipient: Recipient, *, replay: bool
    ) -> None:
        """Begin to answer a complete request. Raises NodeError when it is refused."""
        request = to_request(key[0], complete)
        digest = complete.digest
        running = self._running.get(key)
        if running is not None:
            if running.digest != digest:
                raise IdempotencyConflict
            running.channel.readdress(recipient)
            self._send_again(key, None)
            return
        ticket = self._admit(key[0])
        channel = Channel(
            complete.id,
            recipient,
            self._outbox,
            self._sent,
            frames=complete.frames,
            stored_change=self._limits.stored_change,
            steady=time.monotonic,
        )
        self.counts["requests"] += 1
        self._running[key] = running = _Running(digest, channel, request)
        task = self._spawn(self._serve(running, ticket, replay=replay))
        task.add_done_callback(lambda _: self._running.pop(key, None))

    async def _serve(self, running: _Running, ticket: Ticket, *, replay: bool) -> None:
        paid = await self._runner.serve(
            running.request, running.digest, running.channel, replay=replay
        )
        if paid:
            self._gate.paid(ticket, time.monotonic())

    def _admit(self, sender: str) -> Ticket:
        if self._draining:
            raise ServerDraining(retry_after_s=5)
        return self._gate.admit(
            sender,
            time.monotonic(),
            running=len(self._running),
            of_sender=sum(1 for other, _ in self._running if other == sender),
        )

    # -------------------------------------------------------------- replies

    def _send_again(self, key: _Key, seqs: tuple[int, ...] | None) -> None:
        """Send frames that were sent before: those of ``seqs``, or all."""
        sent = self._sent.get(key)
        if sent is None:
            self.counts["nothing_to_resend"] += 1
            return
        count = len(sent.contents)
        wanted = range(count) if seqs is None else [seq for seq in seqs if seq < count]
        if not self._gate.may_resend(key[0], len(wanted), time.monotonic()):
            self.counts["resend_refused"] += 1
            return
        self.counts["resent"] += len(wanted)
        contents = [sent.contents[seq] for seq in wanted]
        self._spawn(self._outbox.post_in_turn(sent.recipient, contents))

    def _refuse(
        self, recipient: Recipient, message_id: str, error: NodeError, *, frames: bool
    ) -> None:
        """An error reply to a message that is not dispatched, while the budget lasts."""
        self.counts[error.code] += 1
        if not self._gate.may_say_error(recipient.pubkey, time.monotonic()):
            self.counts["error_unsaid"] += 1
            return
        for content in error_contents(error, message_id, uuid4().hex, frames=frames):
            self._outbox.post(recipient, content)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    if waiting:
        await asyncio.wait(waiting, timeout=_CANCEL_S)
