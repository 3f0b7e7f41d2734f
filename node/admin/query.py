"""Reading what an operator's browser sends: numbers, cursors, fields. All raise InvalidValue."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from node.admin.exchange import AdminRequest
from node.core.money import MSAT_PER_SAT, Msat
from node.errors import InvalidValue
from node.ledger.reports import Reader

T = TypeVar("T")

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
"""Rows of one page."""
MAX_SAT = 21_000_000 * 100_000_000

_WHOLE = re.compile(r"[0-9]{1,15}")
_CURSOR = re.compile(r"-?[0-9]{1,19}(\.-?[0-9]{1,19}){0,3}")
_BIGGEST = 1 << 62


def limit_of(request: AdminRequest, *, default: int = DEFAULT_LIMIT, most: int = MAX_LIMIT) -> int:
    """The ``limit`` of the query, at most ``most``."""
    return max(1, min(whole(request.query, "limit", default), most))


def whole(values: Mapping[str, str], name: str, default: int) -> int:
    """A whole number of the query or the path."""
    text = values.get(name, "")
    if not text:
        return default
    if not _WHOLE.fullmatch(text):
        raise InvalidValue(f"{name} must be a whole number", param=name)
    return int(text)


def choice(request: AdminRequest, name: str, known: tuple[str, ...]) -> str:
    """One of ``known``; the first by default."""
    value = request.query.get(name) or known[0]
    if value not in known:
        raise InvalidValue(f"{name} must be one of {', '.join(known)}", param=name)
    return value


def cursor_of(request: AdminRequest) -> tuple[int, ...] | None:
    """The ``cursor`` of the query, as a page gave it; None for the first page."""
    text = request.query.get("cursor", "")
    if not text:
        return None
    if not _CURSOR.fullmatch(text):
        raise bad_cursor()
    numbers = tuple(int(part) for part in text.split("."))
    if any(abs(number) > _BIGGEST for number in numbers):
        raise bad_cursor()
    return numbers


def bad_cursor() -> InvalidValue:
    """It is none that a page of this list gave."""
    return InvalidValue("this cursor is of another list; begin at the first page", param="cursor")


async def read_page(reader: Reader, request: AdminRequest, report: Callable[..., T]) -> T:
    """What ``report`` gives of the page that is asked for, by ``cursor`` and ``limit``."""
    page = partial(report, cursor=cursor_of(request), limit=limit_of(request))
    try:
        return await reader.read(page)
    except ValueError:
        raise bad_cursor() from None


def cursor_text(cursor: tuple[int, ...] | None) -> str | None:
    """What ``cursor_of`` reads."""
    return None if cursor is None else ".".join(map(str, cursor))


def amount_of(document: Mapping[str, Any], *, required: bool) -> Msat | None:
    """``amount_sat`` of a body, in msat; None when it is not there and need not be."""
    value = document.get("amount_sat")
    if value is None and not required:
        return None
    if type(value) is not int or not 0 < value <= MAX_SAT:
        raise InvalidValue("amount_sat must be a whole number of sats above 0", param="amount_sat")
    return Msat(value * MSAT_PER_SAT)


def text_of(document: Mapping[str, Any], name: str, *, most: int, default: str = "") -> str:
    """A text of a body, of at most ``most`` characters."""
    value = document.get(name, default)
    if value is None:
        value = default
    if not isinstance(value, str) or len(value) > most:
        raise InvalidValue(f"{name} must be a text of at most {most} characters", param=name)
    return value
