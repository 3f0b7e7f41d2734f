"""Is this node seen from outside? Other nodes probe it all the time, so they are asked.

our own node's directory ─▶ other nodes ─▶ GET /v1/providers/{our npub} ─▶ what they found
                             over HTTP, through the guard; over Nostr those without a URL
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import aiohttp
from yarl import URL

from discovery.errors import DiscoveryError
from discovery.netguard import NetGuard
from discovery.nostr.keys import Keys
from node.client.nostr import NostrClient, Patience, ReplyError, ReplyTimeout
from node.ops.probes import MAX_LIST_BYTES, Finding, passed
from node.settings import Settings
from node.upstream.fetching import FetchFailed, fetch_json

MAX_ASKED = 4
"""How many other nodes are asked, chosen at random."""
MAX_KNOWN = 100
"""How many other nodes one page of our own directory lists."""
MAX_ANSWER_BYTES = 1024 * 1024

_CHECK = "outside"


@dataclass(frozen=True, slots=True)
class Witness:
    """Another node, and what it says of us."""

    name: str
    status: str
    """online, offline, unknown (not probed yet); "" when it does not list us."""
    verified: bool
    reason: str
    latency_ms: int | None
    unverified_urls: tuple[str, ...]
    """Under which it found no node, or another one."""


def own_url(settings: Settings, path: str) -> URL | None:
    """Where the node itself listens; None when the system chooses the port."""
    if not settings.http.port:
        return None
    host = settings.http.host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    return URL.build(scheme="http", host=host, port=settings.http.port, path=path)


async def check_seen(
    session: aiohttp.ClientSession, settings: Settings, keys: Keys, timeout_s: float
) -> list[Finding]:
    """Ask some of the nodes that the running node has verified what they know of it.

    Nothing is found of a node that does not run or does not want to be seen.
    """
    if not (settings.node.announce and settings.discovery.enabled and settings.nostr.relays):
        return []
    known = await _known(session, settings, keys, timeout_s)
    if known is None:
        return []
    if not known:
        return [passed(_CHECK, "no other node is known that could be asked")]
    guard = NetGuard(allow_private=settings.discovery.allow_private_addresses)
    try:
        async with aiohttp.ClientSession(
            connector=guard.connector(limit=MAX_ASKED), cookie_jar=aiohttp.DummyCookieJar()
        ) as outside:
            asked = random.sample(known, min(MAX_ASKED, len(known)))
            path = f"/v1/providers/{keys.npub}"
            answers = await asyncio.gather(
                *(_ask(outside, guard, settings, item, path, timeout_s) for item in asked)
            )
    finally:
        guard.close()
    return judge([witness for witness in answers if witness is not None], settings)


def judge(witnesses: Sequence[Witness], settings: Settings) -> list[Finding]:
    """What the answers of other nodes mean. Empty: nobody answered."""
    if not witnesses:
        return [
            Finding(
                _CHECK,
                "warn",
                "no other node that is known answers",
                "run the doctor again later; if it stays, see this machine's way out",
            )
        ]
    of = f"{len(witnesses)} other nodes"
    known = [witness for witness in witnesses if witness.status]
    if not known:
        return [
            Finding(
                _CHECK,
                "warn",
                f"none of {of} lists this node",
                "wait some minutes after the first start; else they read other relays: add large"
                " ones to nostr.relays",
            )
        ]
    found = [
        Finding(
            _CHECK,
            "fail",
            f'"{witness.name}" finds no node, or another one, at {url}',
            "see that the URL leads here from outside too: DNS, firewall, proxy; curl it from"
            " another machine",
            url,
        )
        for witness in known
        for url in witness.unverified_urls
        if url in {public.rstrip("/") for public in settings.http.public_urls}
    ]
    good = [witness for witness in known if witness.status == "online" and witness.verified]
    bad = [witness for witness in known if witness.status == "offline"]
    if good:
        times = [witness.latency_ms for witness in good if witness.latency_ms is not None]
        took = f", in {median(times):.0f} ms" if times else ""
        found.append(passed(_CHECK, f"{len(good)} of {of} reach this one{took}"))
    elif bad:
        why = next((f": {witness.reason}" for witness in bad if witness.reason), "")
        found.append(
            Finding(
                _CHECK,
                "fail",
                f"{len(bad)} of {of} cannot reach this one{why}",
                "with a public URL: DNS, firewall, proxy (docs/troubleshooting.md, Nobody comes);"
                " over Nostr: see the relays' findings, and that nostr.requests is true",
            )
        )
    else:
        found.append(passed(_CHECK, f"{len(known)} of {of} know this one, none has probed it yet"))
    return found


async def _known(
    session: aiohttp.ClientSession, settings: Settings, keys: Keys, timeout_s: float
) -> list[dict[str, Any]] | None:
    """What our own node lists of the others; None when it does not run."""
    info, page = own_url(settings, "/v1/info"), own_url(settings, "/v1/providers")
    if info is None or page is None:
        return None
    page = page.with_query(verified="true", status="online", limit=str(MAX_KNOWN))
    try:
        own = await fetch_json(session, info, timeout_s=timeout_s, max_bytes=MAX_ANSWER_BYTES)
        if not isinstance(own, dict) or own.get("npub") != keys.npub:
            return None
        listed = await fetch_json(session, page, timeout_s=timeout_s, max_bytes=MAX_LIST_BYTES)
    except FetchFailed:
        return None
    items = listed.get("providers") if isinstance(listed, dict) else None
    return [
        item
        for item in (items if isinstance(items, list) else [])
        if isinstance(item, dict) and isinstance(item.get("npub"), str)
        and item["npub"] != keys.npub
    ]  # fmt: skip


async def _ask(
    session: aiohttp.ClientSession,
    guard: NetGuard,
    settings: Settings,
    item: dict[str, Any],
    path: str,
    timeout_s: float,
) -> Witness | None:
    """One node's answer; None without one."""
    name = str(item.get("name") or item["npub"][:16])[:40]
    urls = [url for url in item.get("verified_urls") or () if isinstance(url, str)]
    clear = next((url for url in urls if ".onion" not in url), None)
    if clear is not None:
        try:
            await guard.check_url(clear)
            document = await fetch_json(
                session,
                URL(f"{clear.rstrip('/')}{path}"),
                timeout_s=timeout_s,
                max_bytes=MAX_ANSWER_BYTES,
            )
        except FetchFailed as error:
            return _unlisted(name) if str(error) == "status 404" else None
        except (DiscoveryError, ValueError):
            return None
        return _read(name, document)
    if "nostr" not in (item.get("transports") or ()):
        return None
    with suppress(ReplyTimeout, ReplyError, DiscoveryError, ValueError):
        async with NostrClient(
            settings.nostr.relays,
            take_stored=False,
            max_reply_bytes=MAX_ANSWER_BYTES,
            patience=Patience(connect_timeout_s=timeout_s),
            guard=guard.check_relay_url,
        ) as client:
            reply = await client.request(item["npub"], "GET", path, timeout_s=timeout_s)
        if reply.status == 404:
            return _unlisted(name)
        if reply.status == 200:
            return _read(name, json.loads(reply.body))
    return None


def _unlisted(name: str) -> Witness:
    return Witness(name, "", False, "", None, ())


def _read(name: str, document: object) -> Witness | None:
    if not isinstance(document, dict):
        return None
    status, latency = document.get("status"), document.get("latency_ms")
    urls = document.get("unverified_urls")
    return Witness(
        name,
        status if status in ("online", "offline") else "unknown",
        document.get("verified") is True,
        str(document.get("reason") or "")[:200],
        int(latency) if isinstance(latency, int | float) else None,
        tuple(str(url) for url in urls[:10]) if isinstance(urls, list) else (),
    )
