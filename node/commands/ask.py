"""``nodestr ask``: one question from the shell."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.commands.common import EXIT_FAILED, Failure, exit_codes
from node.commands.gateway import (
    CarriageOption,
    GatewayConfig,
    MaxPriceOption,
    ProfileOption,
    ProviderOption,
    RelayOption,
    WalletFile,
    in_use,
    load,
)

if TYPE_CHECKING:
    from node.gateway.app import Gateway
    from node.gateway.settings import GatewaySettings
    from node.gateway.shop import Bought

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(
        short_help="Ask one question and see the answer come.",
        epilog="""\b
Examples:
  nodestr ask "What is ecash?"
  nodestr ask "Translate to French: good morning" --model llama-3.3-70b --max-tokens 50
  git diff | nodestr ask "Review this:" - --carriage nostr
""",
    )(ask)


def ask(
    question: Annotated[
        list[str], typer.Argument(metavar="QUESTION…", help="The question; - adds standard input.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="ID", help="By default the cheapest there is."),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system message.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", metavar="N", min=1, help="Longest answer; bounds what is set aside."
        ),
    ] = 1024,
    config: GatewayConfig = None,
    wallet: WalletFile = None,
    carriage: CarriageOption = None,
    profile: ProfileOption = None,
    max_price: MaxPriceOption = None,
    provider: ProviderOption = None,
    relay: RelayOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object when the answer is whole.")
    ] = False,
) -> None:
    """Ask a model of some provider, and print the answer as it comes.

    Paid from the wallet (nodestr wallet). Provider, cost and change go to standard error.
    """
    with exit_codes():
        from node.errors import NodeError
        from node.ledger.database import StorageError
        from node.ops.logging import configure

        configure("error")
        settings = load(
            config,
            wallet=wallet,
            carriage=carriage,
            profile=profile,
            max_price_sat=max_price,
            providers=provider,
            relays=relay,
        )
        text = "\n".join(sys.stdin.read() if part == "-" else part for part in question)
        if not text.strip():
            raise Failure("there is no question")
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        body: dict[str, Any] = {"messages": messages, "stream": not as_json}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        chosen = any((carriage, profile, max_price, provider, relay))
        try:
            whole = asyncio.run(_ask(settings, model, body, as_json, chosen))
        except StorageError as error:
            raise (in_use(settings) if "in use" in str(error) else Failure(str(error))) from None
        except NodeError as error:
            raise Failure(error.message) from None
    if not whole:
        raise typer.Exit(EXIT_FAILED)


async def _ask(
    settings: GatewaySettings,
    model: str | None,
    body: dict[str, Any],
    as_json: bool,
    chosen: bool,
) -> bool:
    """Whether the answer was whole.

    Args:
        chosen: the flags say how to choose, which a gateway that has the wallet open does its own
            way.

    Raises NodeError, StorageError.
    """
    from node.gateway.app import running
    from node.gateway.desk import read_note
    from node.ledger.database import StorageError

    done: list[Bought] = []
    try:
        async with running(settings, until_sold=model or "", on_bought=done.append) as gateway:
            body["model"] = model or cheapest(gateway)
            answer = await _answer(gateway, body, as_json)
    except StorageError as error:
        note = read_note(settings.database) if "in use" in str(error) else None
        if note is None or chosen:
            raise
        return await _ask_gateway(note, model, body, as_json)
    bought = done[-1] if done else None
    if as_json:
        typer.echo(json.dumps({**answer, "bought": _document(bought)}, ensure_ascii=False))
    elif bought is not None:
        typer.echo("", err=True)
        typer.echo(_summary(bought), err=True)
    return "error" not in answer


async def _ask_gateway(
    note: Mapping[str, str], model: str | None, body: dict[str, Any], as_json: bool
) -> bool:
    """The same of the gateway that has the wallet open."""
    import aiohttp

    from node.core.sse import SseSplitter, event_data

    if model is None:
        raise Failure(f"the gateway at {note['url']} has this wallet open: name a --model for it")
    body |= {"model": model}
    if not as_json:
        body["stream_options"] = {"include_usage": True}
    headers = {"authorization": f"Bearer {note['key']}"} if note["key"] else {}
    splitter = SseSplitter()
    failure: dict[str, Any] = {}
    cost = None
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.post(
                f"{note['url']}/v1/chat/completions", json=body, headers=headers
            ) as answer,
        ):
            if answer.status != 200 or as_json:
                document: dict[str, Any] = await answer.json()
                if answer.status != 200:
                    raise Failure(str(document.get("error", {}).get("message", answer.status)))
                typer.echo(json.dumps(document, ensure_ascii=False))
                return True
            async for data in answer.content.iter_any():
                for raw in splitter.feed_raw(data):
                    event = event_data(raw)
                    failure = _show(event) or failure
                    if b'"usage"' in event:
                        cost = _part(_part(json.loads(event), "usage"), "cost")
            provider = answer.headers.get("x-nodestr-provider", "a provider")
    except (aiohttp.ClientError, ValueError) as error:
        raise Failure(f"the gateway at {note['url']} broke off: {type(error).__name__}") from None
    typer.echo("", err=True)
    told = "" if cost is None else f", cost {cost / 1000:g} sat"
    typer.echo(f"{model} from {provider} through the gateway at {note['url']}{told}", err=True)
    return not failure


def cheapest(gateway: Gateway) -> str:
    """The chat model with the lowest price for a short question. Raises ModelNotFound."""
    from node.core.usage import Usage
    from node.errors import ModelNotFound

    typical = Usage(200, 200)
    offers = [offer for offer in gateway.shop.offers if "chat" in offer.endpoints]
    if not offers:
        raise ModelNotFound(
            "no provider was found; try other relays (--relay) or another --carriage"
        )
    return min(offers, key=lambda offer: (offer.price.cost(typical), offer.model)).model


async def _answer(gateway: Gateway, body: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Print the answer as it comes, or give it whole. Raises NodeError."""
    from contextlib import aclosing
    from uuid import uuid4

    from node.core.exchange import Chunk, Failed, Request
    from node.core.sse import SseSplitter, event_data

    request = Request(
        uuid4().hex,
        "POST",
        "/v1/chat/completions",
        {"content-type": "application/json"},
        json.dumps(body).encode(),
    )
    received = b""
    splitter = SseSplitter()
    failure: dict[str, Any] = {}
    async with aclosing(gateway.dispatcher.handle(request)) as events:
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            if not isinstance(event, Chunk):
                continue
            if as_json:
                received += event.data
                continue
            for raw in splitter.feed_raw(event.data):
                failure = _show(event_data(raw)) or failure
    if as_json:
        document: dict[str, Any] = json.loads(received)
        return document
    return failure


def _show(data: bytes) -> dict[str, Any]:
    """Print what an event of the stream says; the error it holds, if it holds one."""
    if not data or data.strip() == b"[DONE]":
        return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    error = _part(document, "error")
    if error:
        told = _part(error, "message") or "the provider could not go on"
        typer.echo(f"\nnodestr: {_CONTROLS.sub('', str(told))}", err=True)
        return {"error": error}
    choices = _part(document, "choices")
    for choice in choices if isinstance(choices, list) else []:
        text = _part(_part(choice, "delta"), "content")
        if isinstance(text, str):  # a model must not steer the terminal
            sys.stdout.write(_CONTROLS.sub("", text))
    sys.stdout.flush()
    return {}


def _part(document: object, name: str) -> Any:
    """A field of what may be anything."""
    return document.get(name) if isinstance(document, dict) else None


def _summary(bought: Bought) -> str:
    from discovery.nostr.keys import hex_to_npub

    change = "is on its way" if bought.change is None else f"{bought.change / 1000:g} sat"
    return (
        f"{bought.offer.model} from {bought.offer.place.name}"
        f" ({hex_to_npub(bought.offer.place.pubkey)}) over {bought.offer.way}\n"
        f"cost {bought.cost / 1000:g} sat, paid with {bought.amount / 1000:g} sat,"
        f" change {change}"
    )


def _document(bought: Bought | None) -> dict[str, Any] | None:
    from discovery.nostr.keys import hex_to_npub

    if bought is None:
        return None
    return {
        "provider": bought.offer.place.name,
        "npub": hex_to_npub(bought.offer.place.pubkey),
        "carriage": bought.offer.way,
        "model": bought.offer.model,
        "paid_msat": bought.amount,
        "cost_msat": bought.cost,
        "expected_msat": bought.expected,
        "change_msat": bought.change,
    }
