"""Putting messages back together, in any order and any number of copies; no I/O, no clock.

``RequestAssembler`` is the node's side: parts of many senders, with caps on all of it.
``ReplyAssembler`` is the client's side: the pieces of one reply, plain or framed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from node.errors import IdempotencyConflict, InvalidValue, RateLimitExceeded, RequestTooLarge
from node.transport.dm.codec import MAX_NACKS, ReplyPiece, RequestHead, RequestPart

# ------------------------------------------------------------------ requests, at the node


@dataclass(frozen=True, slots=True)
class AssemblyLimits:
    """Caps on requests of which parts are missing."""

    max_parts: int = 1024
    max_request_bytes: int = 8 * 2**20
    max_sender_requests: int = 8
    max_sender_bytes: int = 16 * 2**20
    max_requests: int = 512
    max_bytes: int = 128 * 2**20
    deadline_s: float = 60.0
    """From the last new part that arrived."""
    max_deadline_s: float = 600.0
    """From the first part: relays may let through a few events a minute only."""
    nack_s: float = 1.0
    """Without a new part for so long, the missing ones are asked for; doubles each time."""
    max_nacks: int = 5
    """How often, for one request."""


@dataclass(frozen=True, slots=True)
class CompleteRequest:
    """All parts of one request."""

    id: str
    head: RequestHead
    body: bytes = field(repr=False)
    frames: bool
    expires: int | None
    relays: tuple[str, ...]
    wrap: tuple[int, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over method, URL, headers and body: what makes two requests the same."""
        digest = hashlib.sha256()
        fields = [self.head.method, self.head.url]
        fields += [text for pair in sorted(self.head.headers.items()) for text in pair]
        for text in fields:
            raw = text.encode()
            digest.update(len(raw).to_bytes(8, "big") + raw)
        # Marks where the headers end: no request reads as another with more headers.
        digest.update(b"\xff" * 8 + self.body)
        return digest.hexdigest()


@dataclass(slots=True)
class _Assembly:
    begun_at: float
    deadline: float
    nack_at: float
    nacks: int = 0
    parts: dict[int, RequestPart] = field(default_factory=dict)
    size_bytes: int = 0


class RequestAssembler:
    """Collects the parts of requests per (sender, id).

    When a cap on everything is reached, the request that waited longest for its next part gives
    way, so a flood of beginnings cannot shut out those who keep sending.
    """

    def __init__(self, limits: AssemblyLimits | None = None) -> None:
        self._limits = limits or AssemblyLimits()
        # The least recently touched come first.
        self._open: OrderedDict[tuple[str, str], _Assembly] = OrderedDict()
        self._senders: dict[str, list[int]] = {}  # requests, bytes
        self._bytes = 0
        self._evicted: list[tuple[str, RequestPart]] = []

    def __len__(self) -> int:
        return len(self._open)

    @property
    def buffered_bytes(self) -> int:
        return self._bytes

    def add(self, sender: str, part: RequestPart, now: float) -> CompleteRequest | None:
        """Take one part; the request when it was the last one missing.

        Args:
            now: seconds on any steady clock, the same that ``expire`` is given.

        Raises (and forgets the request):
            RequestTooLarge: more parts or bytes than a request may have.
            RateLimitExceeded: this sender has too much unfinished already.
            IdempotencyConflict: the same part with another content.
            InvalidValue: another number of parts, or the body is not the one of ``sha256``.
        """
        limits, key = self._limits, (sender, part.id)
        assembly = self._open.get(key)
        if part.parts > limits.max_parts:
            self._forget(key)
            raise RequestTooLarge(f"a request has at most {limits.max_parts} parts", param="parts")
        if assembly is None:
            if part.parts == 1:
                return _complete([part])
            assembly = self._begin(key, now)
        known = next(iter(assembly.parts.values()), part)
        if known.parts != part.parts:
            self._forget(key)
            raise InvalidValue("the parts disagree on their number", param="parts")
        self._open.move_to_end(key)
        twin = assembly.parts.get(part.index)
        if twin is not None:
            if (twin.body, twin.head) != (part.body, part.head):
                self._forget(key)
                raise IdempotencyConflict
            return None
        self._store(key, assembly, part)
        assembly.deadline = min(now + limits.deadline_s, assembly.begun_at + limits.max_deadline_s)
        assembly.nack_at = now + limits.nack_s * 2**assembly.nacks
        if len(assembly.parts) < part.parts:
            self._make_room(key)
            return None
        self._forget(key)
        return _complete([assembly.parts[index] for index in range(part.parts)])

    def expire(self, now: float) -> list[tuple[str, RequestPart]]:
        """Forget what is past its deadline or had to give way: (sender, one of its parts)."""
        gone, self._evicted = self._evicted, []
        late = [key for key, assembly in self._open.items() if assembly.deadline <= now]
        for key in late:
            gone.append((key[0], next(iter(self._open[key].parts.values()))))
            self._forget(key)
        return gone

    def wanting(self, now: float) -> list[tuple[str, RequestPart, tuple[int, ...]]]:
        """Requests of which no part came for a while and whose sender understands being asked:
        (sender, one of its parts, the numbers of those that are missing)."""
        asked = []
        for (sender, _), assembly in self._open.items():
            if assembly.nack_at > now or assembly.nacks >= self._limits.max_nacks:
                continue
            known = next(iter(assembly.parts.values()), None)
            if known is None or not known.frames:
                continue
            assembly.nacks += 1
            assembly.nack_at = now + self._limits.nack_s * 2**assembly.nacks
            gaps = (index for index in range(known.parts) if index not in assembly.parts)
            missing = tuple(index for index, _ in zip(gaps, range(MAX_NACKS), strict=False))
            asked.append((sender, known, missing))
        return asked

    def _busy(self, message: str) -> RateLimitExceeded:
        return RateLimitExceeded(message, retry_after_s=ceil(self._limits.deadline_s))

    def _begin(self, key: tuple[str, str], now: float) -> _Assembly:
        usage = self._senders.setdefault(key[0], [0, 0])
        if usage[0] >= self._limits.max_sender_requests:
            raise self._busy("too many unfinished requests")
        usage[0] += 1
        limits = self._limits
        assembly = _Assembly(now, now + limits.deadline_s, now + limits.nack_s)
        self._open[key] = assembly
        return assembly

    def _store(self, key: tuple[str, str], assembly: _Assembly, part: RequestPart) -> None:
        limits, usage = self._limits, self._senders[key[0]]
        size = len(part.body)
        if assembly.size_bytes + size > limits.max_request_bytes:
            self._forget(key)
            raise RequestTooLarge
        if usage[1] + size > limits.max_sender_bytes:
            self._forget(key)
            raise self._busy("too many bytes in unfinished requests")
        assembly.parts[part.index] = part
        assembly.size_bytes += size
        usage[1] += size
        self._bytes += size

    def _make_room(self, keep: tuple[str, str]) -> None:
        limits = self._limits
        while len(self._open) > limits.max_requests or self._bytes > limits.max_bytes:
            key = next(iter(self._open))
            if key == keep:  # it is the last one: the caps are smaller than one request
                break
            self._evicted.append((key[0], next(iter(self._open[key].parts.values()))))
            self._forget(key)

    def _forget(self, key: tuple[str, str]) -> None:
        assembly = self._open.pop(key, None)
        if assembly is None:
            return
        self._bytes -= assembly.size_bytes
        usage = self._senders[key[0]]
        usage[0] -= 1
        usage[1] -= assembly.size_bytes
        if usage[0] == 0:
            del self._senders[key[0]]


def _complete(parts: list[RequestPart]) -> CompleteRequest:
    first = parts[0]
    head = first.head
    if head is None:
        raise InvalidValue("part 0 has no method, url and headers")
    body = b"".join(part.body for part in parts)
    if head.sha256 is not None and hashlib.sha256(body).hexdigest() != head.sha256:
        raise InvalidValue("the body does not match its sha256", param="sha256")
    return CompleteRequest(
        id=first.id,
        head=head,
        body=body,
        frames=first.frames,
        expires=first.expires,
        relays=first.relays,
        wrap=first.wrap,
    )


# ------------------------------------------------------------------ replies, at the client


class ReplyError(Exception):
    """A reply that cannot be used."""


class ReplyChanged(ReplyError):
    """The node answered again with other bytes after some were handed out."""


class ReplyTooLarge(ReplyError):
    """More bytes or frames than the client wants."""


class ReplyAssembler:
    """Collects the pieces of one reply.

    ``add`` takes pieces in any order; ``take`` hands out the bytes that are in order so far;
    ``missing`` lists the gaps to ask for again. A node that answers a second time may cut the
    body differently: a piece that contradicts what is there begins the reply anew, and bytes
    already handed out are compared, not handed out twice.
    """

    def __init__(self, *, max_reply_bytes: int = 64 * 2**20, max_pieces: int = 65_536) -> None:
        self._max_bytes = max_reply_bytes
        self._max_pieces = max_pieces
        self._taken = 0
        self._taken_digest = hashlib.sha256()
        self.restarts = 0
        """How often the reply began anew: asking for the whole again makes sense then."""
        self._reset()

    def _reset(self) -> None:
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.trailers: Mapping[str, str] = {}
        self._total: int | None = None
        self._sha256: str | None = None
        self._seen: dict[int, bytes] = {}  # seq → fingerprint
        self._waiting: dict[int, bytes] = {}  # seq → body, beyond the first gap
        self._next = 0
        self._ready = bytearray()
        self._size_bytes = 0
        self._digest = hashlib.sha256()
        self._compare_left = self._taken
        self._compare_digest = hashlib.sha256()

    @property
    def complete(self) -> bool:
        """True when every piece is there and the digest matched."""
        return self._total is not None and self._next == self._total

    @property
    def empty(self) -> bool:
        """True when no piece of the present answer is there."""
        return not self._seen

    def add(self, piece: ReplyPiece) -> bool:
        """Take one piece; True when it brought something new.

        Raises ReplyTooLarge, ReplyChanged.
        """
        if self.complete:
            return False
        if piece.seq >= self._max_pieces or (piece.total or 0) > self._max_pieces:
            raise ReplyTooLarge(f"more than {self._max_pieces} pieces")
        fingerprint = _fingerprint(piece)
        if self._seen.get(piece.seq) == fingerprint:
            return False
        if self._contradicts(piece):
            self._begin_anew()
        self._seen[piece.seq] = fingerprint
        self._size_bytes += len(piece.body)
        if self._size_bytes > self._max_bytes:
            raise ReplyTooLarge(f"more than {self._max_bytes} bytes")
        self._waiting[piece.seq] = piece.body
        if piece.status is not None:
            self.status, self.headers = piece.status, dict(piece.headers or {})
        if piece.total is not None:
            self._total = piece.total
        if piece.sha256 is not None:
            self._sha256, self.trailers = piece.sha256, dict(piece.trailers)
        self._advance()
        return True

    def take(self) -> bytes:
        """The bytes in order that were not handed out before; may be empty."""
        data = bytes(self._ready)
        self._ready.clear()
        self._taken += len(data)
        self._taken_digest.update(data)
        return data

    def missing(self, limit: int = 64) -> tuple[int, ...]:
        """Numbers of pieces that must exist and are not here, lowest first."""
        end = self._total if self._total is not None else max(self._seen, default=-1) + 1
        gaps = (seq for seq in range(self._next, end) if seq not in self._seen)
        return tuple(seq for seq, _ in zip(gaps, range(limit), strict=False))

    @property
    def expected(self) -> int:
        """The number of the first piece beyond all that are known."""
        return max(self._seen, default=-1) + 1

    def _contradicts(self, piece: ReplyPiece) -> bool:
        if piece.seq in self._seen:
            return True
        if self._total is not None:
            return piece.seq >= self._total or piece.total not in (None, self._total)
        return piece.total is not None and max(self._seen, default=-1) >= piece.total

    def _begin_anew(self) -> None:
        self.restarts += 1
        self._reset()

    def _advance(self) -> None:
        while (body := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            self._digest.update(body)
            self._ready += self._beyond_taken(body)
        if not self.complete:
            return
        if self._sha256 is not None and self._digest.hexdigest() != self._sha256:
            self._begin_anew()
        elif self._compare_left:
            raise ReplyChanged("the second answer is shorter than the first")

    def _beyond_taken(self, body: bytes) -> bytes:
        """What of ``body`` was not handed out by an earlier answer, which it must repeat."""
        if not self._compare_left:
            return body
        again, rest = body[: self._compare_left], body[self._compare_left :]
        self._compare_digest.update(again)
        self._compare_left -= len(again)
        if not self._compare_left and self._compare_digest.digest() != self._taken_digest.digest():
            raise ReplyChanged("the second answer is not the first")
        return rest


def _fingerprint(piece: ReplyPiece) -> bytes:
    digest = hashlib.sha256(piece.body)
    digest.update(repr((piece.status, piece.total, piece.sha256)).encode())
    digest.update(repr(sorted((piece.headers or {}).items())).encode())
    digest.update(repr(sorted(piece.trailers.items())).encode())
    return digest.digest()
