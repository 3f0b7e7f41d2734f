"""Fitting replies and requests into events: how much goes into one, and cutting frames; no I/O."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import orjson

PART_BYTES = 16_384
"""Raw body bytes of one part; one such part is an event of 55,122 bytes."""
MIN_PART_BYTES = 1_024
"""As small as parts get for relays that refuse larger events."""
MAX_CONTENT_BYTES = 28_400
"""Escaped content bytes that still fit that same event size (NIP-44 pads in steps, twice)."""
MAX_HEAD_BYTES = 24_576
"""Escaped bytes of all headers (or trailers) of one message: the rest is left for the body."""
CHANGE_HEADER = "x-cashu"
OMITTED_HEADER = "x-cashu-omitted"
_OMITTED = {OMITTED_HEADER: "too-large"}
_NUMBERS_BYTES = 96
"""Escaped keys and values of index and count, and the key of the body."""


class FrameCutter:
    """Cuts one reply into frames while it is being written.

    ``feed`` takes body bytes as they come, ``cut`` gives the next frame, ``finish`` the last
    ones. The first frame carries status and headers.

    Args:
        part_bytes: most body bytes of one frame.
    """

    def __init__(
        self,
        message_id: str,
        status: int,
        headers: Mapping[str, str],
        *,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._part_bytes = part_bytes
        self._id = message_id
        self._first: dict[str, Any] | None = {"status": status, "headers": fitting(headers)}
        self._pending = bytearray()
        self._digest = hashlib.sha256()
        self._seq = 0

    @property
    def pending_bytes(self) -> int:
        """Body bytes not yet in a frame."""
        return len(self._pending)

    @property
    def full(self) -> bool:
        """True when a frame's worth has gathered."""
        return len(self._pending) >= self._part_bytes

    @property
    def begun(self) -> bool:
        """True when the frame with the status has been cut."""
        return self._first is None

    def feed(self, data: bytes) -> None:
        self._pending += data
        self._digest.update(data)

    def cut(self) -> str:
        """The next frame, with as much of the pending body as it takes (none is allowed)."""
        return self._cut({})

    def finish(self, trailers: Mapping[str, str]) -> list[str]:
        """All that is left, ending in the final frame."""
        last = {"final": True, "sha256": self._digest.hexdigest(), "trailers": fitting(trailers)}
        frames = []
        # The count belongs to what is measured: it is in the frame that takes the rest.
        while len(self._pending) > self._room({**last, "frames": self._seq + 1}):
            frames.append(self.cut())
            if not self._pending:
                break
        frames.append(self._cut({**last, "frames": self._seq + 1}))
        return frames

    def _room(self, extra: dict[str, Any]) -> int:
        try:
            fields = {"id": self._id, **(self._first or {}), **extra}
            return min(body_room(fields), self._part_bytes)
        except ValueError:  # headers and trailers together: two frames
            return -1

    def _cut(self, extra: dict[str, Any]) -> str:
        room = self._room(extra)
        body = bytes(self._pending[:room])
        del self._pending[:room]
        frame = {
            "id": self._id,
            "seq": self._seq,
            **(self._first or {}),
            "bodyBase64": b64encode(body).decode(),
            **extra,
        }
        self._first = None
        self._seq += 1
        return dump(frame)


def fitting(headers: Mapping[str, str]) -> dict[str, str]:
    """``headers`` without those that would burst an event: the smallest come first.

    In place of a change token that is too large stands ``x-cashu-omitted: too-large``.
    """
    kept = set(_OMITTED)
    room = MAX_HEAD_BYTES - _escaped_bytes(_OMITTED)
    for name, value in sorted(headers.items(), key=lambda item: len(item[1])):
        if name in kept:
            continue
        room -= _escaped_bytes({name: value})
        if room < 0:
            break
        kept.add(name)
    fit = {name: value for name, value in headers.items() if name in kept}
    return fit | _OMITTED if CHANGE_HEADER in headers.keys() - kept else fit


def body_room(fields: Mapping[str, Any]) -> int:
    """How many raw body bytes go into one message beside ``fields``, at most PART_BYTES.

    Raises ValueError when the fields alone are too large for one event.
    """
    # The content becomes a string in the rumor's JSON, so its quotes are escaped once more.
    room = (MAX_CONTENT_BYTES - _escaped_bytes(dict(fields)) - _NUMBERS_BYTES) // 4 * 3
    if room < 0:
        raise ValueError("the headers do not fit in one event")
    return min(room, PART_BYTES)


def dump(document: dict[str, Any]) -> str:
    """Compact JSON."""
    return orjson.dumps(document).decode()


def _escaped_bytes(document: dict[str, Any]) -> int:
    return len(orjson.dumps(dump(document)))
