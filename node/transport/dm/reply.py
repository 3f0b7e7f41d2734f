"""Writing one reply: as frames while it is generated, or whole in http2nostr's format."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog

from node.errors import NodeError
from node.ports import StoredReply
from node.transport.dm.codec import parse_reply
from node.transport.dm.cutter import CHANGE_HEADER, FrameCutter, fitting
from node.transport.dm.limits import DmLimits, Pacing
from node.transport.dm.outbox import Outbox, Recipient, Sent, SentReplies
from node.transport.dm.publishing import Delivery
from node.transport.dm.writing import build_reply

_log = structlog.get_logger()

CHANGE_TRAILER = CHANGE_HEADER
COST_TRAILER = "x-cost-msat"
COST_HEADER = "x-routstr-cost-msats"
TRUNCATED_HEADER = "x-reply-truncated"
_JSON = "application/json"
_HOP_HEADERS = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})


class ReplyWriter(Protocol):
    """Where the events of one exchange go: start, write*, finish; abort at any time."""

    def start(self, status: int, headers: Mapping[str, str], *, live: bool) -> None: ...

    async def write(self, data: bytes) -> None: ...

    def finish(self, trailers: Mapping[str, str]) -> None: ...

    def abort(self) -> None: ...


class Channel:
    """The way back to one client for one request.

    ``recipient`` may change while the reply is written: a client that asks again from another
    relay gets the rest there.
    """

    def __init__(
        self,
        message_id: str,
        recipient: Recipient,
        outbox: Outbox,
        sent_replies: SentReplies,
        *,
        frames: bool,
        stored_change: bool,
        steady: Callable[[], float],
    ) -> None:
        self.message_id = message_id
        self.recipient = recipient
        self.frames = frames
        self._outbox = outbox
        self._sent_replies = sent_replies
        self._stored_change = stored_change
        self._steady = steady
        self._sent: Sent | None = None
        self._key = (recipient.pubkey, message_id)
        self._under_way: set[asyncio.Task[Delivery]] = set()
        self._too_large = False
        self.part_bytes = outbox.part_bytes
        """Most body bytes of one message."""

    def readdress(self, recipient: Recipient) -> None:
        """The client asked again, perhaps from elsewhere: the rest goes there."""
        self.recipient = recipient
        if self._sent is not None:
            self._sent.recipient = recipient

    def begin(self) -> None:
        """A new reply: what an earlier one kept for nacks is void."""
        self._sent = self._sent_replies.open(self._key, self.recipient, frames=self.frames)

    async def repeat(self) -> bool:
        """Send the complete reply again as it was cut the first time, if it is still here."""
        sent = self._sent_replies.get(self._key)
        if sent is None or sent.keep_until is None or sent.frames != self.frames:
            return False
        sent.recipient = self.recipient
        await self._outbox.post_in_turn(self.recipient, tuple(sent.contents))
        return True

    def fit(self, headers: Mapping[str, str]) -> dict[str, str]:
        """``headers`` (or trailers) as far as they fit one message; what does not is noted."""
        fit = fitting(headers)
        if omitted := headers.keys() - fit.keys():
            self._outbox.omitted += 1
            _log.warning("dm_reply_header_omitted", names=sorted(omitted))
        return fit

    def post(self, content: str, *, change: bool = False) -> asyncio.Task[Delivery]:
        """Send one message of the reply; ``change``: it holds money for the client."""
        if self._sent is not None:
            self._sent_replies.append(self._sent, content)
        task = self._outbox.post(
            self.recipient, content, stored_copy=change and self._stored_change
        )
        self._under_way.add(task)
        task.add_done_callback(self._arrived)
        return task

    def end(self) -> None:
        if self._sent is None:
            return
        self._sent_replies.close(self._sent, self._steady())
        if self.frames and (self._under_way or self._too_large):
            self._outbox.spawn(self._mend(self._sent))

    def _arrived(self, task: asyncio.Task[Delivery]) -> None:
        self._under_way.discard(task)
        self._too_large = self._too_large or (not task.cancelled() and task.result().too_large)

    async def _mend(self, sent: Sent) -> Delivery:
        """Send the reply in smaller frames when relays found some of them too large."""
        if self._under_way:
            await asyncio.wait(tuple(self._under_way))
        while self._too_large and self._outbox.smaller(self.part_bytes):
            if self._sent_replies.get(self._key) is not sent:  # it had to give way, or was repeated
                break
            self.part_bytes = self._outbox.part_bytes
            self._too_large = False
            self._sent_replies.replace(sent, _cut_again(sent.contents, self.part_bytes))
            for content in tuple(sent.contents):
                delivery = await self._outbox.post(self.recipient, content)
                self._too_large = delivery.too_large
                if self._too_large:
                    break
        return Delivery(not self._too_large)


class FramedReply:
    """Frames leave when one is full and, if the reply is live, at growing intervals."""

    def __init__(self, channel: Channel, limits: DmLimits, pacing: Pacing) -> None:
        self._channel = channel
        self._max_unconfirmed = limits.max_unconfirmed_frames
        self._wait_s = limits.publish_timeout_s
        self._pacing = pacing
        self._interval_s = pacing.first_s
        self._ceiling_s = pacing.max_s
        self._cutter: FrameCutter | None = None
        self._gathered = asyncio.Event()
        self._unconfirmed: set[asyncio.Task[Delivery]] = set()
        self._timer: asyncio.Task[None] | None = None

    def start(self, status: int, headers: Mapping[str, str], *, live: bool) -> None:
        self._channel.begin()
        fit = self._channel.fit(_end_to_end(headers))
        self._cutter = FrameCutter(
            self._channel.message_id, status, fit, part_bytes=self._channel.part_bytes
        )
        self._gathered.set()
        if live:
            self._timer = asyncio.create_task(self._flush_in_time(self._cutter))

    async def write(self, data: bytes) -> None:
        """Take body bytes; waits while too many frames are under way."""
        cutter = self._begun()
        cutter.feed(data)
        self._gathered.set()
        while cutter.full:
            self._post(cutter.cut())
            await self._room()

    def finish(self, trailers: Mapping[str, str]) -> None:
        self._stop_timer()
        *frames, final = self._begun().finish(self._channel.fit(trailers))
        for frame in frames:
            self._channel.post(frame)
        self._channel.post(final, change=CHANGE_TRAILER in trailers)
        self._channel.end()

    def abort(self) -> None:
        self._stop_timer()
        self._channel.end()

    def _begun(self) -> FrameCutter:
        if self._cutter is None:
            raise RuntimeError("a reply begins with its status")
        return self._cutter

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _flush_in_time(self, cutter: FrameCutter) -> None:
        while True:
            await self._gathered.wait()
            await asyncio.sleep(self._interval_s)
            self._gathered.clear()
            if cutter.pending_bytes or not cutter.begun:
                self._post(cutter.cut())
                self._interval_s = min(self._interval_s * self._pacing.growth, self._ceiling_s)
                await self._room()
            if cutter.pending_bytes:  # more than went beside the headers, or it came meanwhile
                self._gathered.set()

    def _post(self, frame: str) -> None:
        task = self._channel.post(frame)
        self._unconfirmed.add(task)
        task.add_done_callback(self._confirmed)

    def _confirmed(self, task: asyncio.Task[Delivery]) -> None:
        self._unconfirmed.discard(task)
        if task.cancelled():
            return
        pacing = self._pacing
        if task.result().limited:
            self._ceiling_s = min(self._ceiling_s * 2, pacing.max_backoff_s)
            self._interval_s = self._ceiling_s
        elif self._ceiling_s > pacing.max_s:
            self._ceiling_s = max(self._ceiling_s / pacing.growth, pacing.max_s)
            self._interval_s = min(self._interval_s, self._ceiling_s)

    async def _room(self) -> None:
        while len(self._unconfirmed) >= self._max_unconfirmed:
            await asyncio.wait(
                self._unconfirmed, timeout=self._wait_s, return_when=asyncio.FIRST_COMPLETED
            )


class PlainReply:
    """Gathers the whole reply and sends it in parts; trailers become headers."""

    def __init__(self, channel: Channel, limits: DmLimits) -> None:
        self._channel = channel
        self._max_bytes = limits.max_plain_reply_bytes
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def start(self, status: int, headers: Mapping[str, str], *, live: bool) -> None:
        del live
        self._status, self._headers = status, _end_to_end(headers)

    async def write(self, data: bytes) -> None:
        """Take body bytes; beyond the bound they are left out and the reply says so."""
        if TRUNCATED_HEADER in self._headers:
            return
        if len(self._body) + len(data) > self._max_bytes:
            self._headers[TRUNCATED_HEADER] = "true"
            return
        self._body += data

    def finish(self, trailers: Mapping[str, str]) -> None:
        self._channel.begin()
        headers = self._channel.fit({**self._headers, **_as_headers(trailers)})
        first, *others = build_reply(
            self._channel.message_id,
            self._status,
            headers,
            bytes(self._body),
            part_bytes=self._channel.part_bytes,
        )
        self._channel.post(first, change=CHANGE_TRAILER in trailers)
        for part in others:
            self._channel.post(part)
        self._channel.end()

    def abort(self) -> None:
        self._body.clear()


class Transcript:
    """What of a reply is kept for replay: the body up to a bound, all the rest."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    @property
    def begun(self) -> bool:
        return self._status > 0

    @property
    def status(self) -> int:
        return self._status

    @property
    def content_type(self) -> str:
        return self._headers.get("content-type", "")

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        self._status, self._headers = status, _end_to_end(headers)

    def write(self, data: bytes) -> None:
        if TRUNCATED_HEADER in self._headers:
            return
        if len(self._body) + len(data) > self._max_bytes:
            self._headers[TRUNCATED_HEADER] = "true"
            self._body.clear()
            return
        self._body += data

    def reply(self, trailers: Mapping[str, str]) -> StoredReply:
        return StoredReply(self._status, self._headers, bytes(self._body), dict(trailers))


def _cut_again(frames: Sequence[str], part_bytes: int) -> list[str]:
    """The frames of a complete reply in pieces of at most ``part_bytes``. They are our own."""
    pieces = [parse_reply(frame) for frame in frames]
    first, last = pieces[0], pieces[-1]
    cutter = FrameCutter(first.id, first.status or 0, first.headers or {}, part_bytes=part_bytes)
    contents = []
    for piece in pieces:
        cutter.feed(piece.body)
        while cutter.full:
            contents.append(cutter.cut())
    return contents + cutter.finish(last.trailers)


def error_contents(
    error: NodeError, message_id: str, request_id: str, *, frames: bool
) -> list[str]:
    """The messages of an error reply in the format asked for."""
    body, headers = error.body(request_id), error_headers(error, request_id)
    if not frames:
        return build_reply(message_id, error.status, headers, body)
    cutter = FrameCutter(message_id, error.status, headers)
    cutter.feed(body)
    return cutter.finish({})


def error_headers(error: NodeError, request_id: str) -> dict[str, str]:
    return {**request_id_headers(request_id), **error.headers(), "content-type": _JSON}


def request_id_headers(request_id: str) -> dict[str, str]:
    return {"x-request-id": request_id, "x-routstr-request-id": request_id}


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    lowered = {name.lower(): value for name, value in headers.items()}
    return {name: value for name, value in lowered.items() if name not in _HOP_HEADERS}


def _as_headers(trailers: Mapping[str, str]) -> dict[str, str]:
    """Trailers under the names they have as headers over HTTP."""
    return {
        (COST_HEADER if name == COST_TRAILER else name): value for name, value in trailers.items()
    }
