"""Accounts, holds and journalled operations as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from node.core.ecash import Keyset, Proof
from node.core.keys import Terms
from node.core.money import Msat, to_msat
from node.core.pricing import Price

Role: TypeAlias = Literal["spend", "admin", "request", "child"]
"""spend: an account's own key. admin: may withdraw. request: finds what a token paid for once.
child: spends its parent's balance within limits, and is looked up as a spend key."""


def key_hash(key: str, role: Role = "spend") -> str:
    """What is stored of a key: a SHA-256, hex, in which a key of one role is none of another."""
    return hashlib.sha256(f"{role}:{key}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a key belongs to, and what that key may do."""

    id: int
    role: Role
    funded: bool
    """Whether money ever arrived; False: its first token is being redeemed."""
    child_id: int | None = None
    """Of the child key this is; None for the account's own keys."""
    expires_at: int | None = None
    """Unix seconds from which on this key spends nothing."""

    def expired(self, now: float) -> bool:
        """Whether the key may no longer spend at the unix time ``now``."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account owns. ``held`` is the part set aside for requests that run."""

    balance: Msat
    held: Msat
    mint: str
    """Mint of the token that opened the account."""
    unit: str

    @property
    def free(self) -> Msat:
        return Msat(self.balance - self.held)


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """What to set aside, for what, at which price."""

    request_id: str
    request_key: str | None
    """Names the request among those of its account; None when nothing names it."""
    digest: str
    """Of what is asked for: the same key with another digest is a conflict."""
    model: str
    price: Price
    max_cost: Msat
    child_id: int | None = None
    """The child key that pays; None: the account's own."""


@dataclass(frozen=True, slots=True)
class Output:
    """A coin asked of a mint: secret and blinding factor follow from the counter (NUT-13)."""

    amount: int
    keyset_id: str
    counter: int
    keep: bool
    """True: for our inventory. False: part of a token we issue."""


OperationState: TypeAlias = Literal["intent", "done", "failed", "salvaged"]
"""salvaged: a send that had failed here and landed at the mint later; its coins are ours."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One crossing to a mint. Amounts are in the mint's unit."""

    id: str
    kind: Literal["receive", "send", "mint", "melt"]
    state: OperationState
    account_id: int
    mint: str
    unit: str
    amount: int
    """receive: face value offered. send: face value issued. mint, melt: of the invoice."""
    fee: int
    """receive: input fee the client bears. send: fee of our own swap. melt: the most that
    Lightning and the mint may take."""
    inputs: tuple[Proof, ...]
    outputs: tuple[Output, ...]
    token: str | None = field(default=None, repr=False)
    """send, done: the serialised token (the outbox)."""
    error: str | None = None
    """failed: code of the error the client is told."""
    attempts: int = 0
    """How often its outcome stayed unknown."""
    unknown_at: int = 0
    """Unix seconds of the last moment at which a request of it may have left for the mint."""
    surcharge: int = 0
    """send: the part of ``fee`` the account pays, when the node has not earned it yet."""
    quote: str = field(default="", repr=False)
    """mint, melt: the mint's quote."""

    @property
    def credit(self) -> Msat:
        """receive: what the account is credited, in msat."""
        return to_msat(self.amount - self.fee, self.unit)

    @property
    def value(self) -> Msat:
        """Face value in msat."""
        return to_msat(self.amount, self.unit)


@dataclass(frozen=True, slots=True)
class NewAccount:
    """Open an account for the received token.

    ``keys``: hash → what that key may do. The same token asked for again with these keys is the
    same purpose. ``aliases``: hashes of further keys that may spend.
    """

    kind: Literal["key", "request"]
    keys: Mapping[str, Role]
    aliases: frozenset[str] = frozenset()
    terms: Terms = Terms()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a token may be issued from: a mint, the keyset for new coins, fees by keyset."""

    mint: str
    unit: str
    keyset: Keyset | None
    """None: no swap can be made there now, what is in stock can be given."""
    fee_ppk: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class IssueRequest:
    """A token to be issued from an account. ``amount`` None: all that is free."""

    operation_id: str
    """Of the new operation; another id comes back when the request key has one."""
    account_id: int
    """OPERATOR: out of what is earned; needs a request key."""
    amount: Msat | None
    request_key: str | None
    reserve: Msat = Msat(0)
    """Of the operator: earnings that must stay."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A pay-per-request account after its request: what it cost and the change."""

    cost: Msat
    dust: Msat
    change: Operation | None
    open: bool = False
    """True: the change cannot be issued just now; the account keeps its money."""


@dataclass(frozen=True, slots=True)
class OwnCoin:
    """A coin of ours that no operation is using, by its NUT-00 Y."""

    y: str
    value: Msat
    parked: bool
    """Out of use since the mint called it pending."""


@dataclass(frozen=True, slots=True)
class CounterRange:
    """NUT-13 counters ``first`` … ``first + count - 1`` of a keyset."""

    keyset_id: str
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class FoundCoin:
    """A coin of ours that a mint has signed and the database does not know."""

    y: str
    unit: str
    proof: Proof


@dataclass(frozen=True, slots=True)
class Settled:
    """What a check of our coins changed in the books."""

    lost: Msat
    found: Msat
