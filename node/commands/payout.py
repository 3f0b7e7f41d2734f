"""``nodestr payout``: the earnings, to the operator, by hand."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from node.commands.common import ConfigOption, Failure, JsonOption, emit, exit_codes, load


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(
        short_help="Pay what the node has earned over Lightning.",
        epilog="""\b
Examples:
  nodestr payout --config /etc/nodestr/node.toml
  nodestr payout --config node.toml --to me@getalby.com --amount 5000
  nodestr payout --config node.toml --to lnbc50u1…
  nodestr payout --config node.toml --json | jq .paid_sat
""",
    )(payout)


def payout(
    config: ConfigOption,
    to: Annotated[
        str,
        typer.Option(
            metavar="DESTINATION",
            help="Lightning address, LNURL or invoice; by default payout.address.",
        ),
    ] = "",
    amount: Annotated[
        int | None,
        typer.Option(metavar="SAT", min=1, help="By default all that may be paid out."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pay earnings to a Lightning address, an LNURL or an invoice. The node must be stopped.

    Never more than was earned: coins less what clients are owed less payout.reserve_sat. A
    payment whose outcome is not known stays set aside, and the node finishes it when it runs.
    A running node pays by itself when payout.address is set.
    """
    with exit_codes():
        from node.commands.paying import pay_out
        from node.core.lightning import PayoutError
        from node.core.money import MSAT_PER_SAT, to_msat
        from node.ledger.database import StorageError

        settings = load(config)
        try:
            done = asyncio.run(pay_out(settings, to, amount))
        except (PayoutError, StorageError) as error:
            raise Failure(str(error)) from None
        paid_sat = to_msat(done.amount, done.unit) // MSAT_PER_SAT
        if as_json:
            emit({"paid_sat": paid_sat, "mint": done.mint})
            return
        typer.echo(f"paid     {paid_sat} sat")
        typer.echo(f"from     {done.mint}")
