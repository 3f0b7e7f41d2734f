"""Invoices that fill accounts, and payouts, as plain data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from node.core.accounts import Source
from node.core.money import MSAT_PER_SAT, Msat, ceil_div, to_msat

Purpose: TypeAlias = Literal["create", "topup"]

OPERATOR = 0
"""Account that payouts of earnings, and capital put in, are noted under; it holds nothing."""
_PPM = 1_000_000


def invoice_hash(invoice_id: str) -> str:
    """What is stored of an invoice's id: a SHA-256, hex. The id itself yields an API key."""
    return hashlib.sha256(f"invoice:{invoice_id}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class NewInvoice:
    """An invoice as a mint made it, and what it is for. Times are Unix seconds."""

    hash: str
    purpose: Purpose
    mint: str
    unit: str
    amount: int
    """In ``unit``."""
    quote: str = field(repr=False)
    bolt11: str
    peer: str
    """Whom the limit on open invoices counts against."""
    expires_at: int
    watch_until: int
    """When the mint, asked for the last time, may be believed that it will not be paid."""
    max_balance: Msat | None = None
    """Most that may be held of the mint, unpaid invoices included."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many unpaid invoices there may be that were made in the last ``within_s``."""

    most: int
    most_of_peer: int
    within_s: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice as it stands. Times are Unix seconds."""

    hash: str
    account_id: int
    purpose: Purpose
    mint: str
    unit: str
    amount: int
    quote: str = field(repr=False)
    bolt11: str
    state: Literal["pending", "paid"]
    operation_id: str | None
    """The operation that takes the ecash; None until the mint says that it is paid."""
    created_at: int
    expires_at: int
    watch_until: int
    paid_at: int | None

    @property
    def value(self) -> Msat:
        return to_msat(self.amount, self.unit)


@dataclass(frozen=True, slots=True)
class PayRequest:
    """A decoded bolt11 invoice."""

    bolt11: str
    amount: Msat
    payment_hash: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class Quoted:
    """An invoice that a mint made for us."""

    mint: str
    unit: str
    amount: int
    """In ``unit``."""
    quote: str = field(repr=False)
    request: PayRequest
    expires_at: int
    """Unix time after which neither the invoice nor the quote is good."""
    max_balance: Msat | None = None
    """Most that may be held of the mint."""


class PayoutError(Exception):
    """A payout or refund was not made and nothing was paid. The text is for the operator."""


@dataclass(frozen=True, slots=True)
class MeltRequest:
    """Pay an invoice out of what the node has earned, or out of an account that has expired."""

    operation_id: str
    source: Source
    quote: str = field(repr=False)
    amount: int
    """What the mint asks for the invoice, in the source's unit."""
    fee_reserve: int
    """The most that Lightning may cost on top."""
    payment_hash: str
    destination: str
    """Where it goes, for the operator's eyes."""
    reserve: Msat
    """Earnings that must stay."""
    change: bool
    """Whether the mint gives change (NUT-08); without it the coins must be exact."""
    expires_at: int
    """Unix time after which the invoice cannot be paid."""
    account_id: int = OPERATOR
    """Whose money it is; OPERATOR: earnings."""
    by_owner: bool = False
    """The account's owner asks: it need not have expired."""


@dataclass(frozen=True, slots=True)
class Melt:
    """What is known of a payment beside its operation. Times are Unix seconds."""

    expires_at: int
    """After this its invoice cannot be paid; 0: not known."""
    paid_at: int | None
    """When the mint was first seen to say that it is paid."""
    missing: int
    """Change that may still come, in the mint's unit."""


@dataclass(frozen=True, slots=True)
class FeeLimit:
    """Lightning may cost the larger of a share of the amount and a fixed sum."""

    ppm: int = 20_000
    base: Msat = Msat(5 * MSAT_PER_SAT)

    def of(self, amount: Msat) -> Msat:
        """The most Lightning may cost for ``amount``."""
        return Msat(max(self.base, ceil_div(amount * self.ppm, _PPM)))

    def affordable(self, spendable: int) -> Msat:
        """The largest whole-sat amount whose costs fit into ``spendable`` msat, too; 0 if none."""
        if spendable <= 0:
            return Msat(0)
        after_fee = spendable - self.of(Msat(spendable))
        return Msat(max(0, after_fee) // MSAT_PER_SAT * MSAT_PER_SAT)


@dataclass(frozen=True, slots=True)
class Payable:
    """What could be paid out of one mint's coins, fees included."""

    mint: str
    unit: str
    available: Msat
    input_fee: Msat = Msat(0)
    """What the mint may take for spending the coins; part of ``available``."""
