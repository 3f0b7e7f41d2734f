"""What the operator is shown of the database: pages and sums, never a key, a token or a secret.

Every report is a plain function over a connection that can change nothing. ``Reader`` runs it on a
connection and a thread of its own, so that neither the writer nor the requests wait for it, and
ends it when it takes too long.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from node.core.money import to_msat
from node.core.transactions import Position, Transaction
from node.ledger.books import FIRST_ACCOUNT, Book, Books, open_read_only, sum_books
from node.ledger.reconciling import read_mark
from node.ledger.transactions import read_page

T = TypeVar("T")

HOUR_S = 3600
DAY_S = 24 * HOUR_S
READ_TIMEOUT_S = 20.0
"""After so long a report is given up."""
AT_ONCE = 2
"""Reports made at the same time; others wait."""
_STEPS = 10_000
"""Steps of SQLite's machine between two looks at the clock: less than a millisecond."""
_SHOWN_REFERENCES = frozenset({"op", "late", "hold", "keys", "close", "release"})
"""What may be shown of a reference as it is: numbers and random names. A claim's is a digest of
something secret."""

Cursor = tuple[int, ...]
"""Where the next page begins."""


class TooSlow(Exception):
    """A report took longer than ``READ_TIMEOUT_S``."""


class Reader:
    """Runs reports over one database file, which this process may have open.

    Args:
        timeout_s: after this a report is ended.
        at_once: how many run at the same time.
    """

    def __init__(
        self, path: Path, *, timeout_s: float = READ_TIMEOUT_S, at_once: int = AT_ONCE
    ) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(at_once)

    async def read(self, report: Callable[[sqlite3.Connection], T]) -> T:
        """What ``report`` says of one moment. Raises TooSlow, sqlite3.Error."""
        async with self._slots:
            return await asyncio.to_thread(self._read, report)

    def _read(self, report: Callable[[sqlite3.Connection], T]) -> T:
        with closing(open_read_only(self._path)) as connection:
            ends_at = time.monotonic() + self._timeout_s
            connection.set_progress_handler(lambda: time.monotonic() > ends_at, _STEPS)
            try:
                connection.execute("BEGIN")
                return report(connection)
            except sqlite3.OperationalError as error:
                if time.monotonic() > ends_at:
                    raise TooSlow from None
                raise error


# -- the balance sheet ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MintHolding:
    """What is kept at one mint, in one unit."""

    url: str
    unit: str
    coins_msat: int
    """Unspent."""
    in_transit_msat: int
    """Reserved for something under way."""
    keysets: int
    """Active ones of that unit."""
    paused: bool
    """Its coins are out of use until they have been checked after a restore."""


def books(connection: sqlite3.Connection) -> Books:
    """The balance sheet, from the stored sums on."""
    return sum_books(connection, checkpointed=True)


def holdings(connection: sqlite3.Connection, mints: Sequence[tuple[str, str]]) -> list[MintHolding]:
    """What is kept where: at ``mints`` (URL, unit), and at others that we have coins of."""
    coins: dict[tuple[str, str], dict[str, int]] = {pair: {} for pair in mints}
    for state in ("unspent", "reserved"):  # two queries, for an index each
        for mint, unit, amount in connection.execute(
            "SELECT mint, unit, SUM(amount) FROM proofs WHERE state = ? GROUP BY mint, unit",
            (state,),
        ):
            coins.setdefault((mint, unit), {})[state] = to_msat(amount, unit)
    keysets = {
        (mint, unit): count
        for mint, unit, count in connection.execute(
            "SELECT mint, unit, COUNT(*) FROM keysets WHERE active GROUP BY mint, unit"
        )
    }
    mark = read_mark(connection)
    return [
        MintHolding(
            url=mint,
            unit=unit,
            coins_msat=amounts.get("unspent", 0),
            in_transit_msat=amounts.get("reserved", 0),
            keysets=keysets.get((mint, unit), 0),
            paused=mark is not None and mint not in mark[1],
        )
        for (mint, unit), amounts in coins.items()
    ]


# -- accounts ------------------------------------------------------------------------------

Order = Literal["created", "balance"]


@dataclass(frozen=True, slots=True)
class AccountRow:
    """An account, without what it is found by."""

    id: int
    kind: str
    """key or request."""
    state: str
    balance_msat: int
    held_msat: int
    mint: str
    unit: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    """When money last left it."""
    admin_key: bool
    """Whether only an admin key may withdraw."""
    child_keys: int


_ACCOUNTS = """
SELECT a.id, a.kind, a.state, a.balance_msat, a.held_msat, a.mint, a.unit, a.created_at,
       t.expires_at,
       (SELECT created_at FROM transfers WHERE source = a.id ORDER BY id DESC LIMIT 1)
         AS last_used_at,
       EXISTS (SELECT 1 FROM api_keys WHERE account_id = a.id AND role = 'admin') AS admin_key,
       (SELECT COUNT(*) FROM child_keys WHERE account_id = a.id AND revoked_at IS NULL)
         AS child_keys
FROM (SELECT * FROM accounts WHERE id >= :first AND {after} ORDER BY {order} LIMIT :limit) a
LEFT JOIN account_terms t ON t.account_id = a.id ORDER BY {outer}
"""
_AFTER: dict[Order, tuple[str, str, str]] = {
    "created": ("id < :id", "id DESC", "a.id DESC"),
    "balance": (
        "(balance_msat, id) < (:balance, :id)",
        "balance_msat DESC, id DESC",
        "a.balance_msat DESC, a.id DESC",
    ),
}
_LAST = 1 << 62


def accounts(
    connection: sqlite3.Connection, order: Order, cursor: Cursor | None, limit: int
) -> tuple[list[AccountRow], Cursor | None]:
    """At most ``limit`` accounts after ``cursor``, the newest or the richest first.

    Raises ValueError for a cursor of something else.
    """
    balance, id_ = _pair(cursor) if order == "balance" else (0, one_of(cursor))
    after, by, outer = _AFTER[order]
    rows = connection.execute(
        _ACCOUNTS.format(after=after, order=by, outer=outer),
        {"first": FIRST_ACCOUNT, "balance": balance, "id": id_, "limit": limit + 1},
    ).fetchall()
    found = [
        AccountRow(**{**dict(row), "admin_key": bool(row["admin_key"])}) for row in rows[:limit]
    ]
    if len(rows) <= limit:
        return found, None
    last = found[-1]
    return found, (last.balance_msat, last.id) if order == "balance" else (last.id,)


@dataclass(frozen=True, slots=True)
class StatementLine:
    """A line of an account's statement; ``kind``, ``state`` and ``id`` as in ``Transaction``."""

    id: str
    kind: str
    state: str
    amount_msat: int
    """Signed."""
    balance_msat: int | None
    """Of the account after this; None for what has not moved yet."""
    created_at: int
    request_id: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    mint: str | None


def statement(
    connection: sqlite3.Connection, account_id: int, cursor: Cursor | None, limit: int
) -> tuple[list[StatementLine], Cursor | None] | None:
    """At most ``limit`` lines after ``cursor``, the newest first; None: there is no such account.

    Raises ValueError for a cursor of something else.
    """
    row = connection.execute(
        "SELECT balance_msat FROM accounts WHERE id = ?", (account_id,)
    ).fetchone()
    if row is None or account_id < FIRST_ACCOUNT:
        return None
    position, balance = None, int(row["balance_msat"])
    if cursor is not None:
        if len(cursor) != 4:
            raise ValueError("a cursor of something else")
        pending, since, id_, carried = cursor
        position = Position(id_, since if pending else None)
        # what was done before the first page stays as it is, so that its balance is true for ever
        balance = balance if pending else carried
    page = read_page(connection, account_id, position, limit)
    lines = []
    for line in page.lines:
        moved = _has_moved(line)
        lines.append(_statement_line(line, balance if moved else None))
        balance -= line.amount if moved else 0
    if page.next is None:
        return lines, None
    moment = page.next.moment
    return lines, (int(moment is not None), moment or 0, page.next.id, balance)


def _has_moved(line: Transaction) -> bool:
    """Whether the balance has this already: what is set aside or on its way in has not."""
    return line.state != "pending" or line.type not in ("charge", "deposit", "topup")


def _statement_line(line: Transaction, balance: int | None) -> StatementLine:
    return StatementLine(
        id=line.id,
        kind=line.type,
        state=line.state,
        amount_msat=line.amount,
        balance_msat=balance,
        created_at=line.created_at,
        request_id=line.request_id,
        model=line.model,
        prompt_tokens=line.prompt_tokens,
        completion_tokens=line.completion_tokens,
        mint=line.mint,
    )


# -- transfers -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TransferRow:
    """Money that moved from one book to another: names of books, or ``account 105``."""

    id: int
    created_at: int
    source: str
    destination: str
    amount_msat: int
    reference: str
    model: str | None
    """Of a charge."""


def transfers(
    connection: sqlite3.Connection, cursor: Cursor | None, limit: int
) -> tuple[list[TransferRow], Cursor | None]:
    """At most ``limit`` transfers after ``cursor``, the newest first.

    Raises ValueError for a cursor of something else.
    """
    rows = connection.execute(
        "SELECT t.*, h.model FROM (SELECT * FROM transfers WHERE id < ? ORDER BY id DESC LIMIT ?) t"
        " LEFT JOIN holds h ON h.id ="
        " CASE WHEN t.reference LIKE 'hold:%' THEN CAST(substr(t.reference, 6) AS INTEGER) END"
        " ORDER BY t.id DESC",
        (one_of(cursor), limit + 1),
    ).fetchall()
    found = [
        TransferRow(
            id=row["id"],
            created_at=row["created_at"],
            source=book_name(row["source"]),
            destination=book_name(row["destination"]),
            amount_msat=row["amount_msat"],
            reference=_public_reference(row["reference"]),
            model=row["model"],
        )
        for row in rows[:limit]
    ]
    return found, (found[-1].id,) if len(rows) > limit else None


def book_name(number: int) -> str:
    """A book as people know it."""
    if number >= FIRST_ACCOUNT:
        return f"account {number}"
    return Book(number).name.lower()


def _public_reference(reference: str) -> str:
    kind = reference.partition(":")[0]
    return reference if kind in _SHOWN_REFERENCES else kind


# -- earnings ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """What was charged in one bucket of time, which begins at ``at``."""

    at: int
    charged_msat: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelEarnings:
    """What one model brought in."""

    model: str
    charged_msat: int
    requests: int
    prompt_tokens: int
    completion_tokens: int


MAX_MODELS = 50
"""Models listed with what they brought in, at most."""
_SUMS = (
    "SUM(charged_msat) AS charged_msat, SUM(requests) AS requests,"
    " SUM(prompt_tokens) AS prompt_tokens, SUM(completion_tokens) AS completion_tokens"
)


def earnings(
    connection: sqlite3.Connection, begin: int, end: int, bucket_s: int
) -> tuple[list[Point], list[ModelEarnings]]:
    """What was charged in ``[begin, end)``: a point for each bucket, and the best models.

    Args:
        begin, end: unix seconds; ``begin`` is a multiple of ``bucket_s``.
        bucket_s: a multiple of an hour.
    """
    found = {
        row["at"]: Point(**dict(row))
        for row in connection.execute(
            f"SELECT hour - hour % ?3 AS at, {_SUMS} FROM earnings"  # noqa: S608
            " WHERE hour >= ?1 AND hour < ?2 GROUP BY 1",
            (begin, end, bucket_s),
        )
    }
    models = connection.execute(
        f"SELECT model, {_SUMS} FROM earnings WHERE hour >= ? AND hour < ?"  # noqa: S608
        " GROUP BY model ORDER BY charged_msat DESC, requests DESC, model LIMIT ?",
        (begin, end, MAX_MODELS),
    )
    points = [found.get(at, Point(at)) for at in range(begin, end, bucket_s)]
    return points, [ModelEarnings(**dict(row)) for row in models]


def charged_since(connection: sqlite3.Connection, hour: int) -> Point:
    """What was charged since the beginning of an hour."""
    row = connection.execute(
        f"SELECT {_SUMS} FROM earnings WHERE hour >= ?",  # noqa: S608
        (hour,),
    ).fetchone()
    return Point(hour, **{name: row[name] or 0 for name in row.keys()})  # noqa: SIM118 a Row


def one_of(cursor: Cursor | None) -> int:
    """The number in a cursor of one; above every row without a cursor. Raises ValueError."""
    if cursor is None:
        return _LAST
    if len(cursor) != 1:
        raise ValueError("a cursor of something else")
    return cursor[0]


def _pair(cursor: Cursor | None) -> tuple[int, int]:
    if cursor is None:
        return _LAST, _LAST
    if len(cursor) != 2:
        raise ValueError("a cursor of something else")
    return cursor[0], cursor[1]
