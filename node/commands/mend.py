"""``nodestr fund``, ``credit`` and ``release``: what the operator does to the books by hand."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from node.commands.common import ConfigOption, Failure, JsonOption, emit, exit_codes, load

_MAX_CHARS = 200_000

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="Where to read it from; '-': standard input.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(
        short_help="Put ecash of your own into the node.",
        epilog="""\b
Examples:
  nodestr fund --config /etc/nodestr/node.toml token.txt
  wallet send 5000 | nodestr fund --config node.toml
""",
    )(fund)
    app.command(
        short_help="Credit what a client paid after the backup that was restored.",
        epilog="""\b
Examples:
  nodestr credit --config /etc/nodestr/node.toml --amount 500 invoice-id.txt
  echo sk-… | nodestr credit --config node.toml --amount 100 --claim topup-of-january-31
""",
    )(credit)
    app.command(
        short_help="Stop keeping found coins for clients.",
        epilog="""\b
Examples:
  nodestr release --config /etc/nodestr/node.toml
  nodestr release --config node.toml --amount 2500
""",
    )(release)


def fund(config: ConfigOption, file: FileArgument = Path("-"), as_json: JsonOption = False) -> None:
    """Redeem a Cashu token for the node itself. The node must be stopped.

    The mint must be one of [[mints]]. The money is the node's own and owed to nobody: it covers
    what coins are missing, pays the mints' fees, and beyond payout.reserve_sat is paid out to you.
    The same token again changes nothing.
    """
    with exit_codes():
        from node.commands.mending import fund as put_in
        from node.ops.check_report import sat

        done = asyncio.run(put_in(load(config), _read(file)))
        if as_json:
            emit(
                {
                    "credited_msat": done.credit,
                    "fee_msat": done.fee,
                    "coins_msat": done.books.proofs_msat,
                    "liabilities_msat": done.books.liabilities_msat,
                    "solvent": done.books.solvent,
                }
            )
            return
        typer.echo(f"put in   {sat(done.credit)} sat; the mint kept {sat(done.fee)} sat")
        typer.echo(f"coins    {sat(done.books.proofs_msat)} sat")
        typer.echo(f"owed     {sat(done.books.liabilities_msat)} sat")
        if not done.books.solvent:
            typer.echo(f"missing  {sat(-done.books.equity_msat)} sat: the node is insolvent still")


def credit(
    config: ConfigOption,
    amount: Annotated[int, typer.Option(metavar="SAT", min=1, max=2**43, help="What it paid.")],
    file: FileArgument = Path("-"),
    claim: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Tells several claims of one key or invoice apart; one name is credited once.",
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Credit a client's claim after a restore. The node must be stopped.

    FILE holds the id of the invoice it paid, its API key (sk-…), or the SHA-256 of "spend:" and the
    key in hex. An account that the backup does not know is opened, and the client's key works
    again. Ask for a proof: the invoice and its preimage, or the token. The same claim again changes
    nothing. Invoices that were made before the backup are credited without you.
    """
    with exit_codes():
        from node.commands.mending import credit as give
        from node.ops.check_report import sat

        done = asyncio.run(give(load(config), _read(file), amount, claim))
        if as_json:
            emit(
                {
                    "amount_msat": done.amount,
                    "account": done.account_id,
                    "again": done.again,
                    "opened": done.opened,
                    "loss_msat": done.uncovered,
                }
            )
            return
        how = "credited before; nothing was changed" if done.again else "credited"
        typer.echo(f"{how:<8} {sat(done.amount)} sat to account {done.account_id}")
        if done.opened:
            typer.echo("         which is new: the backup did not know it")
        if done.uncovered:
            typer.echo(
                f"loss     {sat(done.uncovered)} sat of it are the node's: see nodestr check"
            )


def release(
    config: ConfigOption,
    amount: Annotated[
        int | None, typer.Option(metavar="SAT", min=1, max=2**43, help="By default all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count coins that were found after a restore as the node's own. The node must be stopped.

    They are what clients paid after the backup, and what the node's own swaps made. As long as
    clients may come with a claim, payouts do not touch them; credit goes on to work afterwards, at
    the expense of the earnings.
    """
    with exit_codes():
        from node.commands.mending import release as let_go
        from node.ops.check_report import sat

        freed = asyncio.run(let_go(load(config), amount))
        if as_json:
            emit({"released_msat": freed})
        else:
            typer.echo(f"released {sat(freed)} sat")


def _read(file: Path) -> str:
    """One line of a file or of standard input. Never an argument: other users see those."""
    try:
        with sys.stdin if str(file) == "-" else file.open(encoding="utf-8") as source:
            text = source.read(_MAX_CHARS + 1).strip()
    except UnicodeDecodeError:
        raise Failure(f"{file} is not text") from None
    if not text or len(text) > _MAX_CHARS or len(text.split()) > 1:
        raise Failure(f"{'standard input' if str(file) == '-' else file} does not hold one word")
    return text
