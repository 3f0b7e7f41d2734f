"""Taking the ecash of a paid invoice from its mint (NUT-04, NUT-09, NUT-13, NUT-23).

    begin_mint (intent on disk) ──▶ POST /v1/mint/bolt11 ──▶ finish_mint
                                          │
          refused ──▶ ask the quote + NUT-09 ┤
          no answer ──▶ stays an intent; recovery sends the same bytes again

| answer to the mint      | quote    | our outputs | outcome                                       |
|-------------------------|----------|-------------|-----------------------------------------------|
| signatures              | -        | -           | finish                                        |
| refused                 | any      | all signed  | it was ours: finish from NUT-09               |
| refused                 | ISSUED   | none signed | a failed operation over this quote landed     |
|                         |          |             | late: salvage it (or it was, meanwhile), fail |
|                         |          |             | this one                                      |
|                         |          |             | ... after a restore: we took it in a past     |
|                         |          |             | that was forgotten: credit it, fail this one  |
|                         |          |             | ... else alarm, stays an intent               |
| refused                 | not yet  | some signed | counters were used: fail, start again         |
| refused, keyset retired | not yet  | none signed | fail, start again with another keyset         |
| refused otherwise       | not yet  | none signed | stays an intent                               |
| timeout, 5xx, dropped   | -        | -           | stays an intent                               |

A quote gives its ecash once, so starting again can never credit twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from node.core.accounts import Operation
from node.core.ecash import BlindSignature
from node.ecash.crossing import START_AGAIN, Coin, Crossing, unblind_coins
from node.ecash.keysets import AcceptedMint, Keysets
from node.ecash.mint import MintClient, MintOffline, MintRejected, MintUnknown, mint_body
from node.ports import LightningStore, WalletStore

log = structlog.get_logger()


class Minting(Crossing):
    """Takes operations of kind ``mint`` to their mints."""

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

    async def _cross(self, operation: Operation, fresh: bool, client: MintClient) -> Operation:
        coins = self._derive(operation)
        try:
            signatures = await client.mint(
                mint_body(operation.quote, [message for message, _, _ in coins])
            )
        except MintRejected as rejected:
            log.info("mint_refused", operation=operation.id)
            return await self._find_out(operation, client, coins, rejected)
        except MintOffline:
            raise
        except MintUnknown:
            await self._store.note_attempt(operation.id)
            raise
        return await self._done(operation, coins, signatures)

    async def _done(
        self, operation: Operation, coins: Sequence[Coin], signatures: Sequence[BlindSignature]
    ) -> Operation:
        ours = unblind_coins(await self._keyset_of(operation), coins, signatures)
        await self._lightning.finish_mint(operation, ours, of=operation.state)
        return await self._store.operation(operation.id)

    async def _find_out(
        self,
        operation: Operation,
        client: MintClient,
        coins: Sequence[Coin],
        rejected: MintRejected,
    ) -> Operation:
        """The mint refused: find out what really happened (the table above)."""
        quote = await client.mint_quote_state(operation.quote)
        found = await self._restored(client, coins)
        if len(found) == len(coins):
            return await self._done(operation, coins, found)
        if quote.state == "ISSUED":
            others = await self._lightning.ended_mints(operation.mint, operation.quote)
            late = [o.state == "done" or await self.landed_late(o) for o in others]
            if any(late):
                return await self._begin_anew(operation)
            if await self._lightning.credit_restored(
                operation.mint, operation.quote, operation, START_AGAIN
            ):
                return await self._store.operation(operation.id)
            log.error("ecash_of_invoice_is_gone", operation=operation.id, mint=operation.mint)
            raise rejected
        keyset_id = operation.outputs[0].keyset_id
        if found:
            log.error("counters_used_before", operation=operation.id, keyset=keyset_id)
            self._keysets.scan_again(keyset_id)
            return await self._begin_anew(operation, used=True)
        await self._keysets.refresh(operation.mint)
        current = self._keysets.of(operation.mint).get(keyset_id)
        if current is None or not current.active:
            return await self._begin_anew(operation)
        raise rejected

    async def landed_late(self, failed: Operation) -> bool:
        coins = self._derive(failed)
        if not coins:
            return False
        signatures = await self._restored(self._mints[failed.mint].client, coins)
        if len(signatures) != len(coins):
            return False
        log.error("operation_landed_late", operation=failed.id, kind=failed.kind)
        await self._done(failed, coins, signatures)
        return True

    async def _begin_anew(self, operation: Operation, *, used: bool = False) -> Operation:
        await self._lightning.fail_mint(operation, START_AGAIN, used=used)
        return await self._store.operation(operation.id)
