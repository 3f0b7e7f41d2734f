"""``nodestr wallet …``: the money of a person who buys."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.commands.common import Failure, exit_codes
from node.commands.desk import open_desk
from node.commands.gateway import GatewayConfig, WalletFile, in_use, load

if TYPE_CHECKING:
    from node.gateway.settings import GatewaySettings

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

MAX_DIGITS = 16
"""Of an amount; there are fewer than 10¹⁶ sat."""

wallet_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The money that gateway and ask pay with: ecash in a file of your own.",
)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.add_typer(wallet_app, name="wallet")


@wallet_app.command(
    epilog="""\b
Examples:
  nodestr wallet receive cashuB…
  pbpaste | nodestr wallet receive -
  nodestr wallet receive --mint https://mint.example.com cashuB…
"""
)
def receive(
    token: Annotated[
        str | None, typer.Argument(metavar="TOKEN", help="A Cashu token; - reads standard input.")
    ] = None,
    mint: Annotated[
        str | None,
        typer.Option("--mint", metavar="URL", help="Take coins of this mint from now on."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Take coins of the token's mint without asking.")
    ] = False,
    wallet: WalletFile = None,
    config: GatewayConfig = None,
    as_json: JsonOption = False,
) -> None:
    """Put a token into the wallet. A mint that it does not know yet has to be agreed to.

    A mint keeps the money behind its coins: use one that you trust with what you hold.
    """
    with exit_codes():
        settings = load(config, wallet=wallet)
        text = sys.stdin.read() if token == "-" else token or ""  # noqa: S105
        if not text.strip() and mint is None:
            raise Failure("name a token, or - to read it from standard input")
        _run(settings, lambda: _receive(settings, text.strip(), mint, yes, as_json))


async def _receive(
    settings: GatewaySettings, text: str, mint: str | None, yes: bool, as_json: bool
) -> None:
    from node.gateway.purse import mint_of

    accept = [mint] if mint is not None else []
    if text:
        url = mint_of(text)
        known = (await _ask(settings, "balance", accept=accept))["mints"]
        if url not in known:
            if not yes:
                _agree(url)
            accept.append(url)
    document = await _ask(settings, "receive", {"token": text}, accept=accept)
    received = document.get("received_msat")
    _show(
        document,
        as_json,
        *([] if received is None else [f"received {_sat(received)}"]),
        f"balance  {_sat(document['balance_msat'])}",
    )


def _agree(url: str) -> None:
    if not sys.stdin.isatty():
        raise Failure(f"the token is of {url}, which this wallet does not use: add --yes")
    if not typer.confirm(f"The token is of {url}. Take coins of that mint?"):
        raise Failure("the token was not touched")


@wallet_app.command(
    epilog="""\b
Examples:
  nodestr wallet balance
  nodestr wallet balance --json | jq .balance_msat
"""
)
def balance(
    wallet: WalletFile = None, config: GatewayConfig = None, as_json: JsonOption = False
) -> None:
    """Show what is in the wallet, at which mints, and what is with providers."""
    with exit_codes():
        settings = load(config, wallet=wallet)
        _run(settings, lambda: _balance(settings, as_json))


async def _balance(settings: GatewaySettings, as_json: bool) -> None:
    document = await _ask(settings, "balance")
    lines = [f"balance  {_sat(document['balance_msat'])}"]
    lines += [f"         {_sat(amount)} of {url}" for url, amount in document["mints"].items()]
    if document["under_way_msat"]:
        lines.append(
            f"out      {_sat(document['under_way_msat'])} with providers: nodestr wallet recover"
        )
    _show(document, as_json, *lines)


@wallet_app.command(
    epilog="""\b
Examples:
  nodestr wallet send 100
  nodestr wallet send all --mint https://mint.example.com
  nodestr wallet send 100 --id birthday
"""
)
def send(
    amount: Annotated[str, typer.Argument(metavar="SAT", help="How much, in sat, or all.")],
    mint: Annotated[
        str | None, typer.Option("--mint", metavar="URL", help="Of which mint.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--id", metavar="NAME", help="Asking again under it gives the same token."),
    ] = None,
    wallet: WalletFile = None,
    config: GatewayConfig = None,
    as_json: JsonOption = False,
) -> None:
    """Take money out as a token, printed on standard output. Whoever has it can spend it.

    Should it get lost on the way here: nodestr wallet recover shows it again.
    """
    with exit_codes():
        settings = load(config, wallet=wallet)
        sat = _amount(amount)
        _run(settings, lambda: _send(settings, sat, mint, name, as_json))


async def _send(
    settings: GatewaySettings, sat: int | None, mint: str | None, name: str | None, as_json: bool
) -> None:
    async with open_desk(settings, ()) as ask:
        document = await ask("send", {"sat": sat, "mint": mint, "name": name})
        if as_json:
            _show(document, as_json)
        else:
            typer.echo(document["token"])
            typer.echo(f"took out {_sat(document['amount_msat'])}", err=True)
            typer.echo(f"balance  {_sat(document['balance_msat'])}", err=True)
        sys.stdout.flush()
        await ask("shown", {"operation": document["operation"]})


@wallet_app.command(
    epilog="""\b
Examples:
  nodestr wallet topup 1000
  nodestr wallet topup 1000 --mint https://mint.example.com
"""
)
def topup(
    amount: Annotated[int, typer.Argument(metavar="SAT", min=1, help="How much, in sat.")],
    mint: Annotated[
        str | None,
        typer.Option("--mint", metavar="URL", help="Take coins of this mint from now on."),
    ] = None,
    wait_s: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for the payment.")
    ] = 600.0,
    wallet: WalletFile = None,
    config: GatewayConfig = None,
    as_json: JsonOption = False,
) -> None:
    """Fill the wallet over Lightning: shows an invoice and waits until it is paid.

    An invoice that is paid later is found the next time the wallet is used.
    """
    with exit_codes():
        settings = load(config, wallet=wallet)
        _run(settings, lambda: _topup(settings, amount, mint, wait_s, as_json))


async def _topup(
    settings: GatewaySettings, amount: int, mint: str | None, wait_s: float, as_json: bool
) -> None:
    async with open_desk(settings, [mint] if mint is not None else []) as ask:
        invoice = await ask("invoice", {"sat": amount, "mint": mint or ""})
        typer.echo(invoice["bolt11"], err=as_json)
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            left_s = max(0.0, deadline - asyncio.get_running_loop().time())
            asked = {"invoice_id": invoice["invoice_id"], "wait_s": left_s}
            document = await ask("paid", asked)
            if document["paid"] or not left_s:
                break
    document["bolt11"] = invoice["bolt11"]
    state = "paid" if document["paid"] else "not paid yet; it is found when it is"
    _show(document, as_json, state, f"balance  {_sat(document['balance_msat'])}")


@wallet_app.command(
    epilog="""\b
Examples:
  nodestr wallet move https://mint.one https://mint.two 500
  nodestr wallet move https://mint.one https://mint.two all
"""
)
def move(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The mint that pays.")],
    target: Annotated[
        str, typer.Argument(metavar="TO", help="The mint whose coins come; used from now on.")
    ],
    amount: Annotated[str, typer.Argument(metavar="SAT", help="What is to arrive, or all.")],
    wallet: WalletFile = None,
    config: GatewayConfig = None,
    as_json: JsonOption = False,
) -> None:
    """Move money from one mint to another, over Lightning.

    For providers that take coins of other mints than yours. Lightning may cost 2 percent, or
    5 sat. A crash on the way loses nothing: nodestr wallet recover goes on with it.
    """
    with exit_codes():
        settings = load(config, wallet=wallet)
        sat = _amount(amount)
        _run(settings, lambda: _move(settings, source, target, sat, as_json))


async def _move(
    settings: GatewaySettings, source: str, target: str, sat: int | None, as_json: bool
) -> None:
    arguments = {"source": source, "target": target, "sat": sat}
    document = await _ask(settings, "move", arguments, accept=[target])
    lines = [f"moved    {_sat(document['moved_msat'])}"]
    if document["arrived"]:
        lines.append(f"cost     {_sat(document['fee_msat'])}")
    else:
        lines.append("it is paid and not here yet: nodestr wallet recover")
    _show(document, as_json, *lines, f"balance  {_sat(document['balance_msat'])}")


@wallet_app.command(
    epilog="""\b
Examples:
  nodestr wallet recover
  nodestr wallet recover --json
"""
)
def recover(
    wallet: WalletFile = None, config: GatewayConfig = None, as_json: JsonOption = False
) -> None:
    """Get back what is with providers: tokens that nobody redeemed, and change. Shows again what
    send took out and may not have shown.

    A gateway does this by itself; this also asks again for what it has given up.
    """
    with exit_codes():
        settings = load(config, wallet=wallet)
        _run(settings, lambda: _recover(settings, as_json))


async def _recover(settings: GatewaySettings, as_json: bool) -> None:
    async with open_desk(settings, ()) as ask:
        document = await ask("recover", {})
        tokens = document["tokens"]
        lines = [f"taken out: {_sat(taken['amount_msat'])}  {taken['token']}" for taken in tokens]
        lines += [_line(spending) for spending in document["spendings"]]
        balance = f"balance  {_sat(document['balance_msat'])}"
        _show(document, as_json, *(lines or ["nothing is out"]), balance)
        sys.stdout.flush()
        for taken in tokens:
            await ask("shown", {"operation": taken["operation"]})


@wallet_app.command(
    epilog="""\b
Examples:
  nodestr wallet history
  nodestr wallet history --limit 100 --json
"""
)
def history(
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=10_000, help="How many.")
    ] = 20,
    wallet: WalletFile = None,
    config: GatewayConfig = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was bought from whom, the latest first."""
    with exit_codes():
        settings = load(config, wallet=wallet)
        _run(settings, lambda: _history(settings, limit, as_json))


async def _history(settings: GatewaySettings, limit: int, as_json: bool) -> None:
    document = await _ask(settings, "history", {"limit": limit})
    _show(document, as_json, *([_line(s) for s in document["spendings"]] or ["nothing yet"]))


def _amount(text: str) -> int | None:
    """Sat; None for all."""
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < MAX_DIGITS and int(text) > 0):
        raise Failure("the amount is a whole number of sat, or all")
    return int(text)


# -- what they share ---------------------------------------------------------------------------


def _run(settings: GatewaySettings, work: Callable[[], Awaitable[None]]) -> None:
    """Run it; what goes wrong is one line."""
    from node.errors import NodeError
    from node.ledger.database import StorageError
    from node.ops.logging import configure

    configure("error")
    try:
        asyncio.run(_awaited(work))
    except StorageError as error:
        raise (in_use(settings) if "in use" in str(error) else Failure(str(error))) from None
    except (NodeError, ValueError) as error:
        raise Failure(getattr(error, "message", str(error))) from None


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def _ask(
    settings: GatewaySettings,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    accept: Collection[str] = (),
) -> dict[str, Any]:
    """One question to the wallet (``node.gateway.desk``)."""
    async with open_desk(settings, accept) as ask:
        return await ask(name, arguments or {})


def _show(document: dict[str, Any], as_json: bool, *lines: str) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False) if as_json else "\n".join(lines))


def _line(spending: dict[str, Any]) -> str:
    import time

    moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(spending["created_at"]))
    note = f"  ({spending['note']})" if spending["note"] else ""
    return (
        f"{moment}  {spending['state']:<10} {_sat(spending['amount_msat']):>10}"
        f"  back {_sat(spending['back_msat'])}  {spending['model']}  {spending['provider']}{note}"
    )


def _sat(msat: int) -> str:
    return f"{msat // 1000} sat" if msat % 1000 == 0 else f"{msat / 1000:.3f} sat"
