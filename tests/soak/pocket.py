"""A client's money: what it put in, what it holds, what its mints kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from node.core.ecash import Proof, Token
from node.core.money import MSAT_PER_SAT
from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
from node.ecash.crypto import hash_to_curve_hex
from node.ecash.errors import MintRejected
from node.ecash.token import normalize_mint_url, parse_token, serialize_token

MOST_PROOFS = 60
"""How many coins are redeemed in one swap."""


@dataclass(frozen=True)
class Side:
    """A mint, and the name under which the node knows it."""

    mint: EmbeddedMint
    node_url: str
    fee_ppk: int
    alive_before: int
    """What was in circulation there when we came, in sat."""

    def fee(self, proofs: int) -> int:
        """What a swap of so many coins costs, in sat (NUT-02)."""
        return -(-proofs * self.fee_ppk // 1000)

    def real(self, proofs: tuple[Proof, ...]) -> str:
        """A token as the mint itself would name it."""
        return serialize_token(self.mint.url, "sat", proofs)


@dataclass
class Coin:
    """A token of ours that is, or was, on its way into the node."""

    side: Side
    text: str = field(repr=False)
    proofs: tuple[Proof, ...] = field(repr=False)

    @property
    def amount(self) -> int:
        return sum(proof.amount for proof in self.proofs)

    @property
    def net_msat(self) -> int:
        """What the node has to credit for it."""
        return (self.amount - self.side.fee(len(self.proofs))) * MSAT_PER_SAT


class Pocket:
    """Make one with ``open_pocket``. Amounts in sat.

    ``handed_out`` is shared by all clients: secret of each coin the node gave out → the token it
    came in. The same coin in two tokens is what must never happen.
    """

    def __init__(self, purses: dict[Side, Purse], handed_out: dict[str, str]) -> None:
        self.put_in = 0
        self.kept_by_mints = 0
        self.problems: list[str] = []
        self._purses = purses
        self._loose: dict[Side, list[Proof]] = {side: [] for side in purses}
        self._handed_out = handed_out
        self._seen: set[str] = set()

    def held(self, side: Side) -> int:
        """All that it holds of a mint."""
        return self._purses[side].balance + sum(proof.amount for proof in self._loose[side])

    async def fund(self, side: Side, amount: int) -> Coin:
        """New money."""
        proofs = parse_token(await self._purses[side].fund(amount)).proofs
        self.put_in += amount
        return Coin(side, serialize_token(side.node_url, "sat", proofs), proofs)

    def take(self, text: str) -> Token:
        """Keep a token of the node; one that we have already changes nothing."""
        token = parse_token(text)
        if text in self._seen:
            return token
        self._seen.add(text)
        (side,) = (s for s in self._purses if normalize_mint_url(s.node_url) == token.mint)
        for proof in token.proofs:
            before = self._handed_out.setdefault(proof.secret, text)
            if before != text:
                self.problems.append(f"a coin of {proof.amount} sat was handed out twice")
        self._loose[side] += token.proofs
        return token

    async def take_back(self, coin: Coin) -> bool:
        """Keep a token that the node did not take; False when it was spent."""
        return await self._receive(coin.side, coin.proofs)

    async def redeem(self) -> None:
        """Swap what was taken for coins of our own, as long as that leaves something."""
        for side, loose in self._loose.items():
            while loose:
                batch = tuple(loose[:MOST_PROOFS])
                if sum(proof.amount for proof in batch) <= side.fee(len(batch)):
                    break
                del loose[:MOST_PROOFS]
                if not await self._receive(side, batch):
                    amounts = [proof.amount for proof in batch]
                    self.problems.append(f"among coins of {amounts} sat some were spent already")

    async def unspent(self) -> bool:
        """Whether the mints know nothing against the coins that were not swapped."""
        for side, loose in self._loose.items():
            ys = [hash_to_curve_hex(proof.secret) for proof in loose]
            if ys and set(await self._purses[side].mint.check_state(ys)) != {"UNSPENT"}:
                return False
        return True

    async def _receive(self, side: Side, proofs: tuple[Proof, ...]) -> bool:
        amount = sum(proof.amount for proof in proofs)
        if amount <= side.fee(len(proofs)):
            self._loose[side] += proofs
            return await self.unspent()
        try:
            received = await self._purses[side].receive(side.real(proofs))
        except MintRejected:
            return False
        self.kept_by_mints += amount - received
        return True


@asynccontextmanager
async def open_pocket(sides: tuple[Side, ...], handed_out: dict[str, str]) -> AsyncIterator[Pocket]:
    """An empty pocket with a purse at each mint."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Pocket(
            {
                side: await stack.enter_async_context(Purse(side.mint.url, session=session))
                for side in sides
            },
            handed_out,
        )
