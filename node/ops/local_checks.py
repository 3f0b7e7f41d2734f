"""What ``nodestr doctor`` can see without the network: files, disk, database, books."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from node.admin.password import is_hash
from node.ledger.books import open_read_only
from node.ledger.migrating import schema_versions
from node.ops.check import examine
from node.ops.probes import Finding, passed
from node.settings import Settings
from node.settings_types import SettingsError

MIN_FREE_BYTES = 500 * 1024 * 1024
"""Less room than this for the database is worth a warning."""
MAX_PROBLEMS = 5
"""Lines of SQLite's integrity check that are shown."""


def check_files(settings: Settings) -> list[Finding]:
    """Whether others than their owner may read secrets, and whether we may write the data."""
    found = []
    secrets = [
        (key, Path(secret.name)) for key, secret in settings.secrets() if secret.scheme == "file"
    ]
    if settings.admin_hash.scheme == "file":
        secrets.append(("admin.password_hash", Path(settings.admin_hash.name)))
    data_dir = settings.node.data_dir
    kept = [
        *(path for _, path in secrets),
        data_dir,
        *sorted(data_dir.glob("node.db*")),  # with backups, and what the admin pages changed
    ]
    for path in kept:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue  # what is missing is another check's
        if mode & 0o077:
            wanted = "700" if path.is_dir() else "600"
            found.append(
                Finding(
                    "files",
                    "fail",
                    f"has mode {mode:04o}: others on this machine may read the node's secrets",
                    f"chmod {wanted} {path}",
                    str(path),
                )
            )
    if data_dir.exists() and not os.access(data_dir, os.W_OK | os.X_OK):
        found.append(
            Finding(
                "files",
                "warn",
                "cannot be written by who runs this command",
                f"run the node as its owner: chown -R USER {data_dir}, or ignore this if another"
                " user runs it",
                str(data_dir),
            )
        )
    return found or [passed("files", "only their owner may read secrets and database")]


def check_admin(settings: Settings) -> Finding:
    """Whether somebody can log in at /admin."""
    if not settings.admin.enabled:
        return passed("admin", "the pages are off, as configured (admin.enabled = false)")
    hint = "set a password: nodestr admin password --config …"
    try:
        text = settings.admin_hash.resolve()
    except SettingsError as error:
        if settings.admin.password_hash is None:
            return passed("admin", f"the pages are off: there is no password; {hint}")
        return Finding("admin", "warn", f"the pages are off: {error}", hint)
    if not is_hash(text):
        return Finding("admin", "fail", f"{settings.admin_hash} holds no argon2id hash", hint)
    return passed("admin", "the pages at /admin open with the password")


def check_disk(settings: Settings) -> list[Finding]:
    """Whether the database has room to grow."""
    place = settings.node.data_dir
    while not place.exists() and place != place.parent:
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < MIN_FREE_BYTES:
        return [
            Finding(
                "files",
                "warn",
                f"only {free_bytes // 2**20} MiB are free on its disk",
                "make room: a node that cannot write refuses every paid call",
                str(settings.node.data_dir),
            )
        ]
    return []


def check_database(path: Path, mints: Sequence[str]) -> list[Finding]:
    """Integrity, schema, and the books; reads only, beside a node that may be running."""
    name = str(path)
    if not path.exists():
        return [
            Finding(
                "database",
                "warn",
                "there is none: no node has run with this configuration",
                "start the node; if one did run, node.data_dir points to the wrong place",
                name,
            )
        ]
    damaged = (
        "stop the node, keep a copy of the file, and restore the newest backup: nodestr restore"
    )
    try:
        with closing(open_read_only(path)) as connection:
            rows = connection.execute(f"PRAGMA integrity_check({MAX_PROBLEMS})").fetchall()
            dangling = connection.execute("PRAGMA foreign_key_check").fetchmany(MAX_PROBLEMS)
            version, known = schema_versions(connection)
    except sqlite3.Error as error:
        return [Finding("database", "fail", f"cannot be read: {error}", damaged, name)]
    problems = [str(row[0]) for row in rows if row[0] != "ok"]
    problems += [f"table {row[0]} refers to a row that is missing" for row in dangling]
    if problems:
        return [Finding("database", "fail", problem, damaged, name) for problem in problems]
    if version > known:
        return [
            Finding(
                "database",
                "fail",
                f"was written by a newer nodestr (schema {version}, this one knows {known})",
                "install that version again; an older one cannot read what it may have stored",
                name,
            )
        ]
    if version < known:
        return [
            Finding(
                "database",
                "warn",
                f"has schema {version}, this version wants {known}",
                "start the node: it makes a backup beside the database and brings it up to date",
                name,
            )
        ]
    return [passed("database", "is undamaged", name), *_solvency(path, mints)]


def held_keysets(path: Path) -> dict[str, dict[str, int]]:
    """By mint and keyset, the sum of our unspent coins in the keyset's unit; empty when the
    database cannot be read, which is another check's."""
    held: dict[str, dict[str, int]] = {}
    try:
        with closing(open_read_only(path)) as connection:
            rows = connection.execute(
                "SELECT mint, keyset_id, SUM(amount) FROM proofs WHERE state = 'unspent'"
                " GROUP BY mint, keyset_id"
            ).fetchall()
    except sqlite3.Error:
        return {}
    for mint, keyset_id, amount in rows:
        held.setdefault(mint, {})[keyset_id] = amount
    return held


def _solvency(path: Path, mints: Sequence[str]) -> list[Finding]:
    try:
        report = examine(path, mints)
    except sqlite3.Error as error:
        return [
            Finding(
                "solvency",
                "fail",
                f"the books cannot be read: {error}",
                "run 'nodestr check'; if it fails too, restore a backup",
            )
        ]
    found = [
        Finding("solvency", "fail" if item.bad else "warn", item.what, item.do)
        for item in report.findings()
    ]
    margin = report.books.equity_msat // 1000
    return found or [passed("solvency", f"the books add up; {margin} sat are the node's own")]
