"""Who pays for a call. There are two: an account (by key) and a token (for this call only).

A token is an account too, opened by the token and closed with its change when the call ends, so
both go through the same holds and the same books.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from node.core.accounts import HoldRequest
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
from node.service.accounts import Accounts, request_account

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
    """The payer a request names: ``X-Cashu`` before ``Authorization``.

    Raises what ``Accounts.authenticate`` and ``Wallet.accept`` raise.
    """
    text = request.headers.get("x-cashu")
    if text:
        return TokenPayer(text.strip(), wallet.accept(text.strip()), accounts, ledger, wallet)
    account = await accounts.authenticate(request)
    return AccountPayer(account.id, ledger)


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
    """Pays from an account's balance."""

    live = True

    def __init__(self, account_id: int, ledger: Ledger) -> None:
        self._account_id = account_id
        self._ledger = ledger
        self._hold_id = 0

    async def hold(self, request: HoldRequest) -> None:
        self._hold_id = await _hold(self._ledger, self._account_id, request)

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
        if self._token.value < request.max_cost:
            raise InsufficientBalance(
                f"this request may cost up to {request.max_cost} msat, the token is worth"
                f" {self._token.value} msat; it was not spent"
            )
        operation = await self._wallet.receive(self._text, request_account(self._token))
        self._account_id = operation.account_id
        only = HoldRequest(
            request.request_id, _ONLY_REQUEST, request.model, request.price, request.max_cost
        )
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
        closed = await self._wallet.settle_and_close(
            self._account_id, self._hold_id, cost, usage, prefer=self._token.mint
        )
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
