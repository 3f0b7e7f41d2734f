"""Promise: an account is filled over Lightning without asking, and earnings reach the operator."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
from tests.e2e.conftest import BODY, World
from tests.e2e.test_payments import call
from tests.fakes.stranger import SdkClient, message


async def _status(world: World, invoice_id: str) -> dict[str, Any]:
    answer = await call(world, "GET", f"/lightning/invoice/{invoice_id}/status")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    document: dict[str, Any] = answer.json()
    return document


async def test_an_invoice_opens_an_account_that_pays_for_a_chat(world: World) -> None:
    made = await call(
        world, "POST", "/lightning/invoice", json={"amount_sats": 500, "purpose": "create"}
    )
    assert made.status_code == 200
    invoice = made.json()
    assert invoice["bolt11"].startswith("lnbc")
    assert invoice["amount_sats"] == 500
    assert len(invoice["payment_hash"]) == 64
    async with asyncio.timeout(20):
        while world.books().open_msat != 500_000:  # nobody asks for its status
            await asyncio.sleep(0.05)
    status = await _status(world, invoice["invoice_id"])
    assert (status["status"], status["amount_sats"]) == ("paid", 500)
    assert status["created_at"] <= status["paid_at"] <= status["expires_at"]
    client = AsyncOpenAI(base_url=f"{world.node.url}/v1", api_key=status["api_key"], max_retries=0)
    async with client:
        answer = await client.chat.completions.create(**BODY)  # type: ignore[call-overload]
        assert answer.choices[0].message.content
    again = await _status(world, invoice["invoice_id"])
    assert again == status

    topup = {"amount_sats": 40, "purpose": "topup"}
    by_header = await call(
        world, "POST", "/v1/balance/lightning/invoice", key=status["api_key"], json=topup
    )
    by_body = await call(
        world, "POST", "/lightning/invoice", json=topup | {"api_key": status["api_key"]}
    )
    before = world.books().open_msat
    for answer_ in (by_header, by_body):
        path = f"/v1/balance/lightning/invoice/{answer_.json()['invoice_id']}/status"
        async with asyncio.timeout(20):
            while (now := (await call(world, "GET", path)).json())["status"] != "paid":
                await asyncio.sleep(0.05)
        assert now["api_key"] is None
    assert world.books().open_msat <= before + 80_000
    info = (await call(world, "GET", "/v1/balance/info", key=status["api_key"])).json()
    assert info["balance"] == world.books().open_msat
    await world.assert_coins_are_real()

    log = world.node.log_file.read_text()
    for secret in (invoice["invoice_id"], status["api_key"]):
        assert secret not in log


async def test_an_account_is_opened_over_nostr(world: World) -> None:
    headers = {"content-type": "application/json"}
    body = json.dumps({"amount_sats": 60, "purpose": "create"}).encode()
    base = "/v1/balance/lightning/invoice"
    async with SdkClient(world.relay.url, world.node.keys.pubkey, [21059]) as client:
        await client.send(message(body, "invoice", base, headers=headers))
        reply = (await client.replies(1))[0]
        assert reply["status"] == 200
        invoice = json.loads(base64.b64decode(reply["bodyBase64"]))
        async with asyncio.timeout(20):
            while world.books().open_msat != 60_000:
                await asyncio.sleep(0.05)
        ask = message(b"", "status", f"{base}/{invoice['invoice_id']}/status", method="GET")
        await client.send(ask)
        reply = (await client.replies(2))[1]
        status = json.loads(base64.b64decode(reply["bodyBase64"]))
        assert (status["status"], status["amount_sats"]) == ("paid", 60)
        assert status["api_key"].startswith("sk-")
    assert invoice["invoice_id"] not in world.node.log_file.read_text()


WRONG: list[tuple[dict[str, Any], int, str | None]] = [
    ({}, 400, "amount_sats"),
    ({"amount_sats": 0}, 400, "amount_sats"),
    ({"amount_sats": "5"}, 400, "amount_sats"),
    ({"amount_sats": True}, 400, "amount_sats"),
    ({"amount_sats": 10**9}, 400, "amount_sats"),
    ({"amount_sats": 10**30}, 400, "amount_sats"),
    ({"amount_sats": 5, "purpose": "gift"}, 400, "purpose"),
    ({"amount_sats": 5, "purpose": ["create"]}, 400, "purpose"),
    ({"amount_sats": 5, "purpose": "topup"}, 401, None),
    ({"amount_sats": 5, "purpose": "topup", "api_key": "sk-nobody"}, 401, None),
    ({"amount_sats": 5, "purpose": "topup", "api_key": 5}, 400, "api_key"),
]


async def test_what_is_wrong_with_an_invoice_is_said(world: World) -> None:
    for body, status, param in WRONG:
        answer = await call(world, "POST", "/lightning/invoice", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), body
    missing = await call(world, "GET", "/lightning/invoice/nothing/status")
    assert missing.status_code == 404


# -- payout --------------------------------------------------------------------------------


@dataclass
class Payee:
    """A Lightning address server whose invoices another mint makes."""

    purse: Purse
    url: str = ""
    overcharge: int = 0
    asked: list[int] = field(default_factory=list)

    async def offer(self, request: web.Request) -> web.Response:
        return web.json_response({
            "tag": "payRequest", "callback": f"{self.url}/pay?to=me", "minSendable": 1000,
            "maxSendable": 10**12, "metadata": "[]",
        })  # fmt: skip

    async def pay(self, request: web.Request) -> web.Response:
        amount = int(request.query["amount"])
        self.asked.append(amount)
        quote = await self.purse.mint.mint_quote(amount // 1000 + self.overcharge, "sat")
        return web.json_response({"pr": quote.request, "routes": []})


@pytest.fixture
async def payee(fee_mint: EmbeddedMint) -> AsyncIterator[Payee]:
    async with Purse(fee_mint.url) as purse:
        payee = Payee(purse)
        app = web.Application()
        app.router.add_get("/.well-known/lnurlp/me", payee.offer)
        app.router.add_get("/pay", payee.pay)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        payee.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield payee
        await runner.cleanup()


async def _earn(world: World, requests: int = 60) -> int:
    """Sell some chats; what was earned, in msat."""
    token = await world.purse.fund(4000)
    key = (await call(world, "POST", "/v1/wallet/create", json={"cashu_token": token})).json()
    async with httpx.AsyncClient(timeout=60) as http:
        chats = [
            http.post(
                f"{world.node.url}/v1/chat/completions",
                json=BODY,
                headers={"authorization": f"Bearer {key['api_key']}"},
            )
            for _ in range(requests)
        ]
        assert {answer.status_code for answer in await asyncio.gather(*chats)} == {200}
    return (await world.quiet_books()).earned_msat


async def _payout(world: World, *arguments: str) -> tuple[int, str]:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "node", "payout", "--config", str(world.node.config_file),
         *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


async def test_the_operator_is_paid_what_was_earned_and_no_more(world: World, payee: Payee) -> None:
    earned = await _earn(world)
    assert earned >= 20_000
    address = payee.url.replace("http://", "me@")
    code, said = await _payout(world, "--to", address)
    assert (code, "running" in said) == (1, True)
    await world.node.stop()
    with world.node.config_file.open("a") as file:
        file.write("\n[payout]\nreserve_sat = 0\n")
    too_much = str(earned // 1000 + 1)
    code, said = await _payout(world, "--to", address, "--amount", too_much)
    assert (code, "can be paid out" in said) == (1, True)
    payee.overcharge = 1
    code, said = await _payout(world, "--to", address, "--amount", "8")
    assert (code, "not 8000" in said) == (1, True)
    assert world.books().payouts_msat == 0
    payee.overcharge = 0
    code, said = await _payout(world, "--to", address, "--amount", "8")
    assert (code, "paid     8 sat" in said) == (0, True), said
    books = world.books()
    assert (books.payouts_msat, books.transit_msat) == (8_000, 0)
    assert books.earned_msat == earned - 8_000 - books.own_fees_msat
    assert books.solvent
    assert json.loads(json.dumps(payee.asked)) == [8_000, 8_000]
    await world.assert_coins_are_real()
