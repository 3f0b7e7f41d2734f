"""Writes docs/configuration.md from the settings themselves: ``python -m node.ops.reference``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from node.settings import Settings
from node.settings_sources import _required
from node.settings_types import SecretRef

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

HEAD = """\
# Configuration

Made from the settings classes by `make docs`; edit those, not this page.
`config/node.example.toml` has the same keys as a file to start from, and `nodestr init` writes one
that fits you.

    TOML file  <  environment (NODESTR_HTTP__PORT=9000)  <  systemd credentials (nodestr.http.port)
               <  what was changed on the admin pages

Lists and whole `[[sections]]` are written as JSON in the environment. Names carry the unit: `_s`
seconds, `_bytes` bytes, `_sat` satoshi, `_msat` millisatoshi. A secret is never written into the
file, only where it is: `file:/path` (mode 0600), `env:NAME` or `cred:NAME` (systemd
`LoadCredential=`).

`nodestr check-config --config node.toml` prints what is in effect. On SIGHUP (`systemctl reload`)
models, prices, relays, the node's name, the limits of requests and the log change while the node
runs; the log says what else has changed and waits for a restart.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_sections(Settings, "")])


def _sections(model: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind, many = _section(field)
        if kind is None:
            continue
        key = f"{path}{name}"
        title = f"[[{key}]]" if many else f"[{key}]"
        about = " ".join((kind.__doc__ or "").split()).partition("] ")[2] or "see below."
        yield f"## `{title}`\n\n{about[0].upper()}{about[1:]}\n"
        yield "| key | value | default | what it is |\n|---|---|---|---|"
        for item, described in kind.model_fields.items():
            if _section(described)[0] is None or described.description:
                yield _row(item, described)
        yield ""
        yield from _sections(kind, f"{key}.")


def _section(field: FieldInfo) -> tuple[type[BaseModel] | None, bool]:
    """(the class of a table or of an array of tables, whether it is an array)."""
    kind = _required(field.annotation)
    many = get_origin(kind) is tuple
    if many:
        kind = get_args(kind)[0]
    found = isinstance(kind, type) and issubclass(kind, BaseModel)
    return (kind, many) if found else (None, False)


def _row(name: str, field: FieldInfo) -> str:
    text = " ".join((field.description or "").split()).removesuffix(" Required.")
    return f"| `{name}` | {_kind(field)} | {_default(field)} | {_cell(text)} |"


def _kind(field: FieldInfo) -> str:
    annotation = _required(field.annotation)
    names = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}
    if annotation is SecretRef:
        return "secret"
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list"
    if annotation.__class__ is type and annotation.__name__ == "Decimal":
        return "decimal in quotes"
    return names.get(annotation, "text")


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default is PydanticUndefined:
        return "**required**"
    if field.default is None:
        return "none"
    return f"`{json.dumps(_plain(field.default), ensure_ascii=False)}`"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value if isinstance(value, bool | int | float | str) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"wrote {PAGE}\n")
