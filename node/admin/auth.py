"""Who may use the admin endpoints: whoever knows the password, from then on by a session."""

from __future__ import annotations

from typing import Any

import structlog

from node.admin.lockout import Lockout
from node.admin.password import MAX_CHARS, Password, PasswordCheck, fingerprint_of
from node.admin.sessions import Sessions
from node.errors import InvalidValue, NotFound, WrongPassword
from node.service.limits import network_of

log = structlog.get_logger()

OFF = (
    "the admin pages are off on this node; its operator turns them on with: nodestr admin password"
)


class Auth:
    """Logins and sessions.

    Args:
        enabled: False keeps everybody out.
    """

    def __init__(
        self,
        password: Password,
        sessions: Sessions,
        lockout: Lockout,
        check: PasswordCheck,
        *,
        enabled: bool = True,
    ) -> None:
        self._password = password
        self._sessions = sessions
        self._lockout = lockout
        self._check = check
        self._enabled = enabled

    def require_open(self) -> None:
        """Raises NotFound, saying what to do, when nobody can log in."""
        if not self._enabled or self._password.hash is None:
            raise NotFound(OFF)

    async def login(self, password: Any, address: str) -> str:
        """The token of a new session for who knows the password.

        Every wrong password is answered the same.

        Args:
            password: what was sent in its place.
            address: of the client; wrong passwords count against its network.

        Raises WrongPassword, RateLimitExceeded when the address has to wait, InvalidValue for
        what is no password at all.
        """
        self.require_open()
        if not isinstance(password, str) or not 1 <= len(password) <= MAX_CHARS:
            raise InvalidValue(
                f"password must be a text of 1 to {MAX_CHARS} characters", param="password"
            )
        network = network_of(address)
        self._check.enter()
        try:
            self._lockout.begin(network)
        except BaseException:
            self._check.leave()
            raise
        hashed = self._password.hash or ""
        if not await self._check.check(hashed, password):
            log.warning(
                "admin_login_failed", address=address, failures=self._lockout.failures(network)
            )
            raise WrongPassword
        self._lockout.succeed(network)
        # of the password that was checked: it may have become another meanwhile
        token = await self._sessions.open(fingerprint_of(hashed))
        log.info("admin_login", address=address)
        return token

    async def session(self, token: str | None, *, use: bool = True) -> int:
        """When the session ends, unix seconds. Raises NotLoggedIn; NotFound when all is off.

        Args:
            use: whether this is a use of it, which makes it last longer.
        """
        self.require_open()
        return await self._sessions.check(token, use=use)

    async def logout(self, token: str | None, address: str) -> None:
        """End the session."""
        if await self._sessions.close(token):
            log.info("admin_logout", address=address)

    def close(self) -> None:
        """Let nobody in any more."""
        self._check.close()
