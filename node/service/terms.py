"""The terms on which a key is opened: until when it is good, and who gets what is left.

They come with the request that opens the key, as fields or as the network's headers:

    validity_date or key_expiry_time   Key-Expiry-Time   unix seconds
    refund_address                     Refund-LNURL      Lightning address or LNURL
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from node.core.keys import Terms
from node.errors import InvalidValue
from node.ports import Refunder

EXPIRY_HEADER = "key-expiry-time"
REFUND_HEADER = "refund-lnurl"
MAX_INTEGER = (1 << 53) - 1
_DATES = ("validity_date", "key_expiry_time", EXPIRY_HEADER)
_ADDRESSES = ("refund_address", REFUND_HEADER)
_MAX_DIGITS = 16


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


def text_field(fields: Mapping[str, Any], name: str) -> str | None:
    """A string; None when absent or empty."""
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidValue(f"{name} must be a string", param=name)
    return value or None


def date_field(fields: Mapping[str, Any]) -> int | None:
    """Until when a key is good (unix seconds), under any name the network knows."""
    dates = {name: date for name in _DATES if (date := integer_field(fields, name)) is not None}
    for name, date in dates.items():
        if len(set(dates.values())) > 1:
            raise InvalidValue(f"{' and '.join(dates)} are names of one date", param=name)
        if date <= time.time():
            raise InvalidValue(f"{name} must be a time to come, in unix seconds", param=name)
        return date
    return None


def account_terms(
    fields: Mapping[str, Any], headers: Mapping[str, str], refunder: Refunder | None
) -> Terms | None:
    """What an account is to be opened with; None when nothing is asked for.

    Args:
        fields: of the body or the query.
        headers: with lower-case names.
        refunder: pays out over Lightning; None: a refund address could not be honoured.

    Raises InvalidValue.
    """
    given = {
        **{name: fields[name] for name in (*_DATES, *_ADDRESSES) if name in fields},
        **{n: headers[n].strip() for n in (EXPIRY_HEADER, REFUND_HEADER) if n in headers},
    }
    expires_at = date_field(given)
    addresses = {name: text for name in _ADDRESSES if (text := text_field(given, name))}
    for name, address in addresses.items():
        if len(set(addresses.values())) > 1:
            raise InvalidValue(f"{' and '.join(addresses)} are names of one address", param=name)
        if refunder is None:
            raise InvalidValue(
                "this node does not refund over Lightning; withdraw a token instead", param=name
            )
        if expires_at is None:
            raise InvalidValue(f"{name} needs a date on which the key expires", param=name)
        refunder.check(address)
        return Terms(expires_at, address)
    return None if expires_at is None else Terms(expires_at)
