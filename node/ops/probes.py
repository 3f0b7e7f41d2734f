"""One question each to a mint, a relay, a model server, a payee: does it do what a node needs?

Every question has a deadline and a bound, and its answer is a ``Finding``: what was found, and in
one line how to mend it. Nothing is sent that costs or changes anything. ``nodestr init`` asks
before the configuration is written, ``nodestr doctor`` asks again.
"""

from __future__ import annotations

import asyncio
import difflib
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Literal
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from discovery.errors import DiscoveryError, RelayError
from discovery.netguard import NetGuard
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayHealth, RelayPool
from node.core.lightning import PayoutError
from node.core.plans import Listed
from node.ecash.lnurl import MAX_ANSWER_BYTES, pay_url
from node.ecash.mint import MintClient, MintError
from node.upstream.fetching import FetchFailed, fetch_json
from node.upstream.listing import list_models
from node.upstream.server import UpstreamServer

TIMEOUT_S = 10.0
"""Deadline of each question."""
MAX_LIST_BYTES = 8 * 1024 * 1024
"""Longest list of models that is read."""
MAX_NAMED = 12
"""Names shown of a longer list."""
_POLL_S = 0.02
_KEY_REFUSED = frozenset({"status 401", "status 403"})
_NO_URL = frozenset({"NonHttpUrlClientError", "InvalidUrlClientError", "InvalidURL"})
_WORDS = {
    "ClientConnectorError": "nobody listens there",
    "ClientConnectorDNSError": "there is no such host",
    "ClientConnectorCertificateError": "its certificate is not valid",
    "ClientConnectorSSLError": "it does not speak TLS",
    "ServerDisconnectedError": "it hangs up",
    "JSONDecodeError": "what it answers is no JSON",
}
"""What errors of the HTTP client mean."""
_REFUSALS = ("restricted:", "blocked:")
"""What a relay says (NIP-01, NIP-42) when it does not serve us."""

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. ``remedy`` is one line, and empty only when all is well."""

    check: str
    """What was looked at: config, files, mint, relay …"""
    level: Level
    what: str
    remedy: str = ""
    subject: str = ""
    """Which one of several: a URL, a name."""

    def document(self) -> dict[str, str]:
        """As JSON."""
        return {
            "check": self.check,
            "subject": self.subject,
            "level": self.level,
            "what": self.what,
            "remedy": self.remedy,
        }


def passed(check: str, what: str, subject: str = "") -> Finding:
    """A finding that all is well."""
    return Finding(check, "ok", what, subject=subject)


async def ask_mint(
    session: aiohttp.ClientSession,
    url: str,
    units: Sequence[str],
    timeout_s: float = TIMEOUT_S,
    held: Mapping[str, int] = MappingProxyType({}),
) -> Finding:
    """Whether a mint answers, has an active keyset (NUT-02) of every unit, and still knows those
    of the coins we hold.

    Args:
        held: what we hold, by keyset.
    """
    try:
        keysets = await MintClient(session, url, timeout_s=timeout_s).keysets()
    except (MintError, ValueError) as error:
        return Finding(
            "mint",
            "fail",
            f"does not answer as a mint: {error}",
            "check the URL in a browser (…/v1/keysets); if it is right, ask who runs the mint,"
            " or choose another",
            url,
        )
    active = {keyset.unit for keyset in keysets if keyset.active}
    missing = [unit for unit in units if unit not in active]
    if missing:
        return Finding(
            "mint",
            "fail",
            f"has no active keyset in {', '.join(missing)}",
            f"set units of this [[mints]] entry to what it has ({', '.join(sorted(active))}),"
            " or choose another mint",
            url,
        )
    forgotten = sorted(held.keys() - {keyset.id for keyset in keysets})
    if forgotten:
        amount = sum(held[keyset_id] for keyset_id in forgotten)
        return Finding(
            "mint",
            "fail",
            f"no longer lists {', '.join(forgotten[:MAX_NAMED])}, of which we hold {amount}",
            "ask who runs the mint: without its keyset these coins are worth nothing; take no more"
            " of its coins until they are back",
            url,
        )
    fees = sorted({k.input_fee_ppk for k in keysets if k.active and k.unit in units})
    fee = f", input fee {fees[-1]} ppk" if fees and fees[-1] else ", no input fee"
    return passed("mint", f"answers, {len(keysets)} keysets{fee}", url)


async def ask_relay(url: str, keys: Keys, timeout_s: float = TIMEOUT_S) -> Finding:
    """Whether a relay lets us in (NIP-42 if it wants to know who) and answers a question."""
    try:
        pool = RelayPool([url], keys=keys, connect_timeout_s=timeout_s)
    except RelayError as error:
        return Finding("relay", "fail", str(error), "write it as wss://host", url)
    async with pool:
        (name,) = pool.urls
        health = await _settled(pool, name, timeout_s)
        if not health.connected:
            return Finding(
                "relay",
                "fail",
                f"cannot be connected to: {health.last_error or 'no answer in time'}",
                "check the URL and this machine's way out; take it out of nostr.relays if it is"
                " gone",
                url,
            )
        async with pool.subscribe([{"kinds": [38421], "limit": 1}]) as subscription:
            answered = await subscription.eose(timeout_s)
        health = pool.health()[name]
    said = health.last_notice
    refused = said.startswith(_REFUSALS) or (
        said.startswith("auth-required:") and not health.authenticated
    )
    if not answered or refused:
        return Finding(
            "relay",
            "fail",
            f"connects, and does not answer: {said or health.last_error or 'silence'}",
            "it may want payment or a key it knows: register the node's npub there, or choose"
            " another relay",
            url,
        )
    return passed("relay", "answers" + (", authenticated" if health.authenticated else ""), url)


async def _settled(pool: RelayPool, url: str, timeout_s: float) -> RelayHealth:
    """How the relay is once it is connected, has failed, or the time is over."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + timeout_s
    while True:
        health = pool.health()[url]
        if health.connected or health.last_error or loop.time() > ends_at:
            return health
        await asyncio.sleep(_POLL_S)


async def ask_upstream(
    server: UpstreamServer, timeout_s: float = TIMEOUT_S
) -> tuple[Finding, list[Listed]]:
    """What a model server says it has."""
    try:
        models = await list_models(server, timeout_s=timeout_s, max_bytes=MAX_LIST_BYTES)
    except FetchFailed as error:
        if str(error).startswith("status 4") and await _is_below(server, timeout_s):
            return _below(server), []
        return _no_list(server, str(error)), []
    if not models:
        return (
            Finding(
                "upstream",
                "warn",
                "answers and lists no model",
                "load a model there first (`ollama pull …`, `vllm serve …`), or check base_url",
                server.name,
            ),
            [],
        )
    return passed("upstream", f"answers, lists {len(models)} models", server.name), models


async def _is_below(server: UpstreamServer, timeout_s: float) -> bool:
    """Whether a list of models is where /v1 is added to the base URL."""
    if server.base_url.endswith("/v1"):
        return False
    below = UpstreamServer(
        server.name, server.session, f"{server.base_url}/v1", dialect=server.dialect
    )
    try:
        await list_models(below, timeout_s=timeout_s, max_bytes=MAX_LIST_BYTES)
    except FetchFailed as error:
        return str(error) in _KEY_REFUSED
    return True


def _below(server: UpstreamServer) -> Finding:
    return Finding(
        "upstream",
        "fail",
        f"answers, and has its models at {server.base_url}/v1",
        f"write {server.base_url}/v1 (--upstream, or base_url of this [[upstreams]] entry)",
        server.name,
    )


def _no_list(server: UpstreamServer, reason: str) -> Finding:
    if reason in _NO_URL:
        return Finding(
            "upstream",
            "fail",
            f"{server.base_url} is no URL",
            "write it as http://host:port/v1",
            server.name,
        )
    if reason in _KEY_REFUSED:
        return Finding(
            "upstream",
            "fail",
            f"refuses the API key ({reason})",
            "check that api_key refers to the key of this server, and that the key is valid",
            server.name,
        )
    if reason.startswith("status 4"):
        return Finding(
            "upstream",
            "warn",
            f"answers, but has no list of models ({reason})",
            "if it serves chat all the same, ignore this; else base_url probably lacks /v1",
            server.name,
        )
    return Finding(
        "upstream",
        "fail",
        f"does not answer at {server.base_url} ({_WORDS.get(reason, reason)})",
        "start the model server, or correct base_url (host, port and /v1)",
        server.name,
    )


def missing_model(server: UpstreamServer, upstream_id: str, listed: list[Listed]) -> Finding | None:
    """The finding when a server lists models and ``upstream_id`` is not one of them."""
    ids = [model.id for model in listed]
    if not ids or upstream_id in ids or f"{upstream_id}:latest" in ids:
        return None
    near = difflib.get_close_matches(upstream_id, ids, n=3, cutoff=0.4) or ids[:MAX_NAMED]
    more = "" if len(near) == len(ids) else " …"
    return Finding(
        "upstream",
        "warn" if server.dialect == "azure" else "fail",
        f'does not list "{upstream_id}"',
        f"set upstream_id of the model to what the server has: {', '.join(near)}{more}",
        server.name,
    )


async def ask_payee(
    destination: str, *, allow_private: bool = False, timeout_s: float = TIMEOUT_S
) -> Finding:
    """Whether a Lightning address or LNURL takes payments (LUD-06); asks for no invoice."""
    remedy = "correct payout.address (name@host or lnurl1…), or leave it empty for now"
    guard = NetGuard(allow_private=allow_private)
    schemes = ("https", "http") if allow_private else ("https",)
    try:
        url = pay_url(destination, schemes)
        await guard.check_url(url, schemes)
        async with aiohttp.ClientSession(
            connector=guard.connector(limit=1), cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            offer = await fetch_json(
                session, URL(url), timeout_s=timeout_s, max_bytes=MAX_ANSWER_BYTES
            )
    except (PayoutError, DiscoveryError, FetchFailed, ValueError) as error:
        return Finding("payout", "fail", f"cannot be paid: {error}", remedy, destination)
    finally:
        guard.close()
    if not isinstance(offer, dict) or offer.get("tag") != "payRequest":
        return Finding("payout", "fail", "answers, but not as a payee", remedy, destination)
    return passed("payout", "takes payments", destination)


async def ask_public_url(
    session: aiohttp.ClientSession, url: str, npub: str, timeout_s: float = TIMEOUT_S
) -> Finding:
    """Whether ``GET url/v1/info`` is answered by the node ``npub``; asked from this machine."""
    try:
        document = await fetch_json(
            session, URL(f"{url}/v1/info"), timeout_s=timeout_s, max_bytes=MAX_ANSWER_BYTES
        )
    except FetchFailed as error:
        return Finding(
            "public url",
            "fail",
            f"does not lead to this node ({_WORDS.get(str(error), error)})",
            "start the node; check DNS, the firewall, and that the proxy passes / to http.port"
            " (config/nginx.conf, config/Caddyfile)",
            url,
        )
    named = document.get("npub") if isinstance(document, dict) else None
    if named != npub:
        who = "another node" if isinstance(named, str) else "something else"
        return Finding(
            "public url",
            "fail",
            f"is answered by {who}, not by this node",
            "point the proxy at this node's http.port, or take the URL out of http.public_urls",
            url,
        )
    return passed("public url", "leads to this node", url)


async def resolves(url: str, timeout_s: float = TIMEOUT_S) -> Finding:
    """Whether the name in a public URL has an address; nobody need listen there yet."""
    host = urlsplit(url).hostname or ""
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return Finding(
            "public url",
            "fail",
            f"the name {host} has no address",
            "make a DNS record that points to this machine, or use --no-public-url: a node is"
            " reachable over Nostr without one",
            url,
        )
    return passed("public url", "its name has an address", url)


async def clock_skew_s(
    session: aiohttp.ClientSession, url: str, timeout_s: float = TIMEOUT_S
) -> float | None:
    """Seconds our clock is ahead of the ``Date`` of whoever answers at ``url``; None: no telling.

    The header has whole seconds, so less than a second and half the way there means nothing.
    """
    try:
        began = time.time()
        async with asyncio.timeout(timeout_s), session.get(url, allow_redirects=False) as response:
            ended = time.time()
            said = parsedate_to_datetime(response.headers["date"]).timestamp()
    except (aiohttp.ClientError, TimeoutError, OSError, KeyError, ValueError, TypeError):
        return None
    return (began + ended) / 2 - (said + 0.5)
