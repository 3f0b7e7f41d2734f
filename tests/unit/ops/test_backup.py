"""Promise: a backup is complete, private, verified and never over another file; a restore never
destroys what is there, never runs beside a node, and leaves a database that is checked first."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from node.ledger.books import Book, open_read_only, read_books, transfer
from node.ledger.database import Database
from node.ledger.reconciling import read_mark
from node.ops.backup import BackupError, back_up, in_use, restore
from tests.unit.ops.money import change, make_ledger


@pytest.fixture
async def ledger(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return await make_ledger(tmp_path / "data" / "node.db")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_a_backup_of_a_running_node_holds_all_that_was_committed(
    ledger: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy.db"
    database = await Database.open(ledger)
    await database.write(lambda conn: transfer(conn, 100, Book.REVENUE, 5_000, "hold:9"))
    contents = back_up(ledger, out)
    await database.close()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert files(tmp_path) == {"data", "copy.db"}  # in one piece
    assert read_books(out) == contents.books
    assert contents.books.revenue_msat == 19_000
    assert (contents.accounts, contents.coins, contents.problems) == (1, 1, ())


def test_an_existing_file_is_never_overwritten(ledger: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    out.write_text("precious")
    with pytest.raises(BackupError, match="is not overwritten"):
        back_up(ledger, out)
    assert out.read_text() == "precious"
    assert files(tmp_path) == {"data", "copy.db"}


def test_no_database_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"does not exist: check node\.data_dir"):
        back_up(tmp_path / "node.db", tmp_path / "copy.db")
    assert files(tmp_path) == set()


def test_wrong_books_are_copied_and_told(ledger: Path, tmp_path: Path) -> None:
    change(ledger, "UPDATE proofs SET amount = 1")
    contents = back_up(ledger, tmp_path / "copy.db")
    assert "proofs are worth 1000 msat" in contents.problems[0]


def test_a_damaged_database_gives_no_backup(ledger: Path, tmp_path: Path) -> None:
    change(ledger, "PRAGMA journal_mode = DELETE")
    raw = bytearray(ledger.read_bytes())
    for page in range(2, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    ledger.write_bytes(raw)
    with pytest.raises(BackupError):
        back_up(ledger, tmp_path / "copy.db")
    assert files(tmp_path) == {"data"}


def test_a_restore_in_place_of_nothing(ledger: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    back_up(ledger, out)
    target = tmp_path / "new" / "node.db"
    done = restore(target, out, force=False)
    assert (done.kept, done.same_wallet) == (None, True)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert read_books(target) == read_books(out)
    assert files(target.parent) == {"node.db", "node.db.lock"}
    with closing(open_read_only(target)) as connection:
        assert read_mark(connection) is not None
        assert connection.execute("SELECT DISTINCT suspect FROM proofs").fetchone()[0] == 1
    with closing(open_read_only(out)) as connection:
        assert read_mark(connection) is None  # the backup stays as it is


async def test_a_running_node_is_never_restored_over(ledger: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    back_up(ledger, out)
    assert not in_use(ledger)
    database = await Database.open(ledger)
    assert in_use(ledger)
    with pytest.raises(BackupError, match="stop the node"):
        restore(ledger, out, force=True)
    await database.close()
    with closing(open_read_only(ledger)) as connection:
        assert read_mark(connection) is None


async def test_what_is_there_is_kept_with_its_last_transactions(
    ledger: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy.db"
    back_up(ledger, out)
    before = read_books(ledger)
    writer = sqlite3.connect(ledger, isolation_level=None)  # leaves a WAL, as a killed node does
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    transfer(writer, 100, Book.REVENUE, 7_000, "hold:9")
    newest = read_books(ledger)
    with pytest.raises(BackupError, match="--force"):
        restore(ledger, out, force=False)
    assert read_books(ledger) == newest
    done = restore(ledger, out, force=True)
    writer.close()
    assert done.kept is not None
    assert read_books(ledger) == before
    assert read_books(done.kept) == newest != before
    again = restore(ledger, out, force=True)
    assert again.kept not in (None, done.kept)
    assert read_books(done.kept) == newest


async def test_another_wallets_database_is_pointed_out(ledger: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    back_up(ledger, out)
    change(ledger, "UPDATE meta SET value = 'zoo zoo wrong' WHERE key = 'mnemonic'")
    assert not restore(ledger, out, force=True).same_wallet


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "other", "newer", "itself"])
def test_what_is_no_backup_changes_nothing(kind: str, ledger: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.db"
    before = ledger.read_bytes()
    if kind == "text":
        source.write_text("no database at all, but some text of a certain length" * 50)
    if kind == "empty":
        source.touch()
    if kind == "other":
        change(source, "CREATE TABLE recipes (name TEXT)")
    if kind == "newer":
        back_up(ledger, source)
        change(source, "PRAGMA user_version = 999")
    if kind == "itself":
        source = ledger
    with pytest.raises(BackupError):
        restore(ledger, source, force=True)
    assert ledger.read_bytes() == before
    assert files(ledger.parent) <= {"node.db", "node.db.lock", "node.db-wal", "node.db-shm"}


async def test_the_restored_database_opens_as_any_other(ledger: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    back_up(ledger, out)
    restore(ledger, out, force=True)
    database = await Database.open(ledger)
    assert (await database.read(read_mark)) is not None
    await database.close()
