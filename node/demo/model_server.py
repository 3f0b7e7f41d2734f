"""A small OpenAI-compatible model server: deterministic words, honest usage, faults on demand.

For the demo and the tests. A word is a token. The answer depends on nothing but the prompt.
A fault is asked for by the model name (``demo#cut``) or by ``server.fault``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from aiohttp import web

MAX_BODY_BYTES = 64 << 20
MAX_RECORDED_CALLS = 1000

_SENTENCE = (
    "a node sells answers for ecash and nobody asks who pays while relays carry sealed letters "
    "between keys that never met and every coin is counted twice before it moves so the change "
    "comes home and the books agree at the end of each quiet day on the open market of machines"
)
VOCABULARY = tuple(_SENTENCE.split())

FAULTS = frozenset({
    "status-400", "status-401", "status-404", "status-429", "status-500", "status-503",
    "context",   # 400 with code context_length_exceeded
    "drop",      # disconnects before the first byte
    "hang",      # never answers
    "cut",       # disconnects in the middle of the answer
    "stall",     # stops sending in the middle of the answer, stays connected
    "no-usage",  # does not count
    "bad-usage", # counts what cannot be
    "garbage",   # 200, but not an answer
    "empty",     # an answer without any text
    "error-event",  # reports an error in the middle of the stream
    "no-done",   # a stream without [DONE]
})  # fmt: skip


class _DroppedError(ConnectionResetError):
    """This side hung up, as it was told to."""


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A call as it arrived."""

    headers: dict[str, str]
    body: dict[str, Any]


class ModelServer:
    """``async with ModelServer() as server:`` then talk to ``server.url``.

    Args:
        port: 0 takes a free one.
        models: the ids of ``/v1/models``; any name is answered.
        api_key: demanded as a bearer token when given.
        delay_s: pause before each chunk of a stream.
        words: length of an answer when the request sets no lower limit.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        models: Sequence[str] = ("demo",),
        api_key: str | None = None,
        delay_s: float = 0.0,
        words: int = 16,
    ) -> None:
        self.models = tuple(models)
        self.delay_s = delay_s
        self.words = words
        self.fault: str | None = None
        self.calls = 0
        self.called = asyncio.Event()
        """Set by the first call; a test may clear it."""
        self.recorded: deque[RecordedCall] = deque(maxlen=MAX_RECORDED_CALLS)
        self.chunks_sent = 0
        self.disconnects = 0
        """How often a client hung up before its answer was complete."""
        self.disconnected = asyncio.Event()
        """Set by the first of them; a test may clear it."""
        self._host, self._port, self._api_key = host, port, api_key
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._list_models)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """The base URL, ``/v1`` included."""
        return f"http://{self._host}:{self._port}/v1"

    async def _list_models(self, request: web.Request) -> web.Response:
        if not self._authorized(request):
            return _error(401, "bad key")
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "demo"}
            for name in self.models
        ]
        return web.json_response({"object": "list", "data": models})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        self.called.set()
        try:
            body = json.loads(await request.read())
            answer = Answer.to(body, self.words)
        except (ValueError, TypeError, KeyError, AttributeError):
            return _error(400, "the body is not a chat completion request")
        self.recorded.append(RecordedCall(dict(request.headers), body))
        if not self._authorized(request):
            return _error(401, "bad key")
        fault = self.fault or str(body["model"]).partition("#")[2]
        try:
            early = await self._fail_early(request, fault)
            if early is not None:
                return early
            if fault == "empty":
                answer.words = []
            if body.get("stream"):
                return await self._stream(request, body, answer, fault)
            return await self._reply(request, answer, fault)
        except _DroppedError:
            raise
        except (ConnectionResetError, asyncio.CancelledError):
            self.disconnects += 1
            self.disconnected.set()
            raise

    def _authorized(self, request: web.Request) -> bool:
        sent = request.headers.get("Authorization")
        return self._api_key is None or sent == f"Bearer {self._api_key}"

    async def _fail_early(self, request: web.Request, fault: str) -> web.Response | None:
        if fault and fault not in FAULTS:
            return _error(400, f"there is no fault {fault!r}")
        if fault.startswith("status-"):
            status = int(fault.removeprefix("status-"))
            headers = {"Retry-After": "7"} if status == 429 else {}
            return _error(status, f"told to fail with {status}", headers=headers)
        if fault == "context":
            message = "This model's maximum context length is 8192 tokens."
            return _error(400, message, code="context_length_exceeded", param="messages")
        if fault == "garbage":
            return web.Response(text="<html>not JSON</html>", content_type="application/json")
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "drop":
            _drop(request)
        return None

    async def _reply(self, request: web.Request, answer: Answer, fault: str) -> web.StreamResponse:
        raw = json.dumps(answer.completion(fault)).encode()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(raw)
        await response.prepare(request)
        half = len(raw) // 2
        await response.write(raw[:half])
        await self._break_off(request, fault)
        await response.write(raw[half:])
        await response.write_eof()
        return response

    async def _stream(
        self, request: web.Request, body: dict[str, Any], answer: Answer, fault: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chunks = answer.chunks()
        if (body.get("stream_options") or {}).get("include_usage") and fault != "no-usage":
            chunks.append({**answer.head(), "choices": [], "usage": answer.usage(fault)})
        for position, chunk in enumerate(chunks):
            if position == len(chunks) // 2:
                await self._break_off(request, fault)
                if fault == "error-event":
                    chunk = {"error": {"message": "out of memory at 10.0.0.7", "code": 500}}
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.chunks_sent += 1
        if fault != "no-done":
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _break_off(self, request: web.Request, fault: str) -> None:
        if fault == "cut":
            _drop(request)
        if fault == "stall":
            await asyncio.Event().wait()


@dataclass(slots=True)
class Answer:
    """The words that answer a prompt, in the shapes of the API."""

    id: str
    model: str
    prompt_tokens: int
    words: list[str]
    finish_reason: str
    choices: int

    @classmethod
    def to(cls, body: dict[str, Any], length: int) -> Answer:
        """Raises ValueError, TypeError, KeyError or AttributeError when ``body`` is no request."""
        prompt = " ".join(_texts(body["messages"]))
        digest = hashlib.sha256(prompt.encode()).digest()
        asked = prompt.split()
        words = ["You", "asked:", *asked[-6:], "—"]
        words += [VOCABULARY[byte % len(VOCABULARY)] for byte in digest * (1 + length // 32)]
        limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
        limit = min([length, *(int(value) for value in limits if value)])
        return cls(
            id=f"chatcmpl-{digest.hex()[:24]}",
            model=str(body["model"]),
            prompt_tokens=len(asked) + 4 * len(body["messages"]),
            words=words[:limit],
            finish_reason="length" if limit < length else "stop",
            choices=int(body.get("n") or 1),
        )

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def usage(self, fault: str = "") -> dict[str, Any]:
        if fault == "bad-usage":
            return {"prompt_tokens": -1, "completion_tokens": 1e30, "total_tokens": None}
        completion = len(self.words) * self.choices
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }

    def completion(self, fault: str = "") -> dict[str, Any]:
        """The answer in one piece."""
        message = {"role": "assistant", "content": self.text}
        choices = [
            {"index": index, "message": message, "finish_reason": self.finish_reason}
            for index in range(self.choices)
        ]
        document = {**self.head("chat.completion"), "choices": choices}
        return document if fault == "no-usage" else {**document, "usage": self.usage(fault)}

    def chunks(self) -> list[dict[str, Any]]:
        """The answer word by word."""
        chunks = []
        for index in range(self.choices):
            deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
            deltas += [
                {"content": word if position == 0 else f" {word}"}
                for position, word in enumerate(self.words)
            ]
            chunks += [self._chunk(index, delta, None) for delta in deltas]
            chunks.append(self._chunk(index, {}, self.finish_reason))
        return chunks

    def head(self, kind: str = "chat.completion.chunk") -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": 0, "model": self.model}

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason}
        return {**self.head(), "choices": [choice]}


def _texts(messages: list[dict[str, Any]]) -> list[str]:
    texts = []
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = " ".join(str(part.get("text", "")) for part in content)
        texts.append(str(content))
    return texts


def _drop(request: web.Request) -> NoReturn:
    if request.transport is not None:
        request.transport.abort()
    raise _DroppedError


def _error(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    error = {"message": message, "type": "error", "code": code, "param": param}
    return web.json_response({"error": error}, status=status, headers=headers)
