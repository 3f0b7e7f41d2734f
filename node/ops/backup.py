"""Copies of the database: taken while the node runs, put back while it does not.

A backup is the whole wallet: whoever has the file has the money in it. It is written for the
owner only (0600), in one piece, and never over another file.

    backup   database ─▶ PATH.partial ─▶ verified ─▶ PATH
    restore  PATH ─▶ node.db.restoring ─▶ verified, marked restored ─▶ node.db
             what was there stays as node.db.replaced-<time>
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from node.ledger.books import Books, account_discrepancies, open_read_only, sum_books
from node.ledger.migrating import StorageError, migrate
from node.ledger.reconciling import mark_restored

_PAGES = 4096
"""Pages copied at a time."""


class BackupError(Exception):
    """It was not done. The text says what is wrong, what that means and what to do."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database holds."""

    books: Books
    problems: tuple[str, ...]
    """Where its books do not add up."""
    accounts: int
    """Open accounts that own something."""
    coins: int
    """Our unspent coins."""
    counters: int
    """Keysets with a NUT-13 counter."""
    taken_at: int
    """Unix seconds of its last transfer; 0: none."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A restore that is done."""

    contents: Contents
    kept: Path | None
    """Where the database that was there is now."""
    same_wallet: bool
    """False: the replaced database was of another wallet seed."""


def back_up(database: Path, out: Path) -> Contents:
    """Copy ``database``, which may be in use, to ``out``, and verify the copy.

    Raises BackupError; then there is no ``out``.
    """
    if out.exists():
        raise BackupError(f"{out} exists and is not overwritten: name another file")
    if not database.is_file():
        raise BackupError(f"{database} does not exist: check node.data_dir in the configuration")
    partial = out.with_name(out.name + ".partial")
    try:
        _remove(partial)  # of a backup that was killed
        _copy(database, partial)
        with closing(_open(partial)) as connection:
            contents = _verify(connection, partial)
        _sync(partial)
        os.link(partial, out)
        _sync(out.parent)
    except FileExistsError:
        raise BackupError(f"{out} exists and is not overwritten: name another file") from None
    except sqlite3.Error as error:
        raise BackupError(
            f"{database} could not be copied ({error}): there is no backup; check the disk, then"
            " try again"
        ) from None
    finally:
        _remove(partial)
    return contents


def restore(database: Path, source: Path, *, force: bool) -> Restored:
    """Put the backup ``source`` in the place of ``database``, marked as restored.

    Args:
        force: replace a database that is there; it is kept beside, under another name.

    Raises BackupError; then nothing has changed.
    """
    if not source.is_file():
        raise BackupError(f"{source} does not exist: nothing was changed; name a backup file")
    if database.exists() and source.samefile(database):
        raise BackupError(f"{source} is the node's database itself: name a backup file")
    database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(database):
        if database.exists() and not force:
            raise BackupError(
                f"{database} exists: putting an older state in its place forgets every payment"
                " since; nothing was changed. If that is what you want, repeat with --force; the"
                " file is kept beside"
            )
        fresh = database.with_name(database.name + ".restoring")
        try:
            _remove(fresh)
            _copy(source, fresh)
            with closing(_open(fresh)) as connection:
                _verify(connection, source)
                migrate(connection)
                connection.execute("BEGIN IMMEDIATE")
                mark_restored(connection)
                connection.execute("COMMIT")
                contents = _verify(connection, source)
                seed = _seed(connection)
            _give_to_owner(fresh, database.parent)
            _give_to_owner(Path(f"{database}.lock"), database.parent)
            _sync(fresh)
            same_wallet = not database.exists() or _seed_of(database) in (None, seed)
            kept = _put_aside(database)
            fresh.replace(database)
            _sync(database.parent)
        except (sqlite3.Error, StorageError) as error:
            raise BackupError(
                f"{source} cannot be used ({error}): nothing was changed; try another backup"
            ) from None
        finally:
            _remove(fresh)
    return Restored(contents, kept, same_wallet)


def in_use(database: Path) -> bool:
    """Whether a node has the database open."""
    lock = Path(f"{database}.lock")
    if not lock.exists():
        return False
    descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


# -- parts ---------------------------------------------------------------------------------


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Keep the node from starting, as another node would. Raises BackupError when one runs."""
    descriptor = os.open(f"{database}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise BackupError(
            f"a node is using {database}: nothing was changed; stop the node, then restore"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def _copy(source: Path, target: Path) -> None:
    """A copy of one moment of ``source``, as one file."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    with closing(open_read_only(source)) as origin, closing(_open(target)) as copy:
        origin.execute("BEGIN")  # all pages of the same moment, however long it takes
        origin.execute("SELECT 1 FROM sqlite_master").fetchone()
        origin.backup(copy, pages=_PAGES, sleep=0)
        copy.execute("PRAGMA journal_mode = DELETE")


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _verify(connection: sqlite3.Connection, path: Path) -> Contents:
    """What a copy holds. Raises BackupError when it is damaged or no wallet."""
    damage = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    if damage != ["ok"]:
        raise BackupError(
            f"{path} is damaged ({damage[0]}): it must not be relied on; use another one"
        )
    known = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    if not {"meta", "proofs", "transfers", "operations"} <= known or _seed(connection) is None:
        raise BackupError(f"{path} is not the database of a nodestr node: name another file")
    strays = connection.execute("PRAGMA foreign_key_check").fetchall()
    if strays:
        raise BackupError(f"{path} has rows that refer to nothing: use another one")
    return contents_of(connection)


def contents_of(connection: sqlite3.Connection) -> Contents:
    """What an open database holds. Reads whole tables."""

    def one(query: str) -> int:
        return int(connection.execute(query).fetchone()[0] or 0)

    books = sum_books(connection)
    return Contents(
        books=books,
        problems=(*books.problems(), *account_discrepancies(connection)),
        accounts=one("SELECT COUNT(*) FROM accounts WHERE balance_msat > 0"),
        coins=one("SELECT COUNT(*) FROM proofs WHERE state IN ('unspent', 'reserved')"),
        counters=one("SELECT COUNT(*) FROM counters"),
        taken_at=one("SELECT MAX(created_at) FROM transfers"),
    )


def _seed(connection: sqlite3.Connection) -> str | None:
    row = connection.execute("SELECT value FROM meta WHERE key = 'mnemonic'").fetchone()
    return None if row is None else str(row[0])


def _seed_of(path: Path) -> str | None:
    """The seed of a database that may be damaged, which is why it is being replaced."""
    with suppress(sqlite3.Error), closing(open_read_only(path)) as connection:
        return _seed(connection)
    return None


def _put_aside(database: Path) -> Path | None:
    """Give the database that is there a second name; its own is free to be taken over."""
    if not database.exists():
        return None
    kept = database.with_name(f"{database.name}.replaced-{time.strftime('%Y%m%d-%H%M%S')}")
    number = 1
    while kept.exists():
        number += 1
        kept = kept.with_name(f"{kept.name.split('~')[0]}~{number}")
    os.link(database, kept)
    for suffix in ("-wal", "-shm"):  # they belong to the old file, whatever it is called
        beside = Path(f"{database}{suffix}")
        if beside.exists():
            beside.rename(f"{kept}{suffix}")
    _sync(database.parent)
    return kept


def _give_to_owner(path: Path, like: Path) -> None:
    """What root restores must belong to the node, which does not run as root."""
    if os.geteuid() == 0:
        owner = like.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
