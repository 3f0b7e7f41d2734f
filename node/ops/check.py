"""Are the books right, do the coins cover what clients are owed, and what is stuck?

``examine`` reads one moment of the database and changes nothing, so the node may run meanwhile.
``ask_mints`` asks the configured mints (NUT-02, NUT-07) about our coins; secrets never leave the
database, only their NUT-00 Y does.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from node.core.money import Msat, to_msat
from node.ecash.crossing import ABANDON_AFTER_S
from node.ecash.mint import MintClient, MintError, State
from node.ecash.reconcile import coin_states
from node.ledger.books import (
    account_discrepancies,
    checkpoint_problems,
    open_read_only,
    stranded_in_transit,
    sum_books,
)
from node.ledger.keys import child_discrepancies
from node.ledger.reconciling import own_coins, read_mark
from node.ops.backup import in_use
from node.ops.check_report import MAX_ISSUED, Holding, LongHold, MintAnswer, Report, Stuck

LONG_HOLD_S = 3600
"""A request that has run for longer is shown."""
MAX_SHOWN = 200
"""Operations and holds listed, at most; the sums count all."""


# -- the database --------------------------------------------------------------------------


def examine(database: Path, mints: Sequence[str]) -> Report:
    """One moment of ``database``.

    Args:
        mints: the configured ones, normalised.

    Raises sqlite3.Error when it is no database of a node, or there is none.
    """
    running = in_use(database)
    with closing(open_read_only(database)) as connection:
        connection.execute("BEGIN")
        mark = read_mark(connection)
        books = sum_books(connection)
        holdings = _holdings(connection, mints)
        waiting = {*mints, *(h.mint for h in holdings)}
        return Report(
            database=str(database),
            running=running,
            books=books,
            problems=(
                *books.problems(),
                *account_discrepancies(connection),
                *stranded_in_transit(connection),
                *child_discrepancies(connection),
                *checkpoint_problems(connection),
            ),
            holdings=holdings,
            operations=_operations(connection, mints, running),
            holds=_holds(connection, running),
            unchecked=None if mark is None else tuple(sorted(waiting - mark[1])),
            watched=connection.execute(
                "SELECT COALESCE(SUM(count), 0) FROM watched_counters"
            ).fetchone()[0],
        )


def _holdings(connection: sqlite3.Connection, mints: Sequence[str]) -> tuple[Holding, ...]:
    rows = connection.execute(
        "SELECT mint, unit, COUNT(*) AS coins,"
        " SUM(CASE WHEN state = 'unspent' THEN amount ELSE 0 END) AS unspent,"
        " SUM(CASE WHEN state = 'reserved' THEN amount ELSE 0 END) AS reserved,"
        " SUM(CASE WHEN state = 'unspent' AND suspect THEN amount ELSE 0 END) AS suspect"
        " FROM proofs WHERE state IN ('unspent', 'reserved') GROUP BY mint, unit"
    )
    return tuple(
        Holding(
            mint=row["mint"],
            unit=row["unit"],
            configured=row["mint"] in mints,
            coins=row["coins"],
            unspent_msat=to_msat(row["unspent"], row["unit"]),
            reserved_msat=to_msat(row["reserved"], row["unit"]),
            suspect_msat=to_msat(row["suspect"], row["unit"]),
        )
        for row in rows
    )


def _operations(
    connection: sqlite3.Connection, mints: Sequence[str], running: bool
) -> tuple[Stuck, ...]:
    now = int(time.time())
    rows = connection.execute(
        "SELECT id, kind, mint, unit, amount, created_at, attempts, error FROM operations"
        " WHERE state = 'intent' ORDER BY created_at, id LIMIT ?",
        (MAX_SHOWN,),
    ).fetchall()
    found = []
    for row in rows:
        ys = connection.execute(
            "SELECT y FROM operation_inputs WHERE operation_id = ?", (row["id"],)
        )
        stuck = Stuck(
            id=row["id"],
            kind=row["kind"],
            mint=row["mint"],
            unit=row["unit"],
            amount=row["amount"],
            age_s=max(0, now - row["created_at"]),
            attempts=row["attempts"],
            reason=row["error"] or ("no usable answer from the mint" if row["attempts"] else ""),
            resolution="",
            ys=tuple(y for (y,) in ys),
        )
        outlook = resolution(stuck, stuck.mint in mints, running, None)
        found.append(replace(stuck, resolution=outlook))
    return tuple(found)


def resolution(
    stuck: Stuck, configured: bool, running: bool, inputs: Mapping[str, State] | None
) -> str:
    """What will resolve an open operation, as one sentence."""
    if not configured:
        return (
            "its mint is not configured: add it under [[mints]] again and restart; until then the"
            " money waits here"
        )
    who = "recovery" if running else "start the node: its recovery"
    states = {inputs[y] for y in stuck.ys if y in inputs} if inputs is not None else set()
    if stuck.kind == "mint":
        return f"{who} asks the mint every 10 s for the coins of the paid invoice"
    if stuck.kind == "melt":
        return (
            f"{who} asks the mint every 10 s how the Lightning payment went; it is not paid twice"
        )
    if "PENDING" in states:
        return f"the mint is still working on the inputs; when it has decided, {who} goes on"
    if states == {"SPENT"}:
        text = f"the mint took the inputs: {who} fetches the new coins (NUT-09)"
        if stuck.kind == "send":
            text += (
                f"; if there are none, somebody else spent ours, and after {ABANDON_AFTER_S // 60}"
                " min the loss is booked and the client has the money back"
            )
        return text
    if states == {"UNSPENT"}:
        return (
            f"the mint has not acted: {who} sends it again every 10 s; if the mint refuses for"
            f" {ABANDON_AFTER_S // 60} min it is given up and nobody has lost anything"
        )
    if states:
        return f"some inputs are spent and some are not: {who} asks and then gives it up"
    if stuck.attempts == 0 and running:
        return "it is under way now"
    return f"{who} sends it again every 10 s, until the mint answers"


def _holds(connection: sqlite3.Connection, running: bool) -> tuple[LongHold, ...]:
    now = int(time.time())
    rows = connection.execute(
        "SELECT id, request_id, model, max_cost_msat, created_at FROM holds"
        " WHERE state = 'held' AND created_at <= ? ORDER BY created_at LIMIT ?",
        (now - LONG_HOLD_S if running else now, MAX_SHOWN),
    )
    outlook = (
        "a request that still runs, or a defect: a restart frees it, nothing is charged"
        if running
        else "the next start of the node frees it, nothing is charged"
    )
    return tuple(
        LongHold(
            row["id"],
            row["request_id"],
            row["model"],
            Msat(row["max_cost_msat"]),
            max(0, now - row["created_at"]),
            outlook,
        )
        for row in rows
    )


# -- the mints -----------------------------------------------------------------------------


async def ask_mints(report: Report, database: Path, clients: Mapping[str, MintClient]) -> Report:
    """The report with what the mints say; all mints at the same time, each with deadlines.

    Args:
        clients: of the configured mints, by normalised URL. No other is asked.
    """
    answers = await asyncio.gather(
        *(_ask(database, mint, client, report) for mint, client in clients.items())
    )
    states: dict[str, State] = {}
    for _, inputs in answers:
        states |= inputs
    operations = tuple(
        replace(
            stuck,
            resolution=resolution(stuck, stuck.mint in clients, report.running, states),
        )
        for stuck in report.operations
    )
    return replace(report, operations=operations, mints=tuple(answer for answer, _ in answers))


async def _ask(
    database: Path, mint: str, client: MintClient, report: Report
) -> tuple[MintAnswer, dict[str, State]]:
    """(what the mint says, the states of the inputs of its open operations)."""
    inputs = [y for stuck in report.operations if stuck.mint == mint for y in stuck.ys]
    with closing(open_read_only(database)) as connection:
        connection.execute("BEGIN")
        own = {coin.y: coin.value for coin in own_coins(connection, mint)}
        issued = {
            row["y"]: to_msat(row["amount"], row["unit"])
            for row in connection.execute(
                "SELECT y, amount, unit FROM proofs WHERE mint = ? AND state = 'issued'"
                " ORDER BY created_at DESC LIMIT ?",
                (mint, MAX_ISSUED),
            )
        }
    try:
        keysets = await client.keysets()
        states = await coin_states(client, [*own, *issued, *inputs])
    except MintError as error:
        return MintAnswer(mint, reachable=False, reason=str(error)), {}
    with closing(open_read_only(database)) as connection:  # what a running node used meanwhile
        still = {coin.y for coin in own_coins(connection, mint)}
    lost = [own[y] for y in own if states[y] == "SPENT" and y in still]
    pending = [own[y] for y in own if states[y] == "PENDING" and y in still]
    uncollected = [issued[y] for y in issued if states[y] == "UNSPENT"]
    answer = MintAnswer(
        mint=mint,
        reachable=True,
        keysets=len(keysets),
        active_keysets=sum(keyset.active for keyset in keysets),
        asked=len(own),
        lost=len(lost),
        lost_msat=Msat(sum(lost)),
        pending=len(pending),
        pending_msat=Msat(sum(pending)),
        issued_asked=len(issued),
        uncollected=len(uncollected),
        uncollected_msat=Msat(sum(uncollected)),
    )
    return answer, {y: states[y] for y in inputs}
