"""Checks of the fields that inference requests share."""

from __future__ import annotations

from typing import Any

from node.core.catalog import Model
from node.errors import InvalidValue


def flag(document: dict[str, Any], name: str, *, param: str = "") -> bool:
    """A JSON boolean; False when absent. Raises InvalidValue."""
    value = document.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidValue(f"{param or name} must be true or false", param=param or name)
    return value


def optional_int(document: dict[str, Any], name: str, *, most: int | None = None) -> int | None:
    """An integer of at least 1, or None when absent. Raises InvalidValue."""
    value = document.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1 or (most is not None and value > most):
        limits = "of at least 1" if most is None else f"from 1 to {most}"
        raise InvalidValue(f"{name} must be an integer {limits}", param=name)
    return value


def limit_output(
    document: dict[str, Any], model: Model, names: tuple[str, ...], default: str
) -> int:
    """Give the upstream an output limit, at most the model's; returns it in tokens.

    Args:
        names: of the fields the dialect has for it.
        default: the one that goes out, whichever the client has used: servers ignore those they
            do not know, and then nothing bounds the answer.

    Raises InvalidValue.
    """
    wanted = [optional_int(document, name) for name in names]
    limit = min([model.max_output_tokens, *(value for value in wanted if value)])
    for name in names:
        document.pop(name, None)
    newer = model.max_completion_tokens_only and "max_completion_tokens" in names
    document["max_completion_tokens" if newer else default] = limit
    return limit


def ask_for_usage(document: dict[str, Any]) -> bool:
    """Have the upstream end its stream with the usage; says whether the client had asked."""
    options = document.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise InvalidValue("stream_options must be an object", param="stream_options")
    asked = flag(options, "include_usage", param="stream_options.include_usage")
    document["stream_options"] = {**options, "include_usage": True}
    return asked
