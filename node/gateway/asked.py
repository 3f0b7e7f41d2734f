"""What a provider was asked, as far as it takes to ask the same again after a crash.

Over relays a request is repeated by the key of the session and the id it went under, with the very
same content: the provider then sends what it answered, and runs nothing twice. So the content is
kept until the money is back. A request that the program has named (``Idempotency-Key``) is asked
again with the token that paid it, over either carriage.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from node.core.pricing import Price

MAX_KEPT_BYTES = 1 << 20
"""Longest body that is kept, compressed; of a longer one the change alone is asked for."""
MIGRATION = (
    """CREATE TABLE gateway_requests (
        id TEXT PRIMARY KEY,
        request_key TEXT,
        price TEXT NOT NULL,
        secret TEXT NOT NULL,
        path TEXT NOT NULL,
        headers TEXT NOT NULL,
        body BLOB,
        created_at INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX gateway_requests_named ON gateway_requests (request_key)"
    " WHERE request_key IS NOT NULL",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to a provider."""

    path: str
    """With ``/v1``."""
    headers: Mapping[str, str] = field(repr=False)
    """Without the token."""
    body: bytes | None = field(repr=False)
    """None: it was too long to be kept, or is not needed any more."""
    price: Price
    """As it was announced."""
    secret: str = field(default="", repr=False)
    """Of the session's key (nsec); empty when it did not go over relays."""
    request_key: str | None = field(default=None, repr=False)
    """By which the program names its request."""

    @property
    def repeatable(self) -> bool:
        """Whether the same request can be sent again by its id."""
        return bool(self.secret) and self.body is not None


def keep(conn: sqlite3.Connection, id_: str, asked: Asked) -> None:
    """Write down what is asked for the spending ``id_``; nothing when it is of no use later."""
    if not asked.secret and asked.request_key is None:
        return
    packed = zlib.compress(asked.body, 1) if asked.secret and asked.body is not None else None
    if packed is not None and len(packed) > MAX_KEPT_BYTES:
        packed = None
    conn.execute(
        "INSERT INTO gateway_requests VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            id_,
            asked.request_key,
            json.dumps(dataclasses.asdict(asked.price)),
            asked.secret,
            asked.path,
            json.dumps(dict(asked.headers)),
            packed,
            int(time.time()),
        ),
    )


def find(conn: sqlite3.Connection, id_: str) -> Asked | None:
    """What was asked for the spending ``id_``, if that is known."""
    row = conn.execute("SELECT * FROM gateway_requests WHERE id = ?", (id_,)).fetchone()
    if row is None:
        return None
    return Asked(
        path=row["path"],
        headers=json.loads(row["headers"]),
        body=None if row["body"] is None else zlib.decompress(row["body"]),
        price=Price(**json.loads(row["price"])),
        secret=row["secret"],
        request_key=row["request_key"],
    )


def forget(conn: sqlite3.Connection, id_: str) -> None:
    """The money is back: of a request that the program has named its name stays, no more."""
    conn.execute("DELETE FROM gateway_requests WHERE id = ? AND request_key IS NULL", (id_,))
    conn.execute("UPDATE gateway_requests SET secret = '', body = NULL WHERE id = ?", (id_,))


def prune(conn: sqlite3.Connection, older_than_s: int) -> int:
    """Forget the names of requests that are older; returns how many."""
    cursor = conn.execute(
        "DELETE FROM gateway_requests WHERE created_at < ? AND body IS NULL AND secret = ''",
        (int(time.time()) - older_than_s,),
    )
    return cursor.rowcount
