"""The two ways a request reaches a provider, behind one face.

Over HTTP the address is dialled through the guard; over Nostr with a key that lives as long as
this process. What goes wrong on the way is a CarriageError, whatever the answer says is an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp

from discovery.errors import DiscoveryError
from discovery.netguard import NetGuard
from discovery.nostr.keys import Keys
from discovery.nostr.relay import normalize_url
from node.client.nostr import NostrClient, Patience, ReplyError
from node.client.stream import ReplyStream
from node.gateway.journal import Place

MAX_HEADER_BYTES = 256 << 10
"""Longest header of a provider's answer: change of many coins takes its place."""
MAX_RELAYS = 8
"""Relays of one session: our own and the provider's."""
MAX_SESSIONS = 32
"""Nostr sessions kept open, one for each group of relays that we do not use otherwise."""
PATIENCE = Patience(connect_timeout_s=5.0)
_LOOK_S = 0.05


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
    async def secret(self, place: Place) -> str:
        """The key (nsec) by which what is sent to ``place`` from now on can be repeated; empty
        where there is none. Raises CarriageError."""
        ...

    async def open(
        self,
        place: Place,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        name: str | None = None,
        secret: str = "",
    ) -> Answer:
        """Send a request to a path under ``/v1`` and wait for the answer to begin.

        Args:
            name: over relays the id of the request: the same again is answered as before.
            secret: of the session that it was sent by then; by default the present one.

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

    async def secret(self, place: Place) -> str:
        return ""

    async def open(
        self,
        place: Place,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        name: str | None = None,
        secret: str = "",
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
        self._sessions: dict[tuple[str, ...], _Session] = {}
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> NostrCarriage:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def secret(self, place: Place) -> str:
        try:
            return (await self._session(self._relays_for(place))).secret
        except (DiscoveryError, ValueError) as error:
            raise CarriageError(type(error).__name__) from None

    async def open(
        self,
        place: Place,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        name: str | None = None,
        secret: str = "",
    ) -> Answer:
        async with AsyncExitStack() as stack:
            try:
                relays = self._relays_for(place)
                session = await self._session_of(secret, relays, stack)
                await _connected(session)
                stream = session.stream(
                    place.pubkey,
                    method,
                    path,
                    headers=headers,
                    body=body,
                    timeout_s=self._answer_s,
                    message_id=name,
                )
                stack.push_async_callback(stream.aclose)
                status = await stream.started()
            except ReplyError as error:
                raise CarriageError(str(error)) from None
            except (DiscoveryError, ValueError) as error:
                raise CarriageError(type(error).__name__) from None
            return _NostrAnswer(status, stream, stack.pop_all())

    def _relays_for(self, place: Place) -> tuple[str, ...]:
        """Ours, with those of the provider unless it listens on ours. Raises CarriageError."""
        if not place.relays:
            raise CarriageError("the provider is not reached over relays")
        known = []
        for url in place.relays:
            try:
                known.append(normalize_url(url))
            except DiscoveryError:
                continue
        theirs = () if set(self._relays).intersection(known) else tuple(sorted(known))
        wanted = (*theirs, *self._relays)[:MAX_RELAYS]
        if not wanted:
            raise CarriageError("there is no relay to use")
        return wanted

    async def _session(self, relays: tuple[str, ...]) -> _Session:
        """The session of this process on these relays."""
        async with self._opening:
            if relays not in self._sessions:
                if len(self._sessions) >= MAX_SESSIONS:
                    raise CarriageError("too many sessions")
                keys = Keys.generate()
                client = await self._stack.enter_async_context(self._client(relays, keys))
                self._sessions[relays] = _Session(client, keys.nsec())
        return self._sessions[relays]

    async def _session_of(
        self, secret: str, relays: tuple[str, ...], stack: AsyncExitStack
    ) -> NostrClient:
        """The present session, or one with the key of an earlier process, closed with ``stack``."""
        if not secret:
            return (await self._session(relays)).client
        known = self._sessions.get(relays)
        if known is not None and known.secret == secret:
            return known.client
        return await stack.enter_async_context(self._client(relays, Keys.parse(secret)))

    def _client(self, relays: Sequence[str], keys: Keys) -> NostrClient:
        return NostrClient(relays, keys=keys, guard=self._check, patience=PATIENCE)

    async def _check(self, url: str) -> list[str] | None:
        return None if url in self._relays else await self._guard.check_relay_url(url)


async def _connected(session: NostrClient) -> None:
    """Wait for a relay, a moment. Raises CarriageError when there is none."""
    deadline = asyncio.get_running_loop().time() + PATIENCE.connect_timeout_s
    while not session.connected:
        if asyncio.get_running_loop().time() > deadline:
            raise CarriageError("no relay can be reached")
        await asyncio.sleep(_LOOK_S)


@dataclass(frozen=True, slots=True)
class _Session:
    client: NostrClient
    secret: str = field(repr=False)


class _NostrAnswer:
    def __init__(self, status: int, stream: ReplyStream, stack: AsyncExitStack) -> None:
        self._stream = stream
        self._stack = stack
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
        await self._stack.aclose()


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
