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
| a counter we have not used is signed,  | made after the backup: change we | ours, suspect; kept |
|   its coin UNSPENT                     | kept, a token we redeemed, or a  | for claims          |
|                                        | token nobody has claimed yet     |                     |
| ... SPENT                              | it is gone                       | the counter is used |
| ... PENDING                            | a payment of it is under way     | the counter is used |
|                                        |                                  | and watched         |
| not signed, and nothing is PENDING     | never used, or a request is just | skipped; watched    |
|                                        | now on its way                   | for WATCH_COUNTERS_S|
| not signed, something is PENDING       | maybe a payment's change, which  | skipped; watched    |
|                                        | is signed when it is decided     | WATCH_COUNTERS_S    |
|                                        |                                  | beyond that         |
| no usable answer                       | -                                | blocked; asked      |
|                                        |                                  | again               |

Watched are all counters from the first that the backup had not used to IN_FLIGHT beyond the last
signed one: ours go on after them. A mint that signs there after the check, a payment that was under
way when the node was stopped for the restore, say, signs coins that are found then.

A suspect coin is never given to anybody, so a coin that was given out after the backup is not
given out twice: its holder claims it, or we swap it first, and then the debit that the backup
does not know is still on the holder's account.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import structlog

from node.core.accounts import CounterRange, FoundCoin, Operation
from node.core.money import Msat
from node.ecash.crossing import ABANDON_AFTER_S
from node.ecash.keysets import AcceptedMint, Keysets
from node.ecash.mint import MintClient, MintError, MintUnknown, State
from node.ecash.search import GAP, Search
from node.errors import MintUnreachable
from node.ports import ReconcileStore, WalletStore

log = structlog.get_logger()

IN_FLIGHT = 200
"""Counters beyond the last signed one that requests may still be using."""
WATCH_COUNTERS_S = ABANDON_AFTER_S
"""How long skipped counters are looked at after the last moment at which anything was pending."""
LOOK_S = (10.0, 300.0)
"""Shortest and longest pause between two looks at them; it doubles."""
_LOAD = 20
"""A pause is at least so many times as long as the look before it."""
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
        gap: counters in a row without a coin before the search ends.
    """

    def __init__(
        self,
        store: ReconcileStore,
        journal: WalletStore,
        mints: Mapping[str, AcceptedMint],
        keysets: Keysets,
        seed: bytes,
        gap: int = GAP,
    ) -> None:
        self._store = store
        self._journal = journal
        self._mints = mints
        self._keysets = keysets
        self._search = Search(seed, gap)
        self._looks: dict[str, tuple[float, float]] = {}  # mint → (when, the pause before it)
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
        """Check every unchecked mint, and look again at parked coins and watched counters.

        Mints in parallel. Drive recovery before it. An empty list: nothing is to be asked now.
        """
        unchecked = await self._store.unchecked(list(self._mints))
        parked = await self._store.parked()
        due = [mint for mint in await self._store.watched() if self._is_due(mint)]
        again = [mint for mint in dict.fromkeys((*parked, *due)) if mint in self._mints]
        outcomes = await asyncio.gather(
            *(self._guarded(mint, whole=True) for mint in unchecked),
            *(self._guarded(mint, whole=False) for mint in again if mint not in unchecked),
        )
        if unchecked:
            await self._store.finish(list(self._mints))
        return outcomes

    def _is_due(self, mint: str) -> bool:
        return mint not in self._looks or self._looks[mint][0] <= time.monotonic()

    async def _guarded(self, mint: str, *, whole: bool) -> Outcome:
        try:
            outcome = await (self._check(mint) if whole else self._ask_again(mint))
        except (MintError, MintUnreachable) as error:
            reason = error.private if isinstance(error, MintUnreachable) else str(error)
            outcome = Outcome(mint, "unreachable", reason)
        if outcome.status == "checked":
            self._keysets.unblock(mint)
            self.waiting.discard(mint)
        if not whole and outcome.status == "checked" and not (outcome.lost or outcome.found):
            return outcome  # once more nothing new
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
        found: dict[str, FoundCoin] = {}
        counters: dict[str, int] = {}
        for keyset in list(self._keysets.of(mint).values()):
            if keyset.unit in self._mints[mint].units:
                for free in await self._store.free(keyset.id):
                    await self._search.within(client, free, keyset, found)
                first = await self._store.counter(keyset.id)
                clear = await self._search.forward(client, keyset, first, found)
                counters[keyset.id] = clear + IN_FLIGHT
        coins = await self._store.coins(mint)
        states = await coin_states(client, [*(coin.y for coin in coins), *found])
        outcome = await self._settle(mint, states, [c.y for c in coins], found, counters=counters)
        self._looks[mint] = time.monotonic() + LOOK_S[0], LOOK_S[0]
        return outcome

    async def _ask_again(self, mint: str) -> Outcome:
        """Parked coins and watched counters of a mint that is checked otherwise."""
        client = self._mints[mint].client
        began = time.monotonic()
        parked = [coin.y for coin in await self._store.coins(mint) if coin.parked]
        states = await coin_states(client, parked)
        decided = any(state != "PENDING" for state in states.values())
        ranges: Sequence[CounterRange] = ()
        found: dict[str, FoundCoin] = {}
        if decided or self._is_due(mint):
            ranges = await self._store.ranges(mint)
        if any(part.keyset_id not in self._keysets.of(mint) for part in ranges):
            await self._keysets.refresh(mint)
        known = self._keysets.of(mint)
        ranges = [part for part in ranges if part.keyset_id in known]
        for part in ranges:
            await self._search.within(client, part, known[part.keyset_id], found)
        new = await self._store.unknown(list(found))
        found = {y: coin for y, coin in found.items() if y in new}
        states |= await coin_states(client, list(found))
        outcome = await self._settle(mint, states, parked, found, decided=decided, ranges=ranges)
        if ranges:
            now = time.monotonic()
            pause = LOOK_S[0] if decided else min(LOOK_S[1], 2 * self._pause(mint))
            self._looks[mint] = now + max(pause, _LOAD * (now - began)), pause
        return outcome

    def _pause(self, mint: str) -> float:
        return self._looks[mint][1] if mint in self._looks else LOOK_S[0] / 2

    async def _settle(
        self,
        mint: str,
        states: Mapping[str, State],
        ys: Sequence[str],
        found: Mapping[str, FoundCoin],
        *,
        counters: Mapping[str, int] | None = None,
        decided: bool = False,
        ranges: Sequence[CounterRange] = (),
    ) -> Outcome:
        """Book what the mint said.

        Args:
            ys: coins that the database knows; ``found``: those that it does not.
            counters: where to go on, when the mint was checked as a whole.
            decided: something that was pending is not any more, so change may follow.
            ranges: watched counters that were looked at.
        """
        pending = sum(states[y] == "PENDING" for y in (*ys, *found))
        settled = await self._store.settle(
            mint,
            spent=[y for y in ys if states[y] == "SPENT"],
            pending=[y for y in ys if states[y] == "PENDING"],
            unspent=[y for y in ys if states[y] == "UNSPENT"],
            found=[coin for y, coin in found.items() if states[y] == "UNSPENT"],
            counters=counters,
            watch_s=WATCH_COUNTERS_S if pending or decided or counters is not None else 0,
            looked_at=ranges,
        )
        return Outcome(mint, "checked", "", settled.lost, settled.found, pending)

    async def _signed(self, client: MintClient, operation: Operation) -> bool:
        """Whether the mint has done what recovery has still to book: it signed the outputs.

        Some signatures over those of a failed operation say only that its counters were used.
        """
        outputs = [
            self._search.coin(output.keyset_id, output.counter, output.amount)
            for output in operation.outputs
        ]
        signed = await self._search.signed(client, outputs)
        return signed == len(outputs) > 0 if operation.state == "failed" else signed > 0
