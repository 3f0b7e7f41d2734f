"""NUT-13 counters: which are next, which are free again, and at which a mint may have signed.

    next ──▶ allocated ──▶ signed
                 └───────▶ free      proven that no mint will ever sign it: used again first
    behind the mint ─────▶ watched   skipped; ``node.ecash.reconcile`` looks what was signed there

Free counters are used before new ones. So the unsigned counters between two signed ones are never
more than those of operations under way at one time, of those whose outcome never became known,
and of blanks for change (NUT-08) that got nothing; however many refused tokens came in between.
A search from the seed (NUT-09) depends on that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from node.core.accounts import CounterRange, Operation


def next_counter(conn: sqlite3.Connection, keyset_id: str) -> int:
    """The first counter of a keyset above all that were ever used."""
    row = conn.execute("SELECT next FROM counters WHERE keyset_id = ?", (keyset_id,)).fetchone()
    return 0 if row is None else int(row["next"])


def advance_counter(conn: sqlite3.Connection, keyset_id: str, to: int) -> None:
    """Use no counter below ``to`` that was not used before."""
    conn.execute(
        "INSERT INTO counters VALUES (?1, ?2)"
        " ON CONFLICT (keyset_id) DO UPDATE SET next = MAX(next, ?2)",
        (keyset_id, to),
    )


def allocate(conn: sqlite3.Connection, keyset_id: str, wanted: int) -> list[int]:
    """Counters for ``wanted`` new outputs: free ones, then new ones."""
    counters: list[int] = []
    for row in conn.execute(
        "SELECT first, count FROM free_counters WHERE keyset_id = ? ORDER BY first LIMIT ?",
        (keyset_id, wanted),
    ).fetchall():
        first, count = row["first"], row["count"]
        taken = min(count, wanted - len(counters))
        if not taken:
            break
        counters += range(first, first + taken)
        conn.execute(
            "DELETE FROM free_counters WHERE keyset_id = ? AND first = ?", (keyset_id, first)
        )
        if taken < count:
            _free(conn, keyset_id, first + taken, count - taken)
    new = next_counter(conn, keyset_id)
    missing = wanted - len(counters)
    if missing:
        counters += range(new, new + missing)
        advance_counter(conn, keyset_id, new + missing)
    return counters


def give_back(conn: sqlite3.Connection, operation: Operation) -> None:
    """Free the counters of an operation of which no mint will ever sign an output.

    The operation forgets its outputs.
    """
    keyset_id = operation.outputs[0].keyset_id
    for first, count in _runs(output.counter for output in operation.outputs):
        end = first + count
        before = conn.execute(
            "DELETE FROM free_counters WHERE keyset_id = ? AND first + count = ? RETURNING first",
            (keyset_id, first),
        ).fetchone()
        after = conn.execute(
            "DELETE FROM free_counters WHERE keyset_id = ? AND first = ? RETURNING count",
            (keyset_id, end),
        ).fetchone()
        first = first if before is None else before["first"]
        end += 0 if after is None else after["count"]
        lowered = conn.execute(
            "UPDATE counters SET next = ? WHERE keyset_id = ? AND next = ?", (first, keyset_id, end)
        )
        if not lowered.rowcount:
            _free(conn, keyset_id, first, end - first)
    conn.execute("UPDATE operations SET outputs = '[]' WHERE id = ?", (operation.id,))


def free_ranges(conn: sqlite3.Connection, keyset_id: str) -> list[CounterRange]:
    """The free counters of a keyset."""
    rows = conn.execute(
        "SELECT first, count FROM free_counters WHERE keyset_id = ? ORDER BY first", (keyset_id,)
    )
    return [CounterRange(keyset_id, row["first"], row["count"]) for row in rows]


def skip(conn: sqlite3.Connection, mint: str, keyset_id: str, to: int, until: int) -> None:
    """Use no counter below ``to`` any more, and watch those that this database has not used.

    Args:
        until: unix seconds; how long they are watched at least.
    """
    first = next_counter(conn, keyset_id)
    skipped = free_ranges(conn, keyset_id)
    conn.execute("DELETE FROM free_counters WHERE keyset_id = ?", (keyset_id,))
    if to > first:
        skipped.append(CounterRange(keyset_id, first, to - first))
        advance_counter(conn, keyset_id, to)
    conn.executemany(
        "INSERT INTO watched_counters VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET count = MAX(count, excluded.count),"
        " until = MAX(until, excluded.until)",
        [(keyset_id, part.first, part.count, mint, until) for part in skipped],
    )


def disown(conn: sqlite3.Connection, operation: Operation, until: int) -> None:
    """The mint signed outputs of an operation long before it was begun: watch their counters.

    The operation forgets its outputs: they are another's, in a past that the database forgot.
    """
    conn.executemany(
        "INSERT INTO watched_counters VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            (operation.outputs[0].keyset_id, first, count, operation.mint, until)
            for first, count in _runs(output.counter for output in operation.outputs)
        ],
    )
    conn.execute("UPDATE operations SET outputs = '[]' WHERE id = ?", (operation.id,))


def watched_ranges(conn: sqlite3.Connection, mint: str) -> list[CounterRange]:
    """What is watched of a mint."""
    rows = conn.execute(
        "SELECT * FROM watched_counters WHERE mint = ? ORDER BY keyset_id, first", (mint,)
    )
    return [CounterRange(row["keyset_id"], row["first"], row["count"]) for row in rows]


def watched_mints(conn: sqlite3.Connection) -> list[str]:
    """The mints of which counters are watched."""
    return [row["mint"] for row in conn.execute("SELECT DISTINCT mint FROM watched_counters")]


def watch_on(conn: sqlite3.Connection, mint: str, until: int) -> None:
    """Watch what is watched of a mint at least until then (unix seconds)."""
    conn.execute("UPDATE watched_counters SET until = MAX(until, ?) WHERE mint = ?", (until, mint))


def unwatch(conn: sqlite3.Connection, ranges: Iterable[CounterRange], now: int) -> None:
    """Those of the ranges that were looked at long enough are settled."""
    conn.executemany(
        "DELETE FROM watched_counters WHERE keyset_id = ? AND first = ? AND count = ?"
        " AND until <= ?",
        [(part.keyset_id, part.first, part.count, now) for part in ranges],
    )


def _free(conn: sqlite3.Connection, keyset_id: str, first: int, count: int) -> None:
    conn.execute("INSERT INTO free_counters VALUES (?, ?, ?)", (keyset_id, first, count))


def _runs(counters: Iterable[int]) -> list[tuple[int, int]]:
    """(first, count) of each run of consecutive counters."""
    runs: list[tuple[int, int]] = []
    for counter in sorted(counters):
        if runs and sum(runs[-1]) == counter:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((counter, 1))
    return runs
