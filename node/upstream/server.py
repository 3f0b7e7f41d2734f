"""One model server, over the HTTP client that all of them share."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType

import aiohttp
from yarl import URL

from node.core.catalog import Backend
from node.errors import NodeError, UpstreamFailed, UpstreamTimeout
from node.ports import UpstreamCall, UpstreamReply
from node.upstream.dialects import (
    NATIVE,
    DialectName,
    Translator,
    base_of,
    key_headers,
    passed_on,
    url_of,
)
from node.upstream.errors import (
    MAX_ERROR_BYTES,
    error_at_start,
    error_from_answer,
    error_from_client,
    says_nothing,
)

_PIECE_BYTES = 1 << 16
"""Read at once: what is kept for a client that does not read is a few of these."""
_LARGE_BODY_BYTES = 1 << 19
_PEEK_BYTES = 16 << 10
"""How many bytes of comments before a stream's first event are waited through."""
_ERROR_TIMEOUT_S = 5.0
"""How long the body of an error may take: its status tells enough."""
_EVENT_STREAM = "text/event-stream"
_JSON = "application/json"
_JSON_STARTS = (b"{", b"[", b"")
"""The last: white space so far, as some servers send to keep the line open."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each step of a call may take, in seconds."""

    connect_s: float = 10.0
    """Free place in the pool, name, TCP and TLS."""
    first_byte_s: float = 180.0
    """From the request to the first bytes of a stream."""
    whole_s: float = 600.0
    """From the request to the first bytes of an answer in one piece: a server is silent until all
    of it has been made."""
    chunk_s: float = 60.0
    """Between two pieces of the body."""
    answer_s: float = 3600.0
    """The whole answer, however it trickles."""


class UpstreamServer:
    """One model server.

    Args:
        name: what the operator calls it; appears in logs and on the operator's pages only.
        session: shared by all upstreams; its owner closes it.
        base_url: in any form that ``dialects.base_of`` knows.
        api_key: the operator's; never shown.
        dialect: see ``node.upstream.dialects``.
        api_version: of Azure's older paths.
        translators: by endpoint; used for those that the dialect has not.
    """

    def __init__(
        self,
        name: str,
        session: aiohttp.ClientSession,
        base_url: str,
        *,
        api_key: str | None = None,
        dialect: DialectName = "openai",
        api_version: str = "",
        deadlines: Deadlines = Deadlines(),
        translators: Mapping[str, Translator] = MappingProxyType({}),
    ) -> None:
        self.name = name
        self.dialect: DialectName = dialect
        self.base_url = base_of(dialect, base_url, api_version)
        self.api_version = api_version
        self.session = session
        self._api_key = api_key or ""
        self._deadlines = deadlines
        self._translators = translators
        self._urls: dict[str, URL] = {}
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=deadlines.connect_s, sock_connect=deadlines.connect_s
        )

    def serves(self, endpoint: str) -> bool:
        """Whether calls of that endpoint can be sent here, translated if need be."""
        return endpoint in NATIVE[self.dialect] or endpoint in self._translators

    def key_headers(self, endpoint: str = "") -> dict[str, str]:
        """The headers that carry the operator's key."""
        return key_headers(self.dialect, endpoint, self._api_key)

    async def open(self, call: UpstreamCall, backend: Backend) -> UpstreamReply:
        """Send ``call`` here and wait until its answer has begun: a 2xx status, a content type
        that was asked for, and the first bytes of a body that does not begin with an error.

        Errors as ``ports.Upstream.open`` has them.
        """
        if call.endpoint in NATIVE[self.dialect]:
            return await self._open(call, backend)
        translator = self._translators.get(call.endpoint)
        if translator is None:
            raise UpstreamFailed(private=f"{self.name} does not serve {call.endpoint}")
        return translator.reply(call, await self._open(translator.call(call), backend))

    async def _open(self, call: UpstreamCall, backend: Backend) -> UpstreamReply:
        deadlines = self._deadlines
        begun_at = asyncio.get_running_loop().time()
        ends_at = begun_at + deadlines.answer_s
        reply: _Reply | None = None
        try:
            streamed = call.accept[0] == _EVENT_STREAM
            # a whole answer is silent until all of it has been made
            wait_s = deadlines.first_byte_s if streamed else deadlines.whole_s
            async with asyncio.timeout_at(min(begun_at + wait_s, ends_at)):
                response = await self.session.post(
                    self._url(call.path, backend.upstream_id),
                    data=_payload(call.payload.encode(backend.upstream_id)),
                    headers=self._headers(call),
                    timeout=self._timeout,
                    allow_redirects=False,
                    skip_auto_headers=("User-Agent",),
                )
                reply = _Reply(self.name, backend, response, deadlines, ends_at)
                if 200 <= reply.status < 300:
                    self._check_type(call, reply)
                    await reply.begin(self._api_key)
                    return reply
            raise await reply.error(self._api_key)
        except BaseException as error:
            if reply is not None:
                await reply.close()
            if isinstance(error, aiohttp.ClientError | OSError | ValueError):
                failure = error_from_client(self.name, error)
                if isinstance(failure, UpstreamTimeout):
                    failure.sent = not isinstance(error, aiohttp.ClientError)
                raise failure from error
            raise

    def _url(self, path: str, upstream_id: str) -> URL:
        if self.api_version:
            return url_of(self.dialect, self.base_url, path, upstream_id, self.api_version)
        url = self._urls.get(path)
        if url is None:  # one for each endpoint
            url = self._urls[path] = url_of(self.dialect, self.base_url, path, upstream_id)
        return url

    def _headers(self, call: UpstreamCall) -> dict[str, str]:
        headers = {
            "content-type": call.payload.content_type,
            "accept": ", ".join(f"{kind}*" if kind.endswith("/") else kind for kind in call.accept),
            "x-request-id": call.request_id,
            **self.key_headers(call.endpoint),
        }
        if call.headers:
            headers |= passed_on(self.dialect, call.headers)
        if call.accept[0] == _EVENT_STREAM:
            # a compressor holds events back
            headers["accept-encoding"] = "identity"
        return headers

    def _check_type(self, call: UpstreamCall, reply: _Reply) -> None:
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

    resumable = True

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
        self._first = b""

    async def begin(self, api_key: str) -> None:
        """Wait for the first bytes that say something. Raises a NodeError when they are an error
        or never come."""
        content = self._response.content
        streamed = self.content_type == _EVENT_STREAM
        first = await content.readany()
        while streamed and len(first) < _PEEK_BYTES and says_nothing(first):
            more = await content.readany()
            if not more:
                first = b""
                break
            first += more
        if not first:
            raise UpstreamFailed(private=f"{self._name} answered nothing")
        if self.content_type == _JSON and first.lstrip()[:1] not in _JSON_STARTS:
            raise UpstreamFailed(private=f"{self._name} answered what is not JSON")
        error = error_at_start(self._name, first, streamed=streamed, hide=api_key)
        if error is not None:
            raise error
        self._first = first

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        if self._first:
            first, self._first = self._first, b""
            yield first
        content = self._response.content
        silence = _Silence(content, self._deadlines.chunk_s, self._ends_at)
        try:
            while True:
                silence.check_end()
                data = content.read_nowait(_PIECE_BYTES)
                if not data and not content.at_eof():
                    silence.begins()
                    data = await content.read(_PIECE_BYTES)
                    silence.ends()
                if not data:
                    return
                yield data
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise error_from_client(self._name, error) from error
        finally:
            silence.stop()

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
            async with asyncio.timeout(_ERROR_TIMEOUT_S), aclosing(self.chunks()) as chunks:
                async for data in chunks:
                    body += data[: MAX_ERROR_BYTES - len(body)]
                    if len(body) >= MAX_ERROR_BYTES:
                        break
        except (UpstreamFailed, UpstreamTimeout, TimeoutError):
            pass  # the status alone tells enough
        return error_from_answer(
            self._name, self.status, self._response.headers, bytes(body), hide=api_key
        )


class _Silence:
    """Ends a read that waits too long.

    One timer looks after all reads of an answer: an ``asyncio.timeout`` for each took 5 µs of the
    10 that a piece costs.
    """

    def __init__(self, content: aiohttp.StreamReader, limit_s: float, ends_at: float) -> None:
        self._content = content
        self._limit_s = limit_s
        self._ends_at = ends_at
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def check_end(self) -> None:
        """Raises TimeoutError when the whole answer has taken too long."""
        if self._loop.time() >= self._ends_at:
            raise TimeoutError

    def begins(self) -> None:
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline(self._since), self._look)

    def ends(self) -> None:
        self._since = None

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _deadline(self, since: float) -> float:
        return min(since + self._limit_s, self._ends_at)

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        deadline = self._deadline(self._since)
        if self._loop.time() < deadline:  # it waits for another piece than when this was set
            self._timer = self._loop.call_at(deadline, self._look)
        else:
            self._content.set_exception(aiohttp.ServerTimeoutError())
