"""Promise: `nodestr export` gives an accountant every movement, charge and payout of a node that
runs, adding up to its books, and neither a key nor a token nor a formula."""

from __future__ import annotations

import csv
import io
import sqlite3
import stat
from pathlib import Path

import httpx
import pytest

from node.ops.accounting import COLUMNS, export
from tests.e2e.commands import run
from tests.e2e.conftest import BODY, World


async def rows(world: World, *args: str | Path) -> list[dict[str, str]]:
    code, out, err = await run("export", *args, "--config", world.node.config_file)
    assert (code, err) == (0, "")
    return list(csv.DictReader(io.StringIO(out)))


async def test_what_moved_adds_up_to_the_books(world: World, tmp_path: Path) -> None:
    token = await world.purse.fund(300)
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.get(
            f"{world.node.url}/v1/balance/create", params={"initial_balance_token": token}
        )
        key = str(answer.json()["api_key"])
        for _ in range(2):
            answer = await http.post(
                f"{world.node.url}/v1/chat/completions",
                headers={"Authorization": f"Bearer {key}", "X-Request-Id": "=cmd()"},
                json=BODY,
            )
            assert answer.status_code == 200
    books = await world.quiet_books()

    charges = await rows(world, "charges", "--csv")
    assert len(charges) == 2
    assert sum(int(row["charged_msat"]) for row in charges) == books.revenue_msat
    assert {row["model"] for row in charges} == {"demo"}
    assert all(int(row["prompt_tokens"]) > 0 for row in charges)

    moved = await rows(world, "transactions")
    by_book = {
        name: sum(int(row["amount_msat"]) for row in moved if row["to"] == name)
        - sum(int(row["amount_msat"]) for row in moved if row["from"] == name)
        for name in ("in", "account", "revenue")
    }
    assert by_book == {
        "in": -books.received_msat, "account": books.open_msat, "revenue": books.revenue_msat,
    }  # fmt: skip
    assert await rows(world, "payouts") == []
    assert await rows(world, "transactions", "--until", "2001-01-01") == []
    assert len(await rows(world, "charges", "--since", "2001-01-01")) == 2

    file = tmp_path / "charges.csv"
    command = ("export", "charges", "--config", world.node.config_file, "--out", file)
    code, out, _ = await run(*command)
    assert (code, stat.S_IMODE(file.stat().st_mode)) == (0, 0o600)
    assert out == f"wrote    {file}: 2 charges\n"
    text = file.read_text()
    assert key not in text
    assert token not in text
    assert not any(
        cell.startswith(("=", "+", "-", "@"))
        for row in csv.reader(io.StringIO(text))
        for cell in row
    )
    assert (await run(*command))[0] == 1
    assert file.read_text() == text


async def test_wrong_use_is_told(world: World) -> None:
    code, out, err = await run("export", "everything", "--config", world.node.config_file)
    assert (code, out) == (2, "")
    assert "transactions, charges, payouts" in err


async def test_payouts_tell_where_the_money_went(world: World) -> None:
    await world.node.stop()
    path = world.node.database
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(
            "INSERT INTO operations (id, kind, state, account_id, mint, unit, amount, fee, inputs,"
            " outputs, created_at, unknown_at)"
            " VALUES ('op1', 'melt', 'done', 0, 'https://m', 'sat', 21, 0, '[]', '[]', 86400, 0)"
        )
        connection.execute(
            "INSERT INTO payouts (operation_id, payment_hash, destination)"
            " VALUES ('op1', 'aa', '@me')"
        )
    connection.close()
    out = io.StringIO()
    assert export(path, "payouts", 0, 1 << 62, out) == 1
    (row,) = csv.DictReader(io.StringIO(out.getvalue()))
    assert row["time"] == "1970-01-02T00:00:00Z"
    assert (row["amount_msat"], row["purpose"], row["state"]) == ("21000", "payout", "done")
    assert row["destination"] == "'@me"
    assert list(row) == list(COLUMNS["payouts"])
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM payouts")
        connection.execute("DELETE FROM operations")
    connection.close()


@pytest.mark.parametrize("kind", ["transactions", "charges", "payouts"])
def test_no_database_is_an_error_and_no_file_is_made(tmp_path: Path, kind: str) -> None:
    with pytest.raises(sqlite3.OperationalError):
        export(tmp_path / "none.db", kind, 0, 1, io.StringIO())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
