"""A model server whose answers have the length that was asked for, and that counts who asked."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from typing import Any, Self

from aiohttp import web

_PIECES = 20


def expected_answer(name: str, prompt: str, length: int) -> str:
    """The one right answer: ``length`` letters that depend on all of the request."""
    block = hashlib.sha256(f"{name} {prompt}".encode()).hexdigest()
    return (block * (1 + length // len(block)))[:length]


def usage_of(prompt: str, length: int) -> dict[str, int]:
    """What a request is billed for: a token is four letters."""
    counts = {"prompt_tokens": 1 + len(prompt) // 4, "completion_tokens": 1 + length // 4}
    return {**counts, "total_tokens": sum(counts.values())}


class SizedServer:
    """Chat completions; the field ``user`` is ``name:length``. Use with ``async with``."""

    def __init__(self) -> None:
        self.executed: Counter[str] = Counter()
        """How often a request of that name ran."""
        self.url = ""
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name, _, length = body["user"].partition(":")
        self.executed[name] += 1
        prompt = body["messages"][0]["content"]
        text, usage = expected_answer(name, prompt, int(length)), usage_of(prompt, int(length))
        if not body.get("stream"):
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return web.json_response(_document(name, [{"index": 0, **choice}], usage=usage))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        step = max(1, -(-len(text) // _PIECES))
        for start in range(0, len(text), step):
            delta = {"delta": {"content": text[start : start + step]}, "finish_reason": None}
            await response.write(_event(_document(name, [{"index": 0, **delta}])))
            await asyncio.sleep(0.01)
        end = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        await response.write(_event(_document(name, end)))
        await response.write(_event(_document(name, [], usage=usage)))
        await response.write(b"data: [DONE]\n\n")
        return response


def _document(name: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"id": name, "object": "chat.completion", "model": "sized", "choices": choices, **more}


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"
