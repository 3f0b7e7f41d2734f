"""Writing the messages of a request over Nostr, values → text; no I/O. ``codec`` reads them."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from node.transport.dm.codec import MAX_NACKS
from node.transport.dm.cutter import PART_BYTES, body_room, dump


def build_request(
    message_id: str,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    *,
    frames: bool = True,
    expires: int | None = None,
    relays: Sequence[str] = (),
    wrap: Sequence[int] = (),
    part_bytes: int = PART_BYTES,
) -> list[str]:
    """The contents of the kind 80 rumors of one request, in order.

    ``part_bytes``: most body bytes of one part.

    Raises ValueError when the headers do not fit in one part.
    """
    common: dict[str, Any] = {"id": message_id, "v": 1}
    if frames:
        common["frames"] = True
    if expires is not None:
        common["expires"] = expires
    if relays:
        common["relays"] = list(relays)
    if wrap:
        common["wrap"] = list(wrap)
    first = {
        "method": method,
        "url": url,
        "headers": dict(headers),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return _numbered(common, first, body, part_bytes)


def build_nack(message_id: str, seqs: Sequence[int]) -> str:
    """Content that asks for frames again; at most MAX_NACKS of them."""
    return dump({"id": message_id, "nack": list(seqs[:MAX_NACKS])})


def build_cancel(message_id: str) -> str:
    """Content that stops the generation."""
    return dump({"id": message_id, "cancel": True})


def build_reply(
    message_id: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    part_bytes: int = PART_BYTES,
) -> list[str]:
    """The contents of the kind 81 rumors of one plain reply (http2nostr's format), in order.

    Raises ValueError when the headers do not fit in one part.
    """
    first = {"status": status, "headers": dict(headers)}
    return _numbered({"id": message_id}, first, body, part_bytes)


def _numbered(
    common: dict[str, Any], first: dict[str, Any], body: bytes, part_bytes: int
) -> list[str]:
    # Part 0 shares its room with the headers, so its body may be shorter than the others'.
    room = min(body_room({**common, **first}), part_bytes)
    chunks = [body[:room]]
    chunks += [body[start : start + part_bytes] for start in range(room, len(body), part_bytes)]
    return [
        dump(
            {
                **common,
                "partIndex": index,
                "parts": len(chunks),
                **(first if index == 0 else {}),
                "bodyBase64": b64encode(chunk).decode(),
            }
        )
        for index, chunk in enumerate(chunks)
    ]
