"""Finding our coins from the seed (NUT-09, NUT-13): which counters a mint has signed.

A search goes forward from a counter and ends after ``gap`` counters in a row that are not signed.
Why so many are enough: ``node.ledger.counters``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from node.core.accounts import CounterRange, FoundCoin
from node.core.ecash import BlindedMessage, Keyset
from node.ecash.crossing import Coin, unblind_coins
from node.ecash.crypto import blind, derive_secret
from node.ecash.keysets import SCAN_WINDOW
from node.ecash.mint import MintClient

log = structlog.get_logger()

GAP = 5000
"""Counters in a row without a coin before a search ends."""
_PROGRESS_WINDOWS = 10
"""Windows of SCAN_WINDOW counters between two lines in the log."""
_YIELD_EVERY = 50


class Search:
    """Looks for the coins of one seed.

    Args:
        gap: counters in a row without a coin before ``forward`` ends.
    """

    def __init__(self, seed: bytes, gap: int = GAP) -> None:
        self._seed = seed
        self._gap = gap

    async def forward(
        self, client: MintClient, keyset: Keyset, first: int, found: dict[str, FoundCoin]
    ) -> int:
        """Collect the coins signed at counters from ``first`` on, by Y; the counter after them.

        Raises MintError.
        """
        clear = start = first
        windows = 0
        while start < clear + self._gap:
            count = min(SCAN_WINDOW, clear + self._gap - start)
            last = await self.within(client, CounterRange(keyset.id, start, count), keyset, found)
            start += count
            if last is not None:
                clear = last + 1
            windows += 1
            if windows % _PROGRESS_WINDOWS == 0:
                log.info(
                    "searching_coins",
                    mint=client.url,
                    keyset=keyset.id,
                    from_counter=first,
                    at_counter=start,
                    found=len(found),
                    ends_at_counter=clear + self._gap,
                )
        return clear

    async def within(
        self,
        client: MintClient,
        counters: CounterRange,
        keyset: Keyset,
        found: dict[str, FoundCoin],
    ) -> int | None:
        """Collect the coins signed at some counters, by Y; the last signed one, if there is any.

        A blank output of NUT-08 that got nothing counts as signed. Raises MintError.
        """
        last = None
        end = counters.first + counters.count
        for start in range(counters.first, end, SCAN_WINDOW):
            window: list[Coin] = []
            for counter in range(start, min(end, start + SCAN_WINDOW)):
                window.append(self.coin(keyset.id, counter, 1))
                if len(window) % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)  # the loop has others to serve
            index = {message.b_: number for number, (message, _, _) in enumerate(window)}
            restored = await client.restore([message for message, _, _ in window])
            if restored and not keyset.keys:
                keyset = await client.keys(keyset.id)
            for message, signature in restored:
                number = index[message.b_]
                last = max(last or 0, start + number)
                if not signature.amount:
                    continue
                _, secret, r = window[number]
                named = BlindedMessage(signature.amount, keyset.id, message.b_)
                ((y, proof),) = unblind_coins(keyset, [(named, secret, r)], [signature])
                found[y] = FoundCoin(y, keyset.unit, proof)
        return last

    async def signed(self, client: MintClient, outputs: Sequence[Coin]) -> int:
        """How many of the outputs the mint has signed. Raises MintError."""
        messages = [message for message, _, _ in outputs]
        return len(await client.restore(messages)) if messages else 0

    def coin(self, keyset_id: str, counter: int, amount: int) -> Coin:
        """The output of a counter."""
        secret, r = derive_secret(self._seed, keyset_id, counter)
        return BlindedMessage(amount, keyset_id, blind(secret, r)), secret, r
