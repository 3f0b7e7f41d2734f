"""Promise: the worked example of docs/protocol.md is right to the byte, in any hands."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import nostr_sdk
import pytest

from discovery.nostr import nip44
from discovery.nostr.event import Event, Rumor
from discovery.nostr.giftwrap import unwrap
from discovery.nostr.keys import Keys
from node.transport.dm.assembly import ReplyAssembler, RequestAssembler
from node.transport.dm.codec import RequestPart, parse_reply, parse_request

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
SECTION = PAGE[PAGE.index("### A worked example") : PAGE.index("## 3. HTTP")]
BLOCKS: list[dict[str, Any]] = [
    json.loads(block) for block in re.findall(r"```json\n(.*?)```", SECTION, re.DOTALL)
]
FIXED, *EVENTS = BLOCKS
REQUEST, REPLY = EVENTS[:3], EVENTS[3:]
WAYS = [
    ("request", "client", "node", REQUEST),
    ("reply", "node", "client", REPLY),
]


def compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def keys_of(name: str) -> Keys:
    return Keys.parse(FIXED[name]["secret"])


def signed(keys: Keys, kind: int, content: str, tags: list[list[str]]) -> dict[str, Any]:
    """The event with the randomness of the page: none."""
    created_at = REQUEST[0]["created_at"]
    canonical = compact([0, keys.pubkey, created_at, kind, tags, content])
    digest = hashlib.sha256(canonical.encode()).digest()
    return {
        "id": digest.hex(),
        "pubkey": keys.pubkey,
        "created_at": created_at,
        "kind": kind,
        "tags": tags,
        "content": content,
        "sig": keys.sign_digest(digest),
    }


def test_the_page_has_all_it_promises() -> None:
    assert len(EVENTS) == 6
    for name in ("client", "node", "request wrap", "reply wrap"):
        assert keys_of(name).pubkey == FIXED[name]["public"]
    for name, shared in FIXED["conversation keys"].items():
        one, other = name.split(" and ")
        assert keys_of(one).conversation_key(keys_of(other).pubkey).hex() == shared
        assert keys_of(other).conversation_key(keys_of(one).pubkey).hex() == shared


@pytest.mark.parametrize(("name", "sender", "receiver", "events"), WAYS)
def test_the_events_are_recomputed_from_the_keys_and_nonces(
    name: str, sender: str, receiver: str, events: list[dict[str, Any]]
) -> None:
    rumor, seal, wrap = events
    author, reader, once = keys_of(sender), keys_of(receiver), keys_of(f"{name} wrap")
    nonces = {
        layer: bytes.fromhex(FIXED["nonces"][f"{name} {layer}"]) for layer in ("seal", "wrap")
    }
    canonical = [0, author.pubkey, rumor["created_at"], rumor["kind"], [], rumor["content"]]
    assert rumor["id"] == hashlib.sha256(compact(canonical).encode()).hexdigest()
    key = author.conversation_key(reader.pubkey)
    content = nip44.encrypt(compact(rumor), key, nonces["seal"])
    assert seal == signed(author, 13, content, [])
    key = once.conversation_key(reader.pubkey)
    content = nip44.encrypt(compact(seal), key, nonces["wrap"])
    assert wrap == signed(once, 21059, content, [["p", reader.pubkey]])


@pytest.mark.parametrize(("name", "sender", "receiver", "events"), WAYS)
def test_others_read_them_too(
    name: str, sender: str, receiver: str, events: list[dict[str, Any]]
) -> None:
    del name
    rumor, seal, wrap = events
    assert unwrap(Event.parse(wrap), keys_of(receiver)) == Rumor.parse(rumor)
    secret = nostr_sdk.SecretKey.parse(FIXED[receiver]["secret"])
    outer = nostr_sdk.Event.from_json(compact(wrap))
    assert outer.verify()
    inner = nostr_sdk.Event.from_json(
        nostr_sdk.nip44_decrypt(secret, outer.author(), outer.content())
    )
    assert inner.verify()
    assert json.loads(inner.as_json())["id"] == seal["id"]
    assert inner.author().to_hex() == FIXED[sender]["public"]
    text = nostr_sdk.nip44_decrypt(secret, inner.author(), inner.content())
    assert json.loads(text) == rumor


def test_the_contents_are_a_request_and_its_answer() -> None:
    part = parse_request(REQUEST[0]["content"])
    assert isinstance(part, RequestPart)
    request = RequestAssembler().add("a" * 64, part, 0.0)
    assert request is not None
    assert (request.head.method, request.head.url) == ("POST", "/v1/chat/completions")
    assert request.body.decode() in SECTION
    assert (request.frames, request.wrap) == (True, (21059,))
    answer = ReplyAssembler()
    assert answer.add(parse_reply(REPLY[0]["content"]))
    assert answer.complete
    assert answer.take().decode() in SECTION
    assert (answer.status, answer.trailers) == (200, {"x-cost-msat": "1234"})


def test_the_sizes_that_are_named_are_right() -> None:
    rumor, seal, wrap = map(compact, REQUEST)
    for text in (rumor, seal):
        size, padded = len(text.encode()), nip44.padded_length(len(text.encode()))
        assert f"({size} bytes, padded to {padded})" in SECTION
    assert f"({len(wrap)} bytes)" in SECTION
