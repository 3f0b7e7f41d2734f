"""The schema: numbered scripts, applied one after another, after a copy of what was there."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import structlog

log = structlog.get_logger()


class StorageError(Exception):
    """The database refused, is damaged, is newer than this program, or is in use."""


def _scripts() -> list[Traversable]:
    folder = resources.files("node.ledger") / "migrations"
    return sorted(
        (item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda i: i.name
    )


def schema_versions(connection: sqlite3.Connection) -> tuple[int, int]:
    """(the database's schema, the newest this program knows); 0: it is empty."""
    return connection.execute("PRAGMA user_version").fetchone()[0], len(_scripts())


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema to this program's version.

    Raises StorageError when the database was written by a newer program.
    """
    done, known = schema_versions(connection)
    if done > known:
        raise StorageError(
            f"the database was written by a newer nodestr (schema {done}, this one knows {known})"
            " and is left as it is: install that version again, or restore a backup of before"
        )
    for number, script in enumerate(_scripts()[done:], start=done + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{script.read_text()}\nPRAGMA user_version = {number};\nCOMMIT;"
        )


def keep_before_migration(connection: sqlite3.Connection, path: Path) -> Path | None:
    """Copy a database that is about to be migrated to ``node.db.before-schema-N-TIME`` (0600).

    Returns the copy; None when there is nothing to migrate or nothing to lose. Never over another
    file. Raises StorageError when it cannot be written; then the database must not be touched.
    """
    done, known = schema_versions(connection)
    if not 0 < done < known:
        return None
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    copy = path.with_name(f"{path.name}.before-schema-{known}-{moment}")
    partial = path.with_name(f"{path.name}.before-schema.partial")
    try:
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(partial)) as target:
            connection.backup(target)
        descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.link(partial, copy)
        partial.unlink()
    except (OSError, sqlite3.Error) as error:
        raise StorageError(
            f"no backup could be made before the migration ({error}), so nothing was changed:"
            f" make room beside {path}, then start again"
        ) from None
    return copy


def prepare(path: Path, connection: sqlite3.Connection) -> None:
    """Copy, then migrate; raises StorageError."""
    kept = keep_before_migration(connection, path)
    before, _ = schema_versions(connection)
    try:
        migrate(connection)
    except BaseException:
        # a start that fails again and again must not fill the disk
        if kept is not None and schema_versions(connection)[0] == before:
            kept.unlink()
        raise
    if kept is not None:
        log.warning("database_migrated", backup=str(kept), hint="it holds secrets; delete it once")
