"""Who pays for a call. There are two: an account (by key) and a token (for this call only).

A token is an account too, opened by the token and closed with its change when the call ends, so
both go through the same holds and the same books.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

from node.core.accounts import Account, HoldRequest
from node.core.ecash import Token
from node.core.exchange import Receipt, Request
from node.core.money import Msat
from node.core.usage import Usage
from node.errors import (
    InsufficientBalance,
    Interrupted,
    NodeError,
    TokenAlreadySpent,
)
from node.ports import Ledger, Wallet
from node.service.accounts import Accounts, Unopened, request_account

_ONLY_REQUEST = "x-cashu"
"""Request key of the one hold of a pay-per-request account."""


class Refused(Exception):
    """The payer cannot pay. ``receipt`` carries what it gets back."""

    def __init__(self, error: NodeError, receipt: Receipt) -> None:
        super().__init__(str(error))
        self.error = error
        self.receipt = receipt


class Payer(Protocol):
    """Holds before the call, then settles or releases exactly once.

    ``settle`` and ``release`` have queued their effect before they first wait: cancelling them
    changes nothing.
    """

    live: bool
    """Whether a stream may be sent as it comes; else the change must be known first."""

    async def hold(self, request: HoldRequest) -> None:
        """Set the most the call may cost aside. Raises Refused or a NodeError."""
        ...

    async def settle(self, cost: Msat, usage: Usage) -> Receipt:
        """Charge, at most what is held."""
        ...

    async def release(self) -> Receipt:
        """Charge nothing."""
        ...


async def choose_payer(
    request: Request, accounts: Accounts, ledger: Ledger, wallet: Wallet
) -> Payer:
    """The payer a request names: ``X-Cashu`` before ``Authorization``. Moves nothing yet.

    Raises what ``Accounts.identify`` and ``Wallet.accept`` raise.
    """
    text = request.headers.get("x-cashu", "").strip()
    if text:
        return TokenPayer(text, wallet.accept(text), accounts, ledger, wallet)
    return AccountPayer(await accounts.identify(request), accounts, ledger)


async def _hold(ledger: Ledger, account_id: int, request: HoldRequest) -> int:
    """A hold that is released again when the caller is cancelled before it knows of it."""
    future = ledger.hold(account_id, request)

    def give_back(done: asyncio.Future[int]) -> None:
        if not done.cancelled() and done.exception() is None:
            ledger.release(done.result())

    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(give_back)
        raise


class AccountPayer:
    """Pays from an account's balance; a token used as a key opens the account first."""

    live = True

    def __init__(self, who: Account | Unopened, accounts: Accounts, ledger: Ledger) -> None:
        self._who = who
        self._accounts = accounts
        self._ledger = ledger
        self._hold_id = 0

    async def hold(self, request: HoldRequest) -> None:
        if isinstance(self._who, Unopened):
            account_id = (await self._accounts.open(self._who.text)).account_id
        else:
            account_id = self._who.id
        self._hold_id = await _hold(self._ledger, account_id, request)

    async def settle(self, cost: Msat, usage: Usage) -> Receipt:
        charged = await self._ledger.settle(self._hold_id, cost, usage)
        return Receipt(cost=charged, usage=usage)

    async def release(self) -> Receipt:
        await self._ledger.release(self._hold_id)
        return Receipt(cost=Msat(0))


class TokenPayer:
    """Pays with a token; what is left comes back as change."""

    live = False

    def __init__(
        self, text: str, token: Token, accounts: Accounts, ledger: Ledger, wallet: Wallet
    ) -> None:
        self._text = text
        self._token = token
        self._accounts = accounts
        self._ledger = ledger
        self._wallet = wallet
        self._account_id = 0
        self._hold_id = 0

    async def hold(self, request: HoldRequest) -> None:
        operation = await self._wallet.receive(
            self._text, request_account(self._token), at_least=request.max_cost
        )
        self._account_id = operation.account_id
        only = replace(request, request_key=_ONLY_REQUEST, digest="")
        try:
            self._hold_id = await _hold(self._ledger, operation.account_id, only)
        except Interrupted:
            raise await self._refused(operation.account_id, TokenAlreadySpent()) from None
        except InsufficientBalance as error:
            state_error: NodeError = error
            if not await self._has_money(operation.account_id):
                state_error = TokenAlreadySpent("this token paid for a request before")
            raise await self._refused(operation.account_id, state_error) from None

    async def settle(self, cost: Msat, usage: Usage) -> Receipt:
        return await self._close(cost, usage)

    async def release(self) -> Receipt:
        return await self._close(Msat(0), None)

    async def _close(self, cost: Msat, usage: Usage | None) -> Receipt:
        closed = await self._wallet.settle_and_close(self._account_id, self._hold_id, cost, usage)
        change = closed.change.token if closed.change else None
        return Receipt(cost=closed.cost, usage=usage, change=change, dust=closed.dust)

    async def _has_money(self, account_id: int) -> bool:
        """Whether its money is still there: neither charged nor given back."""
        return (await self._ledger.balance(account_id)).balance > 0

    async def _refused(self, account_id: int, error: NodeError) -> Refused:
        """The refusal with all the money that is still there."""
        change = await self._accounts.close_request(account_id)
        token = change.token if change else None
        return Refused(error, Receipt(cost=Msat(0), change=token))
