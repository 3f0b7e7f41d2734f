"""A Nostr client that shares no code with ours: nostr-sdk (Rust), kinds 80 and 81, by the letter
of docs/protocol.md."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import nostr_sdk

WAIT_S = 20.0


@dataclass(frozen=True)
class Answer:
    """A framed reply, put together."""

    status: int
    headers: dict[str, str]
    body: bytes
    trailers: dict[str, str]


class SdkClient:
    """A client that shares no code with ours: nostr-sdk for keys, encryption and the relay."""

    def __init__(self, url: str, node: str, kinds: list[int]) -> None:
        self.keys = nostr_sdk.Keys.generate()
        self.pubkey: str = self.keys.public_key().to_hex()
        self._url = url
        self._node = nostr_sdk.PublicKey.parse(node)
        self._kinds = kinds
        self._client = nostr_sdk.Client()
        self.arrived: list[dict[str, Any]] = []
        """The contents of the replies, in order of arrival."""
        self.wraps: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SdkClient:
        await self._client.add_relay(nostr_sdk.RelayUrl.parse(self._url))
        await self._client.connect()
        stream = self._client.notifications()
        wanted = nostr_sdk.Filter().kinds([nostr_sdk.Kind(kind) for kind in self._kinds])
        await self._client.subscribe(
            nostr_sdk.ReqTarget.auto([wanted.pubkey(self.keys.public_key())])
        )
        self._task = asyncio.create_task(self._listen(stream))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._client.shutdown()

    def seal(self, content: dict[str, Any], *, created_at: int | None = None) -> Any:
        when = nostr_sdk.Timestamp.from_secs(created_at or int(time.time()))
        rumor = (
            nostr_sdk.EventBuilder(nostr_sdk.Kind(80), json.dumps(content))
            .custom_created_at(when)
            .finalize_unsigned(self.keys.public_key())
        )
        rumor.ensure_id()
        return nostr_sdk.nip59_make_seal(self.keys, self._node, rumor)

    def wrap(self, seal: Any, *, kind: int = 21059, recipient: Any = None) -> Any:
        """``recipient`` is whom it is encrypted for; it is always addressed to the node."""
        once = nostr_sdk.Keys.generate()
        content = nostr_sdk.nip44_encrypt(
            once.secret_key(),
            recipient or self._node,
            seal.as_json(),
            nostr_sdk.Nip44Version.V2,
        )
        builder = nostr_sdk.EventBuilder(nostr_sdk.Kind(kind), content)
        return builder.tags([nostr_sdk.Tag.public_key(self._node)]).finalize(once)

    async def send(self, *contents: dict[str, Any]) -> None:
        for content in contents:
            await self.publish(self.wrap(self.seal(content)))

    async def publish(self, event: Any) -> None:
        output = await self._client.send_event(event)
        assert output.success

    async def replies(self, count: int) -> list[dict[str, Any]]:
        """Wait until so many replies have come, all told."""
        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(lambda: len(self.arrived) >= count)
        return self.arrived

    async def framed(self, message_id: str) -> Answer:
        """Wait for all frames and put them together by the letter of the protocol."""

        def frames() -> dict[int, dict[str, Any]]:
            return {f["seq"]: f for f in self.arrived if f["id"] == message_id}

        def whole() -> bool:
            final = [f for f in frames().values() if f.get("final")]
            return bool(final) and len(frames()) == final[0]["frames"]

        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(whole)
        ordered = [frames()[seq] for seq in range(len(frames()))]
        body = b"".join(base64.b64decode(frame["bodyBase64"]) for frame in ordered)
        assert ordered[-1]["sha256"] == hashlib.sha256(body).hexdigest()
        first = ordered[0]
        return Answer(first["status"], first["headers"], body, ordered[-1]["trailers"])

    async def _listen(self, stream: Any) -> None:
        while (item := await stream.next()) is not None:
            if not item.is_new_event():
                continue
            wrapped = item.event
            secret = self.keys.secret_key()
            seal = nostr_sdk.Event.from_json(
                nostr_sdk.nip44_decrypt(secret, wrapped.author(), wrapped.content())
            )
            assert seal.verify()
            assert seal.author().to_hex() == self._node.to_hex()
            rumor = json.loads(nostr_sdk.nip44_decrypt(secret, seal.author(), seal.content()))
            assert rumor["kind"] == 81
            assert rumor["pubkey"] == self._node.to_hex()
            async with self._news:
                self.wraps.append(json.loads(wrapped.as_json()))
                self.arrived.append(json.loads(rumor["content"]))
                self._news.notify_all()


def message(
    body: bytes = b"{}",
    message_id: str = "m",
    url: str = "/v1/echo",
    **more: Any,
) -> dict[str, Any]:
    """The content of a request in one part; ``more`` adds to it or replaces."""
    return {
        "id": message_id,
        "partIndex": 0,
        "parts": 1,
        "bodyBase64": base64.b64encode(body).decode(),
        "method": "POST",
        "url": url,
        "headers": {"content-type": "application/json"},
        **more,
    }


def in_parts(body: bytes, size: int, **more: Any) -> list[dict[str, Any]]:
    """The contents of a request of which the body is cut into parts of ``size`` bytes."""
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    whole = [
        message(chunk, partIndex=index, parts=len(chunks), **more)
        for index, chunk in enumerate(chunks)
    ]
    head = {"method", "url", "headers"}
    return whole[:1] + [
        {key: value for key, value in part.items() if key not in head} for part in whole[1:]
    ]


def error_of(reply: dict[str, Any]) -> str:
    """The code of a plain error reply."""
    document = json.loads(base64.b64decode(reply["bodyBase64"]))
    assert document["request_id"]
    code: str = document["error"]["code"]
    return code
