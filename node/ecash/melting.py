"""Paying an invoice with our coins (NUT-05, NUT-07, NUT-08, NUT-09, NUT-23).

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
| refused                  | any     | otherwise  | stays an intent; alarm when coins are gone   |
| no connection, first try | -       | -          | nothing was sent: fail                       |
| timeout, 5xx, dropped    | -       | -          | stays an intent                              |

Recovery asks the quote first and sends the same bytes again only while it is UNPAID, our inputs
are UNSPENT and the quote has not expired; the mint pays a quote once.

Change is what the mint's answer signs of our blanks, each signature checked by its DLEQ proof;
without one, or without an answer, NUT-09 tells which blanks were signed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

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
    melt_body,
)
from node.errors import MintUnreachable
from node.ports import LightningStore, WalletStore

log = structlog.get_logger()

CHANGE_WAIT_S = 60
"""How long change that a paid quote owes us may take to appear."""


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
        self._paid_at: dict[str, float] = {}  # when a quote was first seen paid, without change

    async def _cross(self, operation: Operation, fresh: bool, client: MintClient) -> Operation:
        if not fresh:
            quote = await client.melt_quote_state(operation.quote)
            if quote.state != "UNPAID" or not await self._may_send_again(operation, client, quote):
                return await self._judge_quote(operation, client, quote)
        blanks = [message for message, _, _ in self._derive(operation)]
        try:
            answer = await client.melt(melt_body(operation.quote, operation.inputs, blanks))
        except MintRejected as rejected:
            log.info("melt_refused", operation=operation.id, reason=rejected.detail)
            quote = await client.melt_quote_state(operation.quote)
            if fresh and quote.state == "UNPAID":
                return await self._give_back(operation, client, quote)
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
        return await self._states(operation, client) == {"UNSPENT"}

    async def _judge_quote(
        self, operation: Operation, client: MintClient, quote: MeltQuote
    ) -> Operation:
        """Act on a quote's state (the table above). Raises MintUnknown while it is open."""
        if quote.state == "PAID":
            change = await self._change(operation, client, quote)
            await self._lightning.finish_melt(operation, change)
            log.info("payout_paid", operation=operation.id, mint=operation.mint)
            return await self._store.operation(operation.id)
        if quote.state == "PENDING":
            raise MintUnknown("the payment is pending")
        if _old(operation):
            return await self._give_back(operation, client, quote)
        raise MintUnknown("the payment is not made yet")

    async def _give_back(
        self, operation: Operation, client: MintClient, quote: MeltQuote
    ) -> Operation:
        """The quote is not paid: fail if our coins are unspent, too."""
        states = await self._states(operation, client)
        if states == {"UNSPENT"}:
            quote = await client.melt_quote_state(operation.quote)  # it may have begun in between
            if quote.state == "UNPAID":
                return await self._undo(operation)
        if states == {"SPENT"} and quote.state == "UNPAID":
            log.error("own_coins_spent_elsewhere", operation=operation.id, mint=operation.mint)
        raise MintUnknown(f"the quote is {quote.state} and our coins are {sorted(states)}")

    async def _states(self, operation: Operation, client: MintClient) -> set[str]:
        ys = [hash_to_curve_hex(proof.secret) for proof in operation.inputs]
        return set(await client.check_state(ys))

    async def _undo(self, operation: Operation) -> Operation:
        await self._lightning.fail_melt(operation, MintUnreachable.code)
        return await self._store.operation(operation.id)

    async def landed_late(self, failed: Operation) -> bool:
        client = self._mints[failed.mint].client
        quote = await client.melt_quote_state(failed.quote)
        if quote.state != "PAID":
            return False
        log.error("operation_landed_late", operation=failed.id, kind=failed.kind)
        await self._lightning.salvage_melt(failed, await self._change(failed, client, quote))
        return True

    async def _change(
        self, operation: Operation, client: MintClient, quote: MeltQuote
    ) -> list[tuple[str, Proof]]:
        """What came back of a paid quote. Raises MintUnknown while it may still come."""
        coins = self._derive(operation)
        if not coins:
            return []
        paid = sum(proof.amount for proof in operation.inputs)
        fee = input_fee(operation.inputs, self._keysets.fees(operation.mint))
        most = paid - fee - operation.amount
        signed: Sequence[tuple[Coin, BlindSignature]] = ()
        if quote.change is not None and all(s.dleq is not None for s in quote.change):
            signed = list(zip(coins, quote.change, strict=False))
        if not signed:
            by_message = {message.b_: (message, secret, r) for message, secret, r in coins}
            found = await client.restore([message for message, _, _ in coins])
            signed = [(by_message[message.b_], signature) for message, signature in found]
        total = sum(signature.amount for _, signature in signed)
        if total > most:
            raise MintUnknown("the mint gives more change than we paid")
        if total < most and not quote.change:
            # Mints say PAID before they make the change; how much there will be is theirs to say.
            first_seen = self._paid_at.setdefault(operation.id, time.monotonic())
            if time.monotonic() - first_seen < CHANGE_WAIT_S:
                raise MintUnknown("the change is not there yet")
            log.warning("no_change_came", operation=operation.id, at_most=most - total)
        self._paid_at.pop(operation.id, None)
        keyset = await self._keyset_of(operation)
        messages = [
            (BlindedMessage(signature.amount, message.keyset_id, message.b_), secret, r)
            for (message, secret, r), signature in signed
        ]
        return unblind_coins(keyset, messages, [signature for _, signature in signed])


def _old(operation: Operation) -> bool:
    """Whether no request of it can be on its way to the mint any more."""
    return time.time() - operation.unknown_at >= ABANDON_AFTER_S
