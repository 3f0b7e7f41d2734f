"""The operator's password: kept as an argon2id hash, checked one at a time in a thread of its own.

A hash takes 64 MiB and a tenth of a second by design. However many ask to be let in, no more than
one is computed at a time and only a few wait, so that neither the memory nor the requests of
paying clients suffer.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from node.errors import RateLimitExceeded
from node.settings_types import SettingsError

log = structlog.get_logger()

MIN_CHARS = 10
"""Of a new password."""
MAX_CHARS = 1024
"""Longer ones are neither made nor looked at."""
MAX_WAITING = 4
"""Passwords that wait for their turn to be checked."""
BUSY_RETRY_S = 2
CHECK_S = 1.0
"""How long the hash is taken for the one in force before it is looked again."""
PREFIX = "$argon2id$"

_HASHER = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=1)


class WeakPassword(ValueError):
    """It cannot be used; the text says why."""


def hash_password(password: str) -> str:
    """Its argon2id hash (PHC string). Raises WeakPassword."""
    if not MIN_CHARS <= len(password) <= MAX_CHARS:
        raise WeakPassword(f"a password has {MIN_CHARS} to {MAX_CHARS} characters")
    return _HASHER.hash(password)


def is_hash(text: str) -> bool:
    """Whether it looks like what ``hash_password`` makes."""
    return text.startswith(PREFIX) and text.count("$") == 5


def matches(hashed: str, password: str) -> bool:
    """Whether ``password`` is the one of the hash; False for what is no hash."""
    try:
        return _HASHER.verify(hashed, password)
    except (Argon2Error, InvalidHashError, UnicodeEncodeError):
        return False


def fingerprint_of(hashed: str) -> bytes:
    """What sessions are bound to: another one for another password."""
    return hashlib.sha256(hashed.encode()).digest()


class Password:
    """The password in force: once a second it is looked whether there is another, so that a new
    one holds at once.

    Args:
        read: gives the hash; raises SettingsError when there is none.
        version: gives another value when there may be another hash.
        clock: seconds on a steady clock.
    """

    def __init__(
        self,
        read: Callable[[], str],
        version: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._version = version
        self._clock = clock
        self._seen: object = None
        self._hash: str | None = None
        self._read_at: float | None = None
        self._trouble = ""

    @property
    def hash(self) -> str | None:
        """The argon2id hash; None: there is no password, and nobody is let in."""
        now = self._clock()
        if self._read_at is None or now - self._read_at >= CHECK_S:
            version = self._version()
            if self._read_at is None or version != self._seen:
                self._seen = version
                self._hash = self._load()
            self._read_at = now
        return self._hash

    @property
    def fingerprint(self) -> bytes:
        """Of the password in force, see ``fingerprint_of``."""
        return fingerprint_of(self.hash or "")

    def _load(self) -> str | None:
        try:
            text = self._read()
            trouble = "" if is_hash(text) else "is no argon2id hash"
        except SettingsError as error:
            text, trouble = "", str(error)
        if trouble and trouble != self._trouble:
            log.warning("admin_off", reason=trouble, hint="set one with: nodestr admin password")
        self._trouble = trouble
        return None if trouble else text


class PasswordCheck:
    """Checks passwords off the event loop, one at a time.

    Args:
        max_waiting: those that may wait; more are refused.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="password")
        self._room = threading.BoundedSemaphore(max_waiting + 1)

    def enter(self) -> None:
        """Take a place in the queue; :meth:`check` gives it back. Raises RateLimitExceeded."""
        if not self._room.acquire(blocking=False):
            raise RateLimitExceeded(
                "too many logins at once; try again in a moment", retry_after_s=BUSY_RETRY_S
            )

    def leave(self) -> None:
        """Give the place back without a check."""
        self._room.release()

    async def check(self, hashed: str, password: str) -> bool:
        """Whether ``password`` is the one of the hash. The caller has a place in the queue."""
        job = self._pool.submit(matches, hashed, password)
        # also when the caller is cancelled: the place is taken until the thread is free again
        job.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """Check nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
