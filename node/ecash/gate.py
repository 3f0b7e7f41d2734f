"""What a token has to pass before any of it is journalled or its mint is asked.

    accept   parse ─▶ mint and unit on the allowlist ─▶ locks          no I/O, no signature
    admit    sign locked coins ─▶ full keyset ids ─▶ not known dead ─▶ DLEQ ─▶ is the mint there?

``admit`` asks the mint only for what it must know of its keysets and does not know yet. Everything
it refuses, it refuses before money moves: the token is as good as it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from node.core.ecash import Token
from node.core.money import MSAT_PER_SAT, Msat, ceil_div
from node.ecash.crypto import verify_proof_dleq
from node.ecash.failures import FailureMemory
from node.ecash.keysets import AcceptedMint, Keysets
from node.ecash.locks import Signer, check_locks, lock_key, unlock
from node.ecash.mint import MintError
from node.ecash.payment_request import Format, LockOption, PaymentRequest
from node.ecash.token import expand_keyset_ids, parse_token
from node.errors import MintNotAccepted, MintUnreachable, NodeError, TokenMalformed

_YIELD_EVERY = 8
"""DLEQ proofs checked (190 µs each) before others get the event loop."""


@dataclass(frozen=True, slots=True)
class PaymentTerms:
    """How the node wants to be paid."""

    signer: Signer | None = None
    """Of the key that tokens may be locked to; None: no locked token is ours."""
    lock_payments: bool = False
    """Whether payment requests ask for locked tokens. Others are taken all the same."""
    request_format: Format = "creqA"
    """Of payment requests."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A token that may be redeemed."""

    token: Token
    """With full keyset ids, and witnesses for what is locked to us."""
    max_balance: Msat | None
    """Most that our coins of its mint may be worth."""
    barred: NodeError | None
    """Why nothing new may begin at its mint now; what has begun before may go on."""


class Gate:
    """Checks tokens at the door.

    Args:
        mints: the allowlist, by normalised URL.
    """

    def __init__(
        self,
        mints: Mapping[str, AcceptedMint],
        keysets: Keysets,
        failures: FailureMemory,
        terms: PaymentTerms,
    ) -> None:
        self._mints = mints
        self._keysets = keysets
        self._failures = failures
        self._terms = terms
        self._signer = terms.signer

    def accept(self, text: str) -> Token:
        """Parse a token and check its mint and its locks; no I/O.

        Raises TokenMalformed, MintNotAccepted.
        """
        token = parse_token(text)
        mint = self._mints.get(token.mint)
        if mint is None:
            raise MintNotAccepted
        if token.unit not in mint.units:
            raise MintNotAccepted(f"this node does not take {token.unit!r} tokens of that mint")
        check_locks(token, self._signer, time.time())
        return token

    def payment_request(self, amount: Msat) -> str | None:
        """A request (NUT-24) for a token worth ``amount``; None when no mint is accepted.

        Mints that do not answer are left out while there are others.
        """
        sat = [url for url, mint in self._mints.items() if "sat" in mint.units]
        wanted = sat or list(self._mints)
        if not wanted:
            return None
        there = [url for url in wanted if self._mints[url].circuit.state == "closed"]
        lock = None
        if self._terms.lock_payments and self._signer is not None:
            lock = LockOption("P2PK", lock_key(self._signer.pubkey), (("sigflag", "SIG_INPUTS"),))
        request = PaymentRequest(
            ceil_div(amount, MSAT_PER_SAT) if sat else amount,
            "sat" if sat else "msat",
            tuple(there or wanted),
            lock,
        )
        return request.encode(self._terms.request_format)

    async def admit(self, token: Token) -> Admitted:
        """Make an accepted token ready to be swapped.

        Raises TokenMalformed, TokenAlreadySpent, MintUnreachable.
        """
        mint = self._mints[token.mint]
        token = unlock(token, self._signer, time.time())
        token = await self._expand(token)
        self._failures.check(token.proofs)
        await self._check_dleq(token, required=mint.require_dleq)
        return Admitted(token, mint.max_balance, await self._barred(mint))

    async def _expand(self, token: Token) -> Token:
        """Full keyset ids for short ones; asks the mint when one is not known."""
        known = self._keysets.of(token.mint)
        if not all(proof.keyset_id in known for proof in token.proofs):
            try:
                token = expand_keyset_ids(token, known)
            except TokenMalformed:
                self._failures.check(token.proofs)
                await self._keysets.refresh(token.mint)
                known = self._keysets.of(token.mint)
                try:
                    token = expand_keyset_ids(token, known)
                except TokenMalformed as error:
                    self._failures.foreign(token.proofs, error)
                    raise
        if any(known[proof.keyset_id].unit != token.unit for proof in token.proofs):
            raise TokenMalformed("the token's keysets are not of its unit")
        return token

    async def _check_dleq(self, token: Token, *, required: bool) -> None:
        """Every proof that says the mint signed it must be right (NUT-12)."""
        if required and not all(proof.dleq for proof in token.proofs):
            raise TokenMalformed("this node takes that mint's coins only with their DLEQ proofs")
        for number, proof in enumerate(token.proofs, 1):
            if proof.dleq is None:
                continue
            keys = await self._keysets.keys(token.mint, proof.keyset_id)
            if not keys and not required:
                continue
            if not verify_proof_dleq(proof, keys.get(proof.amount, "")):
                raise TokenMalformed("a coin of the token was not signed by its mint")
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def _barred(self, mint: AcceptedMint) -> NodeError | None:
        """MintUnreachable while the mint's circuit is not closed; after a while it is asked."""
        circuit = mint.circuit
        if circuit.state == "closed":
            return None
        try:
            circuit.check()
            await mint.client.keysets()  # a question that costs nothing, before a token does
        except MintError as error:
            return MintUnreachable(retry_after_s=circuit.retry_after_s, private=str(error))
        return None
