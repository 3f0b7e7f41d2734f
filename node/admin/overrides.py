"""The file of the settings that were changed here: what a change makes of it, and writing it.

Its form, and how it is read, is told in ``node/settings_layers.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from node.errors import InternalError, InvalidValue, RequestTooLarge
from node.settings_layers import LISTS, MAX_OVERRIDES_BYTES, Document
from node.settings_types import normal_mint_url

FIXED = frozenset(
    {
        ("node", "secret_key"),
        ("node", "data_dir"),
        ("node", "overrides"),
        ("admin", "password_hash"),
    }
)
"""What cannot be changed here: where the overrides are, and who may change them."""


def patched(overrides: Document, patch: Document) -> dict[str, Any]:
    """The overrides after a change; ``patch`` has their form, and null takes one back.

    Raises InvalidValue, naming the key, for what has not that form or cannot be changed here.
    """
    result = dict(overrides)
    for section, values in patch.items():
        if values is not None and not isinstance(values, Mapping):
            raise InvalidValue(f"{section}: must be an object of keys", param=section)
        given = result.get(section)
        before = dict(given) if isinstance(given, Mapping) else {}
        if values is None:
            after: dict[str, Any] = {}
        elif section in LISTS:
            after = _entries(section, before, values)
        else:
            _refuse_fixed(section, values)
            after = _fields(before, values.items())
        result[section] = after
        if not after:
            del result[section]
    return result


def changed_keys(patch: Document) -> set[tuple[str, ...]]:
    """The keys that a change is about, or the sections and entries that it is about as a whole."""
    keys: set[tuple[str, ...]] = set()
    for section, values in patch.items():
        for name, value in (values or {None: None}).items():
            if name is None:
                keys.add((section,))
            elif section in LISTS:
                name = _normal(section, name)
                keys.update((section, name, field) for field in value or ())
                if not value:
                    keys.add((section, name))
            else:
                keys.add((section, name))
    return keys


def _entries(section: str, before: dict[str, Any], patch: Document) -> dict[str, Any]:
    after = dict(before)
    key = LISTS[section]
    for given, values in patch.items():
        name = _normal(section, given)
        where = f"{section}.{name}"
        if values is not None and not isinstance(values, Mapping):
            raise InvalidValue(f"{where}: must be an object of keys", param=where)
        if values is not None and values.get(key, name) != name:
            raise InvalidValue(f"{where}.{key}: cannot be another", param=f"{where}.{key}")
        old = after.pop(name, None)
        fields = _fields(old if isinstance(old, Mapping) else {}, (values or {}).items())
        # without any field it is still an entry of its own, if no other layer has it
        if values is not None and (fields or not values):
            after[name] = fields
    return after


def _fields(before: Document, patch: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    after = dict(before)
    for key, value in patch:
        if value is None:
            after.pop(key, None)
        else:
            after[key] = value
    return after


def _refuse_fixed(section: str, values: Document) -> None:
    for key in values:
        if (section, key) in FIXED:
            raise InvalidValue(
                f"{section}.{key}: cannot be changed here, only where it stands",
                param=f"{section}.{key}",
            )


def _normal(section: str, name: str) -> str:
    return normal_mint_url(name) if section == "mints" else name


def write_overrides(path: Path, overrides: Document) -> None:
    """Put them there, whole or not at all (mode 0600). Raises RequestTooLarge, InternalError."""
    text = json.dumps(overrides, indent=2, ensure_ascii=False) + "\n"
    if len(text.encode()) > MAX_OVERRIDES_BYTES:
        raise RequestTooLarge("these are more overrides than the file may hold")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise InternalError(
            f"the overrides could not be written ({error.strerror}); nothing was changed",
            private=str(path),
        ) from None
