"""Promise: what the operator is shown of the money is what the ledger has, page by page, fast."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from node.errors import InvalidValue, NodeError, NotFound
from node.ledger import reports
from node.ledger.books import account_discrepancies, sum_books
from node.ledger.reports import Reader, TooSlow
from tests.unit.admin.office import MINT, Office, open_office
from tests.unit.admin.seeds import seed

NOW = int(time.time())


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with open_office(tmp_path) as opened:
        await opened.database.write(lambda conn: seed(conn, now=NOW))
        yield opened


async def test_the_seed_is_a_ledger(office: Office) -> None:
    """Else the other tests would prove nothing."""
    assert (await office.database.read(sum_books)).problems() == []
    assert await office.database.read(account_discrepancies) == []


async def test_the_overview(office: Office) -> None:
    overview = await office.get("/overview")
    assert overview["name"] == "Test node"
    assert overview["npub"].startswith("npub1")
    assert overview["ready"] is True
    assert overview["earned_msat"] == 140_000 - 52_000
    assert (overview["liabilities_msat"], overview["coins_msat"]) == (405_000, 493_000)
    assert overview["net_msat"] == 88_000
    assert (overview["active_requests"], overview["providers"], overview["models"]) == (3, 7, 1)
    assert overview["draining"] is False
    today = [at for at in (NOW, NOW - 7200) if at // 86_400 == NOW // 86_400]
    assert overview["requests_today"] in (len(today), 0)  # 0: midnight has passed meanwhile


async def test_balances_are_the_balance_sheet(office: Office) -> None:
    balances = await office.get("/balances")
    assert balances["problems"] == []
    assert balances["mints"] == [
        {
            "url": MINT,
            "unit": "sat",
            "coins_msat": 400_000,
            "in_transit_msat": 93_000,
            "keysets": 1,
            "circuit": None,
            "paused": False,
            "accepted": True,
        }
    ]
    books = balances["books"]
    assert books["received_msat"] - books["input_fees_msat"] == (
        books["charged_msat"]
        + books["dust_msat"]
        + books["issued_msat"]
        + books["in_transit_msat"]
        + books["open_balances_msat"]
        + books["capital_msat"]
    )
    assert books["earned_msat"] == (
        books["charged_msat"]
        + books["dust_msat"]
        + books["capital_msat"]
        - books["own_fees_msat"]
        - books["lost_msat"]
        - books["paid_out_msat"]
        - books["kept_msat"]
    )
    assert books["paid_out_msat"] == 50_000


async def test_a_mint_that_is_not_configured_any_more_is_shown(office: Office) -> None:
    await office.database.write(
        lambda conn: conn.execute("UPDATE proofs SET mint = 'https://gone.example.com'")
    )
    mints = {mint["url"]: mint for mint in (await office.get("/balances"))["mints"]}
    assert mints["https://gone.example.com"]["circuit"] == "not configured"
    assert mints["https://gone.example.com"]["accepted"] is False
    assert mints[MINT]["coins_msat"] == 0


async def test_trouble_of_the_watchdog_is_told(tmp_path: Path) -> None:
    async with open_office(tmp_path, solvency=lambda: "insolvent") as office:
        assert (await office.get("/balances"))["problems"] == ["insolvent"]


@pytest.mark.parametrize("order", ["created", "balance"])
async def test_accounts_page_by_page(office: Office, order: str) -> None:
    seen = []
    cursor = ""
    while True:
        page = await office.get("/accounts", limit=1, cursor=cursor, order=order)
        seen += page["accounts"]
        cursor = page["next_cursor"] or ""
        if not cursor:
            break
    assert [account["id"] for account in seen] == ([101, 100] if order == "created" else [100, 101])
    first = next(account for account in seen if account["id"] == 100)
    assert first == {
        "id": 100,
        "kind": "key",
        "state": "open",
        "balance_msat": 405_000,
        "held_msat": 0,
        "mint": MINT,
        "unit": "sat",
        "created_at": NOW - 400,
        "expires_at": NOW + 9,
        "last_used_at": first["last_used_at"],
        "admin_key": True,
        "child_keys": 1,
    }
    assert abs(first["last_used_at"] - NOW) < 3600


async def test_a_statement_carries_the_balance_from_page_to_page(office: Office) -> None:
    lines = []
    cursor = ""
    while True:
        page = await office.get("/accounts/100/transactions", limit=1, cursor=cursor)
        lines += page["transactions"]
        cursor = page["next_cursor"] or ""
        if not cursor:
            break
    assert [(line["kind"], line["state"], line["balance_msat"]) for line in lines] == [
        ("topup", "pending", None),
        ("topup", "done", 405_000),
        ("charge", "done", 400_000),
        ("deposit", "done", 500_000),
    ]
    assert lines[2]["model"] == "m"
    assert lines[2]["amount_msat"] == -100_000


@pytest.mark.parametrize("id_", ["0", "7", "999999"])
async def test_no_statement_of_what_is_no_account(office: Office, id_: str) -> None:
    with pytest.raises(NotFound):
        await office.get(f"/accounts/{id_}/transactions")


async def test_all_transfers(office: Office) -> None:
    rows = []
    cursor = ""
    while True:
        page = await office.get("/transactions", limit=3, cursor=cursor)
        rows += page["transactions"]
        cursor = page["next_cursor"] or ""
        if not cursor:
            break
    assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), reverse=True)
    assert rows[0]["reference"] == "credit"
    assert (rows[0]["from"], rows[0]["to"]) == ("in", "account 100")
    charges = [row for row in rows if row["to"] == "revenue"]
    assert [(row["model"], row["reference"]) for row in charges] == [
        ("n", "hold:2"),
        ("m", "hold:1"),
    ]


async def test_earnings_by_hour_day_and_model(office: Office) -> None:
    for bucket, bucket_s in (("hour", 3600), ("day", 86_400)):
        answer = await office.get("/earnings", bucket=bucket, from_=NOW - 2 * 86_400, to=NOW + 3600)
        points = answer["points"]
        assert answer["bucket_s"] == bucket_s
        assert all(point["at"] % bucket_s == 0 for point in points)
        assert [b["at"] - a["at"] for a, b in pairwise(points)] == [bucket_s] * (len(points) - 1)
        found = {point["at"]: point["charged_msat"] for point in points if point["requests"]}
        wanted: dict[int, int] = {}
        for at, cost in ((NOW, 100_000), (NOW - 7200, 40_000)):
            wanted[at - at % bucket_s] = wanted.get(at - at % bucket_s, 0) + cost
        assert found == wanted
        assert answer["by_model"] == [
            {
                "model": model,
                "charged_msat": cost,
                "requests": 1,
                "prompt_tokens": 7,
                "completion_tokens": 5,
            }
            for model, cost in (("m", 100_000), ("n", 40_000))
        ]


async def test_earnings_without_a_range(office: Office) -> None:
    assert len((await office.get("/earnings"))["points"]) in (48, 49)
    assert len((await office.get("/earnings", bucket="day"))["points"]) in (30, 31)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/earnings", {"bucket": "minute"}),
        ("/earnings", {"from_": 5, "to": 5}),
        ("/earnings", {"from_": 0}),
        ("/earnings", {"from_": "yesterday"}),
        ("/earnings", {"to": "-1"}),
        ("/accounts", {"order": "name"}),
        ("/accounts", {"cursor": "1.2"}),
        ("/accounts", {"cursor": "1.2", "order": "created"}),
        ("/accounts", {"cursor": "1", "order": "balance"}),
        ("/accounts", {"cursor": "99999999999999999999"}),
        ("/accounts", {"cursor": "x"}),
        ("/transactions", {"cursor": "1.2.3.4"}),
        ("/accounts/100/transactions", {"cursor": "1"}),
        ("/accounts/x/transactions", {}),
        ("/transactions", {"limit": "many"}),
    ],
)
async def test_nonsense_is_refused(office: Office, path: str, query: dict[str, object]) -> None:
    with pytest.raises(InvalidValue):
        await office.get(path, **query)


async def test_a_page_is_bounded(office: Office) -> None:
    page = await office.get("/transactions", limit="999999999")
    assert page["next_cursor"] is None
    assert (await office.get("/transactions", limit="0"))["next_cursor"] is not None


async def test_a_report_that_takes_too_long_is_given_up(office: Office) -> None:
    path = office.parts.settings().node.database
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
    )
    with pytest.raises(TooSlow):
        await Reader(path, timeout_s=0.1).read(lambda conn: conn.execute(endless).fetchone())


async def test_a_report_cannot_change_anything(office: Office) -> None:
    reader = office.parts.reader
    with pytest.raises(Exception, match="readonly"):
        await reader.read(lambda conn: conn.execute("DELETE FROM holds"))


async def test_a_database_that_cannot_be_read_is_an_error_for_the_operator(office: Office) -> None:
    await office.database.write(lambda conn: conn.execute("DROP TABLE earnings"))
    with pytest.raises(NodeError, match="cannot be read"):
        await office.get("/earnings")


async def test_earnings_of_a_million_charges_are_read_from_few_rows(office: Office) -> None:
    """However many charges there were: a plot reads hours, in a range of the primary key."""
    plans = await office.database.read(
        lambda conn: [
            row["detail"]
            for row in conn.execute(
                "EXPLAIN QUERY PLAN SELECT hour, SUM(charged_msat) FROM earnings"
                " WHERE hour >= 0 AND hour < 9 GROUP BY 1"
            )
        ]
    )
    assert any("PRIMARY KEY (hour>? AND hour<?)" in plan for plan in plans)


async def test_what_was_settled_before_the_migration_is_counted(office: Office) -> None:
    """The migration's own statement, over holds that the trigger never saw."""
    script = Path(reports.__file__).with_name("migrations") / "0032_earnings.sql"
    statement = script.read_text().split("INSERT INTO earnings")[1].split(";")[0]

    def again(conn: sqlite3.Connection) -> list[tuple[int, ...]]:
        before = [tuple(row) for row in conn.execute("SELECT * FROM earnings")]
        conn.execute("DELETE FROM earnings")
        conn.execute("INSERT INTO earnings" + statement)
        assert before == [tuple(row) for row in conn.execute("SELECT * FROM earnings")]
        return before

    assert len(await office.database.write(again)) == 2
