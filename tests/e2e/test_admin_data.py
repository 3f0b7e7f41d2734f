"""Promise: an operator who is logged in sees the money, the market, the requests and the log of a
running node as they are, takes earnings out once for each key, and sees nobody's secret."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import pytest_asyncio

from node.core.money import Msat
from node.core.pricing import Price
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.nodes import DemoNode, Offer, Surroundings
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay
from node.ecash.token import parse_token
from tests.e2e.commands import run
from tests.e2e.conftest import BODY
from tests.e2e.shop import Shop
from tests.e2e.test_admin import PASSWORD, Operator, operator, write_hash

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEAR = Offer("demo", Price(Msat(10_000_000), Msat(20_000_000), Msat(6_000)), max_output_tokens=64)
"""6 sat a request."""
PROMPT = "what-is-the-sentinel-of-this-prompt"
GETS = (
    "overview",
    "balances",
    "accounts",
    "accounts?order=balance",
    "accounts/100/transactions",
    "transactions",
    "earnings",
    "earnings?bucket=day",
    "requests",
    "models",
    "upstreams",
    "relays",
    "operations",
    "withdrawals",
    "payouts",
    "log?limit=1000",
    "keys",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(mint: EmbeddedMint, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(EmbeddedRelay())
        upstream = await stack.enter_async_context(ModelServer())
        home = tmp_path_factory.mktemp("admin_data") / "node"
        around = Surroundings(mint.url, relay.url, upstream.url)
        node = DemoNode(
            "node", DEAR, around, home, environment={"NODESTR_PAYOUT__RESERVE_SAT": "3"}
        )
        write_hash(node, PASSWORD)
        await stack.enter_async_context(node)
        purse = await stack.enter_async_context(Purse(mint.url))
        opened = Shop(node, mint, relay, upstream, purse)
        yield opened
        opened.books()


async def get(someone: Operator, path: str) -> Any:
    answer = await someone.ask("GET", f"/admin/api/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def spend(shop: Shop, calls: int = 1) -> tuple[str, list[str]]:
    """A client with an account makes paid calls; (its key, the ids of its requests)."""
    token = await shop.purse.fund(200)
    ids = []
    async with httpx.AsyncClient(base_url=shop.node.url, timeout=60) as http:
        answer = await http.get("/v1/balance/create", params={"initial_balance_token": token})
        key = str(answer.json()["api_key"])
        for _ in range(calls):
            answer = await http.post(
                "/v1/chat/completions",
                headers={"Authorization": f"Bearer {key}"},
                json={**BODY, "messages": [{"role": "user", "content": PROMPT}]},
            )
            assert answer.status_code == 200
            ids.append(answer.headers["x-request-id"])
    await shop.quiet_books()
    return key, ids


async def test_what_happens_is_shown_everywhere_and_no_secret_with_it(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        key, ids = await spend(shop, 2)
        books = shop.books()
        overview = await get(someone, "overview")
        assert overview["npub"] == shop.node.keys.npub
        assert overview["ready"] is True
        async with asyncio.timeout(30):  # the sums may be some seconds old
            while (overview := await get(someone, "overview"))["earned_msat"] != books.earned_msat:
                await asyncio.sleep(0.5)
        assert overview["coins_msat"] == books.proofs_msat
        balances = await get(someone, "balances")
        assert balances["books"]["charged_msat"] == books.revenue_msat
        assert [mint["url"] for mint in balances["mints"]] == [shop.mint.url]
        assert balances["problems"] == []
        (account,) = (await get(someone, "accounts?limit=1"))["accounts"]
        statement = await get(someone, f"accounts/{account['id']}/transactions")
        assert [line["request_id"] for line in statement["transactions"][:2]] == ids[::-1]
        assert statement["transactions"][0]["balance_msat"] == account["balance_msat"]
        moved = await get(someone, "transactions?limit=2")
        assert [row["from"] for row in moved["transactions"]] == [f"account {account['id']}"] * 2
        earnings = await get(someone, "earnings")
        assert sum(point["charged_msat"] for point in earnings["points"]) == books.revenue_msat
        assert [model["model"] for model in earnings["by_model"]] == ["demo"]
        (item,) = [
            r for r in (await get(someone, "requests"))["requests"] if r["request_id"] == ids[0]
        ]
        assert (item["model"], item["status"], item["carriage"]) == ("demo", 200, "http")
        assert item["cost_msat"] > 0
        assert (await get(someone, "models"))["models"][0]["on_sale"] is True
        assert (await get(someone, "upstreams"))["upstreams"][0]["answered"] >= 2
        log = (await get(someone, "log?limit=1000"))["lines"]
        assert any(line["fields"].get("request_id") == ids[0] for line in log)
        for path in GETS:
            await get(someone, path)
        for text in someone.seen:
            assert key not in text
            assert PROMPT not in text
            assert "cashuA" not in text
            assert "cashuB" not in text


async def test_relays_say_what_they_took_and_announcing_now_asks_them_again(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        async with asyncio.timeout(60):
            while not (await get(someone, "relays"))["announcement"]["events"]:
                await asyncio.sleep(0.2)
        announced = await someone.ask("POST", "/admin/api/announce", json={})
        assert announced.status_code == 200, announced.text
        events = announced.json()["events"]
        assert {38_421, 0} <= {event["kind"] for event in events}
        assert all(relay["ok"] for event in events for relay in event["relays"])
        (relay,) = (await get(someone, "relays"))["relays"]
        assert relay["connected"] is True
        assert relay["announced"]["ok"] is True
        assert relay["last_ok_at"] is not None


async def test_requests_come_as_a_stream(shop: Shop) -> None:
    async with (
        operator(shop.node) as someone,
        someone.http.stream("GET", "/admin/api/requests/stream") as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        task = asyncio.create_task(spend(shop))
        async with asyncio.timeout(60):
            async for line in stream.aiter_lines():
                if line.startswith("data:") and "chat/completions" in line:
                    break
        item = json.loads(line.partition(":")[2])
        _, ids = await task
        assert item["request_id"] == ids[0]
        assert item["model"] == "demo"


async def test_a_withdrawal_is_made_once_for_a_key_over_a_kill_too(shop: Shop) -> None:
    await spend(shop, 3)
    async with operator(shop.node) as someone:
        before = shop.books()
        free = before.earned_msat // 1000 - 3
        assert free >= 2
        wanted = {"amount_sat": 2, "idempotency_key": "first-withdrawal"}
        first = await someone.ask("POST", "/admin/api/withdraw", json=wanted)
        assert first.status_code == 200, first.text
        token = first.json()["token"]
        assert parse_token(token).amount == 2
        again = await someone.ask("POST", "/admin/api/withdraw", json=wanted)
        assert again.json() == first.json()
        other = {**wanted, "amount_sat": 1}
        conflict = await someone.ask("POST", "/admin/api/withdraw", json=other)
        assert conflict.json()["error"]["code"] == "idempotency_conflict"
        much = {"amount_sat": free + 1, "idempotency_key": "too-much"}
        refused = await someone.ask("POST", "/admin/api/withdraw", json=much)
        assert refused.json()["error"]["code"] == "payment_refused"
        for wrong in (
            {"amount_sat": 1},
            {**wanted, "amount_sat": 0},
            {**wanted, "mint": "https://x"},
        ):
            answer = await someone.ask("POST", "/admin/api/withdraw", json=wrong)
            assert answer.json()["error"]["code"] == "invalid_value", answer.text
        assert shop.books().payouts_msat == before.payouts_msat + 2000
    shop.node.kill()
    await shop.node.start()
    async with operator(shop.node) as someone:
        again = await someone.ask("POST", "/admin/api/withdraw", json=wanted)
        assert again.json() == first.json()
        listed = (await get(someone, "withdrawals"))["withdrawals"]
        assert [row["idempotency_key"] for row in listed] == ["first-withdrawal"]
        assert "cashu" not in json.dumps(listed)
        unset = await someone.ask("POST", "/admin/api/payout", json={})
        assert unset.json()["error"]["code"] == "not_configured"
    assert await shop.purse.receive(token) == 2
    code, out, _ = await run("export", "payouts", "--config", shop.node.config_file)
    (row,) = csv.DictReader(io.StringIO(out))
    assert (code, row["purpose"], row["amount_msat"]) == (0, "withdrawal", "2000")
    assert "cashu" not in out
    code, out, _ = await run("check", "--config", shop.node.config_file)
    assert code == 0, out


async def test_nobody_else_is_answered(shop: Shop) -> None:
    async with operator(shop.node, login=False) as stranger:
        for path in (*GETS, "requests/stream", "log/stream"):
            answer = await stranger.ask("GET", f"/admin/api/{path}")
            assert answer.status_code == 401, path
        for path in ("withdraw", "payout", "announce", "keys/rotate"):
            answer = await stranger.ask("POST", f"/admin/api/{path}", json={})
            assert answer.status_code == 401, path


async def test_a_new_key_is_used_from_the_next_start_on(shop: Shop) -> None:
    """Last: the node is another one afterwards."""
    async with operator(shop.node) as someone:
        old = (await get(someone, "keys"))["npub"]
        answer = await someone.ask("POST", "/admin/api/keys/rotate", json={"confirm": old})
        assert answer.status_code == 200, answer.text
        assert answer.json()["npub"] != old
        assert (await get(someone, "overview"))["npub"] == old
