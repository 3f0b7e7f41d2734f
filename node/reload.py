"""SIGHUP: read the settings again, apply what can be applied while the node runs.

| settings | on a reload |
|---|---|
| log.*, limits.* | in effect at once; requests counted so far are forgotten when limits change |
| all others | told in the log, as ``needs_restart``; the node goes on with the old ones |

Settings that cannot be used change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from node.building import rate_limits
from node.ops import sdnotify
from node.ops.logging import configure
from node.service.limits import Limiter
from node.settings import Settings, SettingsError

log = structlog.get_logger()

LIVE = ("log.", "limits.")
"""Settings that a reload applies."""


class Reloader:
    """Applies changed settings to a running node.

    Args:
        settings: what is in effect.
        read: reads them again; raises SettingsError.
    """

    def __init__(self, settings: Settings, read: Callable[[], Settings], limiter: Limiter) -> None:
        self.settings = settings
        self._read = read
        self._limiter = limiter

    def reload(self) -> tuple[list[str], list[str]]:
        """(keys that were applied, keys that wait for a restart); tells systemd and the log."""
        sdnotify.reloading()
        try:
            return self._reload()
        finally:
            sdnotify.ready()

    def _reload(self) -> tuple[list[str], list[str]]:
        try:
            fresh = self._read()
        except SettingsError as error:
            log.error("reload_refused", problems=error.problems, hint="nothing was changed")
            return [], []
        changed = sorted(_differences(self.settings.document(), fresh.document()))
        applied = [key for key in changed if key.startswith(LIVE)]
        waiting = [key for key in changed if not key.startswith(LIVE)]
        if any(key.startswith("log.") for key in applied):
            configure(fresh.log.level, fresh.log.format)
        if any(key.startswith("limits.") for key in applied):
            self._limiter.change(rate_limits(fresh))
        live = {key.partition(".")[0] for key in LIVE}
        self.settings = self.settings.model_copy(update={n: getattr(fresh, n) for n in live})
        log.warning("reloaded", applied=applied, needs_restart=waiting)
        return applied, waiting


async def reload_on(asked: asyncio.Event, reloader: Reloader) -> None:
    """Reload each time ``asked`` is set, for ever."""
    while True:
        await asked.wait()
        asked.clear()
        reloader.reload()


def _differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> Iterator[str]:
    """Keys whose values differ; a list is one value."""
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{path}{key}.")
        elif before != after:
            yield path + key
