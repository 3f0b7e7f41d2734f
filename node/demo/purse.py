"""A paying client's wallet: Cashu in memory, on random secrets, at one mint.

It shares the codec and the mint client with the node and nothing else. What it holds is gone
with it, which is what a demo and a test want.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import aiohttp

from node.core.denominations import split
from node.core.ecash import BlindedMessage, BlindSignature, Keyset, Proof, input_fee
from node.ecash.crypto import (
    blind,
    hash_to_curve_hex,
    unblind,
    verify_proof_dleq,
    verify_signature_dleq,
)
from node.ecash.mint import MintClient, MintQuote, mint_body, swap_body
from node.ecash.token import expand_keyset_ids, parse_token, serialize_token

OnInvoice = Callable[[str], Awaitable[None]]


class PurseError(Exception):
    """The purse cannot do that: too little money, another mint, or a mint that cheats."""


@dataclass(frozen=True, slots=True)
class _Output:
    """A coin in the making."""

    message: BlindedMessage
    secret: str
    r: bytes


class Purse:
    """Use with ``async with``; amounts are in ``unit``.

    Args:
        mint_url: the mint it uses.
        session: shared with the caller, who closes it; its own when None.
        on_invoice: pays a bolt11 invoice; None for a mint whose invoices pay themselves.
        pay_timeout_s: how long an invoice may stay unpaid.
    """

    def __init__(
        self,
        mint_url: str,
        *,
        unit: str = "sat",
        session: aiohttp.ClientSession | None = None,
        on_invoice: OnInvoice | None = None,
        pay_timeout_s: float = 600.0,
    ) -> None:
        self.unit = unit
        self._mint_url = mint_url
        self._session = session
        self._own_session: aiohttp.ClientSession | None = None
        self._client: MintClient | None = None
        self._on_invoice = on_invoice
        self._pay_timeout_s = pay_timeout_s
        self._listing: dict[str, Keyset] = {}
        self._keys: dict[str, Keyset] = {}
        self._proofs: list[Proof] = []
        self._lock = asyncio.Lock()

    @property
    def balance(self) -> int:
        """The sum of the coins held."""
        return _total(self._proofs)

    @property
    def mint(self) -> MintClient:
        """The client of its mint, while the purse is open."""
        if self._client is None:
            raise PurseError("the purse is not open")
        return self._client

    async def __aenter__(self) -> Purse:
        if self._session is None:
            self._own_session = aiohttp.ClientSession()
        session = self._session or self._own_session
        assert session is not None
        self._client = MintClient(session, self._mint_url)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client = None
        if self._own_session is not None:
            await self._own_session.close()
            self._own_session = None

    async def fund(self, amount: int, *, lock_to: str | None = None) -> str:
        """Mint ``amount`` against an invoice and return it as a token; the purse keeps nothing.

        Args:
            lock_to: public key, hex, that alone can spend it (NUT-11).

        Raises PurseError when the invoice is not paid in time, MintError.
        """
        _require_positive(amount)
        keyset = await self._active()
        quote = await self._paid_quote(amount)
        outputs = _outputs(keyset, split(amount), lock_to)
        signatures = await self.mint.mint(mint_body(quote.quote, _messages(outputs)))
        return self._token(_coins(keyset, outputs, signatures))

    async def receive(self, token: str) -> int:
        """Swap ``token`` into the purse and return what it brought, fees deducted.

        Raises TokenMalformed, PurseError for another mint, unit or a false DLEQ, MintError
        (MintRejected when it was spent before).
        """
        parsed = parse_token(token)
        if (parsed.mint, parsed.unit) != (self.mint.url, self.unit):
            raise PurseError("the token is of another mint or unit")
        await self._refresh()
        proofs = expand_keyset_ids(parsed, self._listing).proofs
        for proof in proofs:
            keys = (await self._full(proof.keyset_id)).keys
            if proof.dleq and not verify_proof_dleq(proof, keys.get(proof.amount, "")):
                raise PurseError("a coin of the token was not signed by the mint")
        net = parsed.amount - self._fee(proofs)
        if net <= 0:
            raise PurseError("the mint's fees leave nothing of the token")
        coins = await self._swap(proofs, split(net))
        self._proofs += coins
        return net

    async def send(self, amount: int) -> str:
        """Take exactly ``amount`` out of the purse as a token.

        Raises PurseError when the purse does not hold it with the fee of a swap, MintError.
        """
        _require_positive(amount)
        async with self._lock:
            await self._refresh()
            coins = _exact(self._proofs, amount)
            if coins is None:
                coins = await self._change(amount)
            gone = {coin.secret for coin in coins}
            self._proofs = [proof for proof in self._proofs if proof.secret not in gone]
            return self._token(coins)

    async def spent(self, token: str) -> bool:
        """Whether every coin of ``token`` is spent at the mint (NUT-07)."""
        ys = [hash_to_curve_hex(proof.secret) for proof in parse_token(token).proofs]
        return set(await self.mint.check_state(ys)) == {"SPENT"}

    async def _change(self, amount: int) -> list[Proof]:
        """Swap held coins so that some make exactly ``amount``; returns those, still held."""
        chosen: list[Proof] = []
        for proof in sorted(self._proofs, key=lambda proof: -proof.amount):
            if _total(chosen) - self._fee(chosen) >= amount:
                break
            chosen.append(proof)
        rest = _total(chosen) - self._fee(chosen) - amount
        if rest < 0:
            raise PurseError("the purse does not hold that much")
        fresh = await self._swap(chosen, [*split(amount), *split(rest)])
        used = {proof.secret for proof in chosen}
        self._proofs = [proof for proof in self._proofs if proof.secret not in used] + fresh
        coins = _exact(fresh, amount)
        assert coins is not None
        return coins

    async def _swap(self, proofs: Sequence[Proof], amounts: Sequence[int]) -> list[Proof]:
        keyset = await self._active()
        outputs = _outputs(keyset, amounts)
        signatures = await self.mint.swap(swap_body(proofs, _messages(outputs)))
        return _coins(keyset, outputs, signatures)

    async def _paid_quote(self, amount: int) -> MintQuote:
        quote = await self.mint.mint_quote(amount, self.unit)
        if self._on_invoice is not None and quote.state == "UNPAID":
            await self._on_invoice(quote.request)
        deadline = time.monotonic() + self._pay_timeout_s
        pause_s = 0.02
        while quote.state == "UNPAID":
            if time.monotonic() > deadline:
                raise PurseError("the invoice was not paid in time")
            quote = await self.mint.mint_quote_state(quote.quote)
            if quote.state == "UNPAID":
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 2.0)
        return quote

    async def _refresh(self) -> None:
        self._listing = {keyset.id: keyset for keyset in await self.mint.keysets()}

    async def _full(self, keyset_id: str) -> Keyset:
        if keyset_id not in self._keys:
            self._keys[keyset_id] = await self.mint.keys(keyset_id)
        return self._keys[keyset_id]

    async def _active(self) -> Keyset:
        """The cheapest keyset that the mint signs with."""
        await self._refresh()
        usable = [k for k in self._listing.values() if k.active and k.unit == self.unit]
        if not usable:
            raise PurseError("the mint has no active keyset of this unit")
        return await self._full(min(usable, key=lambda keyset: keyset.input_fee_ppk).id)

    def _fee(self, proofs: Iterable[Proof]) -> int:
        return input_fee(proofs, {k.id: k.input_fee_ppk for k in self._listing.values()})

    def _token(self, proofs: Sequence[Proof]) -> str:
        return serialize_token(self.mint.url, self.unit, proofs)


def _require_positive(amount: int) -> None:
    if amount <= 0:
        raise PurseError("an amount is a positive integer")


def _outputs(keyset: Keyset, amounts: Iterable[int], lock_to: str | None = None) -> list[_Output]:
    outputs = []
    for amount in sorted(amounts):
        if amount not in keyset.keys:
            raise PurseError("the mint has no coin of that amount")
        secret, r = secrets.token_hex(32), _random_scalar()
        if lock_to is not None:
            lock = {"nonce": secret, "data": lock_to, "tags": [["sigflag", "SIG_INPUTS"]]}
            secret = json.dumps(["P2PK", lock], separators=(",", ":"))
        message = BlindedMessage(amount, keyset.id, blind(secret, r))
        outputs.append(_Output(message, secret, r))
    return outputs


def _random_scalar() -> bytes:
    """Not zero, and with 255 bits below the order of the group."""
    return (secrets.randbits(255) | 1).to_bytes(32, "big")


def _messages(outputs: Iterable[_Output]) -> list[BlindedMessage]:
    return [output.message for output in outputs]


def _coins(
    keyset: Keyset, outputs: Sequence[_Output], signatures: Sequence[BlindSignature]
) -> list[Proof]:
    coins = []
    for output, signature in zip(outputs, signatures, strict=True):
        key = keyset.keys[signature.amount]
        if signature.dleq and not verify_signature_dleq(output.message, signature, key):
            raise PurseError("the mint did not sign with its key")
        dleq = replace(signature.dleq, r=output.r.hex()) if signature.dleq else None
        c = unblind(signature.c_, output.r, key)
        coins.append(Proof(keyset.id, signature.amount, output.secret, c, dleq=dleq))
    return coins


def _exact(proofs: Sequence[Proof], amount: int) -> list[Proof] | None:
    """Coins that sum to ``amount``, largest first; None when that way finds none."""
    chosen, missing = [], amount
    for proof in sorted(proofs, key=lambda proof: -proof.amount):
        if proof.amount <= missing:
            chosen.append(proof)
            missing -= proof.amount
    return chosen if missing == 0 and chosen else None


def _total(proofs: Iterable[Proof]) -> int:
    return sum(proof.amount for proof in proofs)
