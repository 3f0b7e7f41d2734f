"""Promise: ``nodestr wallet`` keeps a person's money and says where it is, and ``nodestr ask``
prints the answer, what it cost and what came back."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from node.core.money import Msat
from node.demo.mint import EmbeddedMint
from node.demo.process import Child
from node.demo.purse import Purse
from node.gateway.desk import note_file
from node.gateway.purse import open_purse
from tests.e2e.gateway_world import Gateway, GatewayWorld, open_gateway_world

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    mint: EmbeddedMint, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[GatewayWorld]:
    async with AsyncExitStack() as stack:
        opened = await open_gateway_world(stack, mint, tmp_path_factory.mktemp("gateway"))
        await opened.fund(200)
        yield opened
        await opened.assert_conserved()


@pytest.fixture
def empty(tmp_path: Path) -> Gateway:
    """A wallet without money, and no network."""
    return Gateway(tmp_path, ("ws://127.0.0.1:1",))


@pytest.mark.parametrize("carriage", ["http", "nostr"])
async def test_an_answer_is_printed_with_its_cost(world: GatewayWorld, carriage: str) -> None:
    code, out, err = await world.gateway.run(
        "ask", "what do you sell", "--carriage", carriage, "--max-tokens", "20"
    )
    assert code == 0, err
    assert out.startswith("You asked: what do you sell")
    assert "demo from " in err
    assert f"over {carriage}" in err
    assert "cost " in err
    assert "change " in err


async def test_the_answer_as_json_and_a_chosen_provider(world: GatewayWorld) -> None:
    code, out, err = await world.gateway.run(
        "ask", "-", "--provider", world.b.keys.npub, "--model", "demo", "--max-tokens", "10",
        "--json", text="read me",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert document["choices"][0]["message"]["content"].startswith("You asked: read me")
    bought = document["bought"]
    assert bought["npub"] == world.b.keys.npub
    assert bought["cost_msat"] == bought["paid_msat"] - bought["change_msat"]
    assert bought["expected_msat"] <= bought["cost_msat"] < bought["expected_msat"] + 1000


async def test_what_is_too_dear_is_not_bought(world: GatewayWorld) -> None:
    code, out, err = await world.gateway.run(
        "ask", "hello", "--model", "demo", "--max-price", "1", "--max-tokens", "60"
    )
    assert (code, out) == (1, "")
    assert "more than is allowed for one (1 sat)" in err


async def test_history_tells_what_was_bought(world: GatewayWorld) -> None:
    await world.gateway.run("ask", "one more", "--max-tokens", "5")
    document = await world.gateway.json("wallet", "history", "--limit", "1")
    (latest,) = document["spendings"]
    assert (latest["model"], latest["state"]) == ("demo", "settled")
    assert 0 < latest["amount_msat"] - latest["back_msat"] <= 3_000
    code, out, _ = await world.gateway.run("wallet", "history")
    assert code == 0
    assert "settled" in out


async def test_a_token_that_is_sent_can_be_received_and_asked_for_again(
    world: GatewayWorld,
) -> None:
    before = (await world.gateway.json("wallet", "balance"))["balance_msat"]
    first = await world.gateway.json("wallet", "send", "7", "--id", "gift")
    again = await world.gateway.json("wallet", "send", "7", "--id", "gift")
    assert first["token"] == again["token"]
    assert first["balance_msat"] == before - 7_000
    async with Purse(world.mint.url) as purse:
        assert await purse.receive(first["token"]) == 7
        back = await purse.send(7)
    received = await world.gateway.json("wallet", "receive", back)
    assert (received["received_msat"], received["balance_msat"]) == (7_000, before)


async def test_a_token_that_was_taken_out_and_not_shown_is_shown_by_recover(
    empty: Gateway, mint: EmbeddedMint
) -> None:
    async with Purse(mint.url) as purse:
        token = await purse.fund(30)
    await empty.json("wallet", "receive", token, "--yes")
    async with aiohttp.ClientSession() as session, open_purse(empty.wallet, session) as opened:
        taken = await opened.send(Msat(7_000))  # and the process is killed
    document = await empty.json("wallet", "recover")
    (shown,) = document["tokens"]
    assert (shown["token"], shown["amount_msat"]) == (taken.token, 7_000)
    assert document["balance_msat"] == 23_000
    assert (await empty.json("wallet", "recover"))["tokens"] == []
    await empty.json("wallet", "send", "5")
    assert (await empty.json("wallet", "recover"))["tokens"] == []


async def test_no_wallet_is_told_to_a_stranger_at_the_address_of_a_gateway_that_was_killed(
    empty: Gateway,
) -> None:
    note = note_file(empty.wallet)
    note.parent.mkdir(parents=True)
    note.write_text('{"url": "http://127.0.0.1:1", "secret": "s", "key": "k"}')
    await empty.json("wallet", "balance")
    assert not note.exists()


async def test_a_mint_has_to_be_agreed_to(empty: Gateway, mint: EmbeddedMint) -> None:
    async with Purse(mint.url) as purse:
        token = await purse.fund(5)
    code, _, err = await empty.run("wallet", "receive", token)
    assert code == 1
    assert f"the token is of {mint.url}, which this wallet does not use: add --yes" in err
    code, out, err = await empty.run("wallet", "receive", "-", "--mint", mint.url, text=token)
    assert code == 0, err
    assert out == "received 5 sat\nbalance  5 sat\n"
    code, out, _ = await empty.run("wallet", "balance")
    assert out == f"balance  5 sat\n         5 sat of {mint.url}\n"
    assert empty.wallet.stat().st_mode & 0o777 == 0o600


async def test_lightning_fills_the_wallet(empty: Gateway, mint: EmbeddedMint) -> None:
    code, _, err = await empty.run("wallet", "topup", "21")
    assert code == 1
    assert "uses no mint yet" in err
    code, out, err = await empty.run("wallet", "topup", "21", "--mint", mint.url)
    assert code == 0, err
    assert out.startswith("lnbc")
    assert out.endswith("paid\nbalance  21 sat\n")
    sent = await empty.json("wallet", "send", "all")
    assert (sent["amount_msat"], sent["balance_msat"]) == (21_000, 0)


async def test_mistakes_are_one_line(empty: Gateway) -> None:
    for arguments, told in (
        (("wallet", "receive", "cashuBnonsense"), "nodestr: "),
        (("wallet", "receive"), "name a token"),
        (("wallet", "send", "5"), "this wallet is empty"),
        (("wallet", "send", "many"), "whole number of sat"),
        (("ask", "hi"), "no provider was found"),
        (("ask", "hi", "--model", "m"), "no provider that was found sells 'm'"),
        (("ask", " "), "there is no question"),
    ):
        empty.environment = {"NODESTR_GATEWAY__FIND_TIMEOUT_S": "0.5"}
        code, out, err = await empty.run(*arguments)
        assert (code, out) == (1, ""), arguments
        assert told in err
        assert len(err.strip().splitlines()) == 1, err
    code, _, err = await empty.run("ask", "hi", "--carriage", "pigeon")
    assert code == 2
    assert "gateway.carriage" in err or "carriage" in err


async def test_a_gateway_that_runs_is_asked_for_its_wallet(
    world: GatewayWorld, tmp_path: Path
) -> None:
    note = world.gateway.wallet.with_name("wallet.db.gateway")
    await world.start()
    try:
        assert note.stat().st_mode & 0o777 == 0o600
        before = (await world.gateway.json("wallet", "balance"))["balance_msat"]
        async with Purse(world.mint.url) as purse:
            token = await purse.fund(9)
        world.put_in += 9
        received = await world.gateway.json("wallet", "receive", token)
        assert received == {"received_msat": 9_000, "balance_msat": before + 9_000}
        topped = await world.gateway.json("wallet", "topup", "3")
        assert (topped["paid"], topped["balance_msat"]) == (True, before + 12_000)
        world.put_in += 3
        assert (await world.gateway.json("wallet", "recover"))["spendings"] == []
        code, _, err = await world.gateway.run(
            "wallet", "receive", "--mint", "https://other.example.com", token
        )
        assert (code, "does not use that mint yet" in err) == (1, True)
        code, out, err = await world.gateway.run(
            "ask", "hello", "--model", "demo", "--max-tokens", "9"
        )
        assert code == 0, err
        assert out.startswith("You asked: hello")
        assert f"demo from {world.a.keys.npub} through the gateway" in err
        assert ", cost 1 sat" in err
        code, _, err = await world.gateway.run("ask", "hello", "--carriage", "nostr")
        assert (code, "is in use by another nodestr" in err) == (1, True)
        for secret in ("", "guess"):
            refused = await world.gateway.post(
                "/gateway/send", {"secret": secret, "arguments": {"sat": 1}}
            )
            assert refused.status_code == 401
    finally:
        await world.gateway.stop()
    assert not note.exists()


async def test_money_is_moved_to_a_mint_that_a_provider_takes(
    empty: Gateway, mint: EmbeddedMint, fee_mint: EmbeddedMint
) -> None:
    async with Purse(mint.url) as purse:
        token = await purse.fund(300)
    await empty.json("wallet", "receive", token, "--yes")
    for arguments, told in (
        ((mint.url, fee_mint.url, "400"), "the wallet holds 300 sat"),
        ((mint.url, mint.url, "5"), "name two mints"),
        ((fee_mint.url, mint.url, "5"), "the wallet holds 0 sat"),
        (("https://other.example.com", mint.url, "5"), "this wallet does not use"),
        ((mint.url, fee_mint.url, "some"), "whole number of sat"),
        ((mint.url, fee_mint.url, "9" * 5_000), "whole number of sat"),
    ):
        code, out, err = await empty.run("wallet", "move", *arguments)
        assert (code, out) == (1, ""), arguments
        assert told in err
        assert len(err.strip().splitlines()) == 1, err
    moved = await empty.json("wallet", "move", mint.url, fee_mint.url, "100")
    assert (moved["moved_msat"], moved["arrived"]) == (100_000, True)
    document = await empty.json("wallet", "balance")
    assert document["mints"][fee_mint.url] == 100_000
    assert document["mints"][mint.url] == 200_000 - moved["fee_msat"]
    assert document["balance_msat"] == sum(document["mints"].values())
    code, out, err = await empty.run("wallet", "move", mint.url, fee_mint.url, "all")
    assert code == 0, err
    assert out.startswith("moved ")
    topped = await empty.json("wallet", "topup", "7", "--mint", mint.url)
    before = document["mints"][mint.url]
    document = await empty.json("wallet", "balance")
    assert (topped["paid"], document["mints"][mint.url] >= 7_000) == (True, True)
    assert document["mints"][mint.url] < before
    assert document["mints"][fee_mint.url] > 200_000


@pytest.mark.parametrize("rows", ["invoices", "payouts"])
async def test_a_move_that_is_killed_goes_on_or_never_began(
    empty: Gateway, mint: EmbeddedMint, fee_mint: EmbeddedMint, rows: str
) -> None:
    async with Purse(mint.url) as purse:
        token = await purse.fund(300)
    await empty.json("wallet", "receive", token, "--yes")
    child = Child(
        ["-m", "node", "wallet", "move", mint.url, fee_mint.url, "100"],
        directory=empty.home,
        environment=empty.env(),
        log_file=empty.home / "move.log",
        stop_timeout_s=10,
    )
    child.start()
    connection = sqlite3.connect(f"file:{empty.wallet}?mode=ro", uri=True)
    try:
        async with asyncio.timeout(30):
            while not connection.execute(f"SELECT COUNT(*) FROM {rows}").fetchone()[0]:
                await asyncio.sleep(0.001)
    finally:
        child.kill()
        connection.close()
    async with asyncio.timeout(60):
        while True:
            await empty.json("wallet", "recover")
            held = (await empty.json("wallet", "balance"))["mints"]
            left, arrived = held[mint.url], held.get(fee_mint.url, 0)
            if left == 300_000 or (arrived and left >= 190_000):
                break
            await asyncio.sleep(0.1)
    assert arrived in (0, 100_000)  # this mint says of every invoice that it is paid
    assert left == 300_000 or 190_000 <= left <= 200_000
    async with aiohttp.ClientSession() as session, open_purse(empty.wallet, session) as opened:
        assert (await opened.books()).problems() == []


async def test_the_mints_of_a_provider_are_named_when_the_wallet_has_none_of_them(
    world: GatewayWorld, empty: Gateway, fee_mint: EmbeddedMint
) -> None:
    async with Purse(fee_mint.url) as purse:
        token = await purse.fund(100)
    empty.relays = world.gateway.relays
    await empty.json("wallet", "receive", token, "--yes")
    code, out, err = await empty.run("ask", "hello", "--model", "demo", "--max-tokens", "9")
    assert (code, out) == (1, "")
    assert f"takes coins of {world.mint.url}, the wallet's are of {fee_mint.url}" in err
    assert f"nodestr wallet move {fee_mint.url} {world.mint.url} SAT" in err
