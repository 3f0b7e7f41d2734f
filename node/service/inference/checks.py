"""What the operator has decided about a request before its client wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.core.catalog import Model
from node.errors import InvalidValue

_CONVERSATION = ("messages", "input", "system")
_CALLS = frozenset({"tool_use", "function_call", "custom_tool_call"})
"""Their arguments are the client's own words, whatever their names."""


def with_fixed(document: dict[str, Any], model: Model) -> dict[str, Any]:
    """``document`` with the values that its model is sold with.

    Raises InvalidValue when it asks for another value of one of them.
    """
    check_fixed(document, model)
    return {**document, **model.fixed} if model.fixed else document


def check_fixed(document: Mapping[str, Any], model: Model) -> None:
    """Raises InvalidValue when a field that is fixed is asked for with another value; in a form
    every value is a text."""
    for name, value in model.fixed.items():
        given = document.get(name)
        if given is not None and given != value and given != form_value(value):
            raise InvalidValue(f"{name} of this model is {form_value(value)}", param=name)


def form_value(value: str | int | float | bool) -> str:
    """A value as a form has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def refuse_file_ids(document: Mapping[str, Any], encoded: bytes) -> None:
    """A file id names a file of the operator's account at the upstream, which is nobody else's.

    Args:
        encoded: ``document`` as JSON; most hold no such name and are not walked through.

    Raises InvalidValue.
    """
    if b'"file_id"' not in encoded:
        return
    level: list[object] = [document.get(name) for name in _CONVERSATION]
    while level:
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                if item.get("type") in _CALLS:
                    continue
                if item.get("file_id") is not None:
                    raise InvalidValue(
                        "files cannot be referred to by id here; send what is in them",
                        param="file_id",
                    )
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
