"""The operator's password: made, read from where it is given, and its hash put where it is kept."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from node.admin.password import MAX_CHARS

_GROUPS, _GROUP_CHARS = 5, 4
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""Without what looks alike; 32 characters, so that 20 of them are 100 bits."""


def new_password() -> str:
    """A password nobody can guess, in groups that can be copied by hand."""
    groups = (
        "".join(secrets.choice(_ALPHABET) for _ in range(_GROUP_CHARS)) for _ in range(_GROUPS)
    )
    return "-".join(groups)


def read_password(source: Path) -> str:
    """The first line of a file, or of standard input for ``-``. Raises ValueError, OSError."""
    if str(source) == "-":
        raw = sys.stdin.buffer.readline(4 * MAX_CHARS + 2)
    else:
        with source.open("rb") as file:
            raw = file.readline(4 * MAX_CHARS + 2)
    where = "standard input" if str(source) == "-" else str(source)
    try:
        password = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not UTF-8 text") from None
    if not password:
        raise ValueError(f"{where} holds no password")
    return password


def write_hash(path: Path, hashed: str) -> None:
    """Put the hash there (mode 0600), whole or not at all.

    Run as root, it belongs to whom the directory belongs to, who runs the node. Raises OSError.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o700, parents=True)
    owner = path.parent.stat()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            if os.geteuid() == 0:
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(hashed + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
