"""``nodestr providers``: the market in the terminal, without a node."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands.common import Failure, exit_codes

if TYPE_CHECKING:
    from rich.table import Table

    from discovery.directory import Directory
    from discovery.reviews import Review
    from discovery.snapshot import DirectorySnapshot

_QUIET_S = 1.5
"""When nothing has changed for so long, what is known is shown."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(
        short_help="See who sells what on the network, and for how much.",
        epilog="""\b
Examples:
  nodestr providers
  nodestr providers --model llama-3.3-70b --sort price --verify
  nodestr providers --watch --verify
  nodestr providers --json | jq -r '.providers[].npub'
""",
    )(providers)


def providers(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="ID", help="Only those who sell this model."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="price|latency|uptime|rank",
            help="By default price with --model, else rank: verified and online first.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Ask each announced URL (or relay) who it is, and how fast it is."
        ),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on showing what changes, until Ctrl-C.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print what GET /v1/providers answers; with --watch one line a change."
        ),
    ] = False,
    relay: Annotated[
        list[str] | None,
        typer.Option("--relay", metavar="URL", help="A relay instead of the usual; repeatable."),
    ] = None,
    wait: Annotated[
        float,
        typer.Option("--wait", metavar="SECONDS", min=0.1, max=600, help="At most so long."),
    ] = 10.0,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=200, help="Show so many.")
    ] = 50,
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Ask loopback and private addresses too; for tests."),
    ] = False,
) -> None:
    """Read the announcements on the relays and show the providers.

    Prices are in sat per million tokens. Without --verify nobody has proved to own the URL that
    he announces.
    """
    with exit_codes():
        from discovery.errors import RelayError
        from node.errors import InvalidValue

        query = {"limit": str(limit), "sort": sort or ("price" if model else "rank")}
        if model:
            query["model"] = model
        try:
            asyncio.run(
                _show(
                    query,
                    relays=relay,
                    verify=verify,
                    watch=watch,
                    as_json=as_json,
                    wait_s=wait,
                    allow_private=allow_private,
                )
            )
        except (InvalidValue, RelayError) as error:
            raise Failure(str(error)) from None


async def _show(
    query: dict[str, str],
    *,
    relays: list[str] | None,
    verify: bool,
    watch: bool,
    as_json: bool,
    wait_s: float,
    allow_private: bool,
) -> None:
    import structlog

    from discovery.aggregator import DEFAULT_RELAYS, aggregator
    from discovery.snapshot import DirectorySnapshot
    from node.nostr_probe import NostrProber
    from node.service.endpoints.providers import list_providers

    # refuse a bad value before anybody is asked
    list_providers(DirectorySnapshot(), query)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    async with aggregator(
        relays or DEFAULT_RELAYS,
        probe=verify,
        probe_over_nostr=lambda guard: NostrProber(guard.check_relay_url).probe,
        allow_private=allow_private,
    ) as directory:
        if not watch:
            await _settle(directory, wait_s, verify=verify)
            if not directory.connected and not directory.snapshot().providers:
                raise Failure("no relay could be reached")
            _print(directory.snapshot(), query, as_json=as_json)
        elif as_json:
            await _lines(directory, query)
        else:
            await _live(directory, query)


async def _settle(directory: Directory, wait_s: float, *, verify: bool) -> None:
    """Wait until nothing more comes, at most ``wait_s``."""
    try:
        async with asyncio.timeout(wait_s):
            while True:
                try:
                    async with asyncio.timeout(_QUIET_S):
                        await directory.changed()
                except TimeoutError:
                    known = directory.snapshot().providers
                    probed = all(p.reason != "not probed yet" for p in known)
                    if known and (probed or not verify):
                        return
    except TimeoutError:
        return


def _print(snapshot: DirectorySnapshot, query: dict[str, str], *, as_json: bool) -> None:
    import json

    from rich.console import Console

    from node.service.endpoints.providers import list_providers

    if as_json:
        typer.echo(json.dumps(list_providers(snapshot, query), ensure_ascii=False))
    else:
        Console(highlight=False).print(_table(snapshot, query))


async def _lines(directory: Directory, query: dict[str, str]) -> None:
    import orjson

    from discovery.documents import changes, provider_item
    from discovery.snapshot import DirectorySnapshot
    from node.service.endpoints.providers import Query

    wanted, before = Query.parse(query), DirectorySnapshot()
    while True:
        now = directory.snapshot()
        for kind, provider in changes(before, now):
            if wanted.matches(provider):
                line = {"event": kind, "provider": provider_item(provider)}
                typer.echo(orjson.dumps(line).decode())
        before = now
        if directory.snapshot() is now:
            await directory.changed()


async def _live(directory: Directory, query: dict[str, str]) -> None:
    from rich.live import Live

    with Live(_table(directory.snapshot(), query), auto_refresh=False) as live:
        while True:
            live.update(_table(await directory.changed(), query), refresh=True)
            await asyncio.sleep(0.25)


def _table(snapshot: DirectorySnapshot, query: dict[str, str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from node.service.endpoints.providers import Query, select

    model = query.get("model")
    shown, more = select(snapshot, Query.parse(query))
    title = f"{model or 'all models'}: {len(shown)}{' and more' if more else ''} of "
    table = Table(
        title=f"{title}{len(snapshot.providers)} providers",
        caption="in, out: sat per million tokens" if model else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for name in ("name", "status", "proven"):
        table.add_column(name, overflow="fold")
    if model:
        for name in ("in", "out", "request"):
            table.add_column(name, justify="right")
    else:
        table.add_column("models", justify="right")
    for name in ("ms", "up"):
        table.add_column(name, justify="right")
    for name in ("ways", "reviews", "npub"):
        table.add_column(name, overflow="fold" if name != "npub" else "ellipsis")
    for provider in shown:
        prices = [str(len(provider.named))]
        if model:
            offer = provider.offer(model)
            assert offer is not None  # the query asked for it
            parts = (offer.input_per_mtok, offer.output_per_mtok, offer.per_request)
            prices = [_sat(msat) if offer.priced else "?" for msat in parts]
        table.add_row(
            # names are strangers' words: no markup, no escape sequences
            Text(provider.announcement.name),
            provider.status,
            "yes" if provider.verified else "no",
            *prices,
            "" if provider.latency_ms is None else str(provider.latency_ms),
            "" if provider.uptime is None else f"{provider.uptime:.0%}",
            " ".join(provider.announcement.transports),
            _said(provider.reviews),
            provider.npub,
        )
    return table


def _sat(msat: int) -> str:
    return f"{msat / 1000:,.3f}".rstrip("0").rstrip(".")


def _said(reviews: tuple[Review, ...]) -> str:
    from discovery.reviews import summary

    counts = summary(reviews)
    good = counts["recommendations"] + counts["approvals"]
    parts = [f"+{good}" if good else "", f"-{counts['warnings']}" if counts["warnings"] else ""]
    return " ".join(filter(None, parts))
