"""Promise: the check tells right books from wrong ones, shows whatever is stuck with what will
resolve it, changes nothing, and never shows a secret."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from node.ledger.books import Book, transfer
from node.ledger.database import Database
from node.ledger.reconciling import mark_restored
from node.ops.check import examine
from node.ops.check_report import Report, document, sat, show
from tests.unit.ops.money import MINT, add_coin, change, make_ledger


@pytest.fixture
async def ledger(tmp_path: Path) -> Path:
    return await make_ledger(tmp_path / "node.db")


def shown(report: Report) -> str:
    console = Console(
        file=io.StringIO(), width=110, markup=False, highlight=False, emoji=False, no_color=True
    )
    show(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def add_operation(path: Path, kind: str, *, mint: str = MINT, attempts: int = 0) -> None:
    change(
        path,
        "INSERT INTO operations (id, kind, state, account_id, mint, unit, amount, fee, inputs,"
        " outputs, attempts, created_at, unknown_at)"
        f" VALUES ('op-{kind}', '{kind}', 'intent', 100, '{mint}', 'sat', 8, 0, '[]', '[]',"
        f" {attempts}, unixepoch() - 7200, 0)",
    )


async def test_right_books_are_ok_and_untouched(ledger: Path) -> None:
    before = ledger.read_bytes()
    report = examine(ledger, [MINT])
    assert report.ok
    assert report.findings() == []
    assert not report.running
    assert ledger.read_bytes() == before
    text = shown(report)
    for line in ("64.000", "50.000", "14.000", "nothing is stuck", "ok: the books add up"):
        assert line in text
    assert "very-secret" not in text + document(report)
    assert "abandon" not in text + document(report)


async def test_beside_a_running_node(ledger: Path) -> None:
    database = await Database.open(ledger)
    await database.write(lambda conn: transfer(conn, 100, Book.REVENUE, 1_000, "hold:3"))
    report = examine(ledger, [MINT])
    assert (report.running, report.ok, report.books.revenue_msat) == (True, True, 15_000)
    await database.close()


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("UPDATE proofs SET amount = 63", "proofs are worth 63000 msat"),
        ("UPDATE accounts SET balance_msat = 1 WHERE id = 100", "account 100: balance 1 msat"),
        ("UPDATE accounts SET held_msat = 1 WHERE id = 100", "held 1 msat, holds say 0"),
        ("UPDATE transfers SET amount_msat = 1 WHERE id = 2", "account 100"),
        ("INSERT INTO book_sums VALUES (3, 7)", "stored sum of book 3"),
    ],
)
async def test_wrong_books_are_told_with_what_to_do(
    ledger: Path, statement: str, word: str
) -> None:
    change(ledger, statement)
    report = examine(ledger, [MINT])
    assert not report.ok
    finding = next(finding for finding in report.findings() if word in finding.what)
    assert finding.bad
    assert finding.means
    assert finding.do
    assert "NOT ok" in shown(report)


async def test_right_books_of_an_insolvent_node_are_not_ok(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        transfer(connection, Book.REVENUE, Book.LOSS, 24_000, "restore:x")
    change(ledger, "UPDATE proofs SET amount = 40")
    report = examine(ledger, [MINT])
    assert report.problems == ()
    assert not report.ok
    assert "10000 msat short" in report.findings()[0].what
    assert "WRONG  insolvent" in shown(report)


@pytest.mark.parametrize(
    ("kind", "attempts", "mint", "words"),
    [
        ("receive", 3, MINT, ["start the node", "sends it again"]),
        ("send", 0, MINT, ["start the node"]),
        ("melt", 1, MINT, ["not paid twice"]),
        ("mint", 1, MINT, ["paid invoice"]),
        ("send", 3, "https://gone.example.com", ["not configured", "[[mints]]"]),
    ],
)
async def test_every_open_operation_says_what_will_resolve_it(
    ledger: Path, kind: str, attempts: int, mint: str, words: list[str]
) -> None:
    add_operation(ledger, kind, mint=mint, attempts=attempts)
    report = examine(ledger, [MINT])
    (stuck,) = report.operations
    assert (stuck.kind, stuck.amount, stuck.attempts) == (kind, 8, attempts)
    assert stuck.age_s >= 7200
    for word in words:
        assert word in stuck.resolution
    assert report.ok  # waiting is not being wrong
    text = shown(report)
    assert f"open   {kind} op-{kind}" in text
    assert "for 2 h" in text


async def test_holds_older_than_a_request_can_be(ledger: Path) -> None:
    columns = "(account_id, request_digest, request_id, model, price, max_cost_msat, state,"
    columns += " created_at)"
    change(
        ledger,
        f"INSERT INTO holds {columns} VALUES (100, '', 'new', 'm', '', 3000, 'held', unixepoch())",
        f"INSERT INTO holds {columns} VALUES (100, '', 'old', 'm', '', 2000, 'held',"
        " unixepoch() - 9000)",
        "UPDATE accounts SET held_msat = 5000 WHERE id = 100",
    )
    stopped = examine(ledger, [MINT])
    assert stopped.ok
    assert {hold.request_id for hold in stopped.holds} == {"new", "old"}
    assert "next start" in stopped.holds[0].resolution
    database = await Database.open(ledger)
    (hold,) = examine(ledger, [MINT]).holds
    assert (hold.request_id, hold.amount_msat) == ("old", 2000)
    await database.close()


async def test_coins_out_of_use_are_pointed_out(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        mark_restored(connection)
        add_coin(connection, "cc", 1, mint="https://gone.example.com")
        transfer(connection, Book.IN, Book.REVENUE, 1_000, "op:x")
    report = examine(ledger, [MINT])
    assert report.ok
    assert report.unchecked == ("https://gone.example.com", MINT)
    text = shown(report)
    assert "restored from a backup" in text
    assert "coins of mints that are not configured: https://gone.example.com" in text
    holding = {holding.mint: holding for holding in report.holdings}
    assert holding[MINT].suspect_msat == 64_000


async def test_the_document_is_for_programs(ledger: Path) -> None:
    add_operation(ledger, "receive")
    data = json.loads(document(examine(ledger, [MINT])))
    assert data["ok"] is True
    assert data["books"]["equity_msat"] == 14_000
    assert data["books"]["solvent"] is True
    assert data["holdings"][0]["mint"] == MINT
    assert "ys" not in data["operations"][0]
    assert data["mints"] is None


async def test_no_database_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.Error):
        examine(tmp_path / "node.db", [MINT])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("msat", "text"),
    [(0, "0.000"), (1, "0.001"), (-1, "-0.001"), (1_234_567_890, "1,234,567.890")],
)
def test_amounts_are_exact(msat: int, text: str) -> None:
    assert sat(msat) == text
