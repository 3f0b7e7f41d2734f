"""Fields of wallet requests: read from a JSON body or a query, checked, InvalidValue otherwise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from node.core.exchange import Request
from node.core.keys import RESETS, ChildTerms, Terms
from node.core.money import Msat
from node.errors import InvalidValue
from node.ports import Refunder
from node.service.json_body import json_object

MAX_INTEGER = (1 << 53) - 1
MAX_CHILD_KEYS_AT_ONCE = 50
_DATES = ("validity_date", "key_expiry_time")
_MAX_DIGITS = 16


def body_fields(request: Request) -> dict[str, Any]:
    """The JSON object of the body; an empty body is an empty object."""
    return json_object(request) if request.body.strip() else {}


def text_field(fields: Mapping[str, Any], name: str) -> str | None:
    """A string; None when absent or empty."""
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidValue(f"{name} must be a string", param=name)
    return value or None


def needed(fields: Mapping[str, Any], name: str) -> str:
    """A string that has to be there."""
    value = text_field(fields, name)
    if value is None:
        raise InvalidValue(f"{name} is missing", param=name)
    return value


def integer_field(fields: Mapping[str, Any], name: str) -> int | None:
    """A number from 0 up, in digits when it comes from a query; None when absent."""
    value = fields.get(name)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
        value = int(value)
    if value is None or value == "":
        return None
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise InvalidValue(f"{name} must be an integer from 0 up", param=name)
    return value


def date_field(fields: Mapping[str, Any]) -> int | None:
    """Until when a key is good (unix seconds), under either name the network knows."""
    dates = {name: date for name in _DATES if (date := integer_field(fields, name)) is not None}
    if len(set(dates.values())) > 1:
        raise InvalidValue(f"{' and '.join(_DATES)} are two names of one date", param=_DATES[0])
    for name, date in dates.items():
        if date <= time.time():
            raise InvalidValue(f"{name} must be a time to come, in unix seconds", param=name)
        return date
    return None


def account_terms(fields: Mapping[str, Any], refunder: Refunder | None) -> Terms | None:
    """What an account is to be opened with; None when nothing is asked for.

    Args:
        refunder: pays out over Lightning; None: a refund address could not be honoured.
    """
    for name in ("balance_limit", "balance_limit_reset"):
        if fields.get(name) not in (None, ""):
            raise InvalidValue(
                f"{name} is for child keys; make one with /v1/balance/child-key", param=name
            )
    expires_at = date_field(fields)
    address = text_field(fields, "refund_address")
    if address is not None:
        if refunder is None:
            raise InvalidValue(
                "this node does not refund over Lightning; withdraw a token instead",
                param="refund_address",
            )
        if expires_at is None:
            raise InvalidValue("refund_address needs a validity_date", param="refund_address")
        refunder.check(address)
    return None if expires_at is None else Terms(expires_at, address)


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
