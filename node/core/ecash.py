"""Ecash values (Cashu NUT-00, NUT-01, NUT-02) as plain data; amounts are in the mint's unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from node.core.money import Msat, ceil_div, to_msat


@dataclass(frozen=True, slots=True)
class Dleq:
    """NUT-12 proof that the mint signed with its published key. Hex scalars."""

    e: str
    s: str
    r: str = ""
    """The blinding factor; empty in a proof over a blind signature."""


@dataclass(frozen=True, slots=True)
class Proof:
    """One coin."""

    keyset_id: str
    amount: int
    secret: str = field(repr=False)
    c: str = field(repr=False)
    """The unblinded signature, compressed point, hex."""
    witness: str | None = field(default=None, repr=False)
    dleq: Dleq | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """A parsed token: one mint, one unit."""

    mint: str
    """Normalised mint URL."""
    unit: str
    proofs: tuple[Proof, ...]
    memo: str = ""

    @property
    def amount(self) -> int:
        return sum(proof.amount for proof in self.proofs)

    @property
    def value(self) -> Msat:
        """Face value in msat."""
        return to_msat(self.amount, self.unit)


@dataclass(frozen=True, slots=True)
class Keyset:
    """A mint's keyset (NUT-01, NUT-02)."""

    id: str
    unit: str
    active: bool
    input_fee_ppk: int
    keys: Mapping[int, str]
    """Amount → public key, hex. Empty where only the listing is known."""


@dataclass(frozen=True, slots=True)
class BlindedMessage:
    """An output sent to the mint (NUT-00)."""

    amount: int
    keyset_id: str
    b_: str


@dataclass(frozen=True, slots=True)
class BlindSignature:
    """The mint's answer to one BlindedMessage (NUT-00)."""

    amount: int
    keyset_id: str
    c_: str
    dleq: Dleq | None = None


def input_fee(proofs: Iterable[Proof], fee_ppk: Mapping[str, int]) -> int:
    """The mint's fee for spending ``proofs`` (NUT-02), in its unit.

    Args:
        fee_ppk: keyset id → ``input_fee_ppk``. Raises KeyError for an unknown keyset.
    """
    return ceil_div(sum(fee_ppk[proof.keyset_id] for proof in proofs), 1000)
