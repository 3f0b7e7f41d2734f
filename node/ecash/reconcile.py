"""Our coins against what the mints say of them (NUT-07, NUT-09).

After a restore the database tells of the past. Until a mint's coins are checked it is blocked:
nothing is received there and nothing is issued. Open operations come first, by recovery.

| the mint says                          | meaning                          | outcome             |
|----------------------------------------|----------------------------------|---------------------|
| outputs of an open operation signed,   | it went through before           | recovery finishes   |
|   or of one that had failed            |                                  | it, then again      |
| a coin of ours is UNSPENT              | never given out, or its holder   | ours, suspect: goes |
|                                        | has not claimed it yet           | into swaps only     |
| a coin of ours is SPENT                | we spent it, or its holder       | spent; a loss       |
|                                        | claimed it                       |                     |
| a coin of ours is PENDING              | a payment of it is under way     | parked; asked again |
| a counter we have not used is signed,  | made after the backup: change we | ours, suspect;      |
|   its coin UNSPENT                     | kept, a token we redeemed, or a  | sets off losses     |
|                                        | token nobody has claimed yet     |                     |
| ... SPENT or PENDING                   | it is gone                       | the counter is used |
| no usable answer                       | -                                | blocked; asked      |
|                                        |                                  | again               |

A suspect coin is never given to anybody, so a coin that was given out after the backup is not
given out twice: its holder claims it, or we swap it first, and then the debit that the backup
does not know is still on the holder's account.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import structlog

from node.core.accounts import FoundCoin, Operation, Settled
from node.core.ecash import BlindedMessage, Keyset
from node.core.money import Msat
from node.ecash.crossing import Coin, unblind_coins
from node.ecash.crypto import blind, derive_secret
from node.ecash.keysets import SCAN_WINDOW, AcceptedMint, Keysets
from node.ecash.mint import MintClient, MintError, MintUnknown, State
from node.errors import MintUnreachable
from node.ports import ReconcileStore, WalletStore

log = structlog.get_logger()

EMPTY_WINDOWS = 25
"""Windows of SCAN_WINDOW counters without a coin before the search after a restore ends: failed
operations leave gaps."""
BATCH = 100
"""Coins in one question to a mint."""
MAX_QUESTIONS = 4
"""Questions to one mint at the same time."""
WATCH_S = 86_400
"""How long recovery looks at a failed operation for a late landing."""
STATES_TIMEOUT_S = 120.0
"""Deadline for the states of all coins of one mint."""

Status: TypeAlias = Literal["checked", "waits", "unreachable"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one mint.

    status: ``checked`` (its coins are in use again), ``waits`` (an open operation has to be
    finished first), ``unreachable``.
    """

    mint: str
    status: Status
    reason: str = ""
    lost: Msat = Msat(0)
    found: Msat = Msat(0)
    pending: int = 0
    """Coins out of use until the mint decides."""


async def coin_states(
    client: MintClient, ys: Sequence[str], *, timeout_s: float = STATES_TIMEOUT_S
) -> dict[str, State]:
    """Y → state at the mint (NUT-07), asked in batches. Raises MintError, also when late."""
    slots = asyncio.Semaphore(MAX_QUESTIONS)

    async def ask(part: Sequence[str]) -> list[State]:
        async with slots:
            return await client.check_state(part)

    parts = [ys[start : start + BATCH] for start in range(0, len(ys), BATCH)]
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(part)) for part in parts]
    except TimeoutError:
        raise MintUnknown("the mint did not tell all states in time") from None
    except ExceptionGroup as errors:
        mine, others = errors.split(MintError)
        if mine is None or others is not None:
            raise
        raise MintUnknown(str(mine.exceptions[0])) from None
    answers = [task.result() for task in tasks]
    return {
        y: state
        for part, states in zip(parts, answers, strict=True)
        for y, state in zip(part, states, strict=True)
    }


class Reconciler:
    """Checks our coins after a restore. Get one from ``Wallet.reconciler``.

    Args:
        mints: the allowlist, by normalised URL.
        seed: NUT-13 seed of our secrets.
    """

    def __init__(
        self,
        store: ReconcileStore,
        journal: WalletStore,
        mints: Mapping[str, AcceptedMint],
        keysets: Keysets,
        seed: bytes,
    ) -> None:
        self._store = store
        self._journal = journal
        self._mints = mints
        self._keysets = keysets
        self._seed = seed
        self.waiting: set[str] = set()
        """Mints out of use until they are checked."""

    async def begin(self) -> list[str]:
        """Block the mints that are not checked since a restore; returns them. Asks no mint."""
        unchecked = await self._store.unchecked(list(self._mints))
        for mint in unchecked:
            self._keysets.block(mint)
        self.waiting = set(unchecked)
        return unchecked

    async def run(self) -> list[Outcome]:
        """Check every unchecked mint and ask again for parked coins; mints in parallel.

        Drive recovery before it. An empty list: nothing is left to do.
        """
        unchecked = await self._store.unchecked(list(self._mints))
        parked = [
            mint
            for mint in await self._store.parked()
            if mint in self._mints and mint not in unchecked
        ]
        outcomes = await asyncio.gather(
            *(self._guarded(mint, whole=True) for mint in unchecked),
            *(self._guarded(mint, whole=False) for mint in parked),
        )
        await self._store.finish(list(self._mints))
        return outcomes

    async def _guarded(self, mint: str, *, whole: bool) -> Outcome:
        try:
            outcome = await (self._check(mint) if whole else self._ask_again(mint))
        except (MintError, MintUnreachable) as error:
            reason = error.private if isinstance(error, MintUnreachable) else str(error)
            outcome = Outcome(mint, "unreachable", reason)
        if outcome.status == "checked":
            self._keysets.unblock(mint)
            self.waiting.discard(mint)
        event = "coins_lost" if outcome.lost else "coins_reconciled"
        (log.error if outcome.lost else log.info)(
            event,
            mint=mint,
            status=outcome.status,
            reason=outcome.reason,
            lost_msat=outcome.lost,
            found_msat=outcome.found,
            pending=outcome.pending,
        )
        return outcome

    async def _check(self, mint: str) -> Outcome:
        """One mint, as the table at the head says. Raises MintError, MintUnreachable."""
        client = self._mints[mint].client
        opened = await self._journal.open_operations()
        for operation in (*opened, *await self._journal.failed_unknown(WATCH_S)):
            if operation.mint == mint and await self._signed(client, operation):
                return Outcome(mint, "waits", f"operation {operation.id} is not finished yet")
        await self._keysets.refresh(mint)
        found: list[FoundCoin] = []
        counters: dict[str, int] = {}
        for keyset in list(self._keysets.of(mint).values()):
            if keyset.unit in self._mints[mint].units:
                counters[keyset.id] = await self._scan(client, keyset, found)
        coins = await self._store.coins(mint)
        states = await coin_states(client, [*(c.y for c in coins), *(c.y for c in found)])
        settled = await self._settle(
            mint,
            states,
            [coin.y for coin in coins],
            [coin for coin in found if states[coin.y] == "UNSPENT"],
            counters,
        )
        pending = sum(states[coin.y] == "PENDING" for coin in coins)
        return Outcome(mint, "checked", "", settled.lost, settled.found, pending)

    async def _ask_again(self, mint: str) -> Outcome:
        """Parked coins of a mint that is checked otherwise."""
        ys = [coin.y for coin in await self._store.coins(mint) if coin.parked]
        states = await coin_states(self._mints[mint].client, ys)
        settled = await self._settle(mint, states, ys, [], None)
        pending = sum(state == "PENDING" for state in states.values())
        return Outcome(mint, "checked", "", settled.lost, settled.found, pending)

    async def _settle(
        self,
        mint: str,
        states: Mapping[str, State],
        ys: Sequence[str],
        found: Sequence[FoundCoin],
        counters: Mapping[str, int] | None,
    ) -> Settled:
        return await self._store.settle(
            mint,
            spent=[y for y in ys if states[y] == "SPENT"],
            pending=[y for y in ys if states[y] == "PENDING"],
            unspent=[y for y in ys if states[y] == "UNSPENT"],
            found=found,
            counters=counters,
        )

    async def _signed(self, client: MintClient, operation: Operation) -> bool:
        """Whether the mint has done what recovery has still to book: it signed the outputs.

        Some signatures over those of a failed operation say only that its counters were used.
        """
        messages = [
            self._coin(output.keyset_id, output.counter, output.amount)[0]
            for output in operation.outputs
        ]
        signed = len(await client.restore(messages)) if messages else 0
        return signed == len(messages) > 0 if operation.state == "failed" else signed > 0

    async def _scan(self, client: MintClient, keyset: Keyset, found: list[FoundCoin]) -> int:
        """Collect the coins signed at counters we have not used; the first counter after them."""
        first = await self._store.counter(keyset.id)
        empty = 0
        while True:
            window = []
            start = first + empty * SCAN_WINDOW
            for counter in range(start, start + SCAN_WINDOW):
                window.append(self._coin(keyset.id, counter, 1))
                if len(window) % 50 == 0:
                    await asyncio.sleep(0)  # the loop has others to serve
            index = {message.b_: number for number, (message, _, _) in enumerate(window)}
            restored = await client.restore([message for message, _, _ in window])
            if not restored:
                empty += 1
                if empty == EMPTY_WINDOWS:
                    return first
                continue
            empty = 0
            if not keyset.keys:
                keyset = await client.keys(keyset.id)
            for message, signature in restored:
                if not signature.amount:
                    continue  # a blank output of NUT-08 that got nothing
                _, secret, r = window[index[message.b_]]
                named = BlindedMessage(signature.amount, keyset.id, message.b_)
                ((y, proof),) = unblind_coins(keyset, [(named, secret, r)], [signature])
                found.append(FoundCoin(y, keyset.unit, proof))
            first = start + 1 + max(index[message.b_] for message, _ in restored)

    def _coin(self, keyset_id: str, counter: int, amount: int) -> Coin:
        secret, r = derive_secret(self._seed, keyset_id, counter)
        return BlindedMessage(amount, keyset_id, blind(secret, r)), secret, r
