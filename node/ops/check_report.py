"""What ``nodestr check`` has found, what it means, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from node.core.money import MSAT_PER_SAT, Msat
from node.ledger.books import Books
from node.ops.check_findings import Finding, find

MAX_ISSUED = 5000
"""Coins given out, of each mint, that are asked about: the newest."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """An operation that is not finished. ``amount`` is in ``unit``."""

    id: str
    kind: str
    mint: str
    unit: str
    amount: int
    age_s: int
    attempts: int
    """How often its outcome stayed unknown."""
    reason: str
    """The last known one; empty when none is stored."""
    resolution: str
    """What will resolve it, for people."""
    ys: tuple[str, ...] = field(default=(), repr=False)
    """NUT-00 Y of its inputs."""


@dataclass(frozen=True, slots=True)
class LongHold:
    """Money set aside for a request that has run for very long."""

    id: int
    request_id: str
    model: str
    amount_msat: Msat
    age_s: int
    resolution: str


@dataclass(frozen=True, slots=True)
class Holding:
    """Our coins of one mint and unit, in msat."""

    mint: str
    unit: str
    configured: bool
    coins: int
    unspent_msat: Msat
    reserved_msat: Msat
    """Inputs of operations under way, and coins parked since a restore."""
    suspect_msat: Msat
    """The part of ``unspent_msat`` that only goes into swaps."""


@dataclass(frozen=True, slots=True)
class MintAnswer:
    """What one mint says of our coins. Sums in msat."""

    mint: str
    reachable: bool
    reason: str = ""
    keysets: int = 0
    active_keysets: int = 0
    asked: int = 0
    """Coins of ours it was asked about."""
    lost: int = 0
    """Of these, spent by somebody else."""
    lost_msat: Msat = Msat(0)
    pending: int = 0
    pending_msat: Msat = Msat(0)
    issued_asked: int = 0
    """Coins given out it was asked about; the newest ``MAX_ISSUED``."""
    uncollected: int = 0
    """Of these, not claimed by their holders yet."""
    uncollected_msat: Msat = Msat(0)


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found."""

    database: str
    running: bool
    """Whether a node has the database open."""
    books: Books
    problems: tuple[str, ...]
    holdings: tuple[Holding, ...]
    operations: tuple[Stuck, ...]
    holds: tuple[LongHold, ...]
    unchecked: tuple[str, ...] | None
    """Mints whose coins are not checked since a restore; None: there was none."""
    watched: int = 0
    """Counters at which mints may have signed coins that no row tells of."""
    mints: tuple[MintAnswer, ...] | None = None
    """What the mints say; None: they were not asked."""

    @property
    def ok(self) -> bool:
        """The books are right and solvent, and no coin of ours is gone."""
        return not any(finding.bad for finding in self.findings())

    def findings(self) -> list[Finding]:
        """What is wrong or unusual, with what it means and what to do."""
        return find(self)


def document(report: Report) -> str:
    """The report as one JSON object; amounts in msat unless a unit stands beside them."""
    data = asdict(report)
    for stuck in data["operations"]:
        del stuck["ys"]
    data["books"] |= {
        "liabilities_msat": report.books.liabilities_msat,
        "equity_msat": report.books.equity_msat,
        "solvent": report.books.solvent,
    }
    data["findings"] = [asdict(finding) for finding in report.findings()]
    data["ok"] = report.ok
    return json.dumps(data, indent=2, ensure_ascii=False)


# -- for people ----------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """Print the report.

    Args:
        console: without markup, as names and URLs may hold anything.
    """
    books = report.books
    console.print(
        f"{report.database}  ({'a node is running' if report.running else 'no node runs'})"
    )
    console.print()
    console.print(_sheet(books))
    console.print(_flow(books))
    if report.holdings:
        console.print(_holdings(report.holdings))
    if report.mints is not None:
        console.print(_mints(report.mints))
    for part in _open(report):
        console.print(part)
    for finding in report.findings():
        style = "bold red" if finding.bad else "yellow"
        console.print(Text(f"{'WRONG' if finding.bad else 'note '}  {finding.what}", style=style))
        for line in (f"it means: {finding.means}", f"to do: {finding.do}"):
            console.print(Padding(Text(line), (0, 0, 0, 7)))
    console.print()
    if report.ok:
        console.print(Text("ok: the books add up, and our coins cover what clients are owed"))
    else:
        console.print(Text("NOT ok: see above", style="bold red"))


def _sheet(books: Books) -> Table:
    table = _table("balance sheet, in sat", "", "")
    table.add_row("our unspent coins", sat(books.proofs_msat))
    table.add_section()
    table.add_row("open balances of clients", sat(books.open_msat))
    table.add_row("  of which held for requests that run", sat(books.held_msat))
    table.add_row("tokens and payments on their way out", sat(books.transit_msat))
    table.add_row("what is the node's own", sat(books.equity_msat))
    if books.claims_msat:
        table.add_row("  of which kept for claims since a restore", sat(books.claims_msat))
    return table


def _flow(books: Books) -> Table:
    table = _table("since the beginning, in sat", "", "")
    table.add_row("received", sat(books.received_msat))
    table.add_row("  of which mints kept as input fees", sat(books.input_fees_msat))
    table.add_row("issued: change, withdrawals, refunds", sat(books.issued_msat))
    table.add_section()
    table.add_row("charged", sat(books.revenue_msat))
    table.add_row("dust, too small to give back", sat(books.dust_msat))
    table.add_row("fees of the node's own swaps and payments", sat(-books.own_fees_msat))
    table.add_row("put in by the operator", sat(books.capital_msat))
    table.add_row("paid out to the operator", sat(-books.payouts_msat))
    table.add_row("lost (spent by others), less found", sat(-books.loss_msat))
    return table


def _holdings(holdings: Sequence[Holding]) -> Table:
    table = _table("coins, in sat", "mint", "unit", "coins", "unspent", "reserved", "swaps only")
    for h in holdings:
        table.add_row(
            h.mint if h.configured else f"{h.mint} (not configured)",
            h.unit,
            str(h.coins),
            sat(h.unspent_msat),
            sat(h.reserved_msat),
            sat(h.suspect_msat),
        )
    return table


def _mints(answers: Sequence[MintAnswer]) -> Table:
    columns = ("answers", "keysets", "asked", "spent", "pending", "given out, not claimed")
    table = _table("what the mints say", "mint", *columns)
    for a in answers:
        if not a.reachable:
            table.add_row(a.mint, "no", "", "", "", "", "")
            continue
        table.add_row(
            a.mint,
            "yes",
            f"{a.active_keysets} of {a.keysets} active",
            str(a.asked),
            _count(a.lost, a.lost_msat),
            _count(a.pending, a.pending_msat),
            _count(a.uncollected, a.uncollected_msat)
            + (f" (newest {MAX_ISSUED})" if a.issued_asked == MAX_ISSUED else ""),
        )
    return table


def _open(report: Report) -> Iterator[RenderableType]:
    """Operations and holds that are not finished, each with what will resolve it."""
    if not report.operations and not report.holds:
        yield Text("nothing is stuck\n")
        return
    for op in report.operations:
        tried = f", {op.attempts} times without an outcome" if op.attempts else ""
        reason = f": {op.reason}" if op.reason else ""
        yield Group(
            Text(f"open   {op.kind} {op.id}  {op.amount} {op.unit} at {op.mint}"),
            Text(f"       for {_age(op.age_s)}{tried}{reason}"),
            Text(f"       {op.resolution}\n"),
        )
    left = report.books.operations_open - len(report.operations)
    if left > 0:
        yield Text(f"open   ... and {left} more operations\n")
    for hold in report.holds:
        yield Group(
            Text(f"held   {sat(hold.amount_msat)} sat for {hold.model}, request {hold.request_id}"),
            Text(f"       for {_age(hold.age_s)}; {hold.resolution}\n"),
        )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=any(columns[:1]))
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    return table


def _count(coins: int, amount: int) -> str:
    return f"{coins} = {sat(amount)} sat" if coins else "0"


def sat(amount_msat: int) -> str:
    """msat as satoshi with three decimals, exactly."""
    whole, rest = divmod(abs(amount_msat), MSAT_PER_SAT)
    return f"{'-' if amount_msat < 0 else ''}{whole:,}.{rest:03}"


def _age(seconds: int) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
