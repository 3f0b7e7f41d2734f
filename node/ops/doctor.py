"""What is wrong with a node, and how to mend it: every check of ``nodestr doctor``.

| check | looks at |
|---|---|
| config | the file loads, every secret can be read, the key is a key |
| files | nobody else may read secrets and database; the disk has room |
| admin | is there a password for the pages at /admin |
| database, solvency | integrity, schema, books; read-only, beside a running node |
| node | the running node's own /health/ready |
| clock | the Date of mints, model servers and relays |
| mint, relay, upstream, payout | do they answer as a node needs it |
| announcement | what the relays have is what is configured; each relay takes it (its OK) |
| public url | the URL leads to this node |
| outside | what other nodes, which probe this one, found |

Nothing is changed and nothing is sent but questions and, to each relay, the announcement that the
relays have. Each has a deadline; all are asked at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import aiohttp

from discovery.nostr.keys import Keys
from node.ops.announced import check_announcement
from node.ops.local_checks import check_admin, check_database, check_disk, check_files, held_keysets
from node.ops.probes import (
    MAX_LIST_BYTES,
    TIMEOUT_S,
    Finding,
    ask_mint,
    ask_payee,
    ask_public_url,
    ask_relay,
    ask_upstream,
    clock_skew_s,
    missing_model,
    passed,
)
from node.ops.seen import check_seen, own_url
from node.settings import Settings, SettingsError, load
from node.settings_market import UpstreamSettings
from node.upstream.server import UpstreamServer

SKEW_WARN_S = 5.0
"""Clients see dates; beyond this somebody may wonder."""
SKEW_FAIL_S = 60.0
"""Relays and clients refuse events that are not of now."""


def check_config(path: Path) -> tuple[Settings | None, Keys | None, list[Finding]]:
    """(settings, key, findings); None for what cannot be had."""
    try:
        settings = load(path)
    except SettingsError as error:
        return None, None, [_config_problem(problem) for problem in error.problems]
    findings = []
    for key, secret in settings.secrets():
        try:
            secret.resolve()
        except SettingsError as error:
            remedy = f"put the secret where {secret} points, or change {key}"
            if secret.scheme == "env":
                remedy = f"export {secret.name}=… in the node's environment, or change {key}"
            elif secret.scheme == "cred":
                remedy = "run the doctor as the service does (docs/operations.md, systemd)"
            findings.append(Finding("config", "fail", f"{key}: {error}", remedy, str(path)))
    keys = None
    if not findings:
        try:
            keys = settings.keys()
        except SettingsError as error:
            findings += [_config_problem(problem) for problem in error.problems]
    return settings, keys, findings or [passed("config", "loads", str(path))]


def _config_problem(problem: str) -> Finding:
    return Finding(
        "config",
        "fail",
        problem,
        "correct that key; docs/configuration.md and config/node.example.toml explain every one",
    )


async def examine(settings: Settings, keys: Keys | None, timeout_s: float) -> list[Finding]:
    """Everything but the configuration itself, in the order of the table above.

    Args:
        keys: None when the node's key cannot be read: then nothing is asked in its name, and a
            throwaway key answers relays that want to know who asks.
        timeout_s: deadline of each question.
    """
    asker = keys or Keys.generate()
    held = await asyncio.to_thread(held_keysets, settings.node.database)
    findings = [*check_files(settings), *check_disk(settings), check_admin(settings)]
    database = asyncio.to_thread(
        check_database, settings.node.database, [mint.url for mint in settings.mints]
    )
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        questions = [
            _node(session, settings, timeout_s),
            _clock(session, settings, timeout_s),
            *(
                _one(ask_mint(session, m.url, m.units, timeout_s, held.get(m.url, {})))
                for m in settings.mints
            ),
            *(_upstream(session, settings, item, timeout_s) for item in settings.upstreams),
            *(_one(ask_relay(url, asker, timeout_s)) for url in settings.nostr.relays),
        ]
        if settings.payout.address:
            private = settings.discovery.allow_private_addresses
            payee = ask_payee(settings.payout.address, allow_private=private, timeout_s=timeout_s)
            questions.append(_one(payee))
        if keys is not None:
            questions += [
                _announcement(session, settings, keys, timeout_s),
                check_seen(session, settings, keys, timeout_s),
                *(
                    _one(ask_public_url(session, url, keys.npub, timeout_s))
                    for url in settings.http.public_urls
                ),
            ]
        answers = await asyncio.gather(database, *questions)
    for answer in answers:
        findings += answer
    return findings


async def _one(question: object) -> list[Finding]:
    return [await question]  # type: ignore[misc]


async def running(session: aiohttp.ClientSession, settings: Settings, timeout_s: float) -> bool:
    """Whether something answers as a node on http.host and http.port."""
    return await _ready(session, settings, timeout_s) is not None


async def _ready(
    session: aiohttp.ClientSession, settings: Settings, timeout_s: float
) -> dict[str, str] | None:
    url = own_url(settings, "/health/ready")
    if url is None:
        return None
    try:
        async with asyncio.timeout(timeout_s), session.get(url, allow_redirects=False) as response:
            raw = await response.content.read(MAX_LIST_BYTES)
            document = await asyncio.to_thread(_checks, raw)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
    return document


def _checks(raw: bytes) -> dict[str, str]:
    import orjson

    document = orjson.loads(raw)
    checks = document.get("checks") if isinstance(document, dict) else None
    if not isinstance(checks, dict):
        raise ValueError("not /health/ready of a node")
    return {str(name): str(result) for name, result in checks.items()}


async def _node(
    session: aiohttp.ClientSession, settings: Settings, timeout_s: float
) -> list[Finding]:
    checks = await _ready(session, settings, timeout_s)
    where = f"{settings.http.host}:{settings.http.port}"
    if checks is None:
        return [
            Finding(
                "node",
                "warn",
                "no node answers here",
                "start it: nodestr serve --config …, or systemctl start nodestr (then journalctl"
                " -u nodestr says how it goes)",
                where,
            )
        ]
    wrong = [
        Finding(
            "node",
            "warn",
            f"the running node says: {name}: {result}",
            "see the findings about it below; docs/troubleshooting.md explains each",
            where,
        )
        for name, result in checks.items()
        if result != "ok"
    ]
    return wrong or [passed("node", "runs and is ready", where)]


async def _clock(
    session: aiohttp.ClientSession, settings: Settings, timeout_s: float
) -> list[Finding]:
    urls = [f"{mint.url}/v1/info" for mint in settings.mints]
    urls += [item.base_url for item in settings.upstreams]
    urls += [f"http{relay.removeprefix('ws')}" for relay in settings.nostr.relays]
    answers = await asyncio.gather(*(clock_skew_s(session, url, timeout_s) for url in urls))
    skews = [skew for skew in answers if skew is not None]
    if not skews:
        return [
            Finding(
                "clock",
                "warn",
                "nobody could be asked what time it is",
                "mend the mints, relays or model servers first, then run the doctor again",
            )
        ]
    skew = median(skews)
    if abs(skew) <= SKEW_WARN_S:
        return [passed("clock", f"within {SKEW_WARN_S:.0f} s of {len(skews)} servers")]
    word = "ahead" if skew > 0 else "behind"
    return [
        Finding(
            "clock",
            "fail" if abs(skew) > SKEW_FAIL_S else "warn",
            f"is {abs(skew):.0f} s {word}",
            "set it by the network: timedatectl set-ntp true; relays and clients refuse events"
            " of another time",
        )
    ]


def server_of(
    session: aiohttp.ClientSession, item: UpstreamSettings, api_key: str | None
) -> UpstreamServer:
    """The client of one [[upstreams]] entry."""
    return UpstreamServer(
        item.name,
        session,
        item.base_url,
        api_key=api_key,
        dialect=item.dialect,
        api_version=item.api_version,
    )


async def _upstream(
    session: aiohttp.ClientSession, settings: Settings, item: UpstreamSettings, timeout_s: float
) -> list[Finding]:
    try:
        api_key = item.api_key.resolve() if item.api_key else None
    except SettingsError:
        return []  # the configuration's finding says it
    server = server_of(session, item, api_key)
    finding, listed = await ask_upstream(server, timeout_s)
    wanted = {
        backend.upstream_id
        for plan in settings.plans()
        for backend in plan.backends
        if backend.upstream == item.name
    }
    missing = [missing_model(server, name, listed) for name in sorted(wanted)]
    return [finding, *(found for found in missing if found is not None)]


async def _announcement(
    session: aiohttp.ClientSession, settings: Settings, keys: Keys, timeout_s: float
) -> list[Finding]:
    runs = await running(session, settings, timeout_s)
    return await check_announcement(settings, keys, runs=runs, timeout_s=timeout_s)


def verdict(findings: Sequence[Finding]) -> str:
    """The worst level there is."""
    levels = {finding.level for finding in findings}
    return next((level for level in ("fail", "warn") if level in levels), "ok")


__all__ = ["TIMEOUT_S", "check_config", "examine", "server_of", "verdict"]
