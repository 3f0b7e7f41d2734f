"""Promise: owners find every token, share their money by child keys, and keys end when they say."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import httpx

from tests.e2e.conftest import BODY, World
from tests.e2e.test_payments import call
from tests.fakes.stranger import SdkClient, message

CHAT = "/v1/chat/completions"


async def open_account(world: World, amount: int, **more: Any) -> str:
    token = await world.purse.fund(amount)
    made = await call(world, "POST", "/v1/wallet/create", json={"cashu_token": token, **more})
    assert made.status_code == 200, made.text
    return str(made.json()["api_key"])


async def child_keys(world: World, key: str, **wanted: Any) -> list[str]:
    made = await call(world, "POST", "/v1/balance/child-key", key=key, json={"count": 1, **wanted})
    assert made.status_code == 200, made.text
    keys: list[str] = made.json()["api_keys"]
    return keys


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_statement_names_every_movement_and_every_token(world: World) -> None:
    admin = "only-i-may-withdraw"
    key = await open_account(world, 60, admin_key=admin)
    more = {"cashu_token": await world.purse.fund(5)}
    await call(world, "POST", "/v1/wallet/topup", key=key, json=more)
    chat = await call(world, "POST", CHAT, key=key, json=BODY)
    cost = int(chat.headers["x-routstr-cost-msats"])
    issued = await call(world, "POST", "/v1/wallet/withdraw", key=admin, json={"amount": 9})
    path = "/v1/wallet/transactions"
    whole = (await call(world, "GET", path, key=admin)).json()
    assert whole["next_cursor"] is None
    withdrawal, charge, topup, deposit = whole["transactions"]
    assert [line["type"] for line in whole["transactions"]] == [
        "withdrawal",
        "charge",
        "topup",
        "deposit",
    ]
    assert withdrawal["token"] == issued.json()["cashu_token"]
    assert (withdrawal["amount"], withdrawal["amount_msat"]) == (-9, -9_000)
    assert (charge["amount_msat"], charge["model"]) == (-cost, "demo")
    assert charge["request_id"] == chat.headers["x-request-id"]
    assert charge["prompt_tokens"] == chat.json()["usage"]["prompt_tokens"]
    assert (topup["amount"], deposit["amount"]) == (5, 60)
    assert {line["state"] for line in whole["transactions"]} == {"done"}
    assert {line["currency"] for line in whole["transactions"]} == {"sat"}

    seen: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"limit": "1", **({"cursor": cursor} if cursor else {})}
        page = (await call(world, "GET", path, key=key, params=query)).json()
        seen += page["transactions"]
        cursor = page["next_cursor"]
    without = [{k: v for k, v in line.items() if k != "token"} for line in whole["transactions"]]
    assert seen == without  # this key may not withdraw, so it is shown no token
    balance = (await call(world, "GET", "/v1/wallet/balance", key=key)).json()["balance_msat"]
    assert sum(line["amount_msat"] for line in seen) == balance == 56_000 - cost
    for wrong in ({"limit": "0"}, {"limit": "201"}, {"cursor": "x"}, {"cursor": "WzEsMiwzXQ"}):
        answer = await call(world, "GET", path, key=key, params=wrong)
        assert code(answer) == (400, "invalid_value"), wrong


async def test_the_change_of_a_request_is_for_who_paid_it(world: World) -> None:
    token = await world.purse.fund(60)
    paid = await call(world, "POST", CHAT, headers={"X-Cashu": token}, json=BODY)
    path = f"/v1/wallet/change/{paid.headers['x-request-id']}"
    found = await call(world, "GET", path, headers={"X-Cashu": token})
    assert found.status_code == 200
    assert found.json()["token"] == paid.headers["x-cashu"]
    assert found.json()["sats"] == await world.purse.receive(found.json()["token"])
    other = await world.purse.fund(60)
    assert code(await call(world, "GET", path)) == (401, "missing_key")
    assert code(await call(world, "GET", path, headers={"X-Cashu": other})) == (404, "not_found")
    elsewhere = await call(world, "POST", CHAT, headers={"X-Cashu": other}, json=BODY)
    assert code(await call(world, "GET", path, headers={"X-Cashu": other})) == (404, "not_found")
    assert elsewhere.status_code == 200


async def test_the_change_of_a_running_request_is_pending(world: World) -> None:
    world.upstream.delay_s = 0.3
    token = await world.purse.fund(60)
    headers = {"X-Cashu": token, "X-Request-Id": "mine"}
    running = asyncio.create_task(call(world, "POST", CHAT, headers=headers, json=BODY))
    path = "/v1/wallet/change/mine"
    async with asyncio.timeout(20):
        while True:
            answer = await call(world, "GET", path, headers={"X-Cashu": token})
            if answer.status_code != 404:
                break
    assert answer.status_code in (200, 425)
    if answer.status_code == 425:
        assert answer.headers["retry-after"]
    paid = await running
    found = await call(world, "GET", path, headers={"X-Cashu": token})
    assert found.json()["token"] == paid.headers["x-cashu"]


async def test_a_child_key_spends_within_its_limit_and_nothing_else(world: World) -> None:
    key = await open_account(world, 60)
    first = await call(world, "POST", CHAT, key=key, json=BODY)
    cost = int(first.headers["x-routstr-cost-msats"])
    (child,) = await child_keys(
        world, key, balance_limit=9_000, balance_limit_reset="daily", validity_date=2**33
    )
    paid = await call(world, "POST", CHAT, key=child, json=BODY)
    assert paid.status_code == 200
    for method, path in (
        ("POST", "/v1/wallet/withdraw"),
        ("POST", "/v1/balance/refund"),
        ("GET", "/v1/wallet/transactions"),
        ("POST", "/v1/balance/child-key/reset"),
        ("DELETE", "/v1/balance/child-key"),
    ):
        body: dict[str, Any] = {} if method == "GET" else {"json": {"child_key": child}}
        denied = await call(world, method, path, key=child, **body)
        assert code(denied) == (401, "invalid_api_key"), path
    denied = await call(world, "POST", "/v1/balance/child-key", key=child, json={"count": 1})
    assert code(denied) == (401, "invalid_api_key")

    info = (await call(world, "GET", "/v1/balance/info", key=child)).json()
    assert (info["is_child"], info["api_key"]) == (True, child)
    assert info["parent_key_preview"] == f"{key[3:11]}..."
    assert (info["balance_limit"], info["balance_limit_reset"]) == (9_000, "daily")
    assert (info["total_requests"], info["total_spent"], info["validity_date"]) == (1, cost, 2**33)
    assert info["balance"] == 60_000 - 2 * cost
    parent = (await call(world, "GET", "/v1/balance/info", key=key)).json()
    assert (parent["is_child"], parent["total_requests"]) == (False, 2)
    assert parent["total_spent"] == 2 * cost
    (listed,) = parent["child_keys"]
    assert (listed["api_key"], listed["total_spent"]) == (child, cost)

    while (answer := await call(world, "POST", CHAT, key=child, json=BODY)).status_code == 200:
        pass
    assert code(answer) == (402, "balance_limit_exceeded")
    mine: dict[str, Any] = {"json": {"child_key": child}, "key": key}
    assert (await call(world, "POST", "/v1/balance/child-key/reset", **mine)).json()["success"]
    assert (await call(world, "POST", CHAT, key=child, json=BODY)).status_code == 200
    assert (await call(world, "DELETE", "/v1/balance/child-key", **mine)).json()["success"]
    assert code(await call(world, "POST", CHAT, key=child, json=BODY)) == (401, "invalid_api_key")
    for wrong in (
        {"count": 0},
        {"count": 51},
        {"count": True},
        {},
        {"count": 1, "balance_limit": -1},
    ):
        answer = await call(world, "POST", "/v1/balance/child-key", key=key, json=wrong)
        assert code(answer) == (400, "invalid_value"), wrong
    unknown = {"count": 1, "balance_limit_reset": "hourly"}
    answer = await call(world, "POST", "/v1/balance/child-key", key=key, json=unknown)
    assert code(answer) == (400, "invalid_value")


async def test_thirty_requests_on_a_key_and_its_children_exceed_nothing(world: World) -> None:
    key = await open_account(world, 200)
    limit = 9_000
    made = await child_keys(world, key, count=2, balance_limit=limit)
    answers = await asyncio.gather(
        *(call(world, "POST", CHAT, key=who, json=BODY) for _ in range(10) for who in (key, *made))
    )
    assert {answer.status_code for answer in answers} <= {200, 402}
    books = await world.quiet_books()
    info = (await call(world, "GET", "/v1/balance/info", key=key)).json()
    assert info["total_spent"] == books.revenue_msat == 200_000 - info["balance"]
    for child in info["child_keys"]:
        assert 0 < child["total_spent"] <= limit
    assert info["total_requests"] == sum(answer.status_code == 200 for answer in answers)


async def test_child_keys_are_made_once_under_one_idempotency_key(world: World) -> None:
    key = await open_account(world, 10)
    once: dict[str, Any] = {"key": key, "headers": {"Idempotency-Key": "k-1"}}
    path = "/v1/balance/child-key"
    first, second = await asyncio.gather(
        *(call(world, "POST", path, json={"count": 3}, **once) for _ in range(2))
    )
    assert first.json() == second.json()
    assert len(set(first.json()["api_keys"])) == 3
    other = await call(world, "POST", path, json={"count": 2}, **once)
    assert code(other) == (409, "idempotency_conflict")


async def test_a_key_past_its_date_spends_nothing_and_its_money_stays_its_owners(
    world: World,
) -> None:
    date = int(time.time()) + 3
    token = await world.purse.fund(30)
    asked = {"cashu_token": token, "validity_date": date}
    made = (await call(world, "POST", "/v1/wallet/create", json=asked)).json()
    key = made["api_key"]
    assert (await call(world, "POST", "/v1/wallet/create", json=asked)).json() == made
    for other in ({"validity_date": date + 1}, {"key_expiry_time": date + 1}):
        changed = await call(world, "POST", "/v1/wallet/create", json={**asked, **other})
        assert changed.status_code in (400, 409), other  # two dates, or another one
    await asyncio.sleep(max(0.0, date - time.time()) + 0.1)
    assert code(await call(world, "POST", CHAT, key=key, json=BODY)) == (401, "key_expired")
    late = {"cashu_token": await world.purse.fund(2)}
    assert code(await call(world, "POST", "/v1/wallet/topup", key=key, json=late)) == (
        401,
        "key_expired",
    )
    assert await world.purse.receive(late["cashu_token"]) == 2
    info = (await call(world, "GET", "/v1/balance/info", key=key)).json()
    assert (info["balance"], info["validity_date"]) == (30_000, date)
    rest = (await call(world, "POST", "/v1/balance/refund", key=key)).json()
    assert await world.purse.receive(rest["token"]) == 30


async def test_terms_that_cannot_be_kept_are_refused_before_the_token_is_touched(
    world: World,
) -> None:
    token = await world.purse.fund(8)
    later = int(time.time()) + 9_999
    for terms in (
        {"validity_date": 1},
        {"validity_date": "soon"},
        {"refund_address": "me@example.com"},
        {"validity_date": later, "refund_address": "nowhere"},
        {"validity_date": later, "refund_address": 5},
        {"balance_limit": 5},
    ):
        for path, name in (
            ("/v1/wallet/create", "cashu_token"),
            ("/v1/balance/create", "initial_balance_token"),
        ):
            answer = await call(world, "POST", path, json={name: token, **terms})
            assert code(answer) == (400, "invalid_value"), terms
    query = {"initial_balance_token": token, "key_expiry_time": str(later)}
    made = await call(world, "GET", "/v1/balance/create", params=query)
    info = await call(world, "GET", "/v1/balance/info", key=made.json()["api_key"])
    assert info.json()["validity_date"] == later


async def test_accounts_work_the_same_over_nostr(world: World) -> None:
    key = await open_account(world, 60)

    async with SdkClient(world.relay.url, world.node.keys.pubkey, [21059]) as client:

        async def ask(number: int, method: str, url: str, key: str, body: Any = None) -> Any:
            data = b"" if body is None else json.dumps(body).encode()
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            await client.send(message(data, f"m-{number}", url, headers=headers, method=method))
            reply = (await client.replies(number))[number - 1]
            return reply["status"], json.loads(base64.b64decode(reply["bodyBase64"]))

        status, made = await ask(1, "POST", "/v1/balance/child-key", key, {"count": 1})
        assert status == 200
        (child,) = made["api_keys"]
        assert (await ask(2, "POST", CHAT, child, BODY))[0] == 200
        status, page = await ask(3, "GET", "/v1/wallet/transactions?limit=1", key)
        assert (status, page["transactions"][0]["type"]) == (200, "charge")
        gone = await ask(4, "DELETE", "/v1/balance/child-key", key, {"child_key": child})
        assert gone[0] == 200
        assert (await ask(5, "POST", CHAT, child, BODY))[0] == 401
