"""What can be done with the purse by hand, as questions and answers that are JSON.

The commands ask the wallet's file when nobody else has it open, and else the gateway that has:
that one leaves a note beside the wallet (mode 0600) with its address and a secret of its own.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from node.core.accounts import Operation
from node.core.exchange import Request
from node.core.lightning import PayoutError
from node.core.money import MSAT_PER_SAT, Msat
from node.ecash.token import normalize_mint_url
from node.errors import (
    InsufficientBalance,
    InvalidApiKey,
    InvalidValue,
    MintLiquidity,
    NotFound,
    Pending,
    UpstreamFailed,
)
from node.gateway.journal import Spending
from node.gateway.purse import Purse
from node.gateway.till import Till
from node.service.dispatch import Reply, Route
from node.service.json_body import json_object

KNOWN_TIMEOUT_S = 60.0
"""How long a mint's answer is waited for."""
PAID_TIMEOUT_S = 20.0
"""How long one question for an invoice waits; whoever waits longer asks again."""
COLLECT_TIMEOUT_S = 5.0
"""How long the mints are asked for paid invoices before the balance is told."""
ARRIVED_TIMEOUT_S = 30.0
"""How long money that was moved is waited for at the other mint."""
_RETRY_S = 0.5

Answer: TypeAlias = dict[str, Any]
Arguments: TypeAlias = Mapping[str, Any]


class Desk:
    """Answers questions by name. They raise NodeErrors, and ValueError for a bad mint URL."""

    def __init__(self, purse: Purse, till: Till) -> None:
        self._purse = purse
        self._till = till
        self._by_name: dict[str, Callable[[Arguments], Awaitable[Answer]]] = {
            "balance": self._balance,
            "receive": self._receive,
            "send": self._send,
            "shown": self._shown,
            "invoice": self._invoice,
            "move": self._move,
            "paid": self._paid,
            "recover": self._recover,
            "history": self._history,
        }

    async def ask(self, name: str, arguments: Arguments) -> Answer:
        """The answer of one question. Raises NotFound when there is none of that name."""
        answer = self._by_name.get(name)
        if answer is None:
            raise NotFound
        return await answer(arguments)

    async def _balance(self, _: Arguments) -> Answer:
        try:
            async with asyncio.timeout(COLLECT_TIMEOUT_S):
                await self._purse.collect()
        except TimeoutError:
            pass  # a mint that is slow is asked again the next time
        funds = await self._purse.funds()
        return {
            "balance_msat": funds.balance,
            "under_way_msat": funds.under_way,
            "mints": dict(funds.by_mint),
        }

    async def _receive(self, arguments: Arguments) -> Answer:
        """``token``: may be empty."""
        document: Answer = {}
        text = _text(arguments, "token")
        if text:
            deadline = asyncio.get_running_loop().time() + KNOWN_TIMEOUT_S
            while True:
                try:
                    operation = await self._purse.receive(text)
                    break
                except Pending:
                    if asyncio.get_running_loop().time() > deadline:
                        raise
                await asyncio.sleep(_RETRY_S)
            document["received_msat"] = operation.credit
        return document | {"balance_msat": (await self._purse.funds()).balance}

    async def _send(self, arguments: Arguments) -> Answer:
        """``sat`` (None: all of one mint), ``mint``, ``name``."""
        sat, mint, name = arguments.get("sat"), arguments.get("mint"), arguments.get("name")
        only = normalize_mint_url(mint) if mint else None
        amount = None if sat is None else Msat(_count(sat) * MSAT_PER_SAT)
        if amount is None:
            stock = await self._purse.stock()
            only = only or max(stock, key=lambda url: stock[url], default=None)
            if only in stock and stock[only] < (await self._purse.funds()).balance:
                amount = stock[only]
        key = f"send:{name}" if name else None
        try:
            operation = await self._purse.send(amount, mint=only, request_key=key)
        except (InsufficientBalance, MintLiquidity):
            stock = await self._purse.stock()
            if not any(stock.values()):
                raise
            held = ", ".join(f"{stock[url] // MSAT_PER_SAT} sat of {url}" for url in stock)
            raise InsufficientBalance(f"the wallet holds {held}") from None
        balance = (await self._purse.funds()).balance
        return taken_document(operation) | {"balance_msat": balance}

    async def _shown(self, arguments: Arguments) -> Answer:
        """``operation``: the token that it made has reached its owner."""
        await self._purse.store.mark_delivered(_text(arguments, "operation"))
        return {}

    async def _invoice(self, arguments: Arguments) -> Answer:
        """``sat``, ``mint`` (empty: any)."""
        if not self._purse.mints:
            raise InvalidValue("this wallet uses no mint yet: name one with --mint")
        mint = self._mint(arguments, "mint") if arguments.get("mint") else None
        created = await self._purse.invoice(_count(arguments.get("sat")), mint)
        return {
            "bolt11": created.invoice.bolt11,
            "invoice_id": created.invoice_id,
            "mint": created.invoice.mint,
        }

    async def _move(self, arguments: Arguments) -> Answer:
        """``source``, ``target``: mints; ``sat`` (None: all)."""
        source, target = self._mint(arguments, "source"), self._mint(arguments, "target")
        sat = arguments.get("sat")
        before = (await self._purse.funds()).balance
        try:
            moved = await self._purse.move(source, target, None if sat is None else _count(sat))
        except PayoutError as error:
            raise UpstreamFailed(f"nothing was moved: {error}") from None
        arrived = await self._purse.paid(moved.invoice_id, ARRIVED_TIMEOUT_S)
        balance = (await self._purse.funds()).balance
        return {
            "moved_msat": moved.invoice.value,
            "fee_msat": before - balance if arrived else None,
            "arrived": arrived,
            "balance_msat": balance,
        }

    async def _paid(self, arguments: Arguments) -> Answer:
        """``invoice_id``, ``wait_s``."""
        wait_s = arguments.get("wait_s")
        if isinstance(wait_s, bool) or not isinstance(wait_s, int | float):
            raise InvalidValue("wait_s must be a number", param="wait_s")
        wait_s = min(max(0.0, wait_s), PAID_TIMEOUT_S)
        paid = await self._purse.paid(_text(arguments, "invoice_id"), wait_s)
        return {"paid": paid, "balance_msat": (await self._purse.funds()).balance}

    async def _recover(self, _: Arguments) -> Answer:
        await self._purse.wallet.recover()
        await self._purse.collect()
        found = await self._till.recover_all(lost_too=True)
        return {
            "spendings": [spending_document(spending) for spending in found],
            "tokens": [taken_document(taken) for taken in await self._purse.not_shown()],
            "balance_msat": (await self._purse.funds()).balance,
        }

    def _mint(self, arguments: Arguments, name: str) -> str:
        url = normalize_mint_url(_text(arguments, name))
        if url not in self._purse.mints:
            known = ", ".join(self._purse.mints) or "none"
            raise InvalidValue(f"this wallet does not use {url}; it uses {known}", param=name)
        return url

    async def _history(self, arguments: Arguments) -> Answer:
        """``limit``."""
        latest = await self._purse.journal.latest(_count(arguments.get("limit")))
        return {"spendings": [spending_document(spending) for spending in latest]}


def taken_document(operation: Operation) -> Answer:
    """A token that was taken out by hand."""
    return {
        "token": operation.token,
        "amount_msat": operation.value,
        "mint": operation.mint,
        "operation": operation.id,
    }


def spending_document(spending: Spending) -> Answer:
    """A spending as JSON; without any token."""
    return {
        "id": spending.id,
        "state": spending.state,
        "provider": spending.place.name,
        "pubkey": spending.place.pubkey,
        "carriage": spending.carriage,
        "model": spending.model,
        "mint": spending.mint,
        "amount_msat": spending.amount,
        "back_msat": spending.back,
        "expected_msat": spending.expected,
        "note": spending.note,
        "created_at": spending.created_at,
    }


def _text(arguments: Arguments, name: str) -> str:
    value = arguments.get(name, "")
    if not isinstance(value, str):
        raise InvalidValue(f"{name} must be text", param=name)
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 < value < 2**43:
        raise InvalidValue("a positive whole number is needed")
    return value


# -- the way to a gateway that runs ------------------------------------------------------------


def note_file(wallet: Path) -> Path:
    """Where a gateway that has this wallet open says how it can be asked."""
    return wallet.with_name(wallet.name + ".gateway")


def read_note(wallet: Path) -> dict[str, str] | None:
    """``url``, ``secret`` and ``key`` of the gateway that has the wallet open; None without."""
    try:
        note = json.loads(note_file(wallet).read_text())
        return {name: str(note[name]) for name in ("url", "secret", "key")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


class OpenDesk:
    """The desk of a running gateway."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._secret = secrets.token_urlsafe(32)

    def route(self) -> Route:
        """``POST /gateway/{name}`` with ``{secret, arguments}``."""
        return Route("POST", "/gateway/{name}", "The wallet, for its owner", self._answer)

    def leave_note(self, wallet: Path, url: str, key: str) -> None:
        """Say beside the wallet how to ask. Raises OSError."""
        path = note_file(wallet)
        with suppress(FileNotFoundError):
            path.unlink()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"url": url, "secret": self._secret, "key": key}, file)

    async def _answer(self, request: Request, params: Mapping[str, str]) -> Reply:
        body = json_object(request)
        given = body.get("secret")
        if not isinstance(given, str) or not hmac.compare_digest(
            given.encode(), self._secret.encode()
        ):
            raise InvalidApiKey
        arguments = body.get("arguments")
        if not isinstance(arguments, dict):
            raise InvalidValue("arguments must be an object", param="arguments")
        try:
            document = await self._desk.ask(params["name"], arguments)
        except ValueError as error:
            raise InvalidValue(str(error)) from None
        return Reply(document, headers={"cache-control": "no-store"})
