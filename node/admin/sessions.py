"""Sessions of the operator: a random token in a cookie, of which only the SHA-256 is stored.

A session ends when nobody has used it for a while, at its greatest age, at logout, and when the
password becomes another: it is bound to the one it was opened with.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from node.errors import NotLoggedIn

TOUCH_S = 30
"""A use is written down when the one before is at least this old."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """How long sessions last, and how many there may be."""

    idle_s: float = 3600.0
    max_s: float = 12 * 3600.0
    max_sessions: int = 20
    """The one that was used longest ago gives way."""


class SessionStore(Protocol):
    """Where sessions are kept; ``digest`` is the token's SHA-256, times are unix seconds."""

    async def add(self, digest: bytes, password: bytes, now: int, *, most: int) -> None:
        """Keep a new session, opened with the password of that fingerprint; at most ``most``."""

    async def find(self, digest: bytes) -> tuple[bytes, int, int] | None:
        """(fingerprint of the password, created at, used at)"""

    async def touch(self, digest: bytes, now: int) -> None:
        """It was used now."""

    async def remove(self, digest: bytes) -> None:
        """Forget it."""

    async def prune(self, *, created_before: int, used_before: int) -> None:
        """Forget those that were made or last used before."""


class Sessions:
    """Opens, checks and ends sessions.

    Args:
        password: gives the fingerprint of the password in force.
        clock: unix seconds.
    """

    def __init__(
        self,
        store: SessionStore,
        password: Callable[[], bytes],
        terms: SessionTerms | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._password = password
        self.terms = terms or SessionTerms()
        self._clock = clock

    async def open(self, password: bytes) -> str:
        """The token of a new session, opened with the password of that fingerprint."""
        token = secrets.token_urlsafe(32)
        now = int(self._clock())
        terms = self.terms
        await self._store.prune(
            created_before=int(now - terms.max_s), used_before=int(now - terms.idle_s)
        )
        await self._store.add(_digest(token), password, now, most=terms.max_sessions)
        return token

    async def check(self, token: str | None, *, use: bool = True) -> int:
        """When the session of ``token`` ends, unix seconds, if it is not used any more.

        Args:
            use: whether this is a use of it, which makes it last longer.

        Raises NotLoggedIn when there is none, or it has ended.
        """
        if token is None or not _TOKEN.fullmatch(token):
            raise NotLoggedIn
        digest, now, terms = _digest(token), int(self._clock()), self.terms
        found = await self._store.find(digest)
        if found is None:
            raise NotLoggedIn
        password, created_at, used_at = found
        ends_at = min(used_at + terms.idle_s, created_at + terms.max_s)
        # a clock that was set back does not make a session live longer
        if now >= ends_at or now < created_at - terms.max_s or password != self._password():
            await self._store.remove(digest)
            raise NotLoggedIn("the session has ended: log in again")
        if use and now - used_at >= min(TOUCH_S, terms.idle_s / 4):
            await self._store.touch(digest, now)
            ends_at = min(now + terms.idle_s, created_at + terms.max_s)
        return int(ends_at)

    async def close(self, token: str | None) -> bool:
        """End the session; whether there was one. Strangers' tokens are only looked for."""
        if token is None or not _TOKEN.fullmatch(token):
            return False
        digest = _digest(token)
        if await self._store.find(digest) is None:
            return False
        await self._store.remove(digest)
        return True


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
