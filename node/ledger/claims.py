"""Money that came in after the backup a database was put back from, credited to whom it belongs.

The coins of such a payment are found again by ``node.ecash.reconcile`` and kept in CLAIMS, out of
what payouts may take; who paid is not known until somebody says so.

    LOSS ──▶ CLAIMS ──▶ LOSS, IN ──▶ account     credited: received after all, and found no more
                └─────▶ REVENUE                  released: the operator waits for nobody any more

| step                | in one transaction                                                        |
|---------------------|---------------------------------------------------------------------------|
| invoice, in backup  | its mint says that its ecash was taken, by us: IN → account, CLAIMS →     |
|                     | LOSS, invoice paid                                                        |
| credit, by operator | the account (opened, if its key is not known), IN → account, CLAIMS →     |
|                     | LOSS, invoice stored as paid                                              |
| release             | CLAIMS → REVENUE                                                          |

What CLAIMS does not cover of a credit is the node's loss (REVENUE → LOSS): its coins were paid out
since the backup. A claim is credited once: its transfer carries its name.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from dataclasses import dataclass, field

from node.core.accounts import NewAccount, key_hash
from node.core.lightning import invoice_hash
from node.core.money import Msat, to_msat
from node.ledger.books import FIRST_ACCOUNT, Book, transfer
from node.ledger.database import Database
from node.ledger.operations import move, open_account
from node.ledger.reconciling import read_mark, restored_at

_HASH_CHARS = 64


class ClaimRefused(Exception):
    """A claim was not credited. The text says why, for the operator."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a client claims after a restore.

    Args:
        name: tells the claims of one account apart.
        key: hash of the API key that is to be credited (``key_hash``).
        invoice_id: of an invoice it paid; empty: it paid by token, or tells its key.
    """

    key: str
    amount: Msat
    mint: str
    name: str = ""
    invoice_id: str = field(default="", repr=False)

    @property
    def reference(self) -> str:
        """Names the claim in the books."""
        of = invoice_hash(self.invoice_id) if self.invoice_id else self.key
        return "credit:" + hashlib.sha256(f"{of}:{self.name}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Credited:
    """A claim that is credited. ``again``: it was before, and nothing has changed now."""

    account_id: int
    amount: Msat
    again: bool
    opened: bool = False
    """The account was not in the database."""
    uncovered: Msat = Msat(0)
    """What found coins did not cover: the node's loss."""


def credit_invoice(
    conn: sqlite3.Connection, mint: str, quote: str, operation_id: str | None, error: str
) -> bool:
    """Credit an invoice whose ecash we took in a past that the database does not know.

    Only when it is older than the restore and its mint has been checked since. Whether it is paid.

    Args:
        operation_id: the operation that is to take its ecash, and takes none; it fails with
            ``error``.
    """
    row = conn.execute(
        "SELECT * FROM invoices WHERE mint = ? AND quote = ?", (mint, quote)
    ).fetchone()
    if row is None or row["state"] == "paid":
        return row is not None
    at, mark = restored_at(conn), read_mark(conn)
    if at is None or row["created_at"] > at or row["operation_id"] != operation_id:
        return False
    if mark is not None and mint not in mark[1]:
        return False
    if operation_id is not None:
        move(conn, operation_id, "failed")
        conn.execute("UPDATE operations SET error = ? WHERE id = ?", (error, operation_id))
    value = to_msat(row["amount"], row["unit"])
    _credit(conn, row["account_id"], value, f"credit:{row['hash']}")
    conn.execute(
        "UPDATE invoices SET state = 'paid', paid_at = ?, operation_id = NULL, peer = ''"
        " WHERE hash = ?",
        (int(time.time()), row["hash"]),
    )
    return True


class SqliteClaims:
    """Claims that the operator has decided on."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def credit(self, claim: Claim) -> Credited:
        """Credit a claim. Idempotent. Raises ClaimRefused."""
        return await self._db.write(lambda conn: _credit_claim(conn, claim))

    async def release(self, amount: Msat | None) -> Msat:
        """Keep ``amount`` (None: all) no longer for claims; how much that was.

        Raises ClaimRefused when there is less.
        """

        def work(conn: sqlite3.Connection) -> Msat:
            kept = _kept(conn)
            freed = kept if amount is None else amount
            if freed > kept:
                raise ClaimRefused(f"{kept} msat are kept for claims")
            transfer(conn, Book.CLAIMS, Book.REVENUE, freed, "release")
            return Msat(freed)

        return await self._db.write(work)


def _credit_claim(conn: sqlite3.Connection, claim: Claim) -> Credited:
    known = conn.execute(
        "SELECT destination, amount_msat FROM transfers WHERE reference = ? AND source = ?",
        (claim.reference, int(Book.IN)),
    ).fetchone()
    if known is not None:
        if known["amount_msat"] != claim.amount:
            raise ClaimRefused(
                f"this claim was credited before, with {known['amount_msat']} msat; give another"
                " one another name (--claim)"
            )
        return Credited(known["destination"], claim.amount, again=True)
    if restored_at(conn) is None:
        raise ClaimRefused(
            "this database was never restored from a backup: it knows every payment there was"
        )
    if read_mark(conn) is not None:
        raise ClaimRefused("not all mints are checked since the restore: let the node run first")
    hashed = invoice_hash(claim.invoice_id) if claim.invoice_id else None
    invoice = conn.execute("SELECT * FROM invoices WHERE hash = ?", (hashed,)).fetchone()
    if invoice is not None:
        _check_invoice(conn, invoice)
        account_id, opened = int(invoice["account_id"]), False
    else:
        account_id, opened = _account(conn, claim)
    uncovered = _credit(conn, account_id, claim.amount, claim.reference)
    if hashed is not None and invoice is None:
        _store_invoice(conn, hashed, account_id, claim)
    return Credited(account_id, claim.amount, False, opened, uncovered)


def _check_invoice(conn: sqlite3.Connection, invoice: sqlite3.Row) -> None:
    """An invoice that the database knows is the node's own business, unless it was made anew."""
    if invoice["state"] == "paid":
        raise ClaimRefused("this invoice is in the database, and its account was credited")
    if invoice["created_at"] <= (restored_at(conn) or 0):
        raise ClaimRefused(
            "this invoice is in the database: the node credits it by itself once its mint says"
            " that it is paid"
        )


def _account(conn: sqlite3.Connection, claim: Claim) -> tuple[int, bool]:
    """(the account of the claim's key, whether it was opened now)."""
    row = conn.execute(
        "SELECT k.account_id, k.role, a.kind, a.state FROM api_keys k"
        " JOIN accounts a ON a.id = k.account_id WHERE k.hash = ?",
        (claim.key,),
    ).fetchone()
    if row is None:
        new = NewAccount("key", {claim.key: "spend"})
        return open_account(conn, new, claim.mint, "sat"), True
    if row["role"] != "spend" or row["kind"] != "key" or row["account_id"] < FIRST_ACCOUNT:
        raise ClaimRefused("only the account's own key can be credited")
    conn.execute("UPDATE accounts SET state = 'open' WHERE id = ?", (row["account_id"],))
    return int(row["account_id"]), False


def _store_invoice(conn: sqlite3.Connection, hashed: str, account_id: int, claim: Claim) -> None:
    """Let the client find its invoice, paid, under the id it has."""
    now = int(time.time())
    conn.execute(
        "INSERT INTO invoices (hash, account_id, purpose, mint, unit, amount, quote, bolt11, peer,"
        " state, created_at, expires_at, watch_until, paid_at)"
        " VALUES (?, ?, 'create', ?, 'msat', ?, '', '', '', 'paid', ?, ?, ?, ?)",
        (hashed, account_id, claim.mint, claim.amount, now, now, now, now),
    )


def _credit(conn: sqlite3.Connection, account_id: int, amount: Msat, reference: str) -> Msat:
    """Credit an account out of what was found; what that did not cover."""
    covered = min(amount, max(0, _kept(conn)))
    transfer(conn, Book.IN, account_id, amount, reference)
    transfer(conn, Book.CLAIMS, Book.LOSS, covered, reference)
    transfer(conn, Book.REVENUE, Book.LOSS, amount - covered, reference)
    return Msat(amount - covered)


def _kept(conn: sqlite3.Connection) -> int:
    row = conn.execute(
        "SELECT COALESCE((SELECT SUM(amount_msat) FROM transfers WHERE destination = ?1), 0)"
        " - COALESCE((SELECT SUM(amount_msat) FROM transfers WHERE source = ?1), 0)",
        (int(Book.CLAIMS),),
    ).fetchone()
    return int(row[0])


def spend_key_hash(text: str) -> str:
    """The hash of an API key, or the hash itself, as a client may tell it. Raises ClaimRefused."""
    if len(text) == _HASH_CHARS and all(c in "0123456789abcdef" for c in text):
        return text
    if not text.startswith(("sk-", "cashuA", "cashuB")):
        raise ClaimRefused("an API key begins with sk-; its hash has 64 hex digits")
    return key_hash(text)
