"""Is an announced URL there, and whose is it? ``GET {url}/v1/info`` must name the signer's npub."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from discovery.announcement import Announcement, is_onion
from discovery.dialects import read_models
from discovery.errors import ForbiddenAddress, InvalidKey, ProxyUnavailable
from discovery.netguard import NetGuard
from discovery.nostr.keys import parse_pubkey
from discovery.offers import ModelOffer
from discovery.onion import check_onion, onion_connector, proxy_errors

_MAX_REMEMBERED = 1_000
_MAX_KEPT_INFO_BYTES = 8_192


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe found out.

    ``verified``: a probed URL names the signer and none names anyone else. ``reachable`` is None
    when nothing could be tried; ``reason`` says why something is not as it should be.
    """

    verified: bool
    reachable: bool | None
    latency_ms: int | None
    reason: str = ""
    verified_urls: tuple[str, ...] = ()
    info: bytes = b""
    """The node's own ``/v1/info`` as JSON; empty when unknown or over 8 KiB."""
    url: str = ""
    """The URL that answered best: the signer's own, or one that names nobody; else empty."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one URL answered; ``failure`` is empty when it gave a JSON object."""

    url: str
    latency_ms: int | None = None
    failure: str = ""
    tried: bool = True
    owner: str | None = None
    """Public key (hex) it names; None when it names nobody."""
    info: bytes = b""


class Prober:
    """Asks announced URLs who they are; ``async with`` or :meth:`close`.

    Args:
        guard: judges every URL and every address dialled.
        timeout_s: deadline for one URL, connecting and reading included.
        max_body_bytes: longest ``/v1/info`` read.
        max_models_bytes: longest ``/v1/models`` read; ``max_models`` of it are taken.
        max_urls: how many URLs of one announcement are asked.
        remember_s: an answer is reused this long, so that many announcements of one URL do not
            turn this node against it.
        per_host_per_minute: how many requests one host gets from here in a minute.
        socks_proxy: ``socks5://host:port`` of Tor: onion services are asked through it, names
            and all, and nothing else is; None leaves them unasked.
    """

    def __init__(
        self,
        guard: NetGuard,
        *,
        timeout_s: float = 10.0,
        max_body_bytes: int = 65_536,
        max_models_bytes: int = 1024 * 1024,
        max_models: int = 2_000,
        max_urls: int = 3,
        remember_s: float = 15.0,
        per_host_per_minute: int = 60,
        socks_proxy: str | None = None,
    ) -> None:
        self._guard = guard
        self._timeout_s = timeout_s
        self._max_body_bytes = max_body_bytes
        self._max_models_bytes = max_models_bytes
        self._max_models = max_models
        self._max_urls = max_urls
        self._remember_s = remember_s
        self._per_host = per_host_per_minute
        self._socks_proxy = socks_proxy
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        """The one to onion services, and the other."""
        self._answers: OrderedDict[str, tuple[float, _Answer]] = OrderedDict()
        self._hosts: OrderedDict[str, deque[float]] = OrderedDict()

    async def __aenter__(self) -> Prober:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def can_ask(self, announcement: Announcement) -> bool:
        """Is there a URL among the announced that can be asked from here?"""
        return any(map(self._reaches, announcement.urls))

    async def probe(self, announcement: Announcement) -> ProbeResult:
        """Ask the announced URLs. Never raises for what the other side does."""
        urls = [url for url in announcement.urls if self._reaches(url)][: self._max_urls]
        if not urls:
            reason = (
                "only an onion address is announced, and no Tor proxy is configured"
                if announcement.urls
                else "only relays are announced: there is no URL to ask"
            )
            return ProbeResult(False, None, None, reason)
        answers = await asyncio.gather(*(self._ask(url) for url in urls))
        given = [answer for answer in answers if not answer.failure]
        if not given:
            tried = any(answer.tried for answer in answers)
            return ProbeResult(False, False if tried else None, None, answers[0].failure)
        own = [answer for answer in given if answer.owner == announcement.pubkey]
        foreign = next((answer for answer in given if answer.owner != announcement.pubkey), None)
        best = own[0] if own else given[0]
        reason = ""
        if foreign is not None:
            whose = "names another key" if foreign.owner else "names no key"
            reason = f"{foreign.url} {whose}"
        return ProbeResult(
            verified=bool(own) and foreign is None,
            reachable=True,
            latency_ms=best.latency_ms,
            reason=reason,
            verified_urls=tuple(answer.url for answer in own),
            info=best.info,
            url=best.url if best.owner in (None, announcement.pubkey) else "",
        )

    async def models(self, url: str) -> tuple[ModelOffer, ...] | None:
        """What ``GET {url}/v1/models`` says is for sale; None when it cannot be read.

        Never raises for what the other side does.
        """
        if not self._may_ask(urlsplit(url).hostname or "", time.monotonic()):
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._check(url)
                status, body = await self._get(f"{url}/v1/models", self._max_models_bytes)
        except (
            TimeoutError,
            ForbiddenAddress,
            ProxyUnavailable,
            aiohttp.ClientError,
            OSError,
            ValueError,
        ):
            return None
        if status != 200 or body is None:
            return None
        try:
            return read_models(orjson.loads(body), max_models=self._max_models)
        except ValueError:
            return None

    async def _ask(self, url: str) -> _Answer:
        now = time.monotonic()
        known = self._answers.get(url)
        if known is not None and now - known[0] < self._remember_s:
            return known[1]
        if not self._may_ask(urlsplit(url).hostname or "", now):
            return _Answer(url, failure="that host was asked too often; later", tried=False)
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._fetch(url)
        except TimeoutError:
            answer = _Answer(url, failure=f"no answer within {self._timeout_s:g} s")
        except ForbiddenAddress as error:
            answer = _Answer(url, failure=str(error))
        except ProxyUnavailable as error:
            # that says nothing about the node
            answer = _Answer(url, failure=str(error), tried=False)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The library's text can quote the peer: only the kind of failure is kept.
            answer = _Answer(url, failure=f"cannot be asked: {type(error).__name__}")
        self._answers[url] = (time.monotonic(), answer)
        self._answers.move_to_end(url)
        if len(self._answers) > _MAX_REMEMBERED:
            self._answers.popitem(last=False)
        return answer

    async def _fetch(self, url: str) -> _Answer:
        # Before the connector judges the address, so that a refusal has its own reason.
        await self._check(url)
        started = time.monotonic()
        status, body = await self._get(f"{url}/v1/info", self._max_body_bytes)
        latency_ms = round((time.monotonic() - started) * 1000)
        if status != 200:
            return _Answer(url, failure=f"/v1/info answers {status}")
        if body is None:
            return _Answer(url, failure="/v1/info is too long, or compressed against our wish")
        try:
            info = orjson.loads(body)
        except ValueError:
            return _Answer(url, failure="/v1/info is not JSON")
        if not isinstance(info, dict):
            return _Answer(url, failure="/v1/info is not a JSON object")
        kept = orjson.dumps(info)
        return _Answer(
            url,
            latency_ms,
            owner=_owner(info),
            info=kept if len(kept) <= _MAX_KEPT_INFO_BYTES else b"",
        )

    async def _get(self, url: str, max_bytes: int) -> tuple[int, bytes | None]:
        """Status and body; no body when it is not 200, too long or compressed."""
        with proxy_errors():
            return await self._read(self._client(onion=is_onion(url)), url, max_bytes)

    async def _read(
        self, client: aiohttp.ClientSession, url: str, max_bytes: int
    ) -> tuple[int, bytes | None]:
        async with client.get(url, allow_redirects=False) as response:
            if (
                response.status != 200
                or response.headers.get("content-encoding", "identity") != "identity"
            ):
                return response.status, None
            body = bytearray()
            async for data in response.content.iter_any():
                body += data
                if len(body) > max_bytes:
                    return response.status, None
            return response.status, bytes(body)

    def _reaches(self, url: str) -> bool:
        return self._socks_proxy is not None or not is_onion(url)

    async def _check(self, url: str) -> None:
        """Raises ForbiddenAddress for where nothing may be asked."""
        if self._socks_proxy is not None and is_onion(url):
            check_onion(url)
        else:
            await self._guard.check_url(url)

    def _client(self, *, onion: bool) -> aiohttp.ClientSession:
        session = self._sessions.get(onion)
        if session is None:
            session = self._sessions[onion] = aiohttp.ClientSession(
                connector=(
                    onion_connector(self._socks_proxy)
                    if onion and self._socks_proxy is not None
                    else self._guard.connector()
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"accept": "application/json", "accept-encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            )
        return session

    def _may_ask(self, host: str, now: float) -> bool:
        times = self._hosts.setdefault(host, deque(maxlen=self._per_host))
        self._hosts.move_to_end(host)
        if len(self._hosts) > _MAX_REMEMBERED:
            self._hosts.popitem(last=False)
        if len(times) == self._per_host and now - times[0] < 60:
            return False
        times.append(now)
        return True


def _owner(info: Mapping[str, Any]) -> str | None:
    named = info.get("npub")
    if not isinstance(named, str):
        return None
    try:
        return parse_pubkey(named)
    except InvalidKey:
        return None
