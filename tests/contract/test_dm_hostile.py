"""Promise: forged, replayed, re-wrapped, misaddressed and oversize events do nothing, cheaply."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from discovery.nostr.event import MAX_EVENT_BYTES
from discovery.nostr.keys import Keys
from tests.contract.test_dm_transport import PAID, Node, node_at, until
from tests.fakes.relays import FaultRelay, fault_relay
from tests.fakes.stranger import SdkClient, message

WAIT_S = 20.0


@pytest.fixture
async def relay() -> AsyncIterator[FaultRelay]:
    """One that takes and delivers whatever it is given."""
    async with fault_relay() as running:
        yield running


@pytest.fixture
async def node(relay: FaultRelay) -> AsyncIterator[Node]:
    async with node_at(relay.url) as running:
        yield running


@pytest.fixture
async def victim(relay: FaultRelay, node: Node) -> AsyncIterator[SdkClient]:
    async with SdkClient(relay.url, node.pubkey, [21059]) as client:
        yield client


def paid(body: bytes = b"{}", message_id: str = "m", **more: Any) -> dict[str, Any]:
    return message(body, message_id, headers=PAID, **more)


def event_of(wrapped: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(wrapped.as_json())
    return document


def junk(node: Node, content: str) -> dict[str, Any]:
    """A gift wrap with a good signature and something else inside."""
    return Keys.generate().sign(21059, content, [["p", node.pubkey]]).to_dict()


async def works(node: Node, victim: SdkClient) -> None:
    """A request that comes after is answered, and is the only one that ran since."""
    before = len(node.dispatcher.requests)
    await victim.send(paid(b"after", f"after {before}"))
    await until(lambda: any(reply["id"] == f"after {before}" for reply in victim.arrived))
    assert base64.b64decode(victim.arrived[-1]["bodyBase64"]) == b"after"
    assert len(node.dispatcher.requests) == before + 1


async def test_the_same_event_again_and_again_is_read_once(
    relay: FaultRelay, node: Node, victim: SdkClient
) -> None:
    wrapped = victim.wrap(victim.seal(paid()))
    await victim.publish(wrapped)
    await victim.replies(1)
    for _ in range(200):
        await relay.broadcast(event_of(wrapped))
    await works(node, victim)
    assert node.server.counts["requests"] == 2
    assert node.server.counts["resent"] == 0


async def test_a_seal_in_another_wrap_answers_its_author_only(
    relay: FaultRelay, node: Node, victim: SdkClient
) -> None:
    seal = victim.seal(paid(b"mine"))
    await victim.publish(victim.wrap(seal))
    await victim.replies(1)
    async with SdkClient(relay.url, node.pubkey, [21059]) as thief:
        for kind in (21059, 1059):
            await thief.publish(thief.wrap(seal, kind=kind))
        await works(node, victim)
        assert thief.arrived == []
    assert [request.body for request in node.dispatcher.requests] == [b"mine", b"after"]


async def test_an_old_seal_in_a_new_wrap_is_stale(node: Node, victim: SdkClient) -> None:
    old = victim.seal(paid(), created_at=int(time.time()) - 3600)
    for kind in (21059, 1059):
        await victim.publish(victim.wrap(old, kind=kind))
    await until(lambda: node.server.counts["stale"] == 2)
    await works(node, victim)


async def test_a_seal_for_another_node_is_not_readable_here(
    relay: FaultRelay, node: Node, victim: SdkClient
) -> None:
    elsewhere = SdkClient(relay.url, Keys.generate().pubkey, [21059])
    seal = elsewhere.seal(paid())  # encrypted for the other node
    await victim.publish(victim.wrap(seal))
    await until(lambda: node.server.counts["undecryptable"] == 1)
    await works(node, victim)


@pytest.mark.parametrize("change", ["content", "sig", "tags", "pubkey", "created_at"])
async def test_a_changed_event_is_dropped_and_its_original_is_not(
    relay: FaultRelay, node: Node, victim: SdkClient, change: str
) -> None:
    original = event_of(victim.wrap(victim.seal(paid())))
    forged = dict(original)
    forged[change] = {
        "content": original["content"][:-8] + "AAAAAAA=",
        "sig": "00" * 64,
        "tags": [["p", node.pubkey], ["x", "y"]],
        "pubkey": "11" * 32,
        "created_at": original["created_at"] + 1,
    }[change]
    await relay.broadcast(forged)
    await relay.broadcast(original)
    await victim.replies(1)
    await works(node, victim)
    assert node.pool.health()[relay.url].invalid >= 1


async def test_a_flood_of_noise_is_dropped_without_a_word(
    relay: FaultRelay, node: Node, victim: SdkClient
) -> None:
    sent_before = len(relay.frames("EVENT"))
    noise = base64.b64encode(b"\x02" + secrets.token_bytes(200)).decode()
    for content in (noise, "", "#", "x" * 1000, noise * 10):
        for _ in range(30):
            await relay.broadcast(junk(node, content))
    await until(lambda: node.server.counts["undecryptable"] == 150)
    assert len(relay.frames("EVENT")) == sent_before
    await works(node, victim)


async def test_what_is_not_meant_for_us_is_not_even_decrypted(
    relay: FaultRelay, node: Node
) -> None:
    other = Keys.generate()
    relay.faults.leak = True
    for kind in (21059, 1059, 4, 1):
        await relay.broadcast(other.sign(kind, "x", [["p", other.pubkey]]).to_dict())
    relay.faults.leak = False
    async with SdkClient(relay.url, node.pubkey, [21059]) as client:
        await works(node, client)
    assert node.pool.health()[relay.url].unmatched >= 4
    assert node.server.counts["undecryptable"] == 0


async def test_oversize_events_are_dropped_before_their_signature_is_checked(
    relay: FaultRelay, node: Node, victim: SdkClient
) -> None:
    huge = junk(node, "A" * (MAX_EVENT_BYTES + 1))
    for _ in range(3):
        await relay.broadcast(huge)
    await works(node, victim)
    assert node.server.counts["undecryptable"] == 0
    assert node.pool.health()[relay.url].connects == 1


async def test_nacks_and_cancels_for_what_is_not_there_are_not_answered(
    relay: FaultRelay, node: Node, victim: SdkClient
) -> None:
    await victim.send({"id": "nothing", "nack": [0]}, {"id": "nothing", "cancel": True})
    await until(lambda: node.server.counts["nothing_to_resend"] == 1)
    await works(node, victim)
    assert {reply["id"] for reply in victim.arrived} == {"after 0"}


async def test_beginnings_without_an_end_are_asked_for_a_few_times_and_forgotten(
    relay: FaultRelay, node: Node, victim: SdkClient
) -> None:
    await victim.send(*(paid(b"x", f"{number}", parts=9, frames=True) for number in range(12)))
    await until(lambda: node.server.counts["asked_for_parts"] == 8)
    refused = [reply for reply in victim.arrived if "status" in reply]
    assert len(refused) <= 4  # one each for those beyond what one sender may leave open
    await asyncio.sleep(0)
    assert len(node.dispatcher.requests) == 0
