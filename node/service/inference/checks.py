"""What the operator has decided about a request before its client wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    for item in _objects([document.get(name) for name in _CONVERSATION], left_out=_CALLS):
        if item.get("file_id") is not None:
            raise InvalidValue(
                "files cannot be referred to by id here; send what is in them", param="file_id"
            )


def refuse_long_caches(document: Mapping[str, Any], body: bytes) -> None:
    """Anthropic asks more for what is cached for an hour than one price for cache writes covers.

    Args:
        body: ``document`` as it came; most hold no such time and are not walked through.

    Raises InvalidValue.
    """
    if b'"1h"' not in body:
        return
    for item in _objects([document]):
        mark = item.get("cache_control")
        if isinstance(mark, dict) and mark.get("ttl") == "1h":
            raise InvalidValue("caches of an hour are not sold here", param="cache_control")


def _objects(
    level: list[Any], left_out: frozenset[str] = frozenset()
) -> Iterator[Mapping[str, Any]]:
    """Every JSON object in ``level``, however deep; but for those of a type ``left_out`` and what
    is in them."""
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                kind = item.get("type")
                if isinstance(kind, str) and kind in left_out:
                    continue
                yield item
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
