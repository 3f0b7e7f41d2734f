"""Paying the operator what the node has earned, now and then.

    earned ≥ floor + reserve ─▶ invoice from the payee ─▶ checked ─▶ melt (node/ecash/melting.py)

| what happens                                    | outcome                                     |
|-------------------------------------------------|---------------------------------------------|
| earned less than floor and reserve              | nothing                                     |
| the address gives no invoice, or another amount | nothing; tried again at the next interval   |
| Lightning may cost more than allowed            | nothing; tried again at the next interval   |
| a payout is under way                           | nothing: one at a time                      |
| outcome not known                               | recovery finishes it; no other one begins   |
| payouts are stopped (the watchdog, say)        | nothing                                     |

Only what is earned is paid: never more than coins less liabilities less the reserve, checked in
the transaction that sets the money aside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from node.core.accounts import Operation
from node.core.lightning import FeeLimit, Payable, PayoutError, PayRequest
from node.core.money import MSAT_PER_SAT, Msat
from node.errors import NodeError, Pending
from node.ports import Lightning, Payee

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PayoutTerms:
    """When and how much is paid out."""

    address: str | None
    """Lightning address or LNURL; None: nothing is paid by itself."""
    floor: Msat = Msat(10_000 * MSAT_PER_SAT)
    """Pay when at least that much is there beyond the reserve."""
    cap: Msat = Msat(1_000_000 * MSAT_PER_SAT)
    """The most of one payout."""
    reserve: Msat = Msat(1_000 * MSAT_PER_SAT)
    """Earnings that stay, for the mints' fees."""
    max_fee: FeeLimit = FeeLimit()
    """The most that Lightning may cost."""
    interval_s: float = 3600.0


class Payouts:
    """Pays earnings out.

    Args:
        allowed: asked before each payout that begins by itself; None means go on, else why not.
    """

    def __init__(
        self,
        lightning: Lightning,
        payee: Payee,
        terms: PayoutTerms,
        allowed: Callable[[], str | None] | None = None,
    ) -> None:
        self._lightning = lightning
        self._payee = payee
        self._terms = terms
        self._allowed = allowed

    def change(self, terms: PayoutTerms) -> None:
        """Other terms from the next payout on."""
        self._terms = terms

    async def run(self) -> None:
        """Pay out at every interval, for ever."""
        while True:
            try:
                await self.once()
            except Pending:
                log.info("payout_pending")
            except (PayoutError, NodeError) as error:
                log.warning("payout_not_made", reason=str(error))
            await asyncio.sleep(self._terms.interval_s)

    async def once(self) -> Operation | None:
        """Pay out if there is enough; None when there is not. Raises as ``pay`` does."""
        if self._terms.address is None:
            return None
        payable = await self._best()
        if payable is None or payable.available - self._terms.reserve < self._terms.floor:
            return None
        return await self._pay_address(self._terms.address, payable, None)

    async def pay(self, destination: str, amount: Msat | None = None) -> Operation:
        """Pay ``amount`` (None: all that may be paid) to an address, an LNURL or an invoice.

        Raises PayoutError when nothing was paid, Pending while the outcome is not known,
        InvalidValue, InsufficientBalance, MintLiquidity.
        """
        payable = await self._best()
        if payable is None:
            raise PayoutError("there is nothing to pay out")
        try:
            request = self._lightning.read(destination)
        except ValueError:
            return await self._pay_address(destination, payable, amount)
        if amount not in (None, request.amount):
            raise PayoutError(f"the invoice is over {request.amount} msat")
        if request.amount > self._terms.cap:
            raise PayoutError(f"the invoice is above the cap of {self._terms.cap} msat")
        return await self._pay(request, "invoice", payable)

    async def _pay_address(
        self, destination: str, payable: Payable, amount: Msat | None
    ) -> Operation:
        most = self._most(payable)
        wanted = most if amount is None else amount
        if wanted <= 0 or wanted > most:
            raise PayoutError(f"{max(0, most)} msat can be paid out")
        request = await self._payee.invoice(destination, wanted)
        return await self._pay(request, destination, payable)

    async def _pay(self, request: PayRequest, destination: str, payable: Payable) -> Operation:
        if self._allowed is not None:
            barred = self._allowed()
            if barred is not None:
                raise PayoutError(f"payouts are stopped: {barred}")
        terms = self._terms
        max_fee = terms.max_fee.of(request.amount)
        operation = await self._lightning.pay(
            request, destination, payable, max_fee=max_fee, reserve=terms.reserve
        )
        log.info("payout_made", operation=operation.id, amount_msat=request.amount)
        return operation

    async def _best(self) -> Payable | None:
        found = await self._lightning.payable()
        return found[0] if found and found[0].available > 0 else None

    def _most(self, payable: Payable) -> Msat:
        """The largest whole-sat amount that leaves its fees and the reserve."""
        free = payable.available - self._terms.reserve - payable.input_fee
        return self._terms.max_fee.affordable(min(free, self._terms.cap))
