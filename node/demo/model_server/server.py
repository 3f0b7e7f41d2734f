"""The HTTP side of the model server."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from aiohttp import web

from node.demo.model_server.answer import Answered, sse
from node.demo.model_server.chat import chat
from node.demo.model_server.faults import FAULTS, DroppedError, drop, error
from node.demo.model_server.media import image, speech, transcript
from node.demo.model_server.texts import completion, embeddings, moderation, rerank

MAX_BODY_BYTES = 64 << 20
MAX_RECORDED_CALLS = 1000

Endpoint: TypeAlias = Callable[[dict[str, Any], str, int], Answered]
"""(body, fault, length of an answer in words). Raises ValueError, TypeError, KeyError or
AttributeError for what is no request."""
Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

ENDPOINTS: dict[str, Endpoint] = {
    "/chat/completions": chat,
    "/completions": completion,
    "/embeddings": embeddings,
    "/moderations": moderation,
    "/rerank": rerank,
    "/images/generations": image,
    "/audio/transcriptions": transcript,
    "/audio/translations": transcript,
    "/audio/speech": speech,
}


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
        for path, make in ENDPOINTS.items():
            app.router.add_post(f"/v1{path}", self._route(make))
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
            return error(401, "bad key")
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "demo"}
            for name in self.models
        ]
        return web.json_response({"object": "list", "data": models})

    def _route(self, make: Endpoint) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.calls += 1
            self.called.set()
            try:
                body = await _read(request)
                fault = self.fault or str(body["model"]).partition("#")[2]
                answered = make(body, fault, self.words)
            except (ValueError, TypeError, KeyError, AttributeError):
                return error(400, "the body is not a request of this endpoint")
            self.recorded.append(RecordedCall(dict(request.headers), body))
            if not self._authorized(request):
                return error(401, "bad key")
            return await self._answer(request, answered, fault)

        return handle

    async def _answer(
        self, request: web.Request, answered: Answered, fault: str
    ) -> web.StreamResponse:
        try:
            early = await self._fail_early(request, answered, fault)
            if early is not None:
                return early
            return await self._send(request, answered, fault)
        except DroppedError:
            raise
        except (ConnectionResetError, asyncio.CancelledError):
            self.disconnects += 1
            self.disconnected.set()
            raise

    def _authorized(self, request: web.Request) -> bool:
        sent = request.headers.get("Authorization")
        return self._api_key is None or sent == f"Bearer {self._api_key}"

    async def _fail_early(
        self, request: web.Request, answered: Answered, fault: str
    ) -> web.Response | None:
        if fault and fault not in FAULTS:
            return error(400, f"there is no fault {fault!r}")
        if fault.startswith("status-"):
            status = int(fault.removeprefix("status-"))
            headers = {"Retry-After": "7"} if status == 429 else {}
            return error(status, f"told to fail with {status}", headers=headers)
        if fault == "context":
            message = "This model's maximum context length is 8192 tokens."
            return error(400, message, code="context_length_exceeded", param="messages")
        if fault == "garbage":
            return web.Response(text="<html>not JSON</html>", content_type="application/json")
        if fault == "error-body":
            failure = json.dumps({"error": {"message": "out of memory"}})
            kind = answered.content_type.partition(";")[0]
            return web.Response(text=failure, content_type=kind)
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "drop":
            drop(request)
        return None

    async def _send(
        self, request: web.Request, answered: Answered, fault: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": answered.content_type})
        if not answered.streamed:
            response.content_length = sum(map(len, answered.pieces))
        await response.prepare(request)
        for position, piece in enumerate(answered.pieces):
            if position == len(answered.pieces) // 2:
                await self._break_off(request, fault)
                if answered.streamed and fault == "error-event":
                    piece = sse({"error": {"message": "out of memory at 10.0.0.7", "code": 500}})
            if answered.streamed and self.delay_s:
                await asyncio.sleep(self.delay_s)
            await response.write(piece)
            self.chunks_sent += answered.streamed
        if fault != "no-done":
            await response.write(answered.end)
        await response.write_eof()
        return response

    async def _break_off(self, request: web.Request, fault: str) -> None:
        if fault == "cut":
            drop(request)
        if fault == "stall":
            await asyncio.Event().wait()


async def _read(request: web.Request) -> dict[str, Any]:
    """The fields of a JSON body or of a form; of a file also its name and type."""
    if not request.content_type.startswith("multipart/"):
        body: dict[str, Any] = json.loads(await request.read())
        return body
    form: dict[str, Any] = {}
    for name, value in (await request.post()).items():
        if isinstance(value, web.FileField):
            with value.file:
                form[name] = value.file.read()
            form |= {f"{name}_name": value.filename, f"{name}_type": value.content_type}
        else:
            form[name] = value
    return form
