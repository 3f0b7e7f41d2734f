"""The inputs of endpoints that read lists of texts: their shapes and how many tokens they may have.

As for chat, ``bound`` is never below the real count and ``typical`` is close to it. An input that
is given as tokens counts as many.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from node.core.money import ceil_div
from node.core.usage import Usage, usage_from_input
from node.errors import ContextLengthExceeded, InvalidJson, InvalidValue
from node.service.inference.call import PreparedCall
from node.service.inference.estimate import (
    BYTES_PER_TOKEN,
    MAX_BYTES_PER_TOKEN,
    utf8_bytes,
)

TOKENS_PER_INPUT = 16
"""Markers around one text; the known templates use 1 to 4."""
MAX_TOKEN_ID = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens of inputs. ``unseen``: what they hold cannot be measured from here."""

    bound: int = 0
    typical: int = 0
    unseen: bool = False
    least: int = 0
    """Tokens that it has for certain."""

    def within(self, context: int) -> Measured:
        """As a model with a context of so many tokens would read it."""
        if self.unseen:
            return replace(self, bound=context, typical=min(self.typical, context))
        return replace(self, bound=min(self.bound, context), typical=min(self.typical, context))


def measure_text(text: str) -> Measured:
    """One text."""
    size = utf8_bytes(text)
    return Measured(
        bound=size + TOKENS_PER_INPUT,
        typical=ceil_div(size, BYTES_PER_TOKEN),
        least=size // MAX_BYTES_PER_TOKEN,
    )


def measure_tokens(tokens: list[Any], where: str) -> Measured:
    """One text as a list of token ids. Raises InvalidValue."""
    for token in tokens:
        if type(token) is not int or not 0 <= token <= MAX_TOKEN_ID:
            raise InvalidValue("tokens must be integers of at least 0", param=where)
    return Measured(len(tokens) + TOKENS_PER_INPUT, len(tokens), least=len(tokens))


def measure_inputs(value: object, name: str, most: int) -> list[Measured]:
    """A text, tokens, or a list of texts, of tokens or of objects with texts and images.

    Args:
        most: inputs.

    Raises InvalidValue with ``name`` as the parameter.
    """
    if isinstance(value, str):
        return [measure_text(value)]
    if not isinstance(value, list) or not value:
        raise InvalidValue(f"{name} must be a text or a list that is not empty", param=name)
    if type(value[0]) is int:
        return [measure_tokens(value, name)]
    if len(value) > most:
        raise InvalidValue(f"{name} may hold {most} inputs", param=name)
    return [measure_input(item, f"{name}[{index}]") for index, item in enumerate(value)]


def measure_input(item: object, where: str) -> Measured:
    """One of a list. Raises InvalidValue."""
    if isinstance(item, str):
        return measure_text(item)
    if isinstance(item, list) and item:
        return measure_tokens(item, where)
    if isinstance(item, dict):
        text = item.get("text")
        if isinstance(text, str) and item.keys() <= {"type", "text"}:
            return measure_text(text)
        return Measured(unseen=True)
    raise InvalidValue("an input must be a text, a list of tokens or an object", param=where)


def check_context(inputs: Collection[Measured], context: int, param: str) -> None:
    """Raises ContextLengthExceeded when one of the inputs is too long for certain."""
    if any(measured.least > context for measured in inputs):
        raise ContextLengthExceeded(
            f"an input does not fit the model's {context} tokens", param=param
        )


def other_fields(document: Mapping[str, Any], known: Collection[str]) -> int:
    """The size in bytes of the fields that may be printed into every input.

    Raises InvalidJson when they are nested too deeply to be written again.
    """
    try:
        return sum(
            len(orjson.dumps(value)) * 3  # as wide as a template may print it
            for name, value in document.items()
            if name not in known and value is not None
        )
    except orjson.JSONEncodeError:
        raise InvalidJson("the request is nested too deeply") from None


def read_input_usage(call: PreparedCall, document: Mapping[str, Any]) -> Usage:
    """The usage of an answer without generated text: what the upstream counted, else what was
    sent."""
    return usage_from_input(document.get("usage")) or call.typical
