"""``nodestr announce``: what the node says of itself on the relays, shown or sent once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands.common import EXIT_FAILED, ConfigOption, Failure, exit_codes, load

if TYPE_CHECKING:
    from discovery.announcer import RelayOutcome
    from discovery.nostr.event import Event
    from node.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(
        short_help="Show or send what the node announces.",
        epilog="""\b
Examples:
  nodestr announce --dry-run --config /etc/nodestr/node.toml
  nodestr announce --dry-run --json --config node.toml | jq .kind
  nodestr announce --config node.toml
""",
    )(announce)


def announce(
    config: ConfigOption,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the events and their sizes; send nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: the signed events, whole.")
    ] = False,
) -> None:
    """Build the node's announcement, model pages, profile and relay lists, and publish them once.

    A running node does this by itself, at start, on change and every few hours. The relays are
    asked what an earlier run published, for its identifier and the pages to replace.
    """
    with exit_codes():
        from discovery.errors import InvalidAnnouncement

        settings = load(config)
        try:
            events, outcomes = asyncio.run(_announce(settings, send=not dry_run))
        except (InvalidAnnouncement, ValueError) as error:
            raise Failure(f"this cannot be announced: {error}") from None
        for event in events:
            typer.echo(event.to_json() if as_json else _line(event))
        for url, outcome in outcomes.items():
            said = "taken" if outcome.ok else outcome.message or "no answer"
            typer.echo(f"{url}  {outcome.accepted} of {outcome.total}  {said}", err=as_json)
    if outcomes and not any(outcome.ok for outcome in outcomes.values()):
        raise typer.Exit(EXIT_FAILED)


async def _announce(
    settings: Settings, *, send: bool
) -> tuple[list[Event], Mapping[str, RelayOutcome]]:
    import aiohttp

    from discovery.announcer import Announcer
    from discovery.netguard import NetGuard
    from node.background import cancel
    from node.building import announcement, node_info, relay_pool
    from node.core.catalog import Catalog
    from node.market import Market

    catalog = Catalog()
    keys = settings.keys()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        )
        tasks: list[asyncio.Task[None]] = []
        stack.push_async_callback(cancel, tasks)
        market = Market(settings, session, catalog)
        market.start(tasks)
        # models and prices that others tell
        await market.complete(10.0)
        guard = NetGuard(allow_private=settings.discovery.allow_private_addresses)
        stack.callback(guard.close)
        pool = await stack.enter_async_context(relay_pool(settings, keys, guard))
        info = node_info(settings, keys)
        announcer = Announcer(pool, keys, lambda: announcement(settings, info, catalog, pool))
        events = await announcer.events()
        return events, await announcer.publish(events) if send else {}


def _line(event: Event) -> str:
    size = len(event.to_json().encode())
    parts = [f"kind {event.kind:<6}", f"{size:>6} bytes", f"d={event.first('d') or '-'}"]
    if models := event.values("m"):
        parts.append(f"{len(models)} models")
    lines = ["  ".join(parts)]
    shown = [tag for tag in event.tags if tag[0] not in ("d", "m", "a")]
    lines += [f"    {json.dumps(list(tag), ensure_ascii=False)}" for tag in shown]
    if event.content:
        text = event.content if len(event.content) <= 160 else event.content[:160] + "…"
        lines.append(f"    {text}")
    return "\n".join(lines)
