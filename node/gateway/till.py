"""Paying providers, and seeing to it that what is left comes back.

pay        written down ─▶ token issued ─▶ written down ─▶ (it may leave)
keep       change written down
later      the request is over: what is left is recovered (node/gateway/recovery.py)
resume     the request of an earlier process goes on with the token it paid with
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import structlog

from node.core.denominations import split
from node.core.money import MSAT_PER_SAT, Msat, ceil_div
from node.errors import InsufficientBalance, NodeError, Pending
from node.gateway.asked import Asked
from node.gateway.carriage import Carriage, CarriageError
from node.gateway.journal import OPEN, Journal, Spending
from node.gateway.offers import Offer
from node.gateway.purse import SPARE_COINS, Purse
from node.gateway.recovery import Recovery

log = structlog.get_logger()

SOON_S = (0.3, 1.0, 2.0, 4.0, 8.0)
"""Pauses before money that should come back at once is asked for again."""
RESUME_TIMEOUT_S = 3.0
"""How long a request waits for the recovery of what it was paid with before."""
CHANGE_WAIT_S = 3.0
"""How long a request that the wallet has too little for waits for change that is on its way."""
MAX_NAMED = 3
"""Mints that an error names."""


class _TooLittle(InsufficientBalance):
    """There may be enough once change is back."""


class Till:
    """Made by ``node.gateway.app``.

    Args:
        carriages: by name; for questions the one that carried the token is tried first.
        lost_after_s: see the table.
        on_overcharged: told of a provider that was asked for change and had kept too much.
    """

    def __init__(
        self,
        purse: Purse,
        carriages: Mapping[str, Carriage],
        lost_after_s: float,
        on_overcharged: Callable[[Spending], None] = lambda _: None,
    ) -> None:
        self.purse = purse
        self.journal: Journal = purse.journal
        self._recovery = Recovery(purse, carriages, lost_after_s, on_overcharged)
        self._live: set[str] = set()
        """Spendings of requests that run: nobody else touches them."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- out -------------------------------------------------------------------------------

    async def pay(
        self, offer: Offer, cost: Msat, cap: Msat, asked: Asked | None = None
    ) -> tuple[Spending, str]:
        """A token for ``offer`` that covers ``cost`` after the mint's fee, written down as sent.

        The caller ends it with ``bank``, ``recover`` or ``later``. Raises InsufficientBalance,
        MintUnreachable, MintLiquidity, Pending.
        """
        deadline = asyncio.get_running_loop().time() + CHANGE_WAIT_S
        while True:
            try:
                mint, amount = await self._amount(offer, cost, cap)
                break
            except _TooLittle:
                if not await self._comes_back(deadline):
                    raise
        id_ = uuid.uuid4().hex
        spending = Spending(id_, offer.place, offer.way, offer.model, mint, amount)
        self._live.add(id_)
        try:
            await self.journal.begin(spending, asked)
            operation = await self.purse.send(amount, mint=mint, request_key=id_)
            assert operation.token is not None
            await self.journal.move(id_, "sent")
        except BaseException:
            self.later(spending)
            raise
        return spending, operation.token

    async def resume(self, id_: str) -> str | None:
        """The token of an earlier purchase, for its request to go on with.

        The caller ends it as one that ``pay`` gave; None when it is back, or never was. Raises
        Pending, MintUnreachable.
        """
        lock = self._locks.setdefault(id_, asyncio.Lock())
        try:
            await asyncio.wait_for(lock.acquire(), RESUME_TIMEOUT_S)
        except TimeoutError:
            raise Pending("its provider is being asked for the money") from None
        try:
            spending = await self.journal.spending(id_)
            if spending.state not in ("sent", "settled", "lost"):
                return None
            operation = await self.purse.issued(id_)
            if operation is not None:
                self._live.add(id_)
            return None if operation is None else operation.token
        finally:
            lock.release()

    async def withdraw(self, spending: Spending) -> bool:
        """Take back the token of a request that still runs, when nobody has redeemed it; whether
        it is back. The mint takes a token once: whoever sends it in later gets nothing."""
        try:
            async with self._locks.setdefault(spending.id, asyncio.Lock()):
                return await self._recovery.withdraw(spending.id)
        except NodeError as error:
            log.info("token_not_withdrawn", spending=spending.id, reason=str(error))
            return False

    async def _amount(self, offer: Offer, cost: Msat, cap: Msat) -> tuple[str, Msat]:
        """Which mint's coins to pay with, and how much that is with its fee.

        Raises InsufficientBalance, _TooLittle, MintUnreachable.
        """
        stock = await self.purse.stock()
        mint = max((url for url in stock if url in offer.mints), key=stock.__getitem__, default="")
        if not mint or not stock[mint]:
            raise _TooLittle(_other_mints(stock, offer.mints))
        wanted_sat = max(1, ceil_div(cost, MSAT_PER_SAT))
        fee_sat = await self.purse.fee_of(mint, len(split(wanted_sat)) + SPARE_COINS)
        amount = Msat((wanted_sat + fee_sat) * MSAT_PER_SAT)
        if amount > cap:
            raise InsufficientBalance(
                f"this request may cost {amount // MSAT_PER_SAT} sat, more than is allowed for one"
                f" ({cap // MSAT_PER_SAT} sat); lower max_tokens or raise --max-price"
            )
        if amount > stock[mint]:
            raise _TooLittle(
                f"this request may cost {amount // MSAT_PER_SAT} sat and the wallet holds"
                f" {stock[mint] // MSAT_PER_SAT} sat of {mint}; what is not used would come back."
                f" Lower max_tokens or fill the wallet: nodestr wallet topup SAT --mint {mint}"
            )
        return mint, amount

    async def _comes_back(self, deadline: float) -> bool:
        """Wait for change that is on its way; False when there is none, or no more time."""
        left_s = deadline - asyncio.get_running_loop().time()
        if not self._tasks or left_s <= 0:
            return False
        await asyncio.wait(set(self._tasks), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        return True

    # -- back ------------------------------------------------------------------------------

    async def keep(self, spending: Spending, change: str) -> None:
        """The change is here: it cannot be lost any more."""
        await self.journal.keep_change(spending.id, change)

    def later(self, spending: Spending) -> None:
        """Get back what is left of a spending whose request is over, in the background."""
        self._live.discard(spending.id)
        self._spawn(self._soon(spending.id))

    async def over(self, spending: Spending, timeout_s: float) -> None:
        """``later``, and wait for it a while."""
        self._live.discard(spending.id)
        task = self._spawn(self._soon(spending.id))
        await asyncio.wait({task}, timeout=timeout_s)

    async def wind_up(self, timeout_s: float) -> None:
        """Wait for what is on its way back; what is not here by then is recovered later."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def recover_all(self, *, lost_too: bool = False) -> list[Spending]:
        """Try everything that is open once; returns how it stands now."""
        states = (*OPEN, "lost") if lost_too else OPEN
        found = [s for s in await self.journal.in_states(states) if s.id not in self._live]
        for spending in found:
            await self._try(spending.id)
        return [await self.journal.spending(spending.id) for spending in found]

    async def run(self, interval_s: float) -> None:
        """``recover_all``, for ever."""
        while True:
            await self.recover_all()
            await asyncio.sleep(interval_s)

    async def _soon(self, id_: str) -> None:
        for pause_s in SOON_S:
            if await self._try(id_):
                return
            await asyncio.sleep(pause_s)

    async def _try(self, id_: str) -> bool:
        """``recover``; True when the spending is at its end."""
        lock = self._locks.setdefault(id_, asyncio.Lock())
        try:
            async with lock:
                if id_ in self._live:  # its request goes on
                    return False
                await self._recovery.recover(await self.journal.spending(id_))
            done = (await self.journal.spending(id_)).state not in OPEN
        except KeyError:  # it was not even begun
            done = True
        except (NodeError, CarriageError) as error:
            log.info("money_still_out", spending=id_, reason=str(error))
            return False
        if done:
            self._locks.pop(id_, None)
        return done

    async def tolerance(self, spending: Spending) -> Msat:
        """``Recovery.tolerance``."""
        return await self._recovery.tolerance(spending)

    async def cost_something(self, spending: Spending) -> bool:
        """Whether more is gone than the mint's fees there and back. Raises MintUnreachable."""
        return spending.cost > await self._recovery.fees(spending)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(_ended(self._tasks))
        return task


def _other_mints(stock: Mapping[str, Msat], wanted: Sequence[str]) -> str:
    """What to do for a provider that takes coins of other mints than the wallet has."""
    held = max((mint for mint in stock if stock[mint]), key=lambda url: stock[url], default=None)
    if not wanted:
        return "the provider names no mint that a wallet can use"
    fill = f"nodestr wallet topup SAT --mint {wanted[0]}"
    if held is None:
        return f"the wallet is empty; the provider takes coins of {wanted[0]}: {fill}"
    names = ", ".join(wanted[:MAX_NAMED])
    return (
        f"the provider takes coins of {names}, the wallet's are of {held}."
        f" Move some: nodestr wallet move {held} {wanted[0]} SAT, or fill it: {fill}"
    )


def _ended(tasks: set[asyncio.Task[Any]]) -> Callable[[asyncio.Task[Any]], None]:
    def forget(task: asyncio.Task[Any]) -> None:
        tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("recovery_failed", error=type(task.exception()).__name__)

    return forget
