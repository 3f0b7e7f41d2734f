"""Who pays for a call. There are two: an account (by key) and a token (for this call only).

A token is an account too, opened by the token and closed with its change when the call ends, so
both go through the same holds and the same books.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from node.core.accounts import Account, HoldRequest
from node.core.ecash import Token
from node.core.exchange import Receipt, Request
from node.core.money import Msat
from node.core.usage import Usage
from node.errors import (
    Answered,
    InsufficientBalance,
    InternalError,
    Interrupted,
    NodeError,
    TokenAlreadySpent,
)
from node.ports import Ledger, Wallet
from node.service.accounts import Accounts, Unopened, check_date, request_account
from node.service.limits import of_account

_T = TypeVar("_T")

_ONLY_REQUEST = "x-cashu"
"""Request key of the one hold of a pay-per-request account."""


class Refused(Exception):
    """The payer cannot pay. ``receipt`` carries what it gets back; ``answered`` says that it has
    paid for a request before, maybe this one."""

    def __init__(
        self, error: NodeError, receipt: Receipt, answered: Answered | None = None
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.receipt = receipt
        self.answered = answered


class Payer(Protocol):
    """Begins before the call, then settles or releases exactly once.

    ``settle`` and ``release`` have made sure of their effect before they first wait: cancelling
    whoever waits changes nothing.
    """

    live: bool
    """Whether a stream may be sent as it comes; else the change must be known first."""
    limit_key: str
    """Whose concurrency counts; empty for nobody's."""
    refused: asyncio.Event | None
    """Set when money that was on its way did not come: the call is to be stopped."""

    async def begin(self, request: HoldRequest) -> None:
        """Set the most the call may cost aside, or get it on its way.

        After this the model server may be asked. Raises Refused or a NodeError.
        """
        ...

    async def secured(self) -> None:
        """Wait until the money is set aside: nothing reaches the client before. Raises Refused."""
        ...

    async def settle(self, cost: Msat, usage: Usage) -> Receipt:
        """Charge, at most what is held. Raises Refused."""
        ...

    async def release(self) -> Receipt:
        """Charge nothing. Raises Refused."""
        ...

    async def hold_id(self) -> int:
        """Of the hold that pays, once there is one. Raises Refused."""
        ...


async def choose_payer(
    request: Request, accounts: Accounts, ledger: Ledger, wallet: Wallet
) -> Payer:
    """The payer a request names: ``X-Cashu`` before ``Authorization``. Moves nothing yet.

    Raises what ``Accounts.identify`` and ``Wallet.accept`` raise, and KeyExpired.
    """
    text = request.headers.get("x-cashu", "").strip()
    if text:
        return TokenPayer(wallet.accept(text), accounts, ledger, wallet)
    who = await accounts.identify(request)
    if isinstance(who, Account):
        check_date(who)
    return AccountPayer(who, accounts, ledger)


def _undo(ledger: Ledger, hold: asyncio.Future[int]) -> None:
    """Release a hold that nobody will settle, as soon as it is there."""

    def release(done: asyncio.Future[int]) -> None:
        if not done.cancelled() and done.exception() is None:
            ledger.release(done.result())

    hold.add_done_callback(release)


class AccountPayer:
    """Pays from an account's balance; a token used as a key opens the account first.

    The model server is asked once the money is set aside, while that is written to disk. Nothing
    reaches the client before it is; see docs/decisions/0012-hold-before-commit.md.
    """

    live = True
    refused: asyncio.Event | None = None

    def __init__(self, who: Account | Unopened, accounts: Accounts, ledger: Ledger) -> None:
        self._who = who
        self.limit_key = of_account(who) if isinstance(who, Account) else ""
        self._accounts = accounts
        self._ledger = ledger
        self._hold: asyncio.Future[int] | None = None

    async def begin(self, request: HoldRequest) -> None:
        if isinstance(self._who, Unopened):
            account_id = (await self._accounts.open_unopened(self._who)).account_id
        else:
            account_id = self._who.id
            if self._who.child_id is not None:
                request = replace(request, child_id=self._who.child_id)
        ran: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._hold = self._ledger.hold(account_id, request, ran)
        self._hold.add_done_callback(_seen)
        try:
            await ran
        except asyncio.CancelledError:
            _undo(self._ledger, self._hold)
            raise

    async def secured(self) -> None:
        await self.hold_id()

    async def settle(self, cost: Msat, usage: Usage) -> Receipt:
        return await self._certainly(self._settle(cost, usage))

    async def release(self) -> Receipt:
        return await self._certainly(self._release())

    async def _settle(self, cost: Msat, usage: Usage) -> Receipt:
        charged = await self._ledger.settle(await self.hold_id(), cost, usage)
        return Receipt(cost=charged, usage=usage)

    async def _release(self) -> Receipt:
        await self._ledger.release(await self.hold_id())
        return Receipt(cost=Msat(0))

    async def _certainly(self, closing: Coroutine[Any, Any, Receipt]) -> Receipt:
        """What closes the hold, though whoever waits may be cancelled before it is on disk."""
        if self._hold is not None and self._hold.done():
            return await closing  # is queued before it first waits
        return await asyncio.shield(_spawn(closing))

    async def hold_id(self) -> int:
        hold = self._hold
        assert hold is not None
        try:
            return hold.result() if hold.done() else await asyncio.shield(hold)
        except Exception as error:  # it had been granted: only its commit can have failed
            failure = InternalError(private=f"the hold was not kept: {type(error).__name__}")
            raise Refused(failure, Receipt(cost=Msat(0))) from error


class TokenPayer:
    """Pays with a token; what is left comes back as change.

    The mint is asked while the model server already works: ``begin`` returns once the token is
    claimed and journalled, a task of its own goes on to redeem it and to hold the money.
    """

    live = False
    limit_key = ""

    def __init__(self, token: Token, accounts: Accounts, ledger: Ledger, wallet: Wallet) -> None:
        self.refused: asyncio.Event | None = asyncio.Event()
        self._token = token
        self._accounts = accounts
        self._ledger = ledger
        self._wallet = wallet
        self._account_id = 0
        self._securing: asyncio.Task[int] | None = None

    async def begin(self, request: HoldRequest) -> None:
        begun = asyncio.Event()
        self._securing = _spawn(self._secure(request, begun))
        self._securing.add_done_callback(self._note_refusal)
        waiting = asyncio.create_task(begun.wait())
        try:
            await asyncio.wait({waiting, self._securing}, return_when=asyncio.FIRST_COMPLETED)
            if self._securing.done():
                await self.secured()
        except asyncio.CancelledError:
            # The client is gone and nobody will settle: its money comes back as change.
            _spawn(self._close(Msat(0), None))
            raise
        finally:
            waiting.cancel()

    async def secured(self) -> None:
        await self.hold_id()

    async def settle(self, cost: Msat, usage: Usage) -> Receipt:
        return await asyncio.shield(_spawn(self._close(cost, usage)))

    async def release(self) -> Receipt:
        return await asyncio.shield(_spawn(self._close(Msat(0), None)))

    async def hold_id(self) -> int:
        assert self._securing is not None
        return await asyncio.shield(self._securing)

    def _note_refusal(self, securing: asyncio.Task[int]) -> None:
        assert self.refused is not None
        if securing.cancelled() or securing.exception() is not None:
            self.refused.set()

    async def _secure(self, request: HoldRequest, begun: asyncio.Event) -> int:
        """Redeem the token and hold; the hold's id. Raises Refused."""
        only = replace(request, request_key=_ONLY_REQUEST, digest="")
        holds: list[asyncio.Future[int]] = []

        def hold(account_id: int) -> None:
            holds.append(self._ledger.hold(account_id, only))

        try:
            try:
                operation = await self._wallet.receive(
                    self._token,
                    request_account(self._token),
                    at_least=request.max_cost,
                    on_begun=begun.set,
                    on_credit=hold,
                )
            except BaseException:
                for queued in holds:
                    _undo(self._ledger, queued)
                raise
            self._account_id = operation.account_id
            if not holds:
                hold(self._account_id)
            return await holds[0]
        except Interrupted as error:
            refusal = await self._refusal(TokenAlreadySpent())
            refusal.answered = error if isinstance(error, Answered) else None
            raise refusal from None
        except InsufficientBalance as error:
            if not self._account_id:
                raise Refused(error, Receipt()) from None
            spent = TokenAlreadySpent("this token paid for a request before")
            raise await self._refusal(error if await self._has_money() else spent) from None
        except NodeError as error:
            raise Refused(error, Receipt()) from None

    async def _close(self, cost: Msat, usage: Usage | None) -> Receipt:
        hold_id = await self.hold_id()
        closed = await self._wallet.settle_and_close(self._account_id, hold_id, cost, usage)
        change = closed.change.token if closed.change else None
        return Receipt(cost=closed.cost, usage=usage, change=change, dust=closed.dust)

    async def _has_money(self) -> bool:
        """Whether its money is still there: neither charged nor given back."""
        return (await self._ledger.balance(self._account_id)).balance > 0

    async def _refusal(self, error: NodeError) -> Refused:
        """The refusal with all the money that is still there."""
        try:
            change = await self._accounts.close_request(self._account_id)
        except NodeError as pending:
            return Refused(pending, Receipt())
        return Refused(error, Receipt(cost=Msat(0), change=change.token if change else None))


_tasks: set[asyncio.Task[Any]] = set()
"""The loop keeps tasks weakly; money on its way must not be collected."""


def _spawn(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """A task that goes on whoever waits for it."""
    task = asyncio.create_task(work)
    _tasks.add(task)
    task.add_done_callback(_forget)
    return task


def _forget(task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    _seen(task)


def _seen(done: asyncio.Future[Any]) -> None:
    """Its error is not lost: whoever waited has it, and nobody has to wait."""
    if not done.cancelled():
        done.exception()


async def wind_up(timeout_s: float) -> None:
    """Wait for the money on its way when the node stops; the rest is recovered at next start."""
    if _tasks:
        await asyncio.wait(set(_tasks), timeout=timeout_s)
