"""A request over Nostr is answered exactly once, whole, to its sender only, whatever happens."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import nostr_sdk
import pytest

from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from node.client.nostr import NostrClient, Patience, ReplyTimeout
from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Request, Started
from node.core.money import Msat
from node.errors import InsufficientBalance, InvalidApiKey, RateLimitExceeded, UpstreamFailed
from node.ports import MessageRecord, StoredReply
from node.transport.dm.assembly import AssemblyLimits
from node.transport.dm.limits import DmLimits, Pacing
from node.transport.dm.server import DmServer
from tests.fakes import stranger
from tests.fakes.relays import FaultRelay, StrictRelay, fault_relay, strict_relay
from tests.fakes.stranger import SdkClient, error_of

PAID = {"content-type": "application/json", "x-cashu": "cashuBtoken"}
CHANGE = "cashuBchange"
IMPATIENT = Patience(gap_s=0.1, max_gap_s=0.4, idle_s=0.3, max_idle_s=1.0)
WAIT_S = 20.0

Script = Callable[[Request], AsyncGenerator[ReplyEvent, None]]


class Dispatcher:
    """Plays a script per path and remembers what it was asked."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {"/v1/echo": echo}
        self.requests: list[Request] = []
        self.closed: list[str] = []

    async def handle(self, request: Request) -> AsyncGenerator[ReplyEvent, None]:
        self.requests.append(request)
        events = self.scripts[request.path](request)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()
            self.closed.append(request.path)


async def echo(request: Request) -> AsyncGenerator[ReplyEvent, None]:
    yield Started(200, {"content-type": "application/json"})
    yield Chunk(request.body)
    yield Receipt(cost=Msat(1234), change=CHANGE)


class MemoryLog:
    """A MessageLog that survives a server, not a process."""

    def __init__(self) -> None:
        self.digests: dict[tuple[str, str], str] = {}
        self.replies: dict[tuple[str, str], StoredReply] = {}
        self.broken = False

    async def begin(self, sender: str, message_id: str, digest: str) -> MessageRecord:
        if self.broken:
            raise OSError("disk full")
        key = (sender, message_id)
        seen_before = key in self.digests
        if self.digests.setdefault(key, digest) != digest:
            return MessageRecord("conflict")
        if key in self.replies:
            return MessageRecord("done", self.replies[key])
        return MessageRecord("started" if seen_before else "new")

    async def finish(self, sender: str, message_id: str, reply: StoredReply) -> None:
        self.replies[sender, message_id] = reply

    async def prune(self, older_than_s: int) -> int:
        return 0


class Node:
    """A DmServer with its pool; ``restart`` is what a new process would be."""

    def __init__(
        self, url: str | list[str], limits: DmLimits | None, keys: Keys | None = None
    ) -> None:
        self.keys = keys or Keys.generate()
        self.dispatcher = Dispatcher()
        self.log = MemoryLog()
        self.healthy: int | None = None
        self.urls = [url] if isinstance(url, str) else url
        self.limits = limits or DmLimits()
        self._running: contextlib.AsyncExitStack | None = None
        self.open_pool = lambda: RelayPool(self.urls, keys=self.keys)

    @property
    def pubkey(self) -> str:
        return self.keys.pubkey

    async def start(self) -> None:
        self._running = stack = contextlib.AsyncExitStack()
        self.pool = await stack.enter_async_context(self.open_pool())
        self.server = DmServer(
            self.pool,
            self.keys,
            self.dispatcher,
            self.log,
            load_healthy=self._load_healthy,
            store_healthy=self._store_healthy,
            limits=self.limits,
            pacing=Pacing(first_s=0.02, max_s=0.1),
        )
        await self.server.start()
        assert await self.server.ready(WAIT_S)
        stack.push_async_callback(self.server.stop, 5.0)

    async def stop(self) -> None:
        if self._running is not None:
            await self._running.aclose()
            self._running = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def _load_healthy(self) -> int | None:
        return self.healthy

    async def _store_healthy(self, moment: int) -> None:
        self.healthy = moment


@contextlib.asynccontextmanager
async def node_at(url: str | list[str], limits: DmLimits | None = None) -> AsyncIterator[Node]:
    node = Node(url, limits)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


@pytest.fixture
async def relay() -> AsyncIterator[StrictRelay]:
    async with strict_relay() as running:
        yield running


@pytest.fixture
async def node(relay: StrictRelay) -> AsyncIterator[Node]:
    async with node_at(relay.url) as running:
        yield running


@pytest.fixture
async def client(relay: StrictRelay) -> AsyncIterator[NostrClient]:
    async with NostrClient([relay.url], patience=IMPATIENT) as running:
        yield running


def sdk_client(url: str, node: Node, kinds: tuple[int, ...] = (21059,)) -> SdkClient:
    return SdkClient(url, node.pubkey, list(kinds))


def message(body: bytes = b"{}", message_id: str = "m", **more: Any) -> dict[str, Any]:
    return stranger.message(body, message_id, **{"headers": PAID, **more})


def in_parts(body: bytes, size: int, **more: Any) -> list[dict[str, Any]]:
    return stranger.in_parts(body, size, **{"headers": PAID, **more})


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------ the two formats


async def test_plain_request_of_a_foreign_client(relay: StrictRelay, node: Node) -> None:
    body = b"0123456789" * 4000
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(*in_parts(body, 16_384))
        replies = await sdk.replies(3)
    replies.sort(key=lambda reply: reply["partIndex"])
    assert [(r["id"], r["partIndex"], r["parts"]) for r in replies] == [
        ("m", index, 3) for index in range(3)
    ]
    assert b"".join(base64.b64decode(reply["bodyBase64"]) for reply in replies) == body
    assert replies[0]["status"] == 200
    headers = replies[0]["headers"]
    assert all(isinstance(value, str) for value in headers.values())
    assert headers["content-type"] == "application/json"
    assert headers["x-cashu"] == CHANGE
    assert headers["x-routstr-cost-msats"] == "1234"
    assert headers["x-request-id"]


async def test_request_reaches_the_dispatcher_as_it_was_sent(
    relay: StrictRelay, node: Node
) -> None:
    headers = {"Content-Type": "text/x", "X-Cashu": "cashuB", "Cookie": "a=b", "Host": "evil"}
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(message(b"\x00\xff", url="/v1/echo?a=1&b=%20", headers=headers))
        await sdk.replies(1)
        (request,) = node.dispatcher.requests
        assert request.peer == sdk.pubkey
    assert (request.method, request.path) == ("POST", "/v1/echo")
    assert request.query == {"a": "1", "b": " "}
    assert request.body == b"\x00\xff"
    assert request.headers == {"content-type": "text/x", "x-cashu": "cashuB"}
    assert request.carriage == "nostr"
    assert request.idempotency_key == f"nostr:{request.peer}:m"


async def test_framed_request_of_a_foreign_client(relay: StrictRelay, node: Node) -> None:
    body = bytes(range(256)) * 200
    async with sdk_client(relay.url, node) as sdk:
        parts = in_parts(body, 16_384, frames=True, v=1, idempotency="x")
        await sdk.send(parts[2], parts[0], parts[0], parts[3], parts[1], parts[2])
        reply = await sdk.framed("m")
    assert (reply.status, reply.body) == (200, body)
    assert reply.trailers == {"x-cashu": CHANGE, "x-cost-msat": "1234"}
    assert len(node.dispatcher.requests) == 1


async def test_our_client_in_both_formats(node: Node, client: NostrClient) -> None:
    body = b"x" * 40_000
    framed = await client.request(node.keys.npub, "POST", "/v1/echo", headers=PAID, body=body)
    assert (framed.status, framed.body, framed.change) == (200, body, CHANGE)
    assert framed.trailers["x-cost-msat"] == "1234"
    plain = await client.request(
        node.pubkey, "POST", "/v1/echo", headers=PAID, body=body, plain=True
    )
    assert (plain.status, plain.body, plain.change) == (200, body, CHANGE)
    assert plain.headers["x-routstr-cost-msats"] == "1234"


async def test_live_reply_arrives_while_it_is_generated(node: Node, client: NostrClient) -> None:
    go_on = asyncio.Event()

    async def live(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {"content-type": "text/event-stream"}, live=True)
        yield Chunk(b"data: 1\n\n")
        await go_on.wait()
        yield Chunk(b"data: [DONE]\n\n")
        yield Receipt(cost=Msat(7), change=CHANGE)

    node.dispatcher.scripts["/v1/live"] = live
    async with client.stream(node.pubkey, "POST", "/v1/live", headers=PAID) as stream:
        assert await stream.started() == 200
        assert stream.headers["content-type"] == "text/event-stream"
        assert await anext(stream) == b"data: 1\n\n"
        go_on.set()
        assert [data async for data in stream] == [b"data: [DONE]\n\n"]
        assert stream.trailers == {"x-cashu": CHANGE, "x-cost-msat": "7"}


async def test_large_live_reply_comes_whole_and_in_order(node: Node, client: NostrClient) -> None:
    chunks = [bytes([number]) * 7_000 for number in range(40)]

    async def live(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {}, live=True)
        for chunk in chunks:
            yield Chunk(chunk)
            await asyncio.sleep(0)
        yield Receipt()

    node.dispatcher.scripts["/v1/live"] = live
    async with client.stream(node.pubkey, "POST", "/v1/live", headers=PAID) as stream:
        assert b"".join([data async for data in stream]) == b"".join(chunks)


async def test_failure_keeps_its_status_headers_and_change(
    relay: StrictRelay, node: Node, client: NostrClient
) -> None:
    async def pay_first(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        error = InsufficientBalance()
        error.payment_request = "creqAtest"
        yield Failed(error)

    async def fails(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Failed(UpstreamFailed(), Receipt(cost=Msat(0), change=CHANGE))

    node.dispatcher.scripts |= {"/v1/pay": pay_first, "/v1/fails": fails}
    reply = await client.request(node.pubkey, "POST", "/v1/pay")
    assert reply.status == 402
    assert reply.headers["x-cashu"] == "creqAtest"
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["error"]["code"] == "insufficient_balance"
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
    reply = await client.request(node.pubkey, "POST", "/v1/fails", headers=PAID)
    assert (reply.status, reply.change) == (502, CHANGE)
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(message(url="/v1/fails"))
        (plain,) = await sdk.replies(1)
    assert (plain["status"], plain["headers"]["x-cashu"]) == (502, CHANGE)


# ------------------------------------------------------------------ exactly once


async def test_same_id_again_repeats_the_answer_also_after_a_restart(
    relay: StrictRelay, node: Node
) -> None:
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(message(b"one"))
        (first,) = await sdk.replies(1)
        await sdk.send(message(b"one"))
        _, second = await sdk.replies(2)
        await node.restart()
        await sdk.send(message(b"one"))
        _, _, third = await sdk.replies(3)
        assert first == second == third
        await sdk.send(message(b"one", frames=True))
        await sdk.replies(4)
        framed = sdk.arrived[3]
        assert framed["bodyBase64"] == first["bodyBase64"]
        assert framed["trailers"] == {"x-cashu": CHANGE, "x-cost-msat": "1234"}
    assert len(node.dispatcher.requests) == 1


async def test_same_id_with_another_body_is_a_conflict(relay: StrictRelay, node: Node) -> None:
    release = asyncio.Event()

    async def slow(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        await release.wait()
        async for event in echo(request):
            yield event

    node.dispatcher.scripts["/v1/slow"] = slow
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(message(b"one", url="/v1/slow"))
        await until(lambda: node.server.running)
        await sdk.send(message(b"two", url="/v1/slow"))
        (conflict,) = await sdk.replies(1)
        assert (conflict["status"], error_of(conflict)) == (409, "idempotency_conflict")
        release.set()
        _, answer = await sdk.replies(2)
        assert base64.b64decode(answer["bodyBase64"]) == b"one"
        await sdk.send(message(b"two", url="/v1/slow"))
        assert (await sdk.replies(3))[2]["status"] == 409
        await sdk.send(message(b"one", url="/v1/slow"))
        assert (await sdk.replies(4))[3] == answer
    assert len(node.dispatcher.requests) == 1


async def test_ids_of_different_senders_are_different(relay: StrictRelay, node: Node) -> None:
    async with sdk_client(relay.url, node) as one, sdk_client(relay.url, node) as two:
        await one.send(message(b"one"))
        await two.send(message(b"two"))
        (first,), (second,) = await one.replies(1), await two.replies(1)
    assert base64.b64decode(first["bodyBase64"]) == b"one"
    assert base64.b64decode(second["bodyBase64"]) == b"two"


async def test_request_cut_short_by_a_crash_runs_again_under_the_same_key(
    relay: StrictRelay, node: Node, client: NostrClient
) -> None:
    async def never(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {}, live=True)
        yield Chunk(b"half an ")
        await asyncio.Event().wait()

    node.dispatcher.scripts["/v1/crash"] = never
    async with client.stream(node.pubkey, "POST", "/v1/crash", headers=PAID) as stream:
        assert await anext(stream) == b"half an "
        await node.server.stop(0.0)
        node.dispatcher.scripts["/v1/crash"] = complete_answer
        await node.restart()
        assert b"".join([data async for data in stream]) == b"answer"
        assert stream.trailers["x-cashu"] == CHANGE
    first, *others = node.dispatcher.requests
    assert others
    assert {other.idempotency_key for other in others} == {first.idempotency_key}


async def complete_answer(request: Request) -> AsyncGenerator[ReplyEvent, None]:
    yield Started(200, {})
    yield Chunk(b"half an answer")
    yield Receipt(change=CHANGE)


async def test_change_is_not_lost_to_a_failure_after_the_start(
    node: Node, client: NostrClient
) -> None:
    async def fails_late(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {"content-type": "text/event-stream"}, live=True)
        yield Failed(UpstreamFailed(), Receipt(change=CHANGE))

    node.dispatcher.scripts["/v1/late"] = fails_late
    reply = await client.request(node.pubkey, "POST", "/v1/late", headers=PAID)
    assert reply.change == CHANGE
    assert reply.body.startswith(b'data: {"error"')


async def test_what_says_ask_again_is_not_repeated(node: Node, client: NostrClient) -> None:
    async def busy(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Failed(RateLimitExceeded(retry_after_s=3))

    node.dispatcher.scripts["/v1/busy"] = busy
    reply = await client.request(node.pubkey, "POST", "/v1/busy", headers=PAID, message_id="again")
    assert (reply.status, reply.headers["retry-after"]) == (429, "3")
    node.dispatcher.scripts["/v1/busy"] = echo
    reply = await client.request(node.pubkey, "POST", "/v1/busy", headers=PAID, message_id="again")
    assert reply.status == 200


async def test_bug_or_broken_log_is_an_internal_error_and_not_the_end(
    node: Node, client: NostrClient
) -> None:
    async def bug(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        if request.path:
            raise ZeroDivisionError("cashuBtoken")
        yield Receipt()

    async def late_bug(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {"content-type": "text/event-stream"}, live=True)
        yield Chunk(b"data: 1\n\n")
        raise ZeroDivisionError

    node.dispatcher.scripts |= {"/v1/bug": bug, "/v1/late": late_bug}
    reply = await client.request(node.pubkey, "POST", "/v1/bug", headers=PAID)
    assert (reply.status, reply.json()["error"]["code"]) == (500, "internal_error")
    assert b"cashu" not in reply.body
    reply = await client.request(node.pubkey, "POST", "/v1/late", headers=PAID)
    assert reply.status == 200
    assert reply.body.startswith(b'data: 1\n\ndata: {"error"')
    assert node.log.replies == {}
    node.log.broken = True
    reply = await client.request(node.pubkey, "POST", "/v1/echo", headers=PAID)
    assert reply.status == 500
    node.log.broken = False
    reply = await client.request(node.pubkey, "POST", "/v1/echo", headers=PAID)
    assert reply.status == 200
    assert [request.path for request in node.dispatcher.requests].count("/v1/echo") == 1


async def test_reply_beyond_the_bound_is_kept_without_its_body(relay: StrictRelay) -> None:
    limits = DmLimits(max_stored_reply_bytes=1000)
    async with node_at(relay.url, limits) as node, sdk_client(relay.url, node) as sdk:
        await sdk.send(message(b"x" * 2000))
        (first,) = await sdk.replies(1)
        await node.restart()
        await sdk.send(message(b"x" * 2000))
        _, again = await sdk.replies(2)
    assert len(base64.b64decode(first["bodyBase64"])) == 2000
    assert again["bodyBase64"] == ""
    assert again["headers"]["x-reply-truncated"] == "true"
    assert again["headers"]["x-cashu"] == CHANGE


# ------------------------------------------------------------------ cancel, nack, loss


async def endless(request: Request) -> AsyncGenerator[ReplyEvent, None]:
    """Goes on until it is told to stop, as a generation does."""
    assert request.stop is not None
    yield Started(200, {"content-type": "text/event-stream"}, live=True)
    yield Chunk(b"data: 1\n\n")
    await request.stop.wait()
    yield Chunk(b"data: usage\n\n")
    yield Receipt(cost=Msat(7), change=CHANGE)


async def test_cancel_ends_the_reply_in_order_and_it_is_kept(
    relay: StrictRelay, node: Node
) -> None:
    node.dispatcher.scripts["/v1/endless"] = endless
    request = message(url="/v1/endless", frames=True)
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(request)
        await sdk.replies(1)
        await sdk.send({"id": "m", "cancel": True})
        reply = await sdk.framed("m")
        assert reply.body == b"data: 1\n\ndata: usage\n\n"
        assert reply.trailers == {"x-cashu": CHANGE, "x-cost-msat": "7"}
        await until(lambda: node.server.running == 0)
        await node.restart()
        sdk.arrived.clear()
        await sdk.send(request)
        assert await sdk.framed("m") == reply
        late = sdk_client(relay.url, node, (1059,))
        late.keys = sdk.keys
        async with late:
            copy = (await late.replies(1))[0]
    assert copy["trailers"]["x-cashu"] == CHANGE
    assert len(node.dispatcher.requests) == 1


async def test_our_client_cancels_and_gets_its_change(node: Node, client: NostrClient) -> None:
    node.dispatcher.scripts["/v1/endless"] = endless
    async with client.stream(node.pubkey, "POST", "/v1/endless", headers=PAID) as stream:
        assert await anext(stream) == b"data: 1\n\n"
        await stream.cancel()
        assert [data async for data in stream] == [b"data: usage\n\n"]
        assert stream.trailers == {"x-cashu": CHANGE, "x-cost-msat": "7"}
    async with client.stream(node.pubkey, "POST", "/v1/endless", headers=PAID) as stream:
        assert await anext(stream) == b"data: 1\n\n"
    await until(lambda: node.server.running == 0)
    assert len(node.log.replies) == 2


async def test_a_node_that_stops_keeps_nothing_of_what_it_broke_off(
    node: Node, client: NostrClient
) -> None:
    node.dispatcher.scripts["/v1/endless"] = endless
    async with client.stream(node.pubkey, "POST", "/v1/endless", headers=PAID) as stream:
        assert await anext(stream) == b"data: 1\n\n"
        await node.server.stop(0.0)
    assert node.dispatcher.closed == ["/v1/endless"]
    assert node.log.replies == {}


async def test_cancel_of_another_sender_does_nothing(relay: StrictRelay, node: Node) -> None:
    release = asyncio.Event()

    async def slow(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        await release.wait()
        async for event in echo(request):
            yield event

    node.dispatcher.scripts["/v1/slow"] = slow
    async with sdk_client(relay.url, node) as one, sdk_client(relay.url, node) as two:
        await one.send(message(b"one", url="/v1/slow"))
        await until(lambda: node.server.running)
        await two.send({"id": "m", "cancel": True}, {"id": "m", "nack": [0]}, message(b"two"))
        await two.replies(1)
        release.set()
        (reply,) = await one.replies(1)
        assert reply["status"] == 200
        assert len(two.arrived) == 1


async def test_nack_brings_exactly_those_frames_again(relay: StrictRelay, node: Node) -> None:
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(*in_parts(bytes(60_000), 16_384, frames=True))
        await sdk.framed("m")
        count = len(sdk.arrived)
        await sdk.send({"id": "m", "nack": [2, 0, 99]})
        again = (await sdk.replies(count + 2))[count:]
        assert sorted(frame["seq"] for frame in again) == [0, 2]
        original = {frame["seq"]: frame for frame in sdk.arrived[:count]}
        assert all(frame == original[frame["seq"]] for frame in again)
    assert len(node.dispatcher.requests) == 1


class LossyRelay(FaultRelay):
    """Loses a third of the live events of those kinds, for good."""

    def __init__(self, kinds: set[int]) -> None:
        super().__init__()
        self._kinds = kinds
        self._dice = random.Random(7)
        self.lost = 0

    async def broadcast(self, *events: dict[str, Any]) -> None:
        for event in events:
            if event["kind"] in self._kinds and self._dice.random() < 1 / 3:
                self.lost += 1
                self.events.remove(event)
            else:
                await super().broadcast(event)


async def test_client_gets_it_all_from_a_relay_that_loses_every_third_event() -> None:
    relay = LossyRelay({21059})
    await relay.start()
    body = bytes(range(256)) * 400
    try:
        async with (
            node_at(relay.url) as node,
            NostrClient([relay.url], take_stored=False, patience=IMPATIENT) as client,
        ):
            for plain in (False, True):
                reply = await client.request(
                    node.pubkey, "POST", "/v1/echo", headers=PAID, body=body, plain=plain
                )
                assert (reply.status, reply.body, reply.change) == (200, body, CHANGE)
            assert len(node.dispatcher.requests) == 2
            assert relay.lost > 5
    finally:
        await relay.stop()


async def test_reply_is_sent_again_when_the_relay_refused_it() -> None:
    async with (
        fault_relay() as relay,
        node_at(relay.url) as node,
        NostrClient([relay.url]) as client,
    ):

        async def while_refused(request: Request) -> AsyncGenerator[ReplyEvent, None]:
            relay.faults.ok_false = "rate-limited: slow down"
            yield Started(200, {})
            yield Receipt()

        node.dispatcher.scripts["/v1/refused"] = while_refused
        asking = asyncio.create_task(
            client.request(node.pubkey, "POST", "/v1/refused", headers=PAID)
        )
        await relay.has_received("EVENT", 2)
        relay.faults.ok_false = ""
        assert (await asking).status == 200


# ------------------------------------------------------------------ strangers


async def test_forged_copy_does_not_shadow_the_real_event() -> None:
    async with (
        fault_relay(forged_first=True, twice=True, leak=True) as relay,
        node_at(relay.url) as node,
        NostrClient([relay.url]) as client,
    ):
        reply = await client.request(node.pubkey, "POST", "/v1/echo", headers=PAID, body=b"real")
        assert reply.body == b"real"
        assert len(node.dispatcher.requests) == 1


async def test_wraps_for_others_and_impostors_are_dropped(relay: StrictRelay, node: Node) -> None:
    async with sdk_client(relay.url, node) as sdk, sdk_client(relay.url, node) as victim:
        stranger = nostr_sdk.Keys.generate().public_key()
        await sdk.publish(sdk.wrap(sdk.seal(message()), recipient=stranger))
        await until(lambda: node.server.counts["undecryptable"] == 1)

        # A rumor in the victim's name under the attacker's seal.
        rumor = nostr_sdk.EventBuilder(nostr_sdk.Kind(80), json.dumps(message())).finalize_unsigned(
            victim.keys.public_key()
        )
        node_key = nostr_sdk.PublicKey.parse(node.pubkey)
        content = sdk.keys.nip44_encrypt(node_key, rumor.as_json())
        seal = nostr_sdk.EventBuilder(nostr_sdk.Kind(13), content).finalize(sdk.keys)
        await sdk.publish(sdk.wrap(seal))
        await until(lambda: node.server.counts["undecryptable"] == 2)

        await sdk.send(message())
        await sdk.replies(1)
        assert [request.peer for request in node.dispatcher.requests] == [sdk.pubkey]
        assert victim.arrived == []


async def test_other_kinds_and_unreadable_contents_are_dropped(
    relay: StrictRelay, node: Node
) -> None:
    async with sdk_client(relay.url, node) as sdk:
        note = nostr_sdk.EventBuilder(nostr_sdk.Kind(14), "hi").finalize_unsigned(
            sdk.keys.public_key()
        )
        node_key = nostr_sdk.PublicKey.parse(node.pubkey)
        await sdk.publish(sdk.wrap(nostr_sdk.nip59_make_seal(sdk.keys, node_key, note)))
        await until(lambda: node.server.counts["other_kind"] == 1)
        await sdk.send({"no": "id"})
        await until(lambda: node.server.counts["malformed"] == 1)
        await sdk.send(message(headers={"accept": 5}))
        (reply,) = await sdk.replies(1)
        assert (reply["status"], error_of(reply)) == (400, "invalid_value")
    assert node.dispatcher.requests == []


@pytest.mark.parametrize("age_s", [-700, 700])
async def test_stale_and_future_requests_are_not_served(
    relay: StrictRelay, node: Node, age_s: int
) -> None:
    async with sdk_client(relay.url, node) as sdk:
        seal = sdk.seal(message(b"stale"), created_at=int(time.time()) - age_s)
        await sdk.publish(sdk.wrap(seal))
        await until(lambda: node.server.counts["stale"] == 1)
        await sdk.send(message(b"fresh"))
        (reply,) = await sdk.replies(1)
        assert base64.b64decode(reply["bodyBase64"]) == b"fresh"
    assert len(node.dispatcher.requests) == 1


@pytest.mark.parametrize(
    "url", ["/admin/api/settings", "/v1/../admin", "/v1/%2e%2e/metrics", "http://127.0.0.1/v1/x"]
)
async def test_what_is_not_a_path_under_v1_is_not_found(
    relay: StrictRelay, node: Node, url: str
) -> None:
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(message(url=url))
        (reply,) = await sdk.replies(1)
        assert (reply["status"], error_of(reply)) == (404, "not_found")
        await sdk.send(message(url=url, message_id="f", frames=True))
        assert (await sdk.framed("f")).status == 404
    assert node.dispatcher.requests == []


# ------------------------------------------------------------------ limits


async def test_oversize_gets_one_413_and_the_rest_is_ignored(relay: StrictRelay) -> None:
    limits = DmLimits(assembly=AssemblyLimits(max_request_bytes=2000, max_parts=50))
    async with node_at(relay.url, limits) as node, sdk_client(relay.url, node) as sdk:
        await sdk.send(*in_parts(bytes(5000), 500))
        await sdk.send(message(message_id="n", parts=51))
        replies = await sdk.replies(2)
        assert [(r["id"], r["status"], error_of(r)) for r in replies] == [
            ("m", 413, "request_too_large"),
            ("n", 413, "request_too_large"),
        ]
        await sdk.send(message(bytes(16_385), message_id="o"))
        assert (await sdk.replies(3))[2]["status"] == 413
        await sdk.send(message(bytes(100), message_id="p"))
        assert (await sdk.replies(4))[3]["status"] == 200
        assert len(node.dispatcher.requests) == 1


async def test_every_part_malformed_gets_one_error(relay: StrictRelay, node: Node) -> None:
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(*in_parts(bytes(60_000), 20_000), message(message_id="next"))
        replies = await sdk.replies(2)
        assert [(reply["id"], reply["status"]) for reply in replies] == [("m", 413), ("next", 200)]


async def test_missing_parts_get_a_408_and_sending_all_again_works(relay: StrictRelay) -> None:
    limits = DmLimits(assembly=AssemblyLimits(deadline_s=0.2), sweep_s=0.05)
    async with node_at(relay.url, limits) as node, sdk_client(relay.url, node) as sdk:
        parts = in_parts(bytes(1500), 1000)
        await sdk.send(parts[1])
        (reply,) = await sdk.replies(1)
        assert (reply["status"], error_of(reply)) == (408, "request_incomplete")
        node.limits = DmLimits()
        await node.restart()
        await sdk.send(*parts)
        assert (await sdk.replies(2))[1]["status"] == 200


async def test_one_sender_runs_so_much_at_once_and_others_still_run(relay: StrictRelay) -> None:
    release = asyncio.Event()

    async def slow(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        await release.wait()
        async for event in echo(request):
            yield event

    limits = DmLimits(max_running_per_sender=1, max_running=2)
    async with (
        node_at(relay.url, limits) as node,
        sdk_client(relay.url, node) as one,
        sdk_client(relay.url, node) as two,
        sdk_client(relay.url, node) as three,
    ):
        node.dispatcher.scripts["/v1/slow"] = slow
        await one.send(message(url="/v1/slow", message_id="1"))
        await one.send(message(url="/v1/slow", message_id="2"))
        (refused,) = await one.replies(1)
        assert (refused["id"], refused["status"]) == ("2", 429)
        assert refused["headers"]["retry-after"] == "1"
        await two.send(message(url="/v1/slow"))
        await until(lambda: node.server.running == 2)
        await three.send(message(url="/v1/slow"))
        assert (await three.replies(1))[0]["status"] == 429
        release.set()
        assert (await one.replies(2))[1]["id"] == "1"
        assert (await two.replies(1))[0]["status"] == 200


async def free(request: Request) -> AsyncGenerator[ReplyEvent, None]:
    yield Started(200, {})
    yield Receipt()


async def refused(request: Request) -> AsyncGenerator[ReplyEvent, None]:
    yield Failed(InvalidApiKey())


@pytest.mark.parametrize("script", [free, refused])
@pytest.mark.parametrize("headers", [{}, {"authorization": "x"}, {"x-cashu": "x"}])
async def test_requests_that_cost_nothing_have_a_budget_whatever_they_offer(
    relay: StrictRelay, script: Script, headers: dict[str, str]
) -> None:
    limits = DmLimits(unpaid_per_minute=2, errors_per_minute=1)
    async with node_at(relay.url, limits) as node, sdk_client(relay.url, node) as sdk:
        node.dispatcher.scripts["/v1/x"] = script
        for number in range(4):
            await sdk.send(message(message_id=f"{number}", url="/v1/x", headers=headers))
        await until(lambda: node.server.counts["error_unsaid"] == 1)
        replies = [reply["status"] for reply in await sdk.replies(3)]
        assert replies.count(429) == 1
        assert len(node.dispatcher.requests) == 2


async def test_what_is_paid_for_or_done_with_an_account_takes_no_free_budget(
    relay: StrictRelay,
) -> None:
    limits = DmLimits(unpaid_per_minute=1, max_running_per_sender=1)
    async with node_at(relay.url, limits) as node, sdk_client(relay.url, node) as sdk:
        node.dispatcher.scripts["/v1/wallet/balance"] = free
        for number, url in enumerate(["/v1/echo", "/v1/wallet/balance"] * 2):
            await sdk.send(message(message_id=f"{number}", url=url))
            await sdk.replies(number + 1)
            await until(lambda: node.server.running == 0)
        await sdk.send(message(message_id="0"))  # the stored answer again: it was paid for once
        await sdk.replies(5)
        await until(lambda: node.server.running == 0)
        await sdk.send(message(message_id="last"))
        assert [reply["status"] for reply in await sdk.replies(6)] == [200] * 6


async def test_drain_finishes_what_runs_and_refuses_what_is_new(
    relay: StrictRelay, node: Node
) -> None:
    release = asyncio.Event()

    async def slow(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        await release.wait()
        async for event in echo(request):
            yield event

    node.dispatcher.scripts["/v1/slow"] = slow
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(message(b"old", url="/v1/slow", message_id="old"))
        await until(lambda: node.server.running)
        stopping = asyncio.create_task(node.server.stop(WAIT_S))
        await asyncio.sleep(0)
        await sdk.send(message(b"new", message_id="new"))
        (refused,) = await sdk.replies(1)
        assert (refused["id"], refused["status"]) == ("new", 503)
        assert not stopping.done()
        release.set()
        await stopping
        assert (await sdk.replies(2))[1]["id"] == "old"
        await node.stop()


# ------------------------------------------------------------------ relays and stored wraps


async def test_reply_goes_to_the_relays_the_client_names(relay: StrictRelay, node: Node) -> None:
    async with (
        strict_relay() as other,
        sdk_client(other.url, node) as listener,
        sdk_client(relay.url, node) as speaker,
    ):
        speaker.keys = listener.keys
        await speaker.send(message(relays=[other.url]))
        (reply,) = await listener.replies(1)
        assert reply["status"] == 200


async def test_relays_are_named_only_by_those_who_offer_to_pay(
    relay: StrictRelay, node: Node
) -> None:
    async with strict_relay() as other, sdk_client(relay.url, node) as sdk:
        elsewhere = sdk_client(other.url, node)
        elsewhere.keys = sdk.keys
        async with elsewhere:
            await sdk.send(message(message_id="free", headers={}, relays=[other.url]))
            assert (await sdk.replies(1))[0]["status"] == 200
            parts = in_parts(b"12", 1, relays=[other.url])
            await sdk.send(*parts)  # the key is in the first part only
            (reply,) = await elsewhere.replies(1)
    assert reply["id"] == "m"


@pytest.mark.parametrize("frames", [False, True])
async def test_change_too_large_for_a_message_is_said_and_the_answer_comes(
    relay: StrictRelay, node: Node, client: NostrClient, frames: bool
) -> None:
    async def rich(request: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {"content-type": "text/plain"})
        yield Chunk(b"answer")
        yield Receipt(cost=Msat(7), change="cashuB" + "x" * 30_000)

    node.dispatcher.scripts["/v1/rich"] = rich
    reply = await client.request(
        node.pubkey, "POST", "/v1/rich", headers=PAID, plain=not frames, message_id="rich"
    )
    assert (reply.status, reply.body) == (200, b"answer")
    beside = reply.trailers if frames else reply.headers
    assert beside["x-cashu-omitted"] == "too-large"
    assert beside["x-cost-msat" if frames else "x-routstr-cost-msats"] == "7"
    assert (reply.change, reply.change_omitted) == (None, True)
    assert node.server.omitted == 1
    (kept,) = node.log.replies.values()
    assert len(kept.trailers["x-cashu"]) > 30_000


async def test_change_is_also_kept_on_the_relay(relay: StrictRelay, node: Node) -> None:
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(message(frames=True))
        await sdk.framed("m")
        late = sdk_client(relay.url, node, (1059,))
        late.keys = sdk.keys
        async with late:
            (frame,) = await late.replies(1)
            (wrapped,) = late.wraps
    assert frame["final"]
    assert frame["trailers"]["x-cashu"] == CHANGE
    expiration = int(dict(wrapped["tags"])["expiration"])
    assert abs(expiration - (time.time() + 7 * 86_400)) < 600
    assert wrapped["created_at"] <= time.time()


async def test_client_that_takes_no_stored_wraps_gets_none(relay: StrictRelay, node: Node) -> None:
    async with sdk_client(relay.url, node, (21059, 1059)) as sdk:
        await sdk.send(message(message_id="1", wrap=[21059]), message(message_id="2"))
        await sdk.replies(3)
        kinds = sorted(
            (content["id"], wrapped["kind"])
            for content, wrapped in zip(sdk.arrived, sdk.wraps, strict=True)
        )
    assert kinds == [("1", 21059), ("2", 1059), ("2", 21059)]


async def test_stored_request_waits_for_the_node_and_is_answered_stored(
    relay: StrictRelay, node: Node
) -> None:
    await node.stop()
    async with sdk_client(relay.url, node, (1059, 21059)) as sdk:
        soon, past = int(time.time()) + 3600, int(time.time()) - 5
        hours_ago = int(time.time()) - 7200
        for content, created_at in (
            (message(b"waits", message_id="waits", expires=soon), hours_ago),
            (message(b"late", message_id="late", expires=past), hours_ago),
            (message(b"undated", message_id="undated"), hours_ago),
        ):
            await sdk.publish(sdk.wrap(sdk.seal(content, created_at=created_at), kind=1059))
        node.healthy = hours_ago - 60
        await node.start()
        (reply,) = await sdk.replies(1)
        await until(lambda: node.server.counts["stale"] == 2)
        assert (reply["id"], base64.b64decode(reply["bodyBase64"])) == ("waits", b"waits")
        assert sdk.wraps[0]["kind"] == 1059
        assert [request.body for request in node.dispatcher.requests] == [b"waits"]

        # The relay still has the request; a later restart does not answer it once more.
        node.healthy = int(time.time())
        await node.restart()
        await sdk.publish(sdk.wrap(sdk.seal(message(b"next", message_id="next")), kind=1059))
        assert (await sdk.replies(2))[1]["id"] == "next"
        assert len(node.dispatcher.requests) == 2


async def test_our_client_with_stored_wraps(relay: StrictRelay, node: Node) -> None:
    async with NostrClient([relay.url], stored=True) as client:
        reply = await client.request(node.pubkey, "POST", "/v1/echo", headers=PAID, body=b"x")
    assert (reply.status, reply.body, reply.change) == (200, b"x", CHANGE)


async def test_validity_beyond_a_day_is_refused(relay: StrictRelay, node: Node) -> None:
    async with sdk_client(relay.url, node) as sdk:
        await sdk.send(message(expires=int(time.time()) + 3 * 86_400))
        (reply,) = await sdk.replies(1)
        assert (reply["status"], error_of(reply)) == (400, "invalid_value")


async def test_client_gives_up_at_its_deadline(relay: StrictRelay, client: NostrClient) -> None:
    with pytest.raises(ReplyTimeout):
        await client.request(Keys.generate().pubkey, "GET", "/v1/models", timeout_s=0.5)


async def test_everything_works_where_relays_demand_auth() -> None:
    async with (
        strict_relay(auth=True) as relay,
        node_at(relay.url) as node,
        NostrClient([relay.url], patience=IMPATIENT) as client,
    ):
        reply = await client.request(node.pubkey, "POST", "/v1/echo", headers=PAID, body=b"x")
        assert (reply.status, reply.body) == (200, b"x")
