"""Promise: money goes in and comes out over the wallet endpoints as the contract says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from tests.e2e.conftest import BODY, World


async def call(
    world: World, method: str, path: str, *, key: str = "", **options: Any
) -> httpx.Response:
    headers = dict(options.pop("headers", {}))
    if key:
        headers["authorization"] = f"Bearer {key}"
    async with httpx.AsyncClient(timeout=60) as http:
        return await http.request(method, world.node.url + path, headers=headers, **options)


async def test_both_dialects_of_the_wallet_tell_the_same_story(world: World) -> None:
    token = await world.purse.fund(100)
    made = (await call(world, "POST", "/v1/wallet/create", json={"cashu_token": token})).json()
    again = (await call(world, "POST", "/v1/wallet/create", json={"cashu_token": token})).json()
    assert made == again
    assert (made["balance"], made["unit"], made["admin_key"]) == (100, "sat", None)
    key = made["api_key"]
    info = (await call(world, "GET", "/v1/balance/info", key=key)).json()
    assert (info["api_key"], info["balance"], info["reserved"]) == (key, 100_000, 0)
    by_token = (await call(world, "GET", "/v1/balance/info", key=token)).json()
    assert by_token == info

    more = await world.purse.fund(20)
    added = await call(world, "POST", "/v1/wallet/topup", key=key, json={"cashu_token": more})
    assert (added.json()["amount_added"], added.json()["balance"]) == (20, 120)
    same = await call(world, "POST", "/v1/balance/topup", key=key, json={"cashu_token": more})
    assert same.json() == {"msats": 20_000}
    third = await world.purse.fund(5)
    in_query = await call(
        world, "POST", "/v1/balance/topup", key=key, params={"cashu_token": third}
    )
    assert in_query.json() == {"msats": 5_000}
    balance = (await call(world, "GET", "/v1/wallet/balance", key=key)).json()
    assert (balance["balance"], balance["currency"], balance["reserved"]) == (125, "sat", 0)

    taken = (await call(world, "POST", "/v1/wallet/withdraw", key=key, json={"amount": 25})).json()
    assert (taken["amount"], taken["mint"]) == (25, world.mint.url)
    assert await world.purse.receive(taken["cashu_token"]) == 25
    rest = (await call(world, "POST", "/v1/balance/refund", key=key)).json()
    assert rest["sats"] == 100
    lost_answer = (await call(world, "POST", "/v1/balance/refund", key=key)).json()
    assert lost_answer == rest
    assert await world.purse.receive(rest["token"]) == 100
    fresh = await world.purse.fund(3)
    await call(world, "POST", "/v1/wallet/topup", key=key, json={"cashu_token": fresh})
    newer = (await call(world, "POST", "/v1/balance/refund", key=key)).json()
    assert newer["sats"] == 3  # never the stale token of before the top-up
    assert await world.purse.receive(newer["token"]) == 3
    await world.assert_coins_are_real()


async def test_balance_create_takes_the_token_in_body_or_query(world: World) -> None:
    for method, place in (("GET", "params"), ("POST", "json")):
        token = await world.purse.fund(7)
        answer = await call(
            world, method, "/v1/balance/create", **{place: {"initial_balance_token": token}}
        )
        assert answer.json()["balance"] == 7_000
        assert answer.json()["api_key"].startswith("sk-")
        assert answer.headers["cache-control"] == "no-store"


async def test_only_the_admin_key_may_withdraw_when_there_is_one(world: World) -> None:
    admin = "admin-of-my-own-choice"
    made = await call(
        world,
        "POST",
        "/v1/wallet/create",
        json={"cashu_token": await world.purse.fund(10), "admin_key": admin},
    )
    key = made.json()["api_key"]
    assert made.json()["admin_key"] == admin
    for path in ("/v1/wallet/withdraw", "/v1/balance/refund"):
        denied = await call(world, "POST", path, key=key)
        assert (denied.status_code, denied.json()["error"]["code"]) == (401, "invalid_api_key")
    allowed = await call(world, "POST", "/v1/wallet/withdraw", key=admin, json={"amount": 4})
    assert await world.purse.receive(allowed.json()["cashu_token"]) == 4


async def test_an_idempotency_key_withdraws_once(world: World) -> None:
    made = await call(
        world, "POST", "/v1/wallet/create", json={"cashu_token": await world.purse.fund(50)}
    )
    key = made.json()["api_key"]
    once = {"headers": {"Idempotency-Key": "w-1"}, "json": {"amount": 9}, "key": key}
    answers = await asyncio.gather(
        *(call(world, "POST", "/v1/wallet/withdraw", **once) for _ in range(5))
    )
    assert len({answer.json()["cashu_token"] for answer in answers}) == 1
    other = await call(
        world,
        "POST",
        "/v1/wallet/withdraw",
        key=key,
        headers={"Idempotency-Key": "w-1"},
        json={"amount": 8},
    )
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    balance = (await call(world, "GET", "/v1/wallet/balance", key=key)).json()
    assert balance["balance"] == 41


async def test_x_cashu_pays_for_one_request_and_the_change_comes_back(world: World) -> None:
    token = await world.purse.fund(60)
    answer = await call(
        world, "POST", "/v1/chat/completions", headers={"X-Cashu": token}, json=BODY
    )
    assert answer.status_code == 200
    cost = int(answer.headers["x-routstr-cost-msats"])
    assert answer.json()["usage"]["cost"] == cost
    change = answer.headers["x-cashu"]
    assert await world.purse.receive(change) == (60_000 - cost) // 1000
    assert answer.headers["x-request-id"] == answer.headers["x-routstr-request-id"]

    lookup = await call(world, "POST", "/v1/balance/refund", headers={"X-Cashu": token})
    assert (lookup.status_code, lookup.json()["token"]) == (200, change)
    unknown = await call(
        world, "POST", "/v1/balance/refund", headers={"X-Cashu": await world.purse.fund(2)}
    )
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    twice = await call(world, "POST", "/v1/chat/completions", headers={"X-Cashu": token}, json=BODY)
    assert (twice.status_code, twice.json()["error"]["code"]) == (400, "token_already_spent")
    assert twice.headers["x-cashu"] == change  # its owner's, whatever went wrong before
    assert world.upstream.calls == 1
    await world.assert_coins_are_real()


async def test_x_cashu_streams_buffered_with_header_or_live_with_event(world: World) -> None:
    body = {**BODY, "stream": True}
    buffered = await call(
        world,
        "POST",
        "/chat/completions",  # the first endpoints also answer without /v1
        headers={"X-Cashu": await world.purse.fund(60)},
        json=body,
    )
    assert buffered.headers["content-type"].startswith("text/event-stream")
    assert buffered.text.endswith("data: [DONE]\n\n")
    header_change = buffered.headers["x-cashu"]
    live = await call(
        world,
        "POST",
        "/v1/chat/completions",
        headers={"X-Cashu": await world.purse.fund(60), "X-Cashu-Change": "event"},
        json=body,
    )
    assert "x-cashu" not in live.headers
    events = [line[6:] for line in live.text.splitlines() if line.startswith("data: {")]
    event_change = json.loads(events[-1])["x_cashu"]
    assert await world.purse.receive(header_change) == await world.purse.receive(event_change)


async def test_nothing_is_charged_when_the_model_server_fails_before_the_first_byte(
    world: World,
) -> None:
    for fault, status, code in (
        ("status-500", 502, "upstream_error"),
        ("status-401", 502, "upstream_error"),
        ("drop", 502, "upstream_error"),
        ("garbage", 502, "upstream_error"),
        ("context", 400, "context_length_exceeded"),
        ("status-429", 429, "rate_limit_exceeded"),  # last: the upstream is left alone then
    ):
        world.upstream.fault = fault
        answer = await call(
            world,
            "POST",
            "/v1/chat/completions",
            headers={"X-Cashu": await world.purse.fund(30)},
            json=BODY,
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), fault
        assert await world.purse.receive(answer.headers["x-cashu"]) == 30
    assert (await world.quiet_books()).revenue_msat == 0


async def test_a_client_that_hangs_up_pays_for_what_it_saw_and_stops_the_model_server(
    world: World,
) -> None:
    world.upstream.delay_s = 0.2
    key = (
        await call(
            world, "POST", "/v1/wallet/create", json={"cashu_token": await world.purse.fund(50)}
        )
    ).json()["api_key"]
    async with (
        httpx.AsyncClient(timeout=30) as http,
        http.stream(
            "POST",
            f"{world.node.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {key}"},
            json={**BODY, "stream": True},
        ) as answer,
    ):
        async for _ in answer.aiter_bytes():
            break
    await asyncio.wait_for(world.upstream.disconnected.wait(), 10)
    books = await world.quiet_books()
    full = 100 + 10 * 20 + 20 * 16
    assert 100 < books.revenue_msat < full
    assert books.held_msat == 0


async def test_thirty_requests_and_withdrawals_on_one_key_never_overspend(world: World) -> None:
    key = (
        await call(
            world, "POST", "/v1/wallet/create", json={"cashu_token": await world.purse.fund(40)}
        )
    ).json()["api_key"]
    extra = [await world.purse.fund(1) for _ in range(3)]
    answers = await asyncio.gather(
        *(call(world, "POST", "/v1/chat/completions", key=key, json=BODY) for _ in range(30)),
        *(
            call(world, "POST", "/v1/wallet/withdraw", key=key, json={"amount": 2})
            for _ in range(30)
        ),
        *(
            call(world, "POST", "/v1/wallet/topup", key=key, json={"cashu_token": token})
            for token in extra
        ),
    )
    assert {answer.status_code for answer in answers} <= {200, 402}
    tokens = [a.json()["cashu_token"] for a in answers if "cashu_token" in a.json()]
    assert len(tokens) == len(set(tokens))
    assert sum([await world.purse.receive(token) for token in tokens]) == 2 * len(tokens)
    books = await world.quiet_books()
    spent = sum(
        int(answer.headers["x-routstr-cost-msats"])
        for answer in answers
        if "x-routstr-cost-msats" in answer.headers and answer.status_code == 200
    )
    assert books.open_msat == 43_000 - 2_000 * len(tokens) - spent
    await world.assert_coins_are_real()


async def test_clients_that_go_away_at_any_moment_leave_nothing_held(world: World) -> None:
    tokens = [await world.purse.fund(20) for _ in range(24)]
    body = json.dumps(BODY).encode()
    for number, token in enumerate(tokens):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.node.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: n\r\ncontent-type: application/json\r\n"
            + f"x-cashu: {token}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        await asyncio.sleep(number * 0.0005)
        writer.transport.abort()
        del reader
    books = await world.quiet_books()
    assert (books.holds_open, books.operations_open) == (0, 0)
    back = 0
    for token in tokens:
        answer = await call(world, "POST", "/v1/balance/refund", headers={"X-Cashu": token})
        if answer.status_code == 404:  # it went away before its request was read
            back += 20
            assert await world.purse.receive(token) == 20
        else:
            assert answer.status_code == 200
            back += await world.purse.receive(answer.json()["token"])
    books = await world.quiet_books()
    assert back * 1000 == 24 * 20_000 - books.revenue_msat - books.dust_msat
