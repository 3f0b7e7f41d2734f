"""What a client writes down, so that it can say later what it is owed."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.soak.pocket import Coin


@dataclass
class Payment:
    """A request that a token pays for. ``cost_msat`` once a whole answer said it."""

    coin: Coin
    request_id: str
    cost_msat: int | None = None
    change: str | None = field(default=None, repr=False)


@dataclass
class Account:
    """An account of ours.

    ``funds``: what was credited for sure, in msat. ``charges``: request id → cost once known.
    ``withdrawals``: idempotency key → amount, of answers that did not come.
    """

    key: str = field(repr=False)
    owner_key: str = field(repr=False)
    """What may withdraw."""
    funds: list[int]
    charges: dict[str, int | None] = field(default_factory=dict)
    children: list[str] = field(default_factory=list, repr=False)
    children_asked: int = 0
    withdrawals: dict[str, int | None] = field(default_factory=dict)


@dataclass
class Opening:
    """A token that opens an account, whose answer did not come. ``path`` "" when used as a key."""

    coin: Coin
    path: str
    admin_key: str | None = field(default=None, repr=False)
    charges: dict[str, int | None] = field(default_factory=dict)


@dataclass
class Topup:
    """A token offered to accounts, of which one may have it."""

    coin: Coin
    accounts: list[Account]
    taken_back: bool = False
    settled: bool = False
    """One has it, and said so."""


@dataclass
class Contest:
    """A token offered as a payment, as a top-up of ``account`` and to open one, all at once."""

    payment: Payment
    account: Account


@dataclass
class Bill:
    """A Lightning invoice; it pays itself. ``account`` None when it opens one."""

    invoice_id: str = field(repr=False)
    amount: int
    account: Account | None
