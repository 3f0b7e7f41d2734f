"""Promise: before a migration the database is copied, a copy never replaces a file, no copy
means no migration, and a newer database is refused and left as it is."""

from __future__ import annotations

import sqlite3
import stat
import time
from pathlib import Path

import pytest

from node.ledger import migrating
from node.ledger.database import Database, StorageError
from node.ledger.migrating import keep_before_migration, schema_versions

MIGRATIONS = Path(__file__).parents[3] / "node" / "ledger" / "migrations"


def older(path: Path) -> int:
    """A database of the schema before the newest; returns the newest."""
    *scripts, _ = sorted(MIGRATIONS.glob("*.sql"))
    connection = sqlite3.connect(path)
    for script in scripts:
        connection.executescript(script.read_text())
    connection.execute("INSERT INTO meta VALUES ('mark', 'before')")
    connection.execute(f"PRAGMA user_version = {len(scripts)}")
    connection.commit()
    connection.close()
    return len(scripts) + 1


def mark(path: Path) -> tuple[str, int]:
    connection = sqlite3.connect(path)
    try:
        (value,) = connection.execute("SELECT value FROM meta WHERE key = 'mark'").fetchone()
        return value, schema_versions(connection)[0]
    finally:
        connection.close()


async def test_an_old_database_is_copied_and_migrated(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    known = older(path)
    opened = await Database.open(path)
    await opened.write(
        lambda conn: conn.execute("UPDATE meta SET value = 'after' WHERE key = 'mark'")
    )
    await opened.close()
    (copy,) = tmp_path.glob("*before*")
    assert copy.name.startswith(f"node.db.before-schema-{known}-")
    assert mark(path) == ("after", known)
    assert mark(copy) == ("before", known - 1)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    again = await Database.open(path)
    await again.close()
    assert sorted(p.name for p in tmp_path.iterdir() if "schema" in p.name) == [copy.name]


async def test_a_new_or_current_database_is_not_copied(tmp_path: Path) -> None:
    for _ in range(2):
        opened = await Database.open(tmp_path / "node.db")
        await opened.close()
    assert not list(tmp_path.glob("*before*"))


def test_a_copy_that_was_killed_is_made_anew_and_none_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.db"
    known = older(path)
    (tmp_path / "node.db.before-schema.partial").write_bytes(b"of a copy that was killed")
    connection = sqlite3.connect(path)
    copy = keep_before_migration(connection, path)
    assert copy is not None
    assert mark(copy) == ("before", known - 1)
    assert list(tmp_path.glob("*before*")) == [copy]
    content = copy.read_bytes()
    moment = copy.name.removeprefix(f"node.db.before-schema-{known}-")
    monkeypatch.setattr(time, "strftime", lambda *_: moment)
    with pytest.raises(StorageError, match="nothing was changed"):
        keep_before_migration(connection, path)
    assert copy.read_bytes() == content
    connection.close()


async def test_a_migration_that_fails_leaves_the_database_and_no_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.db"
    opened = await Database.open(path)
    await opened.write(lambda conn: conn.execute("INSERT INTO meta VALUES ('mark', 'before')"))
    await opened.close()
    now = mark(path)
    broken = tmp_path / "9999_broken.sql"
    broken.write_text("UPDATE meta SET value = 'after';\nCREATE TABLE meta (x);")
    scripts = migrating._scripts()
    monkeypatch.setattr(migrating, "_scripts", lambda: [*scripts, broken])
    for _ in range(2):
        with pytest.raises(StorageError, match="already exists"):
            await Database.open(path)
    assert mark(path) == now
    assert not list(tmp_path.glob("*before*"))


async def test_without_a_copy_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    known = older(path)
    # the place of the copy is taken by what cannot be replaced
    (tmp_path / "node.db.before-schema.partial").mkdir()
    with pytest.raises(StorageError, match="nothing was changed"):
        await Database.open(path)
    assert mark(path) == ("before", known - 1)


async def test_a_newer_database_is_refused_with_a_clear_word(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    known = older(path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {known + 1}")
    connection.close()
    with pytest.raises(StorageError, match="was written by a newer nodestr") as refused:
        await Database.open(path)
    assert "install that version again" in str(refused.value)
    assert mark(path) == ("before", known + 1)
    assert not list(tmp_path.glob("*before*"))
