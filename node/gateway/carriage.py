"""The two ways a request reaches a provider, behind one face.

Over HTTP the address is dialled through the guard; over Nostr with a key that lives as long as
this process. What goes wrong on the way is a CarriageError, whatever the answer says is an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import aiohttp

from discovery.errors import DiscoveryError
from discovery.netguard import NetGuard
from discovery.nostr.relay import normalize_url
from node.client.nostr import NostrClient, Patience, ReplyError
from node.client.stream import ReplyStream
from node.gateway.journal import Place

MAX_HEADER_BYTES = 256 << 10
"""Longest header of a provider's answer: change of many coins takes its place."""
MAX_ANSWER_BYTES = 256 << 20
MAX_RELAYS = 8
"""Relays of one session: our own and the provider's."""
MAX_SESSIONS = 32
"""Nostr sessions kept open, one for each group of relays that we do not use otherwise."""
PATIENCE = Patience(connect_timeout_s=5.0)


class CarriageError(Exception):
    """A request or its answer got lost; the text is for the log."""


class Answer(Protocol):
    """An answer whose status and headers (lower-case names) are here."""

    status: int
    headers: Mapping[str, str]

    @property
    def trailers(self) -> Mapping[str, str]:
        """What came after the body; complete when the body is."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises CarriageError."""
        ...

    async def close(self) -> None:
        """Read no more; the provider is told to stop. Idempotent."""
        ...


class Carriage(Protocol):
    async def open(
        self, place: Place, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """Send a request to a path under ``/v1`` and wait for the answer to begin.

        Raises CarriageError.
        """
        ...


class HttpCarriage:
    """Requests over HTTP. ``async with``.

    Args:
        first_byte_s: how long a provider may be silent before its answer, and within it.
        answer_s: how long a whole answer may take.
    """

    def __init__(
        self,
        guard: NetGuard,
        *,
        connect_s: float = 10.0,
        first_byte_s: float = 180.0,
        answer_s: float = 3600.0,
    ) -> None:
        self._session = aiohttp.ClientSession(
            connector=guard.connector(),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=answer_s, connect=connect_s, sock_connect=connect_s, sock_read=first_byte_s
            ),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            skip_auto_headers=("User-Agent",),
        )

    async def __aenter__(self) -> HttpCarriage:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def open(
        self, place: Place, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        if not place.url:
            raise CarriageError("the provider has no URL")
        try:
            response = await self._session.request(
                method,
                f"{place.url}{path}",
                data=body or None,
                headers={**headers, "accept-encoding": "identity"},
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # the library's text can quote a header, and with it the token
            raise CarriageError(type(error).__name__) from None
        return _HttpAnswer(response)


class _HttpAnswer:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = {
            name.lower(): value for name, value in response.headers.items()
        }
        self.trailers: Mapping[str, str] = {}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            async for data in self._response.content.iter_any():
                yield data
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise CarriageError(type(error).__name__) from None

    async def close(self) -> None:
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class NostrCarriage:
    """Requests over relays. ``async with``.

    Args:
        relays: ours; a provider that listens elsewhere gets a session that includes its own.
        guard: judges relays that are not ours.
        answer_s: how long a whole answer may take.
    """

    def __init__(self, relays: Sequence[str], guard: NetGuard, *, answer_s: float = 600.0) -> None:
        self._relays = tuple(normalize_url(url) for url in relays)
        self._guard = guard
        self._answer_s = answer_s
        self._sessions: dict[tuple[str, ...], NostrClient] = {}
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> NostrCarriage:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def open(
        self, place: Place, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        if not place.relays:
            raise CarriageError("the provider is not reached over relays")
        try:
            session = await self._session(place.relays)
            stream = session.stream(
                place.pubkey,
                method,
                path,
                headers=headers,
                body=body,
                timeout_s=self._answer_s,
            )
        except (DiscoveryError, ValueError) as error:
            raise CarriageError(type(error).__name__) from None
        try:
            status = await stream.started()
        except ReplyError as error:
            await stream.aclose()
            raise CarriageError(str(error)) from None
        except BaseException:
            await stream.aclose()
            raise
        return _NostrAnswer(status, stream)

    async def _session(self, relays: Sequence[str]) -> NostrClient:
        """A session whose relays include some of these."""
        ours = set(self._relays)
        known = []
        for url in relays:
            try:
                known.append(normalize_url(url))
            except DiscoveryError:
                continue
        theirs = () if ours.intersection(known) else tuple(sorted(known))
        wanted = (*theirs, *self._relays)[:MAX_RELAYS]
        if not wanted:
            raise CarriageError("there is no relay to use")
        async with self._opening:
            if wanted not in self._sessions:
                if len(self._sessions) >= MAX_SESSIONS:
                    raise CarriageError("too many sessions")
                client = NostrClient(wanted, guard=self._check, patience=PATIENCE)
                self._sessions[wanted] = await self._stack.enter_async_context(client)
        return self._sessions[wanted]

    async def _check(self, url: str) -> list[str] | None:
        return None if url in self._relays else await self._guard.check_relay_url(url)


class _NostrAnswer:
    def __init__(self, status: int, stream: ReplyStream) -> None:
        self._stream = stream
        self.status = status
        self.headers = stream.headers

    @property
    def trailers(self) -> Mapping[str, str]:
        return self._stream.trailers

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            async for data in self._stream:
                yield data
        except ReplyError as error:
            raise CarriageError(str(error)) from None

    async def close(self) -> None:
        await self._stream.aclose()


async def read_all(answer: Answer, max_bytes: int) -> bytes:
    """The whole body. Raises CarriageError, also when it is longer."""
    body = bytearray()
    try:
        async for data in answer.chunks():
            body += data
            if len(body) > max_bytes:
                raise CarriageError("the answer is too long")
    finally:
        await answer.close()
    return bytes(body)
