"""Fields of wallet requests: read from a JSON body or a query, checked, InvalidValue otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.core.exchange import Request
from node.core.keys import RESETS, ChildTerms, Terms
from node.core.money import Msat
from node.errors import InvalidValue
from node.ports import Refunder
from node.service.json_body import json_object
from node.service.terms import account_terms, date_field, integer_field, text_field

MAX_CHILD_KEYS_AT_ONCE = 50


def body_fields(request: Request) -> dict[str, Any]:
    """The JSON object of the body; an empty body is an empty object."""
    return json_object(request) if request.body.strip() else {}


def needed(fields: Mapping[str, Any], name: str) -> str:
    """A string that has to be there."""
    value = text_field(fields, name)
    if value is None:
        raise InvalidValue(f"{name} is missing", param=name)
    return value


def new_account_terms(
    request: Request, fields: Mapping[str, Any], refunder: Refunder | None
) -> Terms | None:
    """What an account is to be opened with; see ``node.service.terms.account_terms``."""
    for name in ("balance_limit", "balance_limit_reset"):
        if fields.get(name) not in (None, ""):
            raise InvalidValue(
                f"{name} is for child keys; make one with /v1/balance/child-key", param=name
            )
    return account_terms(fields, request.headers, refunder)


def child_request(fields: Mapping[str, Any]) -> tuple[int, ChildTerms]:
    """How many child keys, and on which terms."""
    count = integer_field(fields, "count")
    if count is None or not 1 <= count <= MAX_CHILD_KEYS_AT_ONCE:
        raise InvalidValue(
            f"count must be a number from 1 to {MAX_CHILD_KEYS_AT_ONCE}", param="count"
        )
    limit = integer_field(fields, "balance_limit")
    reset = text_field(fields, "balance_limit_reset")
    for known in RESETS:
        if reset == known:
            return count, ChildTerms(_msat(limit), known, date_field(fields))
    if reset is not None:
        raise InvalidValue(
            f"balance_limit_reset must be one of {', '.join(RESETS)}", param="balance_limit_reset"
        )
    return count, ChildTerms(_msat(limit), None, date_field(fields))


def _msat(amount: int | None) -> Msat | None:
    return None if amount is None else Msat(amount)
