"""Paying what an expired key still has to its Lightning address.

    key expires ─▶ nothing of it is under way ─▶ invoice from the address ─▶ checked
                ─▶ melt out of the account (node/ecash/melting.py) ─▶ what is left stays there

| what happens                                    | outcome                                     |
|-------------------------------------------------|---------------------------------------------|
| the balance is below the floor                  | stays in the account                        |
| the address gives no invoice, or another amount | tried again, after ever longer pauses       |
| Lightning may cost more than allowed            | the same                                    |
| the mint cannot pay                             | the same; the money is in the account       |
| outcome not known                               | recovery finishes it; no other one begins   |
| given up, and the outcome was once unknown      | none begins while that invoice is good      |
| Lightning cost less than was set aside          | the rest is in the account; from the floor  |
|                                                 | up it is refunded, too                      |
| the holder withdraws meanwhile                  | both take only what is free: never twice    |
| refunds are stopped (by the watchdog, say)      | nothing begins                              |
| the database came from a backup                 | keys expired by then are not refunded       |

At every moment the money is in the account or in one journalled payment, and what is in the
account can be withdrawn with the key, expired or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from node.core.accounts import Operation
from node.core.lightning import FeeLimit, PayoutError
from node.core.money import MSAT_PER_SAT, Msat
from node.errors import InvalidValue, NodeError, Pending
from node.ports import KeyStore, Lightning, Payee

log = structlog.get_logger()

MAX_AT_ONCE = 4
"""Refunds that run at the same time: an address that does not answer holds up few others."""
MAX_PER_ROUND = 100
"""Refunds begun in one round."""


@dataclass(frozen=True, slots=True)
class RefundTerms:
    """When and how expired keys are refunded."""

    floor: Msat = Msat(100 * MSAT_PER_SAT)
    """What is less stays in the account, for its holder to withdraw."""
    max_fee: FeeLimit = FeeLimit()
    """The most that Lightning may cost; it is the account that pays it."""
    interval_s: float = 60.0
    """How often expired keys are looked for."""
    retry_s: float = 600.0
    """Pause after the first failure; it doubles with each further one."""
    max_retry_s: float = 86_400.0


class Refunds:
    """Implements ``node.ports.Refunder``, and refunds in the background.

    Args:
        allowed: asked before each refund; None means go on, else why not.
    """

    def __init__(
        self,
        lightning: Lightning,
        payee: Payee,
        keys: KeyStore,
        terms: RefundTerms,
        allowed: Callable[[], str | None] | None = None,
    ) -> None:
        self._lightning = lightning
        self._payee = payee
        self._keys = keys
        self._terms = terms
        self._allowed = allowed

    def change(self, terms: RefundTerms) -> None:
        """Other terms from the next refund on."""
        self._terms = terms

    def check(self, address: str) -> None:
        """Raise InvalidValue when ``address`` is not one that could be paid."""
        try:
            self._payee.check(address)
        except PayoutError as error:
            raise InvalidValue(str(error), param="refund_address") from None

    async def run(self) -> None:
        """Look for expired keys at every interval, for ever."""
        while True:
            await self.once()
            await asyncio.sleep(self._terms.interval_s)

    async def once(self) -> int:
        """Try every refund that is due; how many were made."""
        barred = None if self._allowed is None else self._allowed()
        if barred is not None:
            log.warning("refunds_stopped", reason=barred)
            return 0
        slots = asyncio.Semaphore(MAX_AT_ONCE)

        async def attempt(account_id: int, address: str) -> bool:
            async with slots:
                return await self._try(account_id, address)

        due = await self._keys.to_refund(MAX_PER_ROUND, self._terms.floor)
        return sum(await asyncio.gather(*(attempt(*refund) for refund in due)))

    async def _try(self, account_id: int, address: str) -> bool:
        terms = self._terms
        # Counted before it begins: whatever goes wrong, the next one waits.
        await self._keys.count_try(account_id, terms.retry_s, terms.max_retry_s)
        try:
            operation = await self.refund(account_id, address)
        except Pending as error:
            log.info("refund_pending", account=account_id, reason=error.message)
            return False
        except (PayoutError, NodeError) as error:
            log.warning("refund_not_made", account=account_id, reason=str(error))
            return False
        await self._keys.forget_tries(account_id)
        log.info("refund_made", account=account_id, operation=operation.id)
        return True

    async def refund(self, account_id: int, address: str) -> Operation:
        """Pay what the account has, less what that may cost, to ``address``.

        What one payment cannot carry (the mint has too few coins, the payee takes no more) is
        left for the next one. Raises PayoutError when nothing was paid, Pending while the outcome
        is not known or another refund of it may still be paid, InvalidValue when the key has not
        expired, InsufficientBalance, MintLiquidity.
        """
        found = await self._lightning.payable(account_id)
        if not found:
            raise PayoutError("there is no mint to pay with")
        payable, limit = found[0], self._terms.max_fee
        amount = limit.affordable(payable.available - payable.input_fee)
        if amount <= 0:
            raise PayoutError(f"{payable.available} msat do not pay for a Lightning payment")
        request = await self._payee.invoice(address, amount, or_less=True)
        return await self._lightning.pay(
            request, address, payable, max_fee=limit.of(request.amount), account_id=account_id
        )
