"""One operation's crossing to its mint (NUT-03, 07, 09, 13), and what its outcome was.

    store.begin_* (intent on disk) ──▶ POST /v1/swap ──▶ store.finish_*
                                          │
          refused ──▶ ask NUT-07 + NUT-09 ┤
          no answer ──▶ stays an intent; recovery drives it again, the client is told Pending

What the mint says, and what it means. The mint's error code is never believed on its own, and a
refusal only says that this request was refused, not that an earlier one will never land:

| answer to the swap         | our inputs | our outputs | outcome                                 |
|----------------------------|------------|-------------|-----------------------------------------|
| signatures                 | -          | -           | finish                                  |
| refused                    | SPENT      | all signed  | it was ours: finish from NUT-09         |
| refused, first and only    | UNSPENT    | none signed | fail; receive: the client's error       |
| refused, an earlier one is | UNSPENT    | none signed | stays an intent until ABANDON_AFTER_S   |
|   unaccounted for          |            |             | after the earlier one, then fail        |
| refused                    | UNSPENT    | signed      | counters were used: fail, start again   |
| refused                    | SPENT      | none signed | a failed operation with these inputs    |
|                            |            |             | landed late: salvage it, start again;   |
|                            |            |             | else receive: token already spent,      |
|                            |            |             | send: our coins are gone: alarm; after  |
|                            |            |             | ABANDON_AFTER_S book the loss, fail     |
| refused                    | PENDING    | -           | stays an intent                         |
| no connection, first try   | -          | -           | nothing was sent: fail, unreachable     |
| timeout, 5xx, 429, dropped | -          | -           | stays an intent                         |

The body of a swap follows from the journal alone (inputs, amounts, counters), so replaying an
operation sends the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import structlog

from node.core.accounts import Operation
from node.core.ecash import BlindedMessage, BlindSignature, Dleq, Keyset, Proof
from node.ecash.batching import SwapQueue
from node.ecash.crypto import (
    blind,
    derive_secret,
    hash_to_curve_hex,
    unblind,
    verify_signature_dleq,
)
from node.ecash.failures import UNVERIFIABLE, FailureMemory
from node.ecash.keysets import AcceptedMint, Keysets
from node.ecash.mint import MintClient, MintError, MintOffline, MintRejected, MintUnknown
from node.errors import MintUnreachable, NodeError, TokenAlreadySpent, TokenMalformed
from node.ports import WalletStore

log = structlog.get_logger()

ABANDON_AFTER_S = 600
"""How long a request to a mint may be on its way before we are sure that it is not."""
START_AGAIN = "start_again"
"""Error of an operation that failed for our own reasons and may be begun again at once."""

Coin: TypeAlias = tuple[BlindedMessage, str, bytes]
"""(message, secret, blinding factor) of an output."""


class Crossing:
    """Takes operations to their mints. Arguments as for ``Wallet``."""

    def __init__(
        self,
        store: WalletStore,
        mints: Mapping[str, AcceptedMint],
        keysets: Keysets,
        seed: bytes,
        failures: FailureMemory | None = None,
    ) -> None:
        self._store = store
        self._mints = mints
        self._keysets = keysets
        self._seed = seed
        self._failures = FailureMemory() if failures is None else failures
        self._queues: dict[str, SwapQueue] = {}
        self._on_credit: dict[str, Callable[[int], None]] = {}
        self.kinds: dict[str, Crossing] = {}
        """Operations of these kinds cross in their own way."""

    @contextmanager
    def on_credit(self, operation_id: str, call: Callable[[int], None]) -> Iterator[None]:
        """Within this, ``call`` is given the account's id once a receive's credit is queued."""
        self._on_credit[operation_id] = call
        try:
            yield
        finally:
            self._on_credit.pop(operation_id, None)

    async def attempt(self, operation: Operation, fresh: bool) -> Operation:
        """One attempt; returns the operation as it stands afterwards.

        Args:
            fresh: it was begun a moment ago, nothing of it can have reached the mint yet.
        """
        if not fresh:
            operation = await self._store.operation(operation.id)  # the caller's may be old
        if operation.state != "intent":
            return operation
        try:
            mint = self._mints.get(operation.mint)
            if mint is None:
                raise MintUnknown("the mint is no longer configured")
            if not fresh and not operation.attempts:
                await self._store.note_attempt(operation.id)  # a dead process may have sent it
            return await self.kinds.get(operation.kind, self)._cross(operation, fresh, mint.client)
        except (MintError, NodeError) as error:
            log.warning(
                "outcome_unknown",
                operation=operation.id,
                kind=operation.kind,
                mint=operation.mint,
                reason=str(error),
            )
        except Exception:
            log.exception("operation_crashed", operation=operation.id)
        return operation

    async def _cross(self, operation: Operation, fresh: bool, client: MintClient) -> Operation:
        """Send it and act on the answer. Raises MintError while the outcome is not known."""
        if operation.kind not in ("receive", "send"):
            raise MintUnknown("nothing here drives operations of that kind")
        keyset = await self._keyset_of(operation)
        coins = self._derive(operation)
        try:
            signatures = await self._swap(operation, client, coins, alone=not fresh)
        except MintRejected as rejected:
            log.info("swap_refused", operation=operation.id, kind=operation.kind)
            return await self._judge(operation, client, keyset, coins, rejected, fresh)
        except MintOffline:
            if not fresh:
                raise
            return await self._fail(operation, MintUnreachable.code, unused=True)
        except MintUnknown:
            await self._store.note_attempt(operation.id)
            raise
        return await self._complete(operation, keyset, coins, signatures)

    async def _swap(
        self, operation: Operation, client: MintClient, coins: Sequence[Coin], *, alone: bool
    ) -> list[BlindSignature]:
        """Send the swap through its mint's queue."""
        queue = self._queues.setdefault(operation.mint, SwapQueue(client))
        fees = self._keysets.fees(operation.mint)
        return await queue.swap(
            operation.inputs,
            [message for message, _, _ in coins],
            fee_ppk=sum(fees.get(proof.keyset_id, 0) for proof in operation.inputs),
            alone=alone,
        )

    async def _keyset_of(self, operation: Operation) -> Keyset:
        keyset_id = operation.outputs[0].keyset_id
        keyset = self._keysets.of(operation.mint).get(keyset_id)
        if keyset is None or not keyset.keys:
            keyset = await self._mints[operation.mint].client.keys(keyset_id)
        return keyset

    def _derive(self, operation: Operation) -> list[Coin]:
        """Every output, from its counter."""
        coins = []
        for output in operation.outputs:
            secret, r = derive_secret(self._seed, output.keyset_id, output.counter)
            message = BlindedMessage(output.amount, output.keyset_id, blind(secret, r))
            coins.append((message, secret, r))
        return coins

    async def _complete(
        self,
        operation: Operation,
        keyset: Keyset,
        coins: Sequence[Coin],
        signatures: Sequence[BlindSignature],
    ) -> Operation:
        """Hand the signed coins to the store. Raises MintUnknown when they are not valid."""
        ours = unblind_coins(keyset, coins, signatures)
        if operation.state == "failed":
            await self._store.salvage(operation, ours)
            return await self._store.operation(operation.id)
        if operation.kind == "receive":
            credited = self._store.finish_receive(operation, ours)
            on_credit = self._on_credit.pop(operation.id, None)
            if on_credit is not None:
                on_credit(operation.account_id)
            return await credited
        marked = list(zip(operation.outputs, ours, strict=True))
        kept = [coin for output, coin in marked if output.keep]
        issued = [coin for output, coin in marked if not output.keep]
        return await self._store.finish_send(operation, kept, issued)

    async def _judge(
        self,
        operation: Operation,
        client: MintClient,
        keyset: Keyset,
        coins: Sequence[Coin],
        rejected: MintRejected,
        fresh: bool,
    ) -> Operation:
        """The mint refused: find out what really happened (the table above)."""
        ys = [hash_to_curve_hex(proof.secret) for proof in operation.inputs]
        states = set(await client.check_state(ys))
        found = await self._restored(client, coins)
        if found and states == {"UNSPENT"}:
            states = set(await client.check_state(ys))  # it may have landed in between
        if states == {"SPENT"} and len(found) == len(coins):
            return await self._complete(operation, keyset, coins, found)
        if states == {"UNSPENT"}:
            if found:
                log.error("counters_used_before", operation=operation.id, keyset=keyset.id)
                self._keysets.scan_again(keyset.id)
                return await self._fail(operation, START_AGAIN, used=True)
            await self._keysets.refresh(operation.mint)
            current = self._keysets.of(operation.mint).get(keyset.id)
            if current is None or not current.active:  # nothing of it can land any more
                return await self._fail(operation, START_AGAIN)
            if not fresh and time.time() - operation.unknown_at < ABANDON_AFTER_S:
                raise rejected
            self._failures.refused(operation.inputs, rejected.code)
            code = TokenMalformed.code if operation.kind == "receive" else MintUnreachable.code
            hopeless = fresh and rejected.code == UNVERIFIABLE
            return await self._fail(operation, code, unused=hopeless)
        if "PENDING" in states or found:
            raise rejected
        late = [
            other.state != "failed" or await self.landed_late(other)
            for other in await self._store.ended_sharing(operation.id)
        ]
        if any(late):
            return await self._fail(operation, START_AGAIN)
        if operation.kind == "receive":
            self._failures.spent(operation.inputs)
            return await self._fail(operation, TokenAlreadySpent.code, unused=fresh)
        log.error("own_coins_spent_elsewhere", operation=operation.id, mint=operation.mint)
        if fresh or time.time() - operation.unknown_at < ABANDON_AFTER_S:
            raise rejected
        answers = zip(ys, await client.check_state(ys), strict=True)
        spent = [y for y, state in answers if state == "SPENT"]
        await self._store.write_off(operation, spent, START_AGAIN)
        return await self._store.operation(operation.id)

    async def watched(self, since_s: int) -> list[Operation]:
        """Operations that ended, of the last ``since_s`` seconds, to be given to ``landed_late``
        besides those that failed."""
        found: list[Operation] = []
        for kind in self.kinds.values():
            found += await kind.watched(since_s)
        return found

    async def landed_late(self, failed: Operation) -> bool:
        """Whether a failed operation landed at the mint after all; then it is salvaged."""
        if failed.kind in self.kinds:
            return await self.kinds[failed.kind].landed_late(failed)
        coins = self._derive(failed)
        if not coins:
            return False
        signatures = await self._restored(self._mints[failed.mint].client, coins)
        if len(signatures) != len(coins):
            return False
        log.error("operation_landed_late", operation=failed.id, kind=failed.kind)
        await self._complete(failed, await self._keyset_of(failed), coins, signatures)
        self._failures.forget(failed.inputs)
        return True

    async def _restored(self, client: MintClient, coins: Sequence[Coin]) -> list[BlindSignature]:
        """The mint's signatures over those of the coins that it has signed, in order."""
        restored = {
            message.b_: signature
            for message, signature in await client.restore([message for message, _, _ in coins])
        }
        return [restored[m.b_] for m, _, _ in coins if m.b_ in restored]

    async def _fail(
        self, operation: Operation, code: str, *, unused: bool = False, used: bool = False
    ) -> Operation:
        await self._store.fail(operation, code, unused=unused, used=used)
        return await self._store.operation(operation.id)


def unblind_coins(
    keyset: Keyset, coins: Sequence[Coin], signatures: Sequence[BlindSignature]
) -> list[tuple[str, Proof]]:
    """(Y, proof) of every coin. Raises MintUnknown for a signature that is not over it."""
    ours: list[tuple[str, Proof]] = []
    for (message, secret, r), signature in zip(coins, signatures, strict=True):
        key = keyset.keys.get(message.amount)
        if (
            key is None
            or signature.amount != message.amount
            or signature.keyset_id != message.keyset_id
            or (signature.dleq is not None and not verify_signature_dleq(message, signature, key))
        ):
            raise MintUnknown("a signature of the mint is not valid for our output")
        dleq = signature.dleq and Dleq(signature.dleq.e, signature.dleq.s, r.hex())
        c = unblind(signature.c_, r, key)
        proof = Proof(message.keyset_id, message.amount, secret, c, dleq=dleq)
        ours.append((hash_to_curve_hex(secret), proof))
    return ours
