"""What the operator does to the books by hand: capital put in, claims credited and released."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from node.commands.common import Failure
from node.commands.stopped import NodeRuns, NotReady, stopped_database, stopped_node
from node.core.accounts import key_hash
from node.core.lightning import OPERATOR
from node.core.money import MSAT_PER_SAT, Msat
from node.errors import MintUnreachable, NodeError, Pending
from node.ledger.books import Books, sum_books
from node.ledger.claims import Claim, ClaimRefused, Credited, SqliteClaims, spend_key_hash
from node.ledger.database import StorageError
from node.service.invoices import invoice_key
from node.settings import Settings

_RUNS = "the node is running and has its database open: nothing was changed; stop it first"


@dataclass(frozen=True, slots=True)
class Funded:
    """Capital that was put in, and the books after it."""

    credit: Msat
    fee: Msat
    books: Books


async def fund(settings: Settings, token: str) -> Funded:
    """Redeem a token for the node itself. The same token again gives the same. Raises Failure."""
    _require_database(settings)
    try:
        async with stopped_node(settings) as node:
            operation = await node.wallet.receive(node.wallet.accept(token), OPERATOR)
            books = await node.database.read(sum_books)
    except NodeRuns:
        raise Failure(_RUNS) from None
    except Pending:
        raise Failure(
            "the token is journalled and its mint has not answered yet: start the node, which"
            " finishes it, or repeat the command"
        ) from None
    except MintUnreachable as error:
        raise Failure(f"nothing was taken: {error.private or error.message}") from None
    except (NotReady, StorageError) as error:
        raise Failure(str(error)) from None
    except NodeError as error:
        raise Failure(f"the token was not taken: {error.message}") from None
    return Funded(operation.credit, Msat(operation.value - operation.credit), books)


async def credit(settings: Settings, text: str, amount_sat: int, name: str) -> Credited:
    """Credit a client's claim after a restore.

    Args:
        text: the id of an invoice, an API key, or the hash of one.
        name: tells several claims of one key apart.

    Raises Failure.
    """
    _require_database(settings)
    text, amount = text.strip(), Msat(amount_sat * MSAT_PER_SAT)
    if not text:
        raise Failure("nothing was given: name a file with the invoice's id or the key")
    try:
        async with stopped_database(settings) as database:
            mint = settings.mints[0].url if settings.mints else ""
            try:
                claim = Claim(spend_key_hash(text), amount, mint, name)
            except ClaimRefused:
                secret = await database.read(_key_secret)
                key = key_hash(invoice_key(secret, text))
                claim = Claim(key, amount, mint, name, invoice_id=text)
            return await SqliteClaims(database).credit(claim)
    except NodeRuns:
        raise Failure(_RUNS) from None
    except (ClaimRefused, StorageError) as error:
        raise Failure(str(error)) from None
    except NodeError as error:
        raise Failure(error.message) from None


async def release(settings: Settings, amount_sat: int | None) -> Msat:
    """Keep coins that were found after a restore no longer for claims. Raises Failure."""
    _require_database(settings)
    amount = None if amount_sat is None else Msat(amount_sat * MSAT_PER_SAT)
    try:
        async with stopped_database(settings) as database:
            return await SqliteClaims(database).release(amount)
    except NodeRuns:
        raise Failure(_RUNS) from None
    except (ClaimRefused, StorageError) as error:
        raise Failure(str(error)) from None


def _key_secret(conn: sqlite3.Connection) -> bytes:
    row = conn.execute("SELECT value FROM meta WHERE key = 'key_secret'").fetchone()
    if row is None:
        raise ClaimRefused("no node has run with this database")
    return bytes.fromhex(row["value"])


def _require_database(settings: Settings) -> None:
    if not settings.node.database.is_file():
        raise Failure(
            f"{settings.node.database} does not exist: no node has run with this configuration;"
            " check node.data_dir"
        )
