"""One line of an account's statement."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.core.money import Msat


@dataclass(frozen=True, slots=True)
class Transaction:
    """Money of an account that moved, or is about to.

    type: ``deposit`` (the first money), ``topup``, ``charge`` (a request), ``withdrawal``,
    ``change``, ``refund`` (over Lightning), ``reversal`` (what a withdrawal that failed, or a
    refund, gave back), ``fee`` (child keys), ``dust``, ``other``. state: ``done``, ``pending``,
    ``failed`` (a reversal stands beside it). The amounts of all that is not pending add up to the
    balance; what is pending and negative is either set aside or, for a withdrawal or refund, taken
    already.
    """

    id: str
    """The same while it is pending and when it is done."""
    type: str
    state: str
    amount: Msat
    """Signed."""
    created_at: int
    request_id: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    mint: str | None = None
    token: str | None = field(default=None, repr=False)
    operation_id: str | None = None
    """Of the token, as long as no answer has carried it."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where in a statement a page begins: after this line.

    Pending lines come first. They have ``moment`` and ``id``; the others are ordered by ``id``.
    """

    id: int
    moment: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some lines of a statement, newest first, and where the next page begins."""

    lines: tuple[Transaction, ...]
    next: Position | None
