"""Promise: accounts are filled over Lightning, earnings and refunds arrive, without asking."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
from tests.e2e.conftest import BODY, OpenWorld, World
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


async def test_a_running_node_pays_its_operator_by_itself_and_leaves_the_reserve(
    open_world: OpenWorld, payee: Payee
) -> None:
    environment = {
        "NODESTR_PAYOUT__ADDRESS": payee.url.replace("http://", "me@"),
        "NODESTR_PAYOUT__FLOOR_SAT": "5",
        "NODESTR_PAYOUT__RESERVE_SAT": "4",
        "NODESTR_PAYOUT__INTERVAL_S": "0.2",
    }
    world = await open_world(environment=environment)
    payee.overcharge = 1  # an address that cheats is asked again and again, and gets nothing
    earned = await _earn(world)
    async with asyncio.timeout(30):
        while len(payee.asked) < 3:
            await asyncio.sleep(0.1)
    assert world.books().payouts_msat == 0
    payee.overcharge = 0
    async with asyncio.timeout(30):
        while not world.books().payouts_msat:
            await asyncio.sleep(0.1)
    books = await world.quiet_books()
    asked = len(payee.asked)
    assert books.payouts_msat == payee.asked[-1]
    await asyncio.sleep(1)  # several intervals: what is left is below the floor
    assert len(payee.asked) == asked
    books = world.books()
    assert 4_000 <= books.earned_msat == earned - books.payouts_msat - books.own_fees_msat
    assert (books.solvent, books.transit_msat) == (True, 0)
    await world.assert_coins_are_real()
    await _earn(world, 30)
    async with asyncio.timeout(30):
        while world.books().payouts_msat == books.payouts_msat:
            await asyncio.sleep(0.1)
    assert (await world.quiet_books()).earned_msat >= 4_000
    log = world.node.log_file.read_text()
    assert "payout_not_made" in log
    assert "background_task_failed" not in log


async def test_a_key_that_expires_is_refunded_to_its_lightning_address(
    open_world: OpenWorld, payee: Payee
) -> None:
    environment = {"NODESTR_REFUND__FLOOR_SAT": "20", "NODESTR_REFUND__INTERVAL_S": "0.2"}
    world = await open_world(environment=environment)
    address = payee.url.replace("http://", "me@")
    later = int(time.time()) + 3
    terms = {"validity_date": later, "refund_address": address}
    token = await world.purse.fund(300)
    body = {"cashu_token": token, **terms}
    key = (await call(world, "POST", "/v1/wallet/create", json=body)).json()["api_key"]
    other = {"cashu_token": token, **terms, "refund_address": "me@example.com"}
    refused = await call(world, "POST", "/v1/wallet/create", json=other)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_conflict")

    used = await world.purse.fund(200)  # as other nodes of the network are told
    headers = {
        "authorization": f"Bearer {used}",
        "refund-lnurl": address,
        "key-expiry-time": str(later),
    }
    async with httpx.AsyncClient(timeout=60) as http:
        url = f"{world.node.url}/v1/chat/completions"
        wrong = await http.post(url, json=BODY, headers=headers | {"key-expiry-time": "soon"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "key-expiry-time")
        wrong = await http.post(url, json=BODY, headers=headers | {"refund-lnurl": "nowhere"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "refund_address")
        assert (await http.post(url, json=BODY, headers=headers)).status_code == 200
        # later requests change nothing, whatever they ask for
        moved = headers | {"key-expiry-time": str(later + 9999), "refund-lnurl": "me@example.com"}
        assert (await http.post(url, json=BODY, headers=moved)).status_code == 200
    for opened in (key, used):
        for path in ("/v1/wallet/balance", "/v1/balance/info"):
            shown = (await call(world, "GET", path, key=opened)).json()
            assert {name: shown[name] for name in terms} == terms

    async with asyncio.timeout(30):
        while len(payee.asked) < 2 or world.books().issued_msat < sum(payee.asked):
            await asyncio.sleep(0.1)
    books = await world.quiet_books()
    assert (books.issued_msat, books.payouts_msat) == (sum(payee.asked), 0)
    assert books.open_msat < 20_000
    await world.assert_coins_are_real()
    chat = await call(world, "POST", "/v1/chat/completions", key=key, json=BODY)
    assert (chat.status_code, chat.json()["error"]["code"]) == (401, "key_expired")
    lines = (await call(world, "GET", "/v1/wallet/transactions", key=key)).json()["transactions"]
    assert [line["type"] for line in lines] == ["reversal", "refund", "deposit"]
    rest = (await call(world, "POST", "/v1/balance/refund", key=key)).json()
    assert sum(line["amount_msat"] for line in lines) == rest["sats"] * 1000
    log = world.node.log_file.read_text()
    assert "background_task_failed" not in log
    assert address not in log


async def test_the_terms_of_a_key_are_asked_for_over_nostr_too(world: World) -> None:
    later = int(time.time()) + 9_999
    headers = {
        "authorization": f"Bearer {await world.purse.fund(20)}",
        "refund-lnurl": "me@example.com",
        "key-expiry-time": str(later),
    }
    async with SdkClient(world.relay.url, world.node.keys.pubkey, [21059]) as client:
        await client.send(message(b"", "1", "/v1/balance/info", headers=headers, method="GET"))
        reply = (await client.replies(1))[0]
    shown = json.loads(base64.b64decode(reply["bodyBase64"]))
    assert (shown["validity_date"], shown["refund_address"]) == (later, "me@example.com")


async def test_a_node_may_refuse_refunds(open_world: OpenWorld) -> None:
    world = await open_world(environment={"NODESTR_REFUND__ENABLED": "false"})
    token = await world.purse.fund(20)
    terms = {"validity_date": int(time.time()) + 99, "refund_address": "me@example.com"}
    refused = await call(world, "POST", "/v1/wallet/create", json={"cashu_token": token, **terms})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "invalid_value")
    assert "does not refund" in error["message"]
    assert not await world.purse.spent(token)
