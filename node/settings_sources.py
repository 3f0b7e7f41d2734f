"""Where settings come from besides the file, and how what is wrong with them is told.

    TOML file  <  environment  <  systemd credentials

A key ``port`` of section ``[http]`` is ``NODESTR_HTTP__PORT`` in the environment and
``nodestr.http.port`` among the systemd credentials. Lists, and the whole of a ``[[section]]``,
are written there as JSON.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from node.settings_types import SecretRef, SettingsError

ENV_PREFIX = "NODESTR_"
CREDENTIAL_PREFIX = "nodestr."
MAX_FILE_BYTES = 4 * 1024 * 1024

_TRUE = {"1", "true", "t", "yes", "y", "on"}


def read_toml(path: Path) -> dict[str, Any]:
    """The document in the file. Raises SettingsError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise SettingsError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def refuse_debug() -> None:
    """Raises SettingsError when DEBUG is on in the environment: the Cashu library would then
    neither verify certificates nor keep deadlines."""
    if os.environ.get("DEBUG", "").strip().lower() in _TRUE:
        raise SettingsError(
            "DEBUG is set in the environment: the Cashu library would stop verifying TLS "
            "certificates; unset it (and use [log] level for more log lines)"
        )


class NamedValues(PydanticBaseSettingsSource):
    """Settings given as single texts under a name. Raises SettingsError from ``__call__``."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Unused: values are found by name, not field by field."""
        return None, field_name, False

    def names(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        """(name as the operator wrote it, path of the key, text)"""
        raise NotImplementedError

    def reference(self, name: str) -> str:
        """How a SecretRef names the value ``name``."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, path, text in self.names():
            target = values
            for key in path[:-1]:
                target = target.setdefault(key, {})
                if not isinstance(target, dict):
                    raise SettingsError(f"{name} sets a key below another value")
            target[path[-1]] = self._value(name, path, text)
        return values

    def _value(self, name: str, path: tuple[str, ...], text: str) -> Any:
        kind = kind_at(self.settings_cls, path)
        if kind is SecretRef:
            try:
                SecretRef.parse(text)
            except ValueError:
                return self.reference(name)
            return text
        if get_origin(kind) is tuple or (isinstance(kind, type) and issubclass(kind, BaseModel)):
            try:
                return json.loads(text)
            except ValueError:
                raise SettingsError(f"{name} must be JSON, as it sets a list") from None
        return text


class Environment(NamedValues):
    """``NODESTR_SECTION__KEY`` variables."""

    def names(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        sections = self.settings_cls.model_fields
        for name, text in sorted(os.environ.items()):
            if not name.startswith(ENV_PREFIX):
                continue
            key = name.removeprefix(ENV_PREFIX).lower()
            # Other variables of ours may exist (a secret that "env:" names), so only what looks
            # like a setting is one.
            if "__" in key or key in sections:
                yield name, tuple(key.split("__", 1)), text
            elif self._is_near_miss(key):
                raise SettingsError(
                    f"{name} sets nothing: between section and key stand two underscores"
                )

    def _is_near_miss(self, key: str) -> bool:
        section, _, field = key.partition("_")
        kind = kind_at(self.settings_cls, (section, field))
        return kind is not None and kind is not SecretRef

    def reference(self, name: str) -> str:
        return f"env:{name}"


class Credentials(NamedValues):
    """``nodestr.section.key`` files in ``$CREDENTIALS_DIRECTORY``."""

    def names(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if not directory or not Path(directory).is_dir():
            return
        for file in sorted(Path(directory).iterdir()):
            if file.name.startswith(CREDENTIAL_PREFIX):
                key = file.name.removeprefix(CREDENTIAL_PREFIX)
                text = SecretRef("cred", file.name).resolve()
                yield file.name, tuple(key.split(".", 1)), text

    def reference(self, name: str) -> str:
        return f"cred:{name}"


GONE: Mapping[str, str] = {
    "nostr.wraps": "is gone: gift wraps of both kinds are always taken; delete the line",
}
"""Keys that older versions had, and what to do about each now."""


def explain(error: ValidationError, root: type[BaseSettings]) -> SettingsError:
    """One sentence for each problem, each naming its key; no value is repeated."""
    return SettingsError(
        *(_sentence(root, item["loc"], item["type"], item["msg"]) for item in error.errors())
    )


def key_path(loc: Sequence[str | int]) -> str:
    """``("models", 0, "id")`` as ``models[0].id``."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _sentence(root: type[BaseModel], loc: tuple[str | int, ...], kind: str, msg: str) -> str:
    key = key_path(loc)
    if kind == "extra_forbidden":
        if key in GONE:
            return f"{key}: {GONE[key]}"
        near = difflib.get_close_matches(str(loc[-1]), _known(root, loc[:-1]), n=1, cutoff=0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        return f"{key}: there is no such key{hint}"
    if kind == "missing":
        return f"{key}: is missing"
    text = msg.removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{key}: {text}" if key else text


def _known(root: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    kind = kind_at(root, loc)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def kind_at(root: type[BaseModel], path: Sequence[str | int]) -> Any:
    """The type of the setting at ``path``; None when there is no such key."""
    kind: Any = root
    for part in path:
        if isinstance(part, int):
            kind = get_args(kind)[0]
            continue
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return None
        if part not in kind.model_fields:
            return None
        kind = _required(kind.model_fields[part].annotation)
    return kind


def _required(annotation: Any) -> Any:
    """``T`` of an optional ``T``."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(arg for arg in get_args(annotation) if arg is not type(None))
    return annotation
