"""Promise: with commands alone the operator puts in capital and credits clients after a restore."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

from tests.e2e.commands import run
from tests.e2e.conftest import World
from tests.e2e.test_check import check, create, nodestr, refund
from tests.e2e.test_payments import call


async def piped(world: World, text: str, *args: str) -> tuple[int, str, str]:
    """As ``nodestr``, with ``text`` on standard input."""
    config = world.node.config_file
    return await run(*args, "--config", config, stdin=text, cwd=world.node.directory)


async def invoice(world: World, key: str, amount: int) -> dict[str, str]:
    """An invoice asked for under an idempotency key, once its account is credited."""
    before = world.books().open_msat
    made = await call(
        world,
        "POST",
        "/lightning/invoice",
        json={"amount_sats": amount},
        headers={"idempotency-key": key},
    )
    assert made.status_code == 200, made.text
    async with asyncio.timeout(20):
        while world.books().open_msat == before:
            await asyncio.sleep(0.05)
    document: dict[str, str] = made.json()
    return document


async def test_clients_that_paid_after_the_backup_get_their_money(
    world: World, tmp_path: Path
) -> None:
    first = await create(world, 100)
    backup = tmp_path / "backup.db"
    assert (await nodestr(world, "backup", "--out", backup))[0] == 0
    by_token = await create(world, 150)
    name = str(uuid.uuid4())
    by_invoice = await invoice(world, name, 70)
    again = await call(
        world,
        "POST",
        "/v1/balance/lightning/invoice",
        json={"amount_sats": 70},
        headers={"idempotency-key": name},
    )
    assert again.json() == by_invoice
    code, _, err = await piped(world, by_token, "credit", "--amount", "150")
    assert (code, err.count("\n")) == (1, 1)
    assert "stop it first" in err
    await world.node.stop()
    assert (await nodestr(world, "restore", "--from", backup, "--force"))[0] == 0
    code, _, err = await piped(world, by_token, "credit", "--amount", "150")
    assert code == 1
    assert "let the node run first" in err
    await world.node.start()
    await world.node.stop()
    code, report = await check(world)
    assert (code, report["books"]["claims_msat"]) == (0, 220_000)
    assert "kept for claims" in report["findings"][0]["what"]

    code, out, _ = await piped(world, by_token + "\n", "credit", "--amount", "150")
    assert code == 0
    assert out.startswith("credited 150.000 sat to account")
    told = tmp_path / "invoice-id"
    told.write_text(by_invoice["invoice_id"])
    for word in ("credited 70.000", "credited before; nothing was changed 70.000"):
        code, out, _ = await nodestr(world, "credit", "--amount", "70", told)
        assert code == 0
        assert out.startswith(word)
    code, out, _ = await nodestr(world, "credit", "--amount", "70", told, "--json")
    credited = json.loads(out)
    assert (code, credited["amount_msat"], credited["again"]) == (0, 70_000, True)
    code, _, err = await piped(world, "two words", "credit", "--amount", "70")
    assert (code, "one word" in err) == (1, True)
    code, report = await check(world)
    assert (code, report["books"]["claims_msat"], report["books"]["loss_msat"]) == (0, 0, 0)

    await world.node.start()
    path = f"/lightning/invoice/{by_invoice['invoice_id']}/status"
    status = (await call(world, "GET", path)).json()
    assert (status["status"], status["amount_sats"]) == ("paid", 70)
    for key, amount in ((first, 100), (by_token, 150), (status["api_key"], 70)):
        assert await world.purse.receive(await refund(world, key)) == amount
    await world.assert_coins_are_real()


async def test_capital_is_put_in_and_released_coins_are_the_nodes(
    world: World, tmp_path: Path
) -> None:
    await create(world, 30)
    backup = tmp_path / "backup.db"
    assert (await nodestr(world, "backup", "--out", backup))[0] == 0
    await create(world, 50)
    token = await world.purse.fund(200)
    code, _, err = await piped(world, token, "fund")
    assert (code, "stop it first" in err) == (1, True)
    await world.node.stop()
    assert (await nodestr(world, "restore", "--from", backup, "--force"))[0] == 0
    code, _, err = await piped(world, token, "fund")
    assert (code, "let the node run once" in err) == (1, True)
    await world.node.start()
    await world.node.stop()
    for _ in range(2):  # the same token again changes nothing
        code, out, err = await piped(world, token, "fund")
        assert (code, out.splitlines()[0]) == (0, "put in   200.000 sat; the mint kept 0.000 sat")
    code, out, err = await piped(world, token, "fund", "--json")
    put_in = json.loads(out)
    assert (code, put_in["credited_msat"], put_in["solvent"]) == (0, 200_000, True)
    code, out, _ = await nodestr(world, "release", "--amount", "15")
    assert (code, out) == (0, "released 15.000 sat\n")
    code, out, _ = await nodestr(world, "release", "--amount", "5", "--json")
    assert (code, json.loads(out)) == (0, {"released_msat": 5000})
    code, _, err = await nodestr(world, "release", "--amount", "31")
    assert (code, err.count("\n")) == (1, 1)
    code, report = await check(world, "--online")
    books = report["books"]
    assert (code, books["capital_msat"], books["claims_msat"]) == (0, 200_000, 30_000)
    assert (books["proofs_msat"], books["equity_msat"]) == (280_000, 250_000)
    code, _, err = await piped(world, "cashuBnonsense", "fund")
    assert (code, err.count("\n")) == (1, 1)
    await world.node.start()
    assert (await world.quiet_books()).problems() == []
