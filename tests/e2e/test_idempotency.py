"""Promise: a paid request under an idempotency key runs once and its answer can be had again."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.e2e.conftest import BODY, OpenWorld, World


async def open_account(world: World, http: httpx.AsyncClient) -> dict[str, str]:
    created = await http.post(
        "/v1/wallet/create", json={"cashu_token": await world.purse.fund(100)}
    )
    return {"Authorization": f"Bearer {created.json()['api_key']}", "Idempotency-Key": "one"}


async def ask(http: httpx.AsyncClient, headers: dict[str, str], **fields: object) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={**BODY, **fields}, headers=headers)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_answer_again(world: World, stream: bool) -> None:
    fields = {"stream": stream, "stream_options": {"include_usage": True}} if stream else {}
    async with httpx.AsyncClient(base_url=world.node.url, timeout=30) as http:
        headers = await open_account(world, http)
        first = await ask(http, headers, **fields)
        again = await ask(http, headers, **fields)
        assert (first.status_code, again.status_code) == (200, 200)
        assert again.content == first.content
        assert again.headers["content-type"] == first.headers["content-type"]
        assert again.headers["idempotent-replayed"] == "true"
        assert "idempotent-replayed" not in first.headers
        assert int(again.headers["x-routstr-cost-msats"]) > 0
        other = await ask(http, headers, **fields, temperature=1)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
        assert world.upstream.calls == 1
        await ask(http, {**headers, "Idempotency-Key": "two"}, **fields)
        assert world.upstream.calls == 2
    books = await world.quiet_books()
    assert books.revenue_msat == 2 * int(again.headers["x-routstr-cost-msats"])


@pytest.mark.parametrize("change", ["header", "event"])
async def test_with_a_token(world: World, change: str) -> None:
    """The change comes again too, and it is the same token."""
    token = await world.purse.fund(20)
    headers = {"X-Cashu": token, "Idempotency-Key": "k"}
    fields: dict[str, object] = {}
    if change == "event":
        headers["X-Cashu-Change"] = "event"
        fields = {"stream": True}
    async with httpx.AsyncClient(base_url=world.node.url, timeout=30) as http:
        first = await ask(http, headers, **fields)
        again = await ask(http, headers, **fields)
        assert (first.status_code, again.status_code) == (200, 200)
        assert again.content == first.content
        if change == "header":
            assert again.headers["x-cashu"] == first.headers["x-cashu"]
            await world.purse.receive(again.headers["x-cashu"])
        unnamed = await ask(http, {"X-Cashu": token}, **fields)
        assert unnamed.json()["error"]["code"] == "token_already_spent"
        other = await ask(http, {**headers, "Idempotency-Key": "j"}, **fields)
        assert other.json()["error"]["code"] == "token_already_spent"
    assert world.upstream.calls == 1 or change == "event"
    await world.quiet_books()


async def test_while_it_runs(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.node.url, timeout=30) as http:
        headers = await open_account(world, http)
        world.upstream.delay_s = 0.05
        first = asyncio.create_task(ask(http, headers, stream=True))
        async with asyncio.timeout(10):
            await world.upstream.called.wait()
        busy = await ask(http, headers, stream=True)
        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "idempotency_in_progress")
        assert busy.headers["x-should-retry"] == "true"
        assert int(busy.headers["retry-after"]) >= 1
        whole = await first
        again = await ask(http, headers, stream=True)
        assert again.content == whole.content


async def test_what_broke_off_is_not_run_again_and_what_failed_is(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.node.url, timeout=30) as http:
        headers = await open_account(world, http)
        world.upstream.fault = "status-500"
        assert (await ask(http, headers, stream=True)).status_code == 502
        world.upstream.fault = "cut"
        cut = await ask(http, headers, stream=True)
        assert (cut.status_code, b'"error"' in cut.content) == (200, True)
        world.upstream.fault = ""
        lost = await ask(http, headers, stream=True)
        assert (lost.status_code, lost.json()["error"]["code"]) == (409, "interrupted")


async def test_over_a_restart_and_when_it_is_too_long(open_world: OpenWorld) -> None:
    world = await open_world(environment={"NODESTR_LEDGER__MAX_STORED_ANSWER_BYTES": "1024"})
    async with httpx.AsyncClient(base_url=world.node.url, timeout=30) as http:
        headers = await open_account(world, http)
        first = await ask(http, headers, max_tokens=4)
        assert len(first.content) < 1024
        long_headers = {**headers, "Idempotency-Key": "long"}
        assert len((await ask(http, long_headers, stream=True)).content) > 1024
        await world.node.stop()
        await world.node.start()
        again = await ask(http, headers, max_tokens=4)
        assert again.content == first.content
        lost = await ask(http, long_headers, stream=True)
        assert (lost.status_code, lost.json()["error"]["code"]) == (409, "interrupted")


async def test_an_answer_that_newer_ones_have_displaced(open_world: OpenWorld) -> None:
    """The room of an account is bounded; what is gone is not run again."""
    world = await open_world(
        environment={
            "NODESTR_LEDGER__MAX_STORED_ANSWER_BYTES": "1024",
            "NODESTR_LEDGER__MAX_STORED_ANSWERS_BYTES_PER_ACCOUNT": "1500",
        }
    )
    async with httpx.AsyncClient(base_url=world.node.url, timeout=30) as http:
        headers = await open_account(world, http)
        for name in "abcd":
            assert (
                await ask(http, {**headers, "Idempotency-Key": name}, max_tokens=4)
            ).status_code == 200
        calls = world.upstream.calls
        kept = await ask(http, {**headers, "Idempotency-Key": "d"}, max_tokens=4)
        assert (kept.status_code, kept.headers["idempotent-replayed"]) == (200, "true")
        gone = await ask(http, {**headers, "Idempotency-Key": "a"}, max_tokens=4)
        assert (gone.status_code, gone.json()["error"]["code"]) == (409, "interrupted")
        assert world.upstream.calls == calls == 4
    await world.quiet_books()
