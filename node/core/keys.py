"""What a key may do and until when: the terms of an account, child keys and their limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias, get_args

from node.core.money import Msat

Reset: TypeAlias = Literal["daily", "weekly", "monthly"]
"""When a limit begins anew: at midnight, on Monday, on the first of the month; all UTC."""
RESETS: tuple[Reset, ...] = get_args(Reset)


@dataclass(frozen=True, slots=True)
class Terms:
    """What an account was opened with; it never changes."""

    expires_at: int | None = None
    """Unix seconds from which on nothing is spent. Withdrawing is always possible."""
    refund_address: str | None = None
    """Lightning address that then gets what is left."""


@dataclass(frozen=True, slots=True)
class ChildTerms:
    """What a child key may spend of its parent's balance."""

    limit: Msat | None = None
    """At most this, in each period if there is a ``reset``; None: as much as the parent has."""
    reset: Reset | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class NewChildren:
    """Child keys to make for an account, by the key that begins with ``parent``.

    ``names``: a random name for each; the key follows from it. ``hash_of``: name → hash of the
    key. ``request_key``: asking again under it gives the same keys.
    """

    names: tuple[str, ...]
    hash_of: Callable[[str], str]
    parent: str
    terms: ChildTerms
    cost: Msat
    """What making all of them costs, in msat."""
    request_key: str | None = None


@dataclass(frozen=True, slots=True)
class ChildKey:
    """A child key as it stands. ``spent`` counts in the present period."""

    id: int
    name: str = field(repr=False)
    parent: str
    terms: ChildTerms
    spent: Msat
    held: Msat

    @property
    def left(self) -> Msat | None:
        """What it may still spend in this period; None when it has no limit."""
        limit = self.terms.limit
        return None if limit is None else Msat(max(0, limit - self.spent - self.held))


@dataclass(frozen=True, slots=True)
class Spending:
    """What was paid with a key so far."""

    requests: int = 0
    spent: Msat = Msat(0)


def period_start(reset: Reset | None, now: int) -> int:
    """Unix seconds at which the period that ``now`` is in began; 0 for one that never ends."""
    if reset is None:
        return 0
    moment = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if reset == "weekly":
        moment -= timedelta(days=moment.weekday())
    elif reset == "monthly":
        moment = moment.replace(day=1)
    return int(moment.timestamp())
