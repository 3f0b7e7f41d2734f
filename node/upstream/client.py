"""Model servers that speak the OpenAI API, over one shared HTTP client."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp

from node.core.catalog import Backend
from node.errors import NodeError, UpstreamFailed, UpstreamTimeout
from node.ports import UpstreamCall, UpstreamReply
from node.upstream.errors import MAX_ERROR_BYTES, error_from_answer, error_from_client

_LARGE_BODY_BYTES = 1 << 19


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each step of a call may take, in seconds."""

    connect_s: float = 10.0
    """Free place in the pool, name, TCP and TLS."""
    first_byte_s: float = 180.0
    """From the request to the headers, and from there to the first bytes of the body: a server
    may stay silent until the whole answer is computed."""
    chunk_s: float = 60.0
    """Between two pieces of the body."""
    answer_s: float = 3600.0
    """The whole answer, however it trickles."""


class OpenAIUpstream:
    """One model server.

    Args:
        name: what the operator calls it; appears in logs only.
        session: shared by all upstreams; its owner closes it.
        base_url: with ``/v1`` where the server has it.
        api_key: the operator's, sent as a bearer token; never shown.
    """

    def __init__(
        self,
        name: str,
        session: aiohttp.ClientSession,
        base_url: str,
        *,
        api_key: str | None = None,
        deadlines: Deadlines = Deadlines(),
    ) -> None:
        self.name = name
        self._session = session
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key or ""
        self._deadlines = deadlines
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=deadlines.connect_s, sock_connect=deadlines.connect_s
        )

    async def open(self, call: UpstreamCall, backend: Backend) -> UpstreamReply:
        """Send ``call`` here; errors as ``ports.Upstream.open`` has them."""
        deadlines = self._deadlines
        ends_at = asyncio.get_running_loop().time() + deadlines.answer_s
        try:
            async with asyncio.timeout(deadlines.first_byte_s):
                response = await self._session.post(
                    self._base_url + call.path,
                    data=_payload(call.payload.encode(backend.upstream_id)),
                    headers=self._headers(call),
                    timeout=self._timeout,
                    allow_redirects=False,
                    skip_auto_headers=("User-Agent",),
                )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise error_from_client(self.name, error) from error
        reply = _Reply(self.name, backend, response, deadlines, ends_at)
        try:
            await self._check(call, reply)
        except BaseException:
            await reply.close()
            raise
        return reply

    def _headers(self, call: UpstreamCall) -> dict[str, str]:
        headers = {
            **call.headers,
            "content-type": call.payload.content_type,
            "accept": ", ".join(f"{kind}*" if kind.endswith("/") else kind for kind in call.accept),
            "x-request-id": call.request_id,
        }
        if self._api_key:
            headers["authorization"] = f"Bearer {self._api_key}"
        return headers

    async def _check(self, call: UpstreamCall, reply: _Reply) -> None:
        if not 200 <= reply.status < 300:
            raise await reply.error(self._api_key)
        if not any(_is_kind(reply.content_type, wanted) for wanted in call.accept):
            raise UpstreamFailed(
                private=f"{self.name} answered {reply.content_type!r} instead of {call.accept!r}"
            )


def _is_kind(content_type: str, wanted: str) -> bool:
    return content_type.startswith(wanted) if wanted.endswith("/") else content_type == wanted


def _payload(body: bytes) -> bytes | io.BytesIO:
    # aiohttp writes bytes in one go, and warns of it when they are many
    return io.BytesIO(body) if len(body) > _LARGE_BODY_BYTES else body


class _Reply:
    """An answer being read; implements ports.UpstreamReply."""

    def __init__(
        self,
        name: str,
        backend: Backend,
        response: aiohttp.ClientResponse,
        deadlines: Deadlines,
        ends_at: float,
    ) -> None:
        self.backend = backend
        self.status = response.status
        self.content_type = response.content_type
        self._name = name
        self._response = response
        self._deadlines = deadlines
        self._ends_at = ends_at

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        content = self._response.content
        wait_s = self._deadlines.first_byte_s
        try:
            while True:
                async with asyncio.timeout_at(min(loop.time() + wait_s, self._ends_at)):
                    data = await content.readany()
                if not data:
                    return
                yield data
                wait_s = self._deadlines.chunk_s
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise error_from_client(self._name, error) from error

    async def close(self) -> None:
        # A connection is only good for the next call when this answer was read to its end;
        # to close it otherwise is what tells the server to stop generating.
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()

    async def error(self, api_key: str) -> NodeError:
        """The error that an answer other than 2xx stands for."""
        body = bytearray()
        try:
            async with aclosing(self.chunks()) as chunks:
                async for data in chunks:
                    body += data[: MAX_ERROR_BYTES - len(body)]
                    if len(body) >= MAX_ERROR_BYTES:
                        break
        except (UpstreamFailed, UpstreamTimeout):
            pass  # the status alone tells enough
        return error_from_answer(
            self._name, self.status, self._response.headers, bytes(body), hide=api_key
        )


class UpstreamRouter:
    """All upstreams by name; a call goes to the first backend of its model."""

    def __init__(self, upstreams: Mapping[str, OpenAIUpstream]) -> None:
        self._upstreams = dict(upstreams)

    async def open(self, call: UpstreamCall) -> UpstreamReply:
        backend = call.model.backends[0]
        upstream = self._upstreams.get(backend.upstream)
        if upstream is None:
            raise UpstreamFailed(private=f"no upstream is called {backend.upstream!r}")
        return await upstream.open(call, backend)
