"""The layers settings are made of, and what comes of them.

    TOML file  <  environment  <  systemd credentials  <  overrides

Overrides are what was changed through the admin pages: a JSON file next to the database. It is
written like the settings themselves, but entries of a list stand under the key that makes them
one of a kind, and only with what is different about them:

    {"http": {"port": 9000}, "models": {"llama3.2": {"input_per_mtok_msat": 100000}}}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic_settings import BaseSettings

from node.settings_sections import NodeSettings
from node.settings_sources import Credentials, Environment, read_toml
from node.settings_types import SettingsError, normal_mint_url

LISTS: Mapping[str, str] = {"mints": "url", "upstreams": "name", "models": "id"}
"""Sections that are lists, and the key that makes an entry one of a kind."""
MAX_OVERRIDES_BYTES = 1024 * 1024
Document: TypeAlias = Mapping[str, Any]
Origin: TypeAlias = Literal["default", "file", "environment", "credential", "override"]


@dataclass(frozen=True, slots=True)
class Layers:
    """What each source says, as it says it; nothing is checked yet."""

    file: Document
    environment: Document
    credentials: Document
    overrides: Document
    overrides_path: Path

    def document(self) -> dict[str, Any]:
        """All of them in one, lists as lists."""
        return _overridden(self._below(), self.overrides)

    def origin(self, *path: str) -> Origin:
        """Who has the last word about a setting: ``("http", "port")``, or of an entry of a list
        ``("models", "llama3.2", "name")``."""
        if _has(self.overrides, path):
            return "override"
        section, *rest = path
        below: tuple[tuple[Origin, Document], ...] = (
            ("credential", self.credentials),
            ("environment", self.environment),
            ("file", self.file),
        )
        for origin, layer in below:
            if section not in LISTS:
                if _has(layer, path):
                    return origin
            elif section in layer:  # a list is taken as a whole
                found = entry(layer[section], section, rest[0])
                return origin if found is not None and rest[1] in found else "default"
        return "default"

    def _below(self) -> dict[str, Any]:
        return _merged(_merged(self.file, self.environment), self.credentials)


def read_layers(path: Path, settings: type[BaseSettings]) -> Layers:
    """Read every source. Raises SettingsError.

    Args:
        path: the TOML file.
        settings: the class that knows all keys.
    """
    file = read_toml(path)
    environment, credentials = Environment(settings)(), Credentials(settings)()
    bare = Layers(file, environment, credentials, {}, Path())
    where = overrides_path(bare.document())
    return Layers(file, environment, credentials, read_overrides(where), where)


def overrides_path(document: Document) -> Path:
    """Where the overrides are, by settings that nobody has checked yet."""
    node = document.get("node")
    given = node if isinstance(node, Mapping) else {}
    path, data_dir = given.get("overrides"), given.get("data_dir")
    if isinstance(path, str) and path:
        return Path(path)
    if not isinstance(data_dir, str):
        data_dir = NodeSettings.model_fields["data_dir"].default
    return NodeSettings.overrides_in(Path(data_dir))


def read_overrides(path: Path) -> dict[str, Any]:
    """The overrides; none without a file. Raises SettingsError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_OVERRIDES_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise SettingsError(f"the overrides {path} cannot be read: {reason}") from None
    if len(raw) > MAX_OVERRIDES_BYTES:
        raise SettingsError(f"the overrides {path} are larger than {MAX_OVERRIDES_BYTES} bytes")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise SettingsError(
            f"the overrides {path} are no JSON object: mend the file, or move it away to be"
            " without them"
        )
    return document


def entry(entries: Any, section: str, key: str) -> Document | None:
    """The entry of a list under its key; None when there is none."""
    for found in _entries(entries):
        if _same(section, found.get(LISTS[section]), key):
            return found
    return None


def _entries(entries: Any) -> Iterator[Document]:
    if isinstance(entries, list | tuple):
        yield from (item for item in entries if isinstance(item, Mapping))


def _same(section: str, one: Any, other: str) -> bool:
    if section != "mints" or not isinstance(one, str):
        return bool(one == other)
    return normal_mint_url(one) == normal_mint_url(other)


def _has(document: Document, path: tuple[str, ...]) -> bool:
    at: Any = document
    if path[0] in LISTS and isinstance(at.get(path[0]), Mapping):
        section, key, *rest = path
        at = next((v for k, v in at[section].items() if _same(section, k, key)), None)
        path = tuple(rest)
    for part in path:
        if not isinstance(at, Mapping) or part not in at:
            return False
        at = at[part]
    return at is not None or bool(path)


def _merged(low: Document, high: Document) -> dict[str, Any]:
    """``low`` with what ``high`` says otherwise; tables are merged, all else is replaced."""
    result = dict(low)
    for key, value in high.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = _merged(below, value)
        result[key] = value
    return result


def _overridden(document: dict[str, Any], overrides: Document) -> dict[str, Any]:
    result = dict(document)
    for section, values in overrides.items():
        below = result.get(section)
        if not isinstance(values, Mapping):
            result[section] = values
        elif section in LISTS:
            result[section] = _list(section, [] if below is None else below, values)
        else:
            result[section] = {**(below if isinstance(below, Mapping) else {}), **values}
    return result


def _list(section: str, entries: Any, overrides: Document) -> Any:
    """The entries with what is overridden about them, and those that are only overrides."""
    if not isinstance(entries, list | tuple):
        return entries
    result = list(entries)
    for key, values in overrides.items():
        fields = values if isinstance(values, Mapping) else {}
        for at, item in enumerate(result):
            if isinstance(item, Mapping) and _same(section, item.get(LISTS[section]), key):
                result[at] = {**item, **fields}
                break
        else:
            result.append({LISTS[section]: key, **fields})
    return result
