"""Is the process alive, and may clients be sent to it?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import structlog

log = structlog.get_logger()

Check: TypeAlias = Callable[[], Awaitable[str | None] | str | None]
"""Returns what is wrong in a few public words, or None. May be a coroutine function."""

OK = "ok"


class Health:
    """Named checks, all of which but the details must pass for the node to be ready.

    Args:
        timeout_s: deadline of each check; one that does not answer has failed.
    """

    def __init__(self, *, timeout_s: float = 2.0) -> None:
        self._timeout_s = timeout_s
        self._checks: dict[str, Check] = {}
        self._details: set[str] = set()

    def add(self, name: str, check: Check, *, detail: bool = False) -> None:
        """Register a check under a name that ``/health/ready`` shows.

        Args:
            detail: it is shown, and the node is ready whatever it says.
        """
        self._checks[name] = check
        if detail:
            self._details.add(name)

    def remove(self, name: str) -> None:
        """Ask that check no more."""
        self._checks.pop(name, None)
        self._details.discard(name)

    def live(self) -> bool:
        """True: whoever can ask is answered by a running event loop."""
        return True

    async def ready(self) -> tuple[bool, dict[str, str]]:
        """(all checks but the details pass, name → ``ok`` or what is wrong). Never raises."""
        names = list(self._checks)
        results = await asyncio.gather(*(self._run(name) for name in names))
        shown = dict(zip(names, results, strict=True))
        ready = all(result == OK for name, result in shown.items() if name not in self._details)
        return ready, shown

    async def _run(self, name: str) -> str:
        try:
            async with asyncio.timeout(self._timeout_s):
                result = self._checks[name]()
                if isinstance(result, Awaitable):
                    result = await result
        except TimeoutError:
            return "no answer"
        except Exception as error:
            # The reason may hold anything, so it goes to the log (which redacts) only.
            log.warning("health_check_failed", check=name, error=repr(error))
            return "failed"
        return OK if result is None else result
