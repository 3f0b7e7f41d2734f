"""``nodestr check``, ``backup`` and ``restore``: the operator's view of the money."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands.common import (
    EXIT_FAILED,
    ConfigOption,
    Failure,
    JsonOption,
    emit,
    exit_codes,
    load,
)

if TYPE_CHECKING:
    from node.ops.backup import Contents
    from node.ops.check_report import Report
    from node.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(
        short_help="Prove that the money is right, and show what is stuck.",
        epilog="""\b
Examples:
  nodestr check --config /etc/nodestr/node.toml
  nodestr check --config node.toml --online
  nodestr check --config node.toml --json | jq .books.equity_msat
""",
    )(check)
    app.command(
        short_help="Copy the database while the node runs.",
        epilog="""\b
Examples:
  nodestr backup --config /etc/nodestr/node.toml --out /backup/node-$(date +%F-%H%M).db
  nodestr backup --config node.toml --out /mnt/usb/node.db
""",
    )(backup)
    app.command(
        short_help="Put a backup in the place of the database.",
        epilog="""\b
Examples:
  nodestr restore --config /etc/nodestr/node.toml --from /backup/node-2026-01-31-0400.db
  nodestr restore --config node.toml --from /mnt/usb/node.db --force
""",
    )(restore)


def check(
    config: ConfigOption,
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            help="Also ask the mints: are our coins there, are those given out claimed?",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
) -> None:
    """Print the balance sheet, the coins by mint, and every operation that is not finished.

    Changes nothing; the node may run meanwhile. Exit code 0: the books add up and our coins cover
    what clients are owed. 1: they do not, or (with --online) coins are gone.
    """
    with exit_codes():
        import sqlite3

        from rich.console import Console

        from node.ops import check_report
        from node.ops.check import examine

        settings = load(config)
        path = settings.node.database
        if not path.is_file():
            raise Failure(
                f"{path} does not exist: no node has run with this configuration; check"
                " node.data_dir"
            )
        try:
            report = examine(path, [mint.url for mint in settings.mints])
            if online:
                report = asyncio.run(_ask(report, settings))
        except sqlite3.Error as error:
            raise Failure(
                f"{path} cannot be read ({error}): it is damaged, of another version, or not a"
                " node's database; start the node once with this version, or restore a backup"
            ) from None
        if as_json:
            typer.echo(check_report.document(report))
        else:
            console = Console(markup=False, emoji=False, highlight=False)
            check_report.show(report, console)
    if not report.ok:
        raise typer.Exit(EXIT_FAILED)


async def _ask(report: Report, settings: Settings) -> Report:
    import aiohttp

    from node.ecash.mint import MintClient
    from node.ops.check import ask_mints

    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        clients = {
            mint.url: MintClient(session, mint.url, timeout_s=mint.timeout_s)
            for mint in settings.mints
        }
        return await ask_mints(report, settings.node.database, clients)


def backup(
    config: ConfigOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="PATH", help="The copy (mode 0600, never over an existing file)."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Copy the database, coins and counters and accounts, while the node runs or not; verify it.

    Whoever has the copy has the money in it: keep it as you keep the node's key, which is not in
    it. The newer a backup, the less a restore loses.
    """
    with exit_codes():
        from node.ops.backup import BackupError, back_up

        try:
            contents = back_up(load(config).node.database, out)
        except BackupError as error:
            raise Failure(str(error)) from None
        if as_json:
            emit({"file": str(out), "bytes": out.stat().st_size} | _document(contents))
        else:
            typer.echo(f"wrote    {out} ({out.stat().st_size:,} bytes), verified")
            _describe(contents)
        if contents.problems:
            raise Failure(
                f"the copy is what the node has, but its books do not add up"
                f" ({contents.problems[0]}): run 'nodestr check'"
            )


def restore(
    config: ConfigOption,
    source: Annotated[
        Path, typer.Option("--from", metavar="PATH", help="A file that backup has written.")
    ],
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace a database that is there; it is kept under another name."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a backup in the place of the database. The node must be stopped.

    At its next start the node asks the mints about every coin before it serves anybody: what was
    spent since the backup is booked as a loss, what was received is found again and kept for who
    paid it (nodestr credit), and the counters of the secrets are moved beyond all that the mints
    have signed. Nothing is credited twice.
    """
    with exit_codes():
        from node.ops.backup import BackupError
        from node.ops.backup import restore as put_back

        settings = load(config)
        try:
            done = put_back(settings.node.database, source, force=force)
        except BackupError as error:
            raise Failure(str(error)) from None
        if as_json:
            kept = None if done.kept is None else str(done.kept)
            emit(
                {"file": str(settings.node.database), "kept": kept}
                | {"same_wallet": done.same_wallet}
                | _document(done.contents)
            )
            return
        typer.echo(f"restored {settings.node.database} from {source}")
        _describe(done.contents)
        if done.kept is not None:
            typer.echo(f"kept     {done.kept}: the database that was there; it holds secrets too")
        if not done.same_wallet:
            typer.echo(
                "note     the replaced database was of another wallet: coins that only it knows are"
                " still in it"
            )
        typer.echo(
            "next     start the node. Before it serves, it asks the mints which coins are still\n"
            "         ours, books what was spent since the backup as a loss, and moves its\n"
            "         counters forward. Coins of a mint that does not answer stay out of use\n"
            "         until it does. Then run 'nodestr check --online'. Clients that paid since\n"
            "         the backup are credited with 'nodestr credit' (docs/operations.md)."
        )


def _document(contents: Contents) -> dict[str, object]:
    return {
        "coins": contents.coins,
        "coins_msat": contents.books.proofs_msat,
        "accounts": contents.accounts,
        "open_msat": contents.books.open_msat,
        "operations_open": contents.books.operations_open,
        "money_last_moved_at": contents.taken_at or None,
        "problems": list(contents.problems),
    }


def _describe(contents: Contents) -> None:
    from node.ops.check_report import sat

    books = contents.books
    moment = (
        time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(contents.taken_at))
        if contents.taken_at
        else "never"
    )
    typer.echo(f"holds    {contents.coins} coins worth {sat(books.proofs_msat)} sat")
    typer.echo(
        f"         {contents.accounts} accounts with {sat(books.open_msat)} sat;"
        f" {books.operations_open} operations under way"
    )
    typer.echo(f"         counters of {contents.counters} keysets; money last moved {moment}")
