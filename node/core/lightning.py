"""Invoices that fill accounts, and payouts, as plain data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from node.core.accounts import Source
from node.core.money import Msat, to_msat

Purpose: TypeAlias = Literal["create", "topup"]


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


class PayoutError(Exception):
    """A payout was not made and nothing was paid. The text is for the operator."""


@dataclass(frozen=True, slots=True)
class MeltRequest:
    """Pay an invoice out of what the node has earned."""

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


@dataclass(frozen=True, slots=True)
class Payable:
    """What could be paid out of one mint's coins, fees included."""

    mint: str
    unit: str
    available: Msat
    input_fee: Msat = Msat(0)
    """What the mint may take for spending the coins; part of ``available``."""
