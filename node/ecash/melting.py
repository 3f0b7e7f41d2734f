"""Paying an invoice with our coins (NUT-05, NUT-07, NUT-08, NUT-09, NUT-23).

Whose money it is makes no difference here: see ``node.ledger.payouts``.

    begin_melt (intent on disk) ──▶ POST /v1/melt/bolt11 ──▶ finish_melt
                                          │
          anything else ──▶ ask the quote ┤ PAID: finish    PENDING: wait, however long
                                          │ UNPAID: NUT-07 of our inputs, and the table

Coins are given back on proof that they were not spent, never on a timeout.

| answer to the melt       | quote   | our inputs | outcome                                      |
|--------------------------|---------|------------|----------------------------------------------|
| PAID                     | -       | -          | finish                                       |
| PENDING                  | -       | -          | stays an intent                              |
| refused, first and only  | UNPAID  | UNSPENT    | fail                                         |
| refused, an earlier one  | UNPAID  | UNSPENT    | stays an intent until ABANDON_AFTER_S after  |
|   is unaccounted for     |         |            | the earlier one, then fail                   |
| refused                  | PAID    | SPENT      | it was ours: finish                          |
| refused                  | UNPAID  | some SPENT | a failed operation with these inputs landed  |
|                          |         |            | late: salvage it, fail; else alarm, and      |
|                          |         |            | after ABANDON_AFTER_S book the loss, fail    |
| refused                  | any     | PENDING    | stays an intent                              |
| no connection, first try | -       | -          | nothing was sent: fail                       |
| timeout, 5xx, dropped    | -       | -          | stays an intent                              |
| -                        | refused | UNSPENT    | stays an intent until the invoice has been   |
|                          |         |            | expired for ABANDON_AFTER_S, then fail       |

Recovery asks the quote first and sends the same bytes again only while it is UNPAID, our inputs
are UNSPENT and the quote has not expired; the mint pays a quote once.

Change is what the mint's answer signs of our blanks, each signature checked by its DLEQ proof;
without one, or without an answer, NUT-09 tells which blanks were signed. Change that is not there
CHANGE_WAIT_S after the mint first said PAID is not waited for, but looked for as long as failed
operations are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import structlog

from node.core.accounts import Operation
from node.core.ecash import BlindedMessage, BlindSignature, Proof, input_fee
from node.ecash.crossing import ABANDON_AFTER_S, Coin, Crossing, unblind_coins
from node.ecash.crypto import hash_to_curve_hex
from node.ecash.keysets import AcceptedMint, Keysets
from node.ecash.mint import (
    MeltQuote,
    MintClient,
    MintOffline,
    MintRejected,
    MintUnknown,
    State,
    melt_body,
)
from node.errors import MintUnreachable
from node.ports import LightningStore, WalletStore

log = structlog.get_logger()

CHANGE_WAIT_S = 60
"""How long a payment that was made is kept open for its change."""
LOOK_AGAIN_S = 60.0
"""How often change that has not come by then is asked for."""

Signed: TypeAlias = list[tuple[Coin, BlindSignature]]
"""Our blanks, each with the mint's signature."""


class Melting(Crossing):
    """Takes operations of kind ``melt`` to their mints."""

    def __init__(
        self,
        store: WalletStore,
        lightning: LightningStore,
        mints: Mapping[str, AcceptedMint],
        keysets: Keysets,
        seed: bytes,
    ) -> None:
        super().__init__(store, mints, keysets, seed)
        self._lightning = lightning
        self._looked: dict[str, float] = {}  # when late change was last asked for, by operation

    async def _cross(self, operation: Operation, fresh: bool, client: MintClient) -> Operation:
        if not fresh:
            try:
                quote = await client.melt_quote_state(operation.quote)
            except MintRejected as rejected:
                return await self._without_quote(operation, client, rejected)
            if quote.state != "UNPAID" or not await self._may_send_again(operation, client, quote):
                return await self._judge_quote(operation, client, quote)
        blanks = [message for message, _, _ in self._derive(operation)]
        try:
            answer = await client.melt(melt_body(operation.quote, operation.inputs, blanks))
        except MintRejected as rejected:
            log.info("melt_refused", operation=operation.id, reason=rejected.detail)
            quote = await client.melt_quote_state(operation.quote)
            if fresh and quote.state == "UNPAID":
                return await self._give_back(operation, client)
            return await self._judge_quote(operation, client, quote)
        except MintOffline:
            if not fresh:
                raise
            return await self._undo(operation)
        except MintUnknown:
            await self._store.note_attempt(operation.id)
            raise
        if answer.state != "PAID":
            await self._store.note_attempt(operation.id)
        return await self._judge_quote(operation, client, answer)

    async def _may_send_again(
        self, operation: Operation, client: MintClient, quote: MeltQuote
    ) -> bool:
        """Whether the same request can only do what it was meant to do."""
        if _old(operation) or (quote.expiry is not None and quote.expiry <= time.time()):
            return False
        return set((await self._states(operation, client)).values()) == {"UNSPENT"}

    async def _judge_quote(
        self, operation: Operation, client: MintClient, quote: MeltQuote
    ) -> Operation:
        """Act on a quote's state (the table above). Raises MintUnknown while it is open."""
        if quote.state == "PAID":
            change, missing = await self._change(operation, client, quote)
            await self._lightning.finish_melt(operation, change, missing)
            log.info("melt_paid", operation=operation.id, mint=operation.mint)
            return await self._store.operation(operation.id)
        if quote.state == "PENDING":
            raise MintUnknown("the payment is pending")
        if _old(operation):
            return await self._give_back(operation, client)
        raise MintUnknown("the payment is not made yet")

    async def _give_back(self, operation: Operation, client: MintClient) -> Operation:
        """The quote is not paid: fail, if none of our coins may yet pay it."""
        states = await self._states(operation, client)
        quote = await client.melt_quote_state(operation.quote)  # it may have begun in between
        found = set(states.values())
        if quote.state != "UNPAID" or "PENDING" in found:
            raise MintUnknown(f"the quote is {quote.state} and our coins are {sorted(found)}")
        if found == {"UNSPENT"}:
            return await self._undo(operation)
        late = [
            other.state != "failed" or await self.landed_late(other)
            for other in await self._store.ended_sharing(operation.id)
        ]
        if any(late):
            return await self._undo(operation)
        log.error("own_coins_spent_elsewhere", operation=operation.id, mint=operation.mint)
        if not _old(operation):
            raise MintUnknown("the quote is UNPAID and coins of ours are SPENT")
        spent = [y for y, state in states.items() if state == "SPENT"]
        await self._lightning.write_off_melt(operation, spent, MintUnreachable.code)
        return await self._store.operation(operation.id)

    async def _without_quote(
        self, operation: Operation, client: MintClient, rejected: MintRejected
    ) -> Operation:
        """The mint does not tell of the quote: fail once nobody can pay it with our coins."""
        expires_at = (await self._lightning.melt(operation.id)).expires_at
        over = 0 < expires_at < time.time() - ABANDON_AFTER_S and _old(operation)
        if not over or set((await self._states(operation, client)).values()) != {"UNSPENT"}:
            raise rejected
        return await self._undo(operation)

    async def _states(self, operation: Operation, client: MintClient) -> dict[str, State]:
        """Y of each input → its state (NUT-07)."""
        ys = [hash_to_curve_hex(proof.secret) for proof in operation.inputs]
        return dict(zip(ys, await client.check_state(ys), strict=True))

    async def _undo(self, operation: Operation) -> Operation:
        await self._lightning.fail_melt(operation, MintUnreachable.code)
        return await self._store.operation(operation.id)

    # -- afterwards ------------------------------------------------------------------------

    async def watched(self, since_s: int) -> list[Operation]:
        now = time.monotonic()
        found = [
            operation
            for operation in await self._lightning.missing_change(since_s)
            if now - self._looked.get(operation.id, -LOOK_AGAIN_S) >= LOOK_AGAIN_S
        ]
        self._looked |= {operation.id: now for operation in found}
        return found

    async def landed_late(self, failed: Operation) -> bool:
        if failed.kind != "melt":
            return await super().landed_late(failed)
        client = self._mints[failed.mint].client
        if failed.state != "failed":
            return await self._look_for_change(failed, client)
        quote = await client.melt_quote_state(failed.quote)
        if quote.state != "PAID":
            return False
        log.error("operation_landed_late", operation=failed.id, kind=failed.kind)
        await self._lightning.salvage_melt(failed, *await self._change(failed, client, quote))
        return True

    async def _look_for_change(self, operation: Operation, client: MintClient) -> bool:
        """Whether change that a booked payment still owed us is there now."""
        signed = await self._signed(self._derive(operation), client)
        came = await self._lightning.late_change(operation, await self._coins(operation, signed))
        if came:
            log.warning("change_came_late", operation=operation.id, msat=came)
        return came > 0

    # -- change ----------------------------------------------------------------------------

    async def _change(
        self, operation: Operation, client: MintClient, quote: MeltQuote
    ) -> tuple[list[tuple[str, Proof]], int]:
        """What came back of a paid quote, and how much may still come, in the mint's unit.

        Raises MintUnknown while it is waited for.
        """
        coins = self._derive(operation)
        if not coins:
            return [], 0
        paid = sum(proof.amount for proof in operation.inputs)
        fee = input_fee(operation.inputs, self._keysets.fees(operation.mint))
        most = paid - fee - operation.amount
        signed: Signed = []
        if quote.change is not None and all(s.dleq is not None for s in quote.change):
            signed = list(zip(coins, quote.change, strict=False))
        if not signed:
            signed = await self._signed(coins, client)
        total = sum(signature.amount for _, signature in signed)
        if total > most:
            raise MintUnknown("the mint gives more change than we paid")
        missing = 0 if quote.change else most - total
        if missing:
            # Mints say PAID before they make the change; how much there will be is theirs to say.
            paid_at = await self._lightning.note_paid(operation.id)
            if time.time() - paid_at < CHANGE_WAIT_S:
                raise MintUnknown("the change is not there yet")
            log.warning("no_change_came", operation=operation.id, at_most=missing)
        return await self._coins(operation, signed), missing

    async def _signed(self, coins: Sequence[Coin], client: MintClient) -> Signed:
        """Those of our blanks that the mint has signed (NUT-09)."""
        by_message = {message.b_: (message, secret, r) for message, secret, r in coins}
        found = await client.restore([message for message, _, _ in coins])
        return [(by_message[message.b_], signature) for message, signature in found]

    async def _coins(self, operation: Operation, signed: Signed) -> list[tuple[str, Proof]]:
        """Signed blanks as coins (Y, proof), of the amounts that the mint chose."""
        if not signed:
            return []
        messages = [
            (BlindedMessage(signature.amount, message.keyset_id, message.b_), secret, r)
            for (message, secret, r), signature in signed
        ]
        keyset = await self._keyset_of(operation)
        return unblind_coins(keyset, messages, [signature for _, signature in signed])


def _old(operation: Operation) -> bool:
    """Whether no request of it can be on its way to the mint any more."""
    return time.time() - operation.unknown_at >= ABANDON_AFTER_S
