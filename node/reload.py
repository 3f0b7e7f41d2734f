"""Settings that have changed, applied to a running node: by SIGHUP and by the admin pages.

| settings | when they change |
|---|---|
| log.*, limits.* (of requests) | in effect at once; requests counted so far are forgotten |
| models | in effect at once, if the upstreams that serve them run; holds keep their prices |
| upstreams: what is sold of a list and at which price, priority, weight | in effect at once |
| nostr.relays, node.name, node.about, http.public_urls, http.onion_url | at once, and announced |
| payout.*, refund.* (but enabled) | from the next payout and refund on |
| all others | told, as ``needs_restart``; the node goes on with the old ones |

Settings that cannot be used change nothing.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog
from pydantic import ValidationError

from node.ops import sdnotify
from node.settings import Settings, SettingsError
from node.settings_layers import LISTS

log = structlog.get_logger()

KeyPath: TypeAlias = tuple[str, ...]
"""``("http", "port")``; of an entry of a list ``("models", "llama3.2", "name")``; an entry that
came or went is ``("models", "llama3.2")``."""
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Part:
    """Something of a running node that takes other settings.

    Args:
        keys: what it takes; ``*`` stands for any name.
        apply: makes it so; gets the settings that are in effect from now on.
    """

    keys: tuple[KeyPath, ...]
    apply: Callable[[Settings], Awaitable[object] | object]

    def takes(self, path: KeyPath) -> bool:
        """Whether a change of that key is for this part."""
        return any(
            len(key) == len(path)
            and all(part in ("*", name) for part, name in zip(key, path, strict=True))
            for key in self.keys
        )


@dataclass(frozen=True, slots=True)
class Change:
    """What became of changed settings, by their keys."""

    applied: tuple[KeyPath, ...] = ()
    needs_restart: tuple[KeyPath, ...] = ()


class Reloader:
    """Applies changed settings to a running node, one change at a time.

    Args:
        settings: what is in effect.
        read: reads them again; raises SettingsError.
        parts: what can change.
    """

    def __init__(
        self, settings: Settings, read: Callable[[], Settings], parts: Sequence[Part]
    ) -> None:
        self.settings = settings
        self.waiting: tuple[KeyPath, ...] = ()
        """Keys that have changed and wait for a restart."""
        self.lock = asyncio.Lock()
        """Held from reading the settings until they are adopted."""
        self._read = read
        self._parts = tuple(parts)

    def is_live(self, path: KeyPath) -> bool:
        """Whether a change of that key needs no restart."""
        return any(part.takes(path) for part in self._parts)

    async def reload(self) -> Change:
        """Read the settings and apply what can be applied; tells systemd and the log."""
        sdnotify.reloading()
        try:
            async with self.lock:
                fresh = await asyncio.to_thread(self._read)
                return await self.adopt(fresh)
        except SettingsError as error:
            log.error("reload_refused", problems=error.problems, hint="nothing was changed")
            return Change()
        finally:
            sdnotify.ready()

    async def adopt(self, fresh: Settings) -> Change:
        """Apply what can be applied of ``fresh``. The caller holds ``lock``."""
        running = self.settings
        before, after = running.document(), fresh.document()
        changed = sorted(differences(before, after))
        live = [path for path in changed if self.is_live(path)]
        effective, taken = await asyncio.to_thread(_effective, before, after, live)
        if effective is not None:
            self.settings = effective
        failed = await self._apply(taken)
        applied = [path for path in taken if path not in failed]
        if failed:  # it is tried again with the next change
            self.settings = _effective(before, after, applied)[0] or running
        self.waiting = tuple(path for path in changed if path not in applied)
        log.warning(
            "reloaded",
            applied=[dotted(path) for path in applied],
            needs_restart=[dotted(path) for path in self.waiting],
        )
        return Change(tuple(applied), self.waiting)

    async def _apply(self, taken: Iterable[KeyPath]) -> set[KeyPath]:
        """Give each part what is for it; the keys of those that failed."""
        failed: set[KeyPath] = set()
        for part in self._parts:
            its = {path for path in taken if part.takes(path)}
            if not its:
                continue
            try:
                result = part.apply(self.settings)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                log.exception("reload_failed", keys=sorted(map(dotted, its)))
                failed |= its
        return failed


async def reload_on(asked: asyncio.Event, reloader: Reloader) -> None:
    """Reload each time ``asked`` is set, for ever."""
    while True:
        await asked.wait()
        asked.clear()
        await reloader.reload()


def dotted(path: KeyPath) -> str:
    """As people write it: ``models.llama3.2.name``."""
    return ".".join(path)


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[KeyPath]:
    """Keys whose values differ in two documents of settings."""
    for section in old.keys() | new.keys():
        before, after = old.get(section, {}), new.get(section, {})
        if section not in LISTS:
            yield from ((section, key) for key in _differing(before, after))
            continue
        entries, others = _keyed(section, before), _keyed(section, after)
        for name in entries.keys() | others.keys():
            if name in entries and name in others:
                fields = _differing(entries[name], others[name])
                yield from ((section, name, field) for field in fields)
            else:
                yield section, name


def _differing(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for key in old.keys() | new.keys():
        if old.get(key, _ABSENT) != new.get(key, _ABSENT):
            yield key


def _keyed(section: str, entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item[LISTS[section]]: item for item in entries}


def _effective(
    before: dict[str, Any], after: dict[str, Any], live: list[KeyPath]
) -> tuple[Settings | None, list[KeyPath]]:
    """The settings with what changed of ``live`` keys, and those keys.

    What needs something that waits for a restart (a model of an upstream that does not run) waits
    with it. None: nothing of it can be had without the rest.
    """
    taken = list(live)
    while taken:
        try:
            return Settings(**_with(before, after, taken)), taken
        except ValidationError:
            # without models first: they need upstreams; of these one by one
            worst = _unusable(before, after, taken)
            taken = [path for path in taken if path[:2] not in worst] if worst else []
    return None, []


def _unusable(before: dict[str, Any], after: dict[str, Any], taken: list[KeyPath]) -> set[KeyPath]:
    """Changed models that do not fit to the rest."""
    models = {path[:2] for path in taken if path[0] == "models"}
    others = [path for path in taken if path[0] != "models"]
    worst = set()
    for model in models:
        its = [path for path in taken if path[:2] == model]
        try:
            Settings(**_with(before, after, [*others, *its]))
        except ValidationError:
            worst.add(model)
    return worst or models


def _with(before: dict[str, Any], after: dict[str, Any], paths: list[KeyPath]) -> dict[str, Any]:
    """``before`` with what ``after`` says at these keys; lists have the order of ``after``."""
    result = dict(before)
    for section in {path[0] for path in paths}:
        its = [path for path in paths if path[0] == section]
        if section not in LISTS:
            result[section] = before[section] | {key: after[section][key] for _, key in its}
            continue
        old, new = _keyed(section, before[section]), _keyed(section, after[section])
        entries = dict(old)
        for path in its:
            name = path[1]
            if len(path) == 3:
                entries[name] = entries[name] | {path[2]: new[name].get(path[2])}
            elif name in new:
                entries[name] = new[name]
            else:
                del entries[name]
        order = [name for name in new if name in entries]
        order += [name for name in entries if name not in new]
        result[section] = [entries[name] for name in order]
    return result
