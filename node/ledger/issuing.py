"""Giving out tokens: which coins, from which mint, at whose expense; one transaction each."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from node.core.accounts import Closed, IssueRequest, Operation, Source
from node.core.denominations import pick_exact, plan_outputs, plan_refill, split
from node.core.ecash import Proof
from node.core.lightning import OPERATOR
from node.core.money import Msat, to_msat, whole_units
from node.errors import IdempotencyConflict, InsufficientBalance, InvalidValue, MintLiquidity
from node.ledger.accounts import read_balance
from node.ledger.books import OWN, Book, transfer
from node.ledger.coins import Cover, cover, share, spare, stock, swap_fee, take, with_counters
from node.ledger.operations import insert_operation, operation_from
from node.ledger.withdrawals import available, purse_of, sink_of, unowed

Serialize = Callable[[str, str, Sequence[Proof]], str]
"""(mint, unit, proofs) → a token."""

RECOUNT_S = 60.0
"""How often the node's earnings are added up anew when they seem not to cover a fee."""


class Issuer:
    """Issues tokens and closes pay-per-request accounts, inside a transaction of the caller."""

    def __init__(self, serialize: Serialize) -> None:
        self._serialize = serialize
        self._earned_msat = 0  # a lower bound: fees are taken off at once, earnings at a recount
        self._counted_at = -RECOUNT_S

    def issue(
        self,
        conn: sqlite3.Connection,
        request: IssueRequest,
        sources: Sequence[Source],
        *,
        whole: bool = False,
    ) -> Operation:
        """A token from the account: done, or an intent to swap for its coins.

        The account's own mint and unit come first, then the sources in their order, which give
        what is not owed to those who paid with coins of theirs. What was topped up with coins of
        several mints may need a token of each: asked for all, the largest that can be is given.
        Raises InsufficientBalance, InvalidValue, MintLiquidity, and IdempotencyConflict when the
        request key was used for another amount.

        Args:
            whole: the account was opened with one token and never topped up; all or nothing.
        """
        known = _known(conn, request)
        if known is not None:
            return known
        if request.account_id == OPERATOR:
            return self._to_operator(conn, request, sources)
        balance = read_balance(conn, request.account_id)
        wanted = balance.free if request.amount is None else request.amount
        if wanted > balance.free or wanted <= 0:
            raise InsufficientBalance(f"{balance.free} msat are available")
        own = (balance.mint, balance.unit)
        ordered = sorted(sources, key=lambda s: ((s.mint, s.unit) != own, s.mint != balance.mint))
        too_small = bool(ordered)
        rooms: list[tuple[Msat, Source]] = []
        for source in ordered:
            amount = whole_units(wanted, source.unit)
            if amount == 0:
                continue
            too_small = False
            room: Msat | None = None
            if (source.mint, source.unit) != own:
                room = spare(conn, source.mint, source.unit)
            elif not whole:
                room = share(conn, request.account_id, source.mint, source.unit)
            if room is not None and to_msat(amount, source.unit) > room:
                rooms.append((room, source))
                continue
            if request.amount is not None and to_msat(amount, source.unit) != wanted:
                raise InvalidValue(f"a token of this mint carries whole {source.unit}s only")
            operation = self._from(conn, request, source, amount, balance.free)
            if operation is not None:
                return operation
        if too_small:
            raise InsufficientBalance(
                f"{balance.free} msat are available, less than the least coin"
            )
        if request.amount is None and not whole:
            for room, source in sorted(rooms, key=lambda item: -item[0]):
                amount = whole_units(room, source.unit)
                if amount > 0 and (found := self._from(conn, request, source, amount, room)):
                    return found
        raise MintLiquidity

    def _to_operator(
        self, conn: sqlite3.Connection, request: IssueRequest, sources: Sequence[Source]
    ) -> Operation:
        """A token out of what is earned, of the first source that has it to spare."""
        if request.request_key is None:
            raise InvalidValue("a token for the operator needs an idempotency key")
        free = Msat(max(0, available(conn) - request.reserve))
        wanted = free if request.amount is None else request.amount
        if not 0 < wanted <= free:
            raise InsufficientBalance(f"{free} msat have been earned beyond the reserve")
        for source in sources:
            room = unowed(conn, source)
            most = min(wanted, room) if request.amount is None else wanted
            amount = whole_units(Msat(most), source.unit)
            whole = request.amount is None or to_msat(amount, source.unit) == wanted
            if amount <= 0 or most > room or not whole:
                continue
            operation = self._from(conn, request, source, amount, Msat(min(free, room)))
            if operation is not None:
                self.recount()
                return operation
        raise MintLiquidity

    def close(
        self,
        conn: sqlite3.Connection,
        operation_id: str,
        account_id: int,
        cost: Msat,
        sources: Sequence[Source],
    ) -> Closed:
        """Issue what a pay-per-request account still has, and close it.

        Nothing that stands in the way of the change may undo the charge: then the account stays
        open with its money.
        """
        balance = read_balance(conn, account_id)
        change = None
        if whole_units(balance.balance, balance.unit):
            try:
                request = IssueRequest(operation_id, account_id, None, "change")
                change = self.issue(conn, request, sources, whole=True)
            except (MintLiquidity, InsufficientBalance):
                return Closed(cost, Msat(0), None, open=True)
        dust = read_balance(conn, account_id).balance
        transfer(conn, account_id, Book.DUST, dust, f"close:{account_id}")
        conn.execute("UPDATE accounts SET state = 'closed' WHERE id = ?", (account_id,))
        return Closed(cost, dust, change)

    def _from(
        self,
        conn: sqlite3.Connection,
        request: IssueRequest,
        source: Source,
        amount: int,
        free: Msat,
    ) -> Operation | None:
        """A token of ``amount`` units from one mint; None when it cannot give that."""
        purse = purse_of(request.account_id)
        base = Operation(
            id=request.operation_id,
            kind="send",
            state="done",
            account_id=request.account_id,
            mint=source.mint,
            unit=source.unit,
            amount=amount,
            fee=0,
            inputs=(),
            outputs=(),
        )
        exact = pick_exact(amount, stock(conn, source.mint, source.unit, suspect=False))
        if exact is not None:
            ys, proofs = take(conn, source, exact, base.id, "issued")
            token = self._serialize(source.mint, source.unit, proofs)
            operation = replace(base, token=token)
            insert_operation(conn, operation, ys, request.request_key)
            transfer(conn, purse, sink_of(request.account_id), operation.value, f"op:{base.id}")
            return operation
        if source.keyset is None:
            return None
        held = stock(conn, source.mint, source.unit)
        found = cover(conn, source, amount, held)
        if found is None:
            return None
        if request.account_id == OPERATOR or not self._affords(
            conn, to_msat(found.fee, source.unit)
        ):
            if request.amount is None:  # all that is free has to pay for its own fee
                amount, found = _less_fee(conn, source, amount, found, held)
                base = replace(base, amount=amount)
            if amount <= 0 or found is None:
                return None
            base = replace(base, surcharge=found.fee)
            if base.value + to_msat(found.fee, source.unit) > free:
                raise InsufficientBalance(
                    f"the mint takes a fee of {found.fee} {source.unit} for making this token"
                )
        ys, inputs = take(conn, source, found.picked, base.id, "reserved")
        kept = sum(proof.amount for proof in inputs) - amount - found.fee
        rest = {d: count - found.picked.get(d, 0) for d, count in held.items()}
        amounts = [(a, False) for a in split(amount)]
        amounts += [(a, True) for a in plan_outputs(kept, rest)]
        amounts.sort()  # NUT-03: the order says nothing about which are ours
        operation = replace(
            base,
            state="intent",
            fee=found.fee,
            inputs=tuple(inputs),
            outputs=with_counters(conn, source.keyset.id, amounts),
        )
        insert_operation(conn, operation, ys, request.request_key)
        transfer(conn, purse, Book.TRANSIT, in_transit(operation), f"op:{base.id}")
        return operation

    def refill(
        self, conn: sqlite3.Connection, operation_id: str, source: Source
    ) -> Operation | None:
        """An intent to swap coins of ours for the small ones that change will need.

        None while there are enough, when one is under way, and when the coins, the keyset or
        the earnings for the mint's fee are missing.
        """
        if source.keyset is None or _refilling(conn, source):
            return None
        ready = stock(conn, source.mint, source.unit, suspect=False)
        held = stock(conn, source.mint, source.unit)
        reserve = 0
        while True:
            plan = plan_refill(ready, held, reserve)
            if plan is None:
                return None
            fee = swap_fee(conn, source, plan.inputs)
            if fee <= reserve:
                break
            reserve = fee  # it only grows, until it is covered or nothing covers it
        if not self._affords(conn, to_msat(fee, source.unit)):
            return None
        ys, inputs = take(conn, source, plan.inputs, operation_id, "reserved")
        got = sum(proof.amount for proof in inputs) - fee
        amounts = sorted([*plan.wanted, *split(got - sum(plan.wanted))])
        operation = Operation(
            id=operation_id,
            kind="send",
            state="intent",
            account_id=OPERATOR,
            mint=source.mint,
            unit=source.unit,
            amount=got,
            fee=fee,
            inputs=tuple(inputs),
            outputs=with_counters(conn, source.keyset.id, [(amount, True) for amount in amounts]),
        )
        insert_operation(conn, operation, ys, None)
        return operation

    def recount(self) -> None:
        """The node's earnings were spent elsewhere: count them before the next fee."""
        self._earned_msat, self._counted_at = 0, -RECOUNT_S

    def _affords(self, conn: sqlite3.Connection, fee: Msat) -> bool:
        """Whether the node has earned the fee of its own swap; then it is spent."""
        if self._earned_msat < fee and time.monotonic() - self._counted_at >= RECOUNT_S:
            self._counted_at = time.monotonic()
            self._earned_msat = _earned(conn)
        if self._earned_msat < fee:
            return False
        self._earned_msat -= fee
        return True


def is_refill(operation: Operation) -> bool:
    """Whether it swaps coins of ours for others of ours, and gives nothing out."""
    return (
        operation.kind == "send"
        and operation.account_id == OPERATOR
        and bool(operation.outputs)
        and all(output.keep for output in operation.outputs)
    )


def in_transit(operation: Operation) -> Msat:
    """What a send under way has taken off its account: its value and what it pays of the fee."""
    if is_refill(operation):
        return Msat(0)
    return Msat(operation.value + to_msat(operation.surcharge, operation.unit))


def _refilling(conn: sqlite3.Connection, source: Source) -> bool:
    """Whether a refill is under way there."""
    row = conn.execute(
        "SELECT 1 FROM operations WHERE state = 'intent' AND kind = 'send' AND account_id = ?"
        " AND request_key IS NULL AND mint = ? AND unit = ?",
        (OPERATOR, source.mint, source.unit),
    ).fetchone()
    return row is not None


def _known(conn: sqlite3.Connection, request: IssueRequest) -> Operation | None:
    if request.request_key is None:
        return None
    row = conn.execute(
        "SELECT * FROM operations WHERE account_id = ? AND kind = 'send' AND request_key = ?",
        (request.account_id, request.request_key),
    ).fetchone()
    if row is None:
        return None
    known = operation_from(row)
    if request.amount not in (None, known.value):
        raise IdempotencyConflict
    return known


def _less_fee(
    conn: sqlite3.Connection, source: Source, amount: int, found: Cover, held: dict[int, int]
) -> tuple[int, Cover | None]:
    """The most that ``amount`` can give and pay the fee of, and the coins for it."""
    given: Cover | None = found
    less = amount
    while given is not None and less + given.fee > amount:
        less = amount - given.fee
        if less <= 0:
            return 0, None
        given = cover(conn, source, less, held)
    return less, given


def _earned(conn: sqlite3.Connection) -> int:
    own = ", ".join(str(int(book)) for book in OWN)
    row = conn.execute(
        "SELECT"  # noqa: S608
        f" COALESCE((SELECT SUM(amount_msat) FROM transfers WHERE destination IN ({own})), 0)"
        f" - COALESCE((SELECT SUM(amount_msat) FROM transfers WHERE source IN ({own})), 0)"
    ).fetchone()
    return int(row[0])
