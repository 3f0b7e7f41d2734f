"""Paying providers and getting back what is left, whatever happens on the way.

    pay        written down ─▶ token issued ─▶ written down ─▶ (it may leave)
    bank       change written down ─▶ swapped into the purse ─▶ settled
    recover    is the token spent? no ─▶ taken back
                                   yes ─▶ its change is asked for, as docs/protocol.md has it

| what happens                         | outcome                                              |
|--------------------------------------|------------------------------------------------------|
| killed before the token left         | taken back at the next start                         |
| killed after it left, not redeemed   | taken back at the next start                         |
| killed after it was redeemed         | the provider is asked for the change                 |
| killed after the change had come     | it is in the journal; swapped at the next start      |
| the provider does not answer         | asked again, over the other carriage too             |
| it redeemed and gives nothing back   | lost after ``lost_after_s``; shown, and asked again  |
|                                      | by ``nodestr wallet recover``                        |
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import orjson
import structlog

from node.core.denominations import split
from node.core.money import MSAT_PER_SAT, Msat, ceil_div, to_msat
from node.ecash.token import parse_token
from node.errors import (
    FeesExceedAmount,
    InsufficientBalance,
    InvalidValue,
    MintNotAccepted,
    NodeError,
    TokenAlreadySpent,
    TokenMalformed,
)
from node.gateway.carriage import Carriage, CarriageError, read_all
from node.gateway.journal import OPEN, Journal, Spending
from node.gateway.offers import Offer
from node.gateway.purse import Purse

log = structlog.get_logger()

ASK_TIMEOUT_S = 20.0
"""How long one question for change may take."""
MAX_CHANGE_BYTES = 1 << 20
SOON_S = (0.3, 1.0, 2.0, 4.0, 8.0)
"""Pauses before money that should come back at once is asked for again."""
SPARE_COINS = 4
"""Coins that a token may have beyond the fewest; the mint's fee for them is sent along."""


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
        self._carriages = carriages
        self._lost_after_s = lost_after_s
        self._on_overcharged = on_overcharged
        self._live: set[str] = set()
        """Spendings of requests that run: nobody else touches them."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- out -------------------------------------------------------------------------------

    async def pay(self, offer: Offer, cost: Msat, cap: Msat) -> tuple[Spending, str]:
        """A token for ``offer`` that covers ``cost`` after the mint's fee, written down as sent.

        The caller ends it with ``bank``, ``recover`` or ``later``. Raises InsufficientBalance,
        MintUnreachable, MintLiquidity, Pending.
        """
        wanted_sat = max(1, ceil_div(cost, MSAT_PER_SAT))
        stock = await self.purse.stock()
        mints = sorted(
            (mint for mint in stock if mint in offer.mints), key=lambda mint: -stock[mint]
        )
        if not mints:
            raise InsufficientBalance("the wallet holds no money of a mint that provider takes")
        mint = mints[0]
        coins = len(split(wanted_sat)) + SPARE_COINS
        amount = Msat((wanted_sat + await self.purse.fee_of(mint, coins)) * MSAT_PER_SAT)
        if amount > cap:
            raise InsufficientBalance(
                f"this request may cost {amount // MSAT_PER_SAT} sat, more than is allowed for one"
                f" ({cap // MSAT_PER_SAT} sat); lower max_tokens or raise --max-price"
            )
        if amount > stock[mint]:
            raise InsufficientBalance(
                f"this request may cost {amount // MSAT_PER_SAT} sat and the wallet holds"
                f" {stock[mint] // MSAT_PER_SAT} sat of {mint}; what is not used would come back."
                " Lower max_tokens or fill the wallet"
            )
        id_ = uuid.uuid4().hex
        spending = Spending(id_, offer.place, offer.way, offer.model, mint, amount)
        self._live.add(id_)
        try:
            await self.journal.begin(spending)
            operation = await self.purse.send(amount, mint=mint, request_key=id_)
            assert operation.token is not None
            await self.journal.move(id_, "sent")
        except BaseException:
            self.later(spending)
            raise
        return spending, operation.token

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
                await self._recover(await self.journal.spending(id_))
            done = (await self.journal.spending(id_)).state not in OPEN
        except KeyError:  # it was not even begun
            done = True
        except (NodeError, CarriageError) as error:
            log.info("money_still_out", spending=id_, reason=str(error))
            return False
        if done:
            self._locks.pop(id_, None)
        return done

    async def _recover(self, spending: Spending) -> None:
        if spending.state not in (*OPEN, "lost"):
            return
        operation = await self.purse.issued(spending.id)
        if operation is None or operation.state != "done" or operation.token is None:
            await self.journal.move(spending.id, "void")
            return
        token = operation.token
        if spending.change:
            await self._bank(spending)
        elif spending.state in ("begun", "reclaiming"):
            await self._reclaim(spending, token)
        else:
            spent = await self.purse.spent(parse_token(token))
            if spent is False:
                await self._reclaim(spending, token)
            elif spent:
                await self._ask(spending, token)

    async def _reclaim(self, spending: Spending, token: str) -> None:
        """Swap a token that nobody has redeemed back into the purse."""
        await self.journal.move(spending.id, "reclaiming", of=(*OPEN, "lost"))
        try:
            operation = await self.purse.receive(token)
        except TokenAlreadySpent:
            await self.journal.move(spending.id, "sent", note="the provider redeemed it")
        except FeesExceedAmount:
            await self.journal.move(spending.id, "lost", note="the mint's fee is all of it")
        else:
            await self.journal.move(spending.id, "reclaimed", back=operation.credit)

    async def _bank(self, spending: Spending) -> None:
        """Swap the change into the purse."""
        try:
            operation = await self.purse.receive(spending.change)
        except (TokenAlreadySpent, TokenMalformed) as error:
            await self._lose(spending, f"its change is no good ({error.code})")
        except FeesExceedAmount:
            await self.journal.move(spending.id, "settled", note="change below the mint's fee")
        except MintNotAccepted:
            mint = parse_token(spending.change).mint
            note = f"its change is of {mint}: nodestr wallet receive --mint {mint}"
            await self.journal.move(spending.id, spending.state, of=(spending.state,), note=note)
        else:
            await self.journal.move(
                spending.id, "settled", of=(*OPEN, "lost"), back=operation.credit
            )

    async def _ask(self, spending: Spending, token: str) -> None:
        """Ask the provider for the change of a token that it has redeemed."""
        names = sorted(self._carriages, key=lambda name: name != spending.carriage)
        note = ""
        for name in names:
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    status, body = await self._refund(self._carriages[name], spending, token)
            except (CarriageError, TimeoutError) as error:
                note = f"the provider cannot be asked: {error or 'no answer in time'}"
                continue
            change = _change(body) if status == 200 else None
            if change is not None:
                await self.journal.keep_change(spending.id, change)
                await self._bank(await self.journal.spending(spending.id))
                await self._judge(spending.id)
                return
            if status == 402:  # the request used it up
                await self.journal.move(spending.id, "settled", of=(*OPEN, "lost"))
                await self._judge(spending.id)
                return
            note = f"the provider answers {status} when asked for the change"
            if status == 425:
                break
        if time.time() - spending.created_at > self._lost_after_s:
            await self._lose(spending, note)
        else:
            await self.journal.move(spending.id, spending.state, of=(spending.state,), note=note)

    async def _refund(
        self, carriage: Carriage, spending: Spending, token: str
    ) -> tuple[int, bytes]:
        headers = {"x-cashu": token, "accept": "application/json"}
        answer = await carriage.open(spending.place, "POST", "/v1/balance/refund", headers, b"")
        return answer.status, await read_all(answer, MAX_CHANGE_BYTES)

    async def tolerance(self, spending: Spending) -> Msat:
        """How much more than the price may be gone: its mint's fees are the payer's, and nothing
        smaller than a sat comes back. Raises MintUnreachable."""
        coins = SPARE_COINS + (spending.amount // MSAT_PER_SAT).bit_length()
        return to_msat(2 * await self.purse.fee_of(spending.mint, coins) + 1, "sat")

    async def _judge(self, id_: str) -> None:
        """Notice a provider that kept more than its price."""
        spending = await self.journal.spending(id_)
        if spending.state != "settled" or spending.expected is None:
            return
        if spending.cost > spending.expected + await self.tolerance(spending):
            self._on_overcharged(spending)

    async def _lose(self, spending: Spending, note: str) -> None:
        if await self.journal.move(spending.id, "lost", note=note):
            self._on_overcharged(spending)
            log.warning(
                "money_lost",
                spending=spending.id,
                provider=spending.place.pubkey,
                amount_msat=spending.amount,
                reason=note,
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(_ended(self._tasks))
        return task


def _ended(tasks: set[asyncio.Task[Any]]) -> Callable[[asyncio.Task[Any]], None]:
    def forget(task: asyncio.Task[Any]) -> None:
        tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("recovery_failed", error=type(task.exception()).__name__)

    return forget


def _change(body: bytes) -> str | None:
    """The token of an answer of ``/v1/balance/refund``."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    token = document.get("token") if isinstance(document, dict) else None
    return token if isinstance(token, str) and token.startswith("cashu") else None


def change_value(token: str, mint: str) -> Msat:
    """Face value of a change token. Raises TokenMalformed, InvalidValue for another mint's."""
    parsed = parse_token(token)
    if parsed.mint != mint:
        raise InvalidValue("the change is of another mint")
    return parsed.value
