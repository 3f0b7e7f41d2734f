"""Settings as the admin pages see and change them.

PATCH ─▶ overrides + patch ─▶ valid as a whole? ─▶ file written ─▶ applied where possible
                                   └─ no: 400 naming the key; nothing has changed
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args, get_origin

import structlog
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from node import settings as node_settings
from node.admin.addresses import check_addresses
from node.admin.exchange import AdminRequest, AdminRoute
from node.admin.overrides import FIXED, changed_keys, patched, write_overrides
from node.admin.references import check_references
from node.errors import InvalidValue
from node.reload import KeyPath, Reloader, dotted
from node.settings import Settings, SettingsError
from node.settings_layers import LISTS, Document, Layers
from node.settings_sources import kind_at
from node.settings_types import SecretRef

log = structlog.get_logger()

Described: TypeAlias = dict[str, Any]
_INDEX = re.compile(r"(mints|upstreams|models)\[(\d+)\]")


class SettingsApi:
    """Shows and changes the settings of a running node.

    Args:
        read: gives what each source of settings says now; raises SettingsError.
        reloader: makes changes take effect.
    """

    def __init__(self, read: Callable[[], Layers], reloader: Reloader) -> None:
        self._read = read
        self._reloader = reloader
        self._overrides: Document = {}
        with contextlib.suppress(SettingsError):
            self._overrides = read().overrides

    def routes(self) -> list[AdminRoute]:
        """``/settings``."""
        return [
            AdminRoute("GET", "/settings", self.show),
            AdminRoute("PATCH", "/settings", lambda asked: self.change(asked.document)),
        ]

    def overridden_models(self) -> list[str]:
        """Ids of the models that were changed here."""
        models = self._overrides.get("models")
        return list(models) if isinstance(models, Mapping) else []

    async def show(self, asked: AdminRequest) -> dict[str, Any]:
        """Every setting as it will be after a restart, with where it comes from.

        Raises InvalidValue when what the sources say now cannot be used.
        """
        try:
            sources = await asyncio.to_thread(self._read)
            settings = await asyncio.to_thread(node_settings.settings_of, sources)
        except SettingsError as error:
            raise InvalidValue(f"the settings cannot be read: {error.problems[0]}") from None
        self._overrides = sources.overrides
        return {
            "settings": self._described(settings, sources),
            "lists": dict(LISTS),
            "needs_restart": [dotted(path) for path in self._reloader.waiting],
        }

    async def change(self, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Apply and keep a partial document of settings; null takes an override back.

        Returns {applied, needs_restart}: keys of this change; those whose value stays the same
        are in neither. Raises InvalidValue naming the key, and then nothing has changed.
        """
        async with self._reloader.lock:
            sources, fresh = await asyncio.to_thread(self._checked, patch)
            await asyncio.to_thread(self._check_start, sources, fresh)
            await asyncio.to_thread(write_overrides, sources.overrides_path, sources.overrides)
            self._overrides = sources.overrides
            outcome = await self._reloader.adopt(fresh)
        about = changed_keys(patch)
        log.info("settings_changed", keys=sorted(map(dotted, about)))
        return {
            "applied": [dotted(path) for path in outcome.applied if _concerns(about, path)],
            "needs_restart": [
                dotted(path) for path in outcome.needs_restart if _concerns(about, path)
            ],
        }

    def _checked(self, patch: Mapping[str, Any]) -> tuple[Layers, Settings]:
        document: dict[str, Any] = {}
        try:
            sources = self._read()
            sources = replace(sources, overrides=patched(sources.overrides, patch))
            document = sources.document()
            return sources, node_settings.settings_of(sources)
        except SettingsError as error:
            problem = _named(error.problems[0], document)
            key, colon, _ = problem.partition(": ")
            raise InvalidValue(problem, param=key if colon and " " not in key else None) from None

    def _check_start(self, sources: Layers, fresh: Settings) -> None:
        """What a change could do at the next start that it must not; raises InvalidValue."""
        standing = [self._reloader.settings]
        with contextlib.suppress(SettingsError):  # who can write the file can do as they like
            standing.append(node_settings.settings_of(replace(sources, overrides={})))
        check_references(fresh, standing)
        check_addresses(fresh, standing)

    def _described(self, settings: Settings, sources: Layers) -> dict[str, dict[str, Any]]:
        shown: dict[str, dict[str, Any]] = {}
        document = settings.document()
        for section in Settings.model_fields:
            kind = kind_at(Settings, (section, 0) if section in LISTS else (section,))
            values = document[section]
            if section in LISTS:
                shown[section] = {
                    item[LISTS[section]]: self._fields(
                        kind, item, sources, (section, item[LISTS[section]])
                    )
                    for item in values
                }
            else:
                shown[section] = self._fields(kind, values, sources, (section,))
        return shown

    def _fields(
        self, kind: type[BaseModel], values: dict[str, Any], sources: Layers, path: KeyPath
    ) -> dict[str, Described]:
        described = {}
        for key, field in kind.model_fields.items():
            at = (*path, key)
            fixed = at in FIXED or (path[0] in LISTS and key == LISTS[path[0]])
            described[key] = {
                "value": values[key],
                "default": _default(field),
                "required": field.is_required(),
                "origin": sources.origin(*at),
                "live": not fixed and self._reloader.is_live(at),
                "secret": _is_secret(kind, key),
                "fixed": fixed,
                "about": " ".join((field.description or "").split()).removesuffix(" Required."),
                **_choices(kind, key),
            }
        return described


def _default(field: FieldInfo) -> Any:
    if field.default is PydanticUndefined:
        return None if field.default_factory is None else {}
    return to_jsonable_python(field.default, fallback=str)


def _is_secret(kind: type[BaseModel], key: str) -> bool:
    return kind_at(kind, (key,)) is SecretRef


def _choices(kind: type[BaseModel], key: str) -> dict[str, Any]:
    """What can be chosen, where there is only so much."""
    annotation = kind_at(kind, (key,))
    return {"choices": get_args(annotation)} if get_origin(annotation) is Literal else {}


def _concerns(about: Collection[KeyPath], path: KeyPath) -> bool:
    """Whether a key is one of those, below one, or the entry that one is in."""
    return any(path[: len(key)] == key or key[: len(path)] == path for key in about)


def _named(text: str, document: Mapping[str, Any]) -> str:
    """With the names of entries of lists in the place of their numbers."""

    def name(match: re.Match[str]) -> str:
        section, at = match[1], int(match[2])
        try:
            return f"{section}.{document[section][at][LISTS[section]]}"
        except (KeyError, IndexError, TypeError):
            return match[0]

    return _INDEX.sub(name, text, count=1)
