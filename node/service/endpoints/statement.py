"""``/v1/wallet/transactions``: the query, the cursor and the lines as JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import orjson

from node.core.money import MSAT_PER_SAT
from node.core.transactions import Page, Position, Transaction
from node.errors import InvalidValue

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
_MAX_CURSOR_CHARS = 100
_MAX_ID = 1 << 62


def page_query(query: Mapping[str, str]) -> tuple[int, Position | None]:
    """``limit`` and ``cursor`` of a query. Raises InvalidValue."""
    text = query.get("limit") or str(DEFAULT_LIMIT)
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidValue(f"limit must be a number from 1 to {MAX_LIMIT}", param="limit")
    cursor = query.get("cursor")
    return limit, _decode(cursor) if cursor else None


def page_document(page: Page, *, tokens: bool) -> dict[str, Any]:
    """The answer. ``tokens``: whether the client may have those that were issued."""
    return {
        "object": "list",
        "transactions": [_line(line, tokens=tokens) for line in page.lines],
        "next_cursor": None if page.next is None else _encode(page.next),
    }


def _line(line: Transaction, *, tokens: bool) -> dict[str, Any]:
    sats = abs(line.amount) // MSAT_PER_SAT
    document: dict[str, Any] = {
        "id": line.id,
        "type": line.type,
        "state": line.state,
        "amount": sats if line.amount >= 0 else -sats,
        "amount_msat": line.amount,
        "currency": "sat",
        "created_at": line.created_at,
    }
    optional = {
        "request_id": line.request_id,
        "model": line.model,
        "prompt_tokens": line.prompt_tokens,
        "completion_tokens": line.completion_tokens,
        "mint": line.mint,
        "token": line.token if tokens else None,
    }
    return document | {name: value for name, value in optional.items() if value is not None}


def _encode(position: Position) -> str:
    fields = [position.id] if position.moment is None else [position.id, position.moment]
    return base64.urlsafe_b64encode(orjson.dumps(fields)).rstrip(b"=").decode()


def _decode(text: str) -> Position:
    try:
        if len(text) > _MAX_CURSOR_CHARS:
            raise ValueError
        fields = orjson.loads(base64.urlsafe_b64decode(text.encode("ascii") + b"=="))
        if not isinstance(fields, list) or len(fields) not in (1, 2):
            raise ValueError
        if any(type(field) is not int or not 0 <= field <= _MAX_ID for field in fields):
            raise ValueError
    except ValueError:
        raise InvalidValue("cursor is not one this endpoint gave out", param="cursor") from None
    return Position(*fields)
