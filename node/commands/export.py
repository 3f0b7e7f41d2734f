"""``nodestr export``: the books for an accountant."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from node.commands.common import ConfigOption, Failure, exit_codes, load

_END = 1 << 62

WhatArgument = Annotated[
    str, typer.Argument(metavar="WHAT", help="transactions, charges or payouts.")
]


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(
        short_help="Write transactions, charges or payouts as CSV.",
        epilog="""\b
Examples:
  nodestr export charges --config /etc/nodestr/node.toml --out charges.csv
  nodestr export transactions --config node.toml --since 2026-01-01 --until 2026-02-01 > jan.csv
  nodestr export payouts --config node.toml | column -s, -t
""",
    )(export)


def export(
    config: ConfigOption,
    what: WhatArgument = "transactions",
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="From this day on (UTC)."),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="Up to the day before (UTC)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write here (mode 0600, never over a file); else print."
        ),
    ] = None,
    _as_csv: Annotated[
        bool, typer.Option("--csv", help="As CSV; there is no other form yet.")
    ] = True,
) -> None:
    """Write what moved as CSV: amounts in msat, times in UTC, accounts as numbers.

    transactions: every movement between two books; charges: every paid call with model and
    tokens; payouts: what left over Lightning, or as a token of the operator's. No keys and no
    tokens are in it. The node may run.
    """
    with exit_codes():
        import sqlite3

        from node.ops.accounting import COLUMNS
        from node.ops.accounting import export as write

        if what not in COLUMNS:
            raise typer.BadParameter(f"{what}: choose one of {', '.join(COLUMNS)}")
        path = load(config).node.database
        if not path.is_file():
            raise Failure(f"{path} does not exist: no node has run with this configuration")
        moments = (_seconds(since, 0), _seconds(until, _END))
        try:
            if out is None:
                write(path, what, *moments, sys.stdout)
                return
            descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                count = write(path, what, *moments, file)
        except sqlite3.Error as error:
            raise Failure(f"{path} cannot be read ({error}): run 'nodestr doctor'") from None
        typer.echo(f"wrote    {out}: {count} {what}")


def _seconds(moment: datetime | None, default: int) -> int:
    return default if moment is None else int(moment.replace(tzinfo=UTC).timestamp())
