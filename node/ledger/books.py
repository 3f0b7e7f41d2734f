"""The books: double entry, and the equation that says nothing was lost or made.

Every transfer moves msat from one book to another, so all books together are always zero:

    IN (outside world) ──▶ INPUT_FEES   what a mint kept of a client's token (NUT-02)
                       └─▶ account      the client's money
    account ──▶ REVENUE                 charged
            ──▶ DUST                    too small for the mint's unit, kept
            ──▶ OUT                     issued as a token (change, withdrawal, refund)
            ──▶ TRANSIT ──▶ OUT         the same while a swap is under way (──▶ account if refused),
                                        and what is refunded over Lightning
            ──▶ TRANSIT ──▶ REVENUE     what a swap or a refund cost
    REVENUE ──▶ PAYOUT                  a token for the operator, whose coins were there; else
            ──▶ TRANSIT ──▶ PAYOUT      ... while a swap is under way (──▶ REVENUE if refused)
            ──▶ OWN_FEES                what a mint kept of our own swap
            ──▶ LOSS                    coins of ours that somebody else has spent
            ──▶ TRANSIT ──▶ PAYOUT      set aside while a payout is under way, fees included
                        ──▶ REVENUE     (what is left of it; all, if it was not made)
    OWN_FEES ─▶ REVENUE ──▶ account     change of a Lightning payment that came late; the second
                                        step only for a refund
    LOSS    ──▶ CLAIMS                  coins of ours found at a mint that no row told of: what they
                                        were paid for was forgotten with a restore
    CLAIMS  ──▶ LOSS                    ... a client came with its claim, and is credited from IN
            ──▶ REVENUE                 ... the operator waits for nobody any more
    IN      ──▶ CAPITAL                 put in by the operator

    received - input fees = charged + dust + issued + in transit + open balances + capital
    our unspent proofs    = open balances + in transit + earned + claims

    earned                = charged + dust + capital - own fees - loss - paid out - claims
    liabilities           = open balances + in transit
    equity                = our unspent proofs - liabilities; below zero: insolvent
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from node.core.money import UNIT_MSAT, Msat


class Book(IntEnum):
    """The node's own books; accounts have ids from FIRST_ACCOUNT up."""

    IN = 1
    INPUT_FEES = 2
    REVENUE = 3
    OUT = 4
    DUST = 5
    OWN_FEES = 6
    TRANSIT = 7
    PAYOUT = 8
    LOSS = 9
    CLAIMS = 10
    CAPITAL = 11


OWN = (Book.REVENUE, Book.DUST, Book.CLAIMS, Book.CAPITAL)
"""What of our coins is owed to no account. CLAIMS: as long as nobody comes."""


FIRST_ACCOUNT = 100


def transfer(
    connection: sqlite3.Connection, source: int, destination: int, amount: int, reference: str
) -> None:
    """Move ``amount`` msat between books and keep the accounts' balances in step.

    A zero amount does nothing. Raises sqlite3.IntegrityError when an account would go below
    what is held of it.
    """
    if amount == 0:
        return
    enter(connection, source, destination, amount, reference)
    for book, delta in ((source, -amount), (destination, amount)):
        if book >= FIRST_ACCOUNT:
            connection.execute(
                "UPDATE accounts SET balance_msat = balance_msat + ? WHERE id = ?", (delta, book)
            )


def enter(
    connection: sqlite3.Connection, source: int, destination: int, amount: int, reference: str
) -> None:
    """The row of a transfer alone, for whoever changes the accounts' balances himself."""
    connection.execute(
        "INSERT INTO transfers (source, destination, amount_msat, reference, created_at)"
        " VALUES (?, ?, ?, ?, ?)",
        (int(source), int(destination), amount, reference, int(time.time())),
    )


@dataclass(frozen=True, slots=True)
class Books:
    """A balance sheet; all in msat."""

    received_msat: Msat
    """Face value of every token and invoice taken in."""
    input_fees_msat: Msat
    revenue_msat: Msat
    """Charged so far (before the node's own fees and payouts)."""
    dust_msat: Msat
    issued_msat: Msat
    """Change, withdrawals and refunds."""
    transit_msat: Msat
    own_fees_msat: Msat
    open_msat: Msat
    """Balances of all accounts."""
    held_msat: Msat
    proofs_msat: Msat
    """Our unspent coins, those reserved for a swap included."""
    operations_open: int
    holds_open: int
    loss_msat: Msat = Msat(0)
    """Coins others spent, less coins found: after a restore, or a stolen seed."""
    payouts_msat: Msat = Msat(0)
    """What reached the operator, over Lightning or as tokens, without what that cost."""
    claims_msat: Msat = Msat(0)
    """Coins found after a restore, kept for clients who come with a claim."""
    capital_msat: Msat = Msat(0)
    """Put in by the operator."""

    @property
    def earned_msat(self) -> Msat:
        """What is the node's own by the books: charges, dust and capital, less what was spent of
        them and what is kept for claims."""
        spent = self.own_fees_msat + self.loss_msat + self.payouts_msat
        own = self.revenue_msat + self.dust_msat + self.capital_msat
        return Msat(own - spent - self.claims_msat)

    @property
    def liabilities_msat(self) -> Msat:
        """What clients are owed: open balances, and tokens on their way out."""
        return Msat(self.open_msat + self.transit_msat)

    @property
    def equity_msat(self) -> Msat:
        """What would be left once every client was paid; below zero: insolvent."""
        return Msat(self.proofs_msat - self.liabilities_msat)

    @property
    def solvent(self) -> bool:
        """Whether the coins cover what clients are owed."""
        return self.equity_msat >= 0

    def problems(self) -> list[str]:
        """What does not add up; empty when the books are right."""
        found = []
        left = self.received_msat - self.input_fees_msat
        right = (
            self.revenue_msat
            + self.dust_msat
            + self.issued_msat
            + self.transit_msat
            + self.open_msat
            + self.capital_msat
        )
        if left != right:
            found.append(f"received - input fees = {left} msat, but uses add up to {right} msat")
        owned = self.open_msat + self.transit_msat + self.earned_msat + self.claims_msat
        if self.proofs_msat != owned:
            found.append(f"proofs are worth {self.proofs_msat} msat, the books say {owned} msat")
        return found


def sum_books(connection: sqlite3.Connection, *, checkpointed: bool = False) -> Books:
    """Add up everything from the transfers and the proofs.

    Args:
        checkpointed: begin with the sums that ``checkpoint`` stored, and read what came after;
            otherwise every transfer is read.

    Open balances are summed from the transfers; ``account_discrepancies`` compares them with
    what the accounts say.
    """
    sums = dict.fromkeys(Book, 0)
    up_to, stored = _checkpoint(connection) if checkpointed else (0, {})
    accounts = 0
    for found in (stored, _sums(connection, up_to, None)):
        for book, amount in found.items():
            if book == FIRST_ACCOUNT:
                accounts += amount
            else:
                sums[Book(book)] += amount
    proofs = sum(
        amount * UNIT_MSAT[unit]
        for unit, amount in connection.execute(  # two queries, for an index each
            "SELECT unit, SUM(amount) FROM proofs WHERE state = 'unspent' GROUP BY unit"
            " UNION ALL"
            " SELECT unit, SUM(amount) FROM proofs WHERE state = 'reserved' GROUP BY unit"
        )
    )

    def one(query: str) -> int:
        return int(connection.execute(query).fetchone()[0] or 0)

    return Books(
        received_msat=Msat(-sums[Book.IN]),
        input_fees_msat=Msat(sums[Book.INPUT_FEES]),
        revenue_msat=Msat(
            sums[Book.REVENUE]
            + sums[Book.OWN_FEES]
            + sums[Book.LOSS]
            + sums[Book.PAYOUT]
            + sums[Book.CLAIMS]
        ),
        dust_msat=Msat(sums[Book.DUST]),
        issued_msat=Msat(sums[Book.OUT]),
        transit_msat=Msat(sums[Book.TRANSIT]),
        own_fees_msat=Msat(sums[Book.OWN_FEES]),
        open_msat=Msat(accounts),
        held_msat=Msat(one("SELECT SUM(max_cost_msat) FROM holds WHERE state = 'held'")),
        proofs_msat=Msat(proofs),
        operations_open=one("SELECT COUNT(*) FROM operations WHERE state = 'intent'"),
        holds_open=one("SELECT COUNT(*) FROM holds WHERE state = 'held'"),
        loss_msat=Msat(sums[Book.LOSS]),
        payouts_msat=Msat(sums[Book.PAYOUT]),
        claims_msat=Msat(sums[Book.CLAIMS]),
        capital_msat=Msat(sums[Book.CAPITAL]),
    )


def checkpoint(connection: sqlite3.Connection, limit: int) -> bool:
    """Store the sums of up to ``limit`` more transfers; whether there are still more.

    Transfers are never changed and get their ids in the order of commits, so sums up to an id
    stay true.
    """
    up_to, _ = _checkpoint(connection)
    row = connection.execute("SELECT COALESCE(MAX(id), 0) FROM transfers").fetchone()
    end = min(int(row[0]), up_to + limit)
    if end <= up_to:
        return False
    connection.executemany(
        "INSERT INTO book_sums VALUES (?1, ?2)"
        " ON CONFLICT (book) DO UPDATE SET amount_msat = amount_msat + ?2",
        list(_sums(connection, up_to, end).items()),
    )
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_CHECKPOINT, str(end)))
    return end < int(row[0])


def checkpoint_problems(connection: sqlite3.Connection) -> list[str]:
    """Where the stored sums differ from the transfers they were made of."""
    up_to, stored = _checkpoint(connection)
    counted = _sums(connection, 0, up_to)
    return [
        f"stored sum of book {book}: {stored.get(book, 0)} msat,"
        f" its transfers add up to {counted.get(book, 0)} msat"
        for book in sorted(stored.keys() | counted.keys())
        if stored.get(book, 0) != counted.get(book, 0)
    ]


_CHECKPOINT = "book_sums_up_to"
"""Key in ``meta`` of the last transfer in ``book_sums``."""


def _checkpoint(connection: sqlite3.Connection) -> tuple[int, dict[int, int]]:
    """(id of the last transfer in the stored sums, the sums by book)."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_CHECKPOINT,)).fetchone()
    sums = connection.execute("SELECT book, amount_msat FROM book_sums")
    return (0 if row is None else int(row[0])), dict(sums)


def _sums(connection: sqlite3.Connection, after: int, up_to: int | None) -> dict[int, int]:
    """What each book gained by the transfers in (after, up_to]; all accounts as one book."""
    rows = connection.execute(
        "SELECT MIN(book, ?3) AS book, SUM(amount) FROM ("
        " SELECT destination AS book, amount_msat AS amount FROM transfers"
        "  WHERE id > ?1 AND (?2 IS NULL OR id <= ?2)"
        " UNION ALL SELECT source, -amount_msat FROM transfers"
        "  WHERE id > ?1 AND (?2 IS NULL OR id <= ?2)) GROUP BY 1",
        (after, up_to, FIRST_ACCOUNT),
    )
    return dict(rows)


def account_discrepancies(connection: sqlite3.Connection) -> list[str]:
    """Accounts whose stored balance or held sum differs from their transfers and holds."""
    rows = connection.execute(
        "SELECT a.id, a.balance_msat, a.held_msat,"
        " (SELECT COALESCE(SUM(amount_msat), 0) FROM transfers WHERE destination = a.id)"
        " - (SELECT COALESCE(SUM(amount_msat), 0) FROM transfers WHERE source = a.id),"
        " (SELECT COALESCE(SUM(max_cost_msat), 0) FROM holds"
        "  WHERE account_id = a.id AND state = 'held')"
        " FROM accounts a"
    )
    return [
        f"account {id_}: balance {balance} msat, transfers say {moved}; "
        f"held {held} msat, holds say {holding}"
        for id_, balance, held, moved, holding in rows
        if balance != moved or held != holding
    ]


def stranded_in_transit(connection: sqlite3.Connection) -> list[str]:
    """Money that left for a mint with an operation that is no longer under way."""
    rows = connection.execute(
        "SELECT t.reference, SUM(t.amount) AS amount, o.state FROM ("
        " SELECT reference, amount_msat AS amount FROM transfers WHERE destination = ?1"
        " UNION ALL SELECT reference, -amount_msat FROM transfers WHERE source = ?1) t"
        " LEFT JOIN operations o ON 'op:' || o.id = t.reference"
        " GROUP BY t.reference HAVING SUM(t.amount) <> 0 AND o.state IS NOT 'intent'",
        (int(Book.TRANSIT),),
    )
    return [
        f"{amount} msat are in transit with {reference}, which is {state or 'unknown'}"
        for reference, amount, state in rows
    ]


def read_books(path: Path, *, checkpointed: bool = False) -> Books:
    """The balance sheet of a database file, from outside the node, while it may be running.

    ``checkpointed`` as for ``sum_books``.
    """
    connection = open_read_only(path)
    try:
        connection.execute("BEGIN")
        return sum_books(connection, checkpointed=checkpointed)
    finally:
        connection.close()


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection that can change nothing, beside a node that may be running.

    Raises sqlite3.OperationalError when there is no such file.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0, isolation_level=None
    )
    connection.row_factory = sqlite3.Row
    return connection
