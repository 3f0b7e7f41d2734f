"""Getting back what is left of what was paid, whatever happened on the way.

    change is in the journal  ─▶ swapped into the purse ─▶ settled
    is the token spent? no    ─▶ taken back
                        yes   ─▶ over relays the same request again, by its id and with the key of
                                 its session, for the answer that was given and relays may have
                                 kept; else its change is asked for, as docs/protocol.md has it

| what happens                         | outcome                                              |
|--------------------------------------|------------------------------------------------------|
| killed before the token left         | taken back at the next start                         |
| killed after it left, not redeemed   | taken back at the next start                         |
| killed after it was redeemed         | the provider is asked for the change                 |
| killed after the change had come     | it is in the journal; swapped at the next start      |
| the provider does not answer         | asked again, over the other carriage too             |
| its change is none: given before,    | lost at once; of another mint it is taken when that  |
|  spent, locked, of another mint      | mint is agreed to                                    |
| it redeemed and gives nothing back   | lost after ``lost_after_s``; shown, and asked again  |
|                                      | by ``nodestr wallet recover``                        |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import orjson
import structlog

from node.core.money import MSAT_PER_SAT, Msat, to_msat
from node.ecash.token import parse_token
from node.errors import (
    FeesExceedAmount,
    InvalidValue,
    MintNotAccepted,
    TokenAlreadySpent,
    TokenMalformed,
)
from node.gateway.carriage import Carriage, CarriageError, read_all
from node.gateway.change import change_within
from node.gateway.journal import OPEN, Spending
from node.gateway.purse import SPARE_COINS, Purse

log = structlog.get_logger()

ASK_TIMEOUT_S = 20.0
"""How long one question for change may take."""
MAX_CHANGE_BYTES = 1 << 20


class Recovery:
    """Made by ``node.gateway.till.Till``.

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
        on_overcharged: Callable[[Spending], None],
    ) -> None:
        self.purse = purse
        self.journal = purse.journal
        self._carriages = carriages
        self._lost_after_s = lost_after_s
        self._on_overcharged = on_overcharged

    async def recover(self, spending: Spending) -> None:
        """Go one step on with a spending, as far as it goes now.

        One at a time for each. Raises NodeError, CarriageError when it goes no further now.
        """
        if spending.state not in (*OPEN, "lost"):
            return
        operation = await self.purse.issued(spending.id)
        if operation is None or operation.state != "done" or operation.token is None:
            await self.journal.move(spending.id, "void")
            return
        token = operation.token
        if spending.change:
            await self._bank(spending)
            if spending.expected == 0:  # of an answer the charge was compared as it came
                await self._judge(spending.id)
        elif spending.state in ("begun", "reclaiming"):
            await self._reclaim(spending, token)
        else:
            spent = await self.purse.spent(parse_token(token))
            if spent is False:
                await self._reclaim(spending, token)
            elif spent:
                await self._ask(spending, token)

    async def withdraw(self, id_: str) -> bool:
        """Take back a token that is out, when nobody has redeemed it; whether it is back.

        Raises NodeError when that is not known.
        """
        if (await self.journal.spending(id_)).state not in ("sent", "reclaiming"):
            return False
        operation = await self.purse.issued(id_)
        if operation is None or operation.token is None:
            return False
        if await self.purse.spent(parse_token(operation.token)) is False:
            await self._reclaim(await self.journal.spending(id_), operation.token)
        return (await self.journal.spending(id_)).state == "reclaimed"

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
            back, id_ = operation.credit, operation.id
            if not await self.journal.move(spending.id, "reclaimed", back=back, operation=id_):
                note = "its token came back as the change of another"
                await self.journal.move(spending.id, "sent", note=note)

    async def _bank(self, spending: Spending) -> None:
        """Swap the change into the purse."""
        try:
            operation = await self.purse.receive(spending.change)
        except (TokenAlreadySpent, TokenMalformed) as error:
            await self._lose(spending, f"its change is no good ({error.code})")
        except FeesExceedAmount:
            await self.journal.move(spending.id, "settled", note="change below the mint's fee")
        except MintNotAccepted as error:
            mint = parse_token(spending.change).mint
            note = f"its change is no good ({error.code})"
            if mint not in self.purse.mints:
                note = f"its change is of {mint}: nodestr wallet receive --mint {mint}"
            await self._lose(spending, note)
        else:
            if not await self.journal.move(
                spending.id,
                "settled",
                of=(*OPEN, "lost"),
                back=operation.credit,
                operation=operation.id,
            ):
                await self._lose(spending, "its change was given before")

    async def _ask(self, spending: Spending, token: str) -> None:
        """Ask the provider for the change of a token that it has redeemed."""
        change = await self._repeat(spending, token)
        if change is not None:
            await self._take(spending, change)
            return
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
                await self._take(spending, change)
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

    async def _take(self, spending: Spending, change: str) -> None:
        await self.journal.keep_change(spending.id, change)
        await self._bank(await self.journal.spending(spending.id))
        await self._judge(spending.id)

    async def _repeat(self, spending: Spending, token: str) -> str | None:
        """The change in the answer that a provider gave over relays, which it sends again, or
        which relays have kept; None without any.

        Not of a request that its program has named: that comes for the answer itself, and who
        stops listening to one that is being made stops its making.
        """
        asked = await self.journal.asked(spending.id)
        if asked is None or not asked.repeatable or asked.request_key is not None:
            return None
        headers = {**asked.headers, "x-cashu": token}
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                answer = await self._carriages[spending.carriage].open(
                    spending.place,
                    "POST",
                    asked.path,
                    headers,
                    asked.body or b"",
                    name=spending.id,
                    secret=asked.secret,
                )
                try:
                    return await change_within(answer)
                finally:
                    await answer.close()
        except (CarriageError, TimeoutError) as error:
            log.info("answer_not_repeated", spending=spending.id, reason=str(error))
            return None

    async def _refund(
        self, carriage: Carriage, spending: Spending, token: str
    ) -> tuple[int, bytes]:
        headers = {"x-cashu": token, "accept": "application/json"}
        answer = await carriage.open(spending.place, "POST", "/v1/balance/refund", headers, b"")
        return answer.status, await read_all(answer, MAX_CHANGE_BYTES)

    async def tolerance(self, spending: Spending) -> Msat:
        """How much more than the price may be gone: its mint's fees are the payer's, and nothing
        smaller than a sat comes back. Raises MintUnreachable."""
        return Msat(await self.fees(spending) + to_msat(1, "sat"))

    async def fees(self, spending: Spending) -> Msat:
        """What its mint may take there and back. Raises MintUnreachable."""
        coins = SPARE_COINS + (spending.amount // MSAT_PER_SAT).bit_length()
        return to_msat(2 * await self.purse.fee_of(spending.mint, coins), "sat")

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
