"""Promise: beside a running node the operator can prove the money, back it up, and put it back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from node.ecash.token import parse_token
from tests.e2e.commands import run
from tests.e2e.conftest import BODY, World


async def nodestr(world: World, *args: str | Path) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command with the node's configuration."""
    config = world.node.config_file
    return await run(*args, "--config", config, cwd=world.node.directory)


async def check(world: World, *args: str) -> tuple[int, dict[str, Any]]:
    code, out, err = await nodestr(world, "check", "--json", *args)
    assert err == ""
    return code, json.loads(out)


async def create(world: World, amount: int) -> str:
    """An account of ``amount`` sat; its key."""
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.get(
            f"{world.node.url}/v1/balance/create",
            params={"initial_balance_token": await world.purse.fund(amount)},
        )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["api_key"])


async def refund(world: World, key: str) -> str:
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(
            f"{world.node.url}/v1/balance/refund", headers={"Authorization": f"Bearer {key}"}
        )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


async def test_the_balance_sheet_of_a_running_node_and_what_the_mint_says(world: World) -> None:
    key = await create(world, 300)
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(
            f"{world.node.url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {key}"},
            json=BODY,
        )
        paid = await http.post(
            f"{world.node.url}/v1/chat/completions",
            headers={"X-Cashu": await world.purse.fund(40)},
            json=BODY,
        )
    assert (answer.status_code, paid.status_code) == (200, 200)
    change = paid.headers["x-cashu"]
    await world.quiet_books()
    code, report = await check(world, "--online")
    assert code == 0
    assert (report["ok"], report["running"], report["problems"]) == (True, True, [])
    (mint,) = report["mints"]
    assert (mint["mint"], mint["reachable"], mint["lost"]) == (world.mint.url, True, 0)
    assert mint["uncollected_msat"] == parse_token(change).amount * 1000
    assert mint["active_keysets"] >= 1
    await world.purse.receive(change)
    _, report = await check(world, "--online")
    assert report["mints"][0]["uncollected"] == 0

    code, out, _ = await nodestr(world, "check", "--online")
    assert code == 0
    assert "balance sheet" in out
    assert "ok: the books add up" in out
    connection_secrets = [proof.secret for proof in parse_token(change).proofs]
    assert not any(secret in out for secret in connection_secrets)


async def test_backup_spend_restore(world: World, tmp_path: Path) -> None:
    key = await create(world, 100)
    backup = tmp_path / "backup.db"
    code, out, _ = await nodestr(world, "backup", "--out", backup)
    assert code == 0
    assert "coins worth 100.000 sat" in out
    code, _, err = await nodestr(world, "backup", "--out", backup)
    assert (code, err.count("\n")) == (1, 1)

    assert await world.purse.receive(await refund(world, key)) == 100
    late = await world.purse.fund(150)
    async with httpx.AsyncClient(timeout=30) as http:
        url = f"{world.node.url}/v1/balance/create"
        answer = await http.get(url, params={"initial_balance_token": late})
        assert answer.status_code == 200

    code, _, err = await nodestr(world, "restore", "--from", backup, "--force")
    assert code == 1
    assert "stop the node" in err
    await world.node.stop()
    code, _, err = await nodestr(world, "restore", "--from", backup)
    assert code == 1
    assert "--force" in err
    code, out, _ = await nodestr(world, "restore", "--from", backup, "--force")
    assert code == 0
    assert "it asks the mints which coins are still" in out

    code, report = await check(world)
    assert (code, report["unchecked"]) == (0, [world.mint.url])
    await world.node.start()
    code, report = await check(world, "--online")
    assert (code, report["unchecked"]) == (0, None)
    assert report["mints"][0]["lost"] == 0
    books = report["books"]
    assert (books["open_msat"], books["proofs_msat"]) == (100_000, 150_000)
    assert books["loss_msat"] == -50_000

    async with httpx.AsyncClient(timeout=30) as http:  # nothing is credited twice
        url = f"{world.node.url}/v1/balance/create"
        answer = await http.get(url, params={"initial_balance_token": late})
        assert answer.json()["error"]["code"] == "token_already_spent"
    assert await world.purse.receive(await refund(world, key)) == 100
    await world.assert_coins_are_real()


async def test_an_insolvent_node_is_not_ready_and_says_so(world: World, tmp_path: Path) -> None:
    key = await create(world, 64)
    backup = tmp_path / "backup.db"
    code, out, _ = await nodestr(world, "backup", "--out", backup, "--json")
    made = json.loads(out)
    assert (code, made["file"], made["bytes"]) == (0, str(backup), backup.stat().st_size)
    assert (made["coins_msat"], made["open_msat"], made["problems"]) == (64_000, 64_000, [])
    assert await world.purse.receive(await refund(world, key)) == 64
    await world.node.stop()
    code, out, _ = await nodestr(world, "restore", "--from", backup, "--force", "--json")
    done = json.loads(out)
    assert (code, done["file"], done["same_wallet"]) == (0, str(world.node.database), True)
    assert Path(done["kept"]).is_file()
    assert done["open_msat"] == 64_000
    starting = asyncio.create_task(world.node.start())
    try:
        async with asyncio.timeout(30), httpx.AsyncClient() as http:
            while True:
                try:
                    answer = await http.get(f"{world.node.url}/health/ready")
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(0.1)
        assert answer.status_code == 503
        assert answer.json()["checks"]["solvency"] == "insolvent"
        code, report = await check(world, "--online")
        assert (code, report["ok"]) == (1, False)
        assert report["books"]["equity_msat"] == -64_000
        assert "64000 msat short" in report["findings"][0]["what"]
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


async def test_no_database_is_one_clear_line(world: World, tmp_path: Path) -> None:
    config = world.node.config_file.read_text().replace(
        str(world.node.database.parent), str(tmp_path / "nowhere")
    )
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text(config)
    for command in (["check"], ["backup", "--out", str(tmp_path / "x.db")]):
        code, _, err = await run(*command, "--config", elsewhere)
        assert code == 1
        assert "does not exist" in err
        assert err.count("\n") == 1
