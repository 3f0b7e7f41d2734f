"""An ``httpx`` transport over relays, so that the ``openai`` SDK talks to one node without HTTP.

    async with NostrClient(["wss://relay.example.com"]) as client:
        transport = NostrTransport(client, "npub1…")
        http = httpx.AsyncClient(transport=transport)
        sdk = openai.AsyncOpenAI(base_url="http://node/v1", api_key="sk-…", http_client=http)

``httpx`` is no dependency of nodestr: it comes with the SDK. The host of the URL means nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from node.client.nostr import NostrClient, ReplyError
from node.client.stream import ReplyStream, ReplyTimeout

PASSED_ON = frozenset(
    {
        "content-type",
        "accept",
        "authorization",
        "x-api-key",
        "x-cashu",
        "x-cashu-change",
        "idempotency-key",
        "anthropic-version",
        "anthropic-beta",
    }
)
"""Of a request's headers those that mean something to a node; the rest tells about the machine."""


class NostrTransport(httpx.AsyncBaseTransport):
    """Sends requests of an ``httpx.AsyncClient`` to one node.

    Trailers of the answer (change, cost) are in ``response.extensions["trailers"]`` once the body
    is read. Failures are httpx's own: ``ReadTimeout``, ``ReadError``.

    Args:
        client: open for as long as this is used; its owner closes it.
        provider: the node's npub or hex public key.
        timeout_s: for a whole answer.
    """

    def __init__(self, client: NostrClient, provider: str, *, timeout_s: float = 600.0) -> None:
        self._client = client
        self._provider = provider
        self._timeout_s = timeout_s

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        stream = self._client.stream(
            self._provider,
            request.method,
            request.url.raw_path.decode(),
            headers={
                name.lower(): value
                for name, value in request.headers.items()
                if name.lower() in PASSED_ON
            },
            body=body,
            timeout_s=self._timeout_s,
        )
        try:
            status = await stream.started()
        except ReplyError as error:
            await stream.aclose()
            raise _failure(error, request) from None
        except BaseException:
            await stream.aclose()
            raise
        trailers: dict[str, str] = {}
        return httpx.Response(
            status,
            headers=dict(stream.headers),
            stream=_Body(stream, request, trailers),
            extensions={"trailers": trailers},
        )


class _Body(httpx.AsyncByteStream):
    def __init__(
        self, stream: ReplyStream, request: httpx.Request, trailers: dict[str, str]
    ) -> None:
        self._stream = stream
        self._request = request
        self._trailers = trailers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._stream:
                yield data
            self._trailers.update(self._stream.trailers)
        except ReplyError as error:
            raise _failure(error, self._request) from None

    async def aclose(self) -> None:
        await self._stream.aclose()


def _failure(error: ReplyError, request: httpx.Request) -> httpx.TransportError:
    kind = httpx.ReadTimeout if isinstance(error, ReplyTimeout) else httpx.ReadError
    return kind(str(error), request=request)
