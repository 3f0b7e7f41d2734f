"""Reads what a mint answers (NUT-01 to 05, 07 to 09, 12, 23), trusting nothing of it.

Every reader takes the decoded JSON object and raises MintUnknown for a wrong shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from node.core.ecash import BlindedMessage, BlindSignature, Dleq, Keyset
from node.ecash.crypto import is_keyset_id, is_point, is_scalar
from node.ecash.errors import MintUnknown
from node.ecash.token import AMOUNT_LIMIT

State = Literal["UNSPENT", "PENDING", "SPENT"]
QuoteState = Literal["UNPAID", "PAID", "ISSUED"]
MeltState = Literal["UNPAID", "PENDING", "PAID"]

_STATES = frozenset({"UNSPENT", "PENDING", "SPENT"})
_QUOTE_STATES = frozenset({"UNPAID", "PAID", "ISSUED"})
_MELT_STATES = frozenset({"UNPAID", "PENDING", "PAID"})
_QUOTE_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")
_AMOUNT_KEY = re.compile(r"[1-9][0-9]{0,19}")
_MAX_KEYS = 256
_MAX_UNIT_CHARS = 32
_MAX_INVOICE_CHARS = 8192


@dataclass(frozen=True, slots=True)
class MintQuote:
    """A request to mint (NUT-04, NUT-23)."""

    quote: str = field(repr=False)
    """Who knows it can take the ecash."""
    request: str
    """The bolt11 invoice to pay."""
    state: QuoteState
    expiry: int | None = None
    """Unix time until which it can be paid; None when the mint does not say."""


@dataclass(frozen=True, slots=True)
class MeltQuote:
    """A request to pay an invoice (NUT-05, NUT-23), or how far that has come."""

    quote: str = field(repr=False)
    amount: int
    """What the invoice costs, in the quote's unit."""
    fee_reserve: int
    """The most that Lightning may cost on top."""
    state: MeltState
    expiry: int | None = None
    change: tuple[BlindSignature, ...] | None = None
    """NUT-08: overpaid fees, signed onto the first of our blanks; None when nothing is said."""


def _require(condition: bool) -> None:
    if not condition:
        raise MintUnknown("the mint's answer does not have the right shape")


def _items(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    items = document.get(name)
    _require(isinstance(items, list) and all(isinstance(item, dict) for item in items))
    return cast("list[dict[str, Any]]", items)


def read_listing(document: Mapping[str, Any]) -> list[tuple[Keyset, int | None]]:
    """Keysets without keys, each with its final expiry in Unix time (NUT-02).

    Keysets with ids of before 2024 are left out: nothing here can use them.
    """
    listing: dict[str, tuple[Keyset, int | None]] = {}
    for entry in _items(document, "keysets"):
        keyset_id, unit, active = entry.get("id"), entry.get("unit"), entry.get("active")
        fee, expiry = entry.get("input_fee_ppk"), entry.get("final_expiry")
        _require(isinstance(keyset_id, str))
        if not is_keyset_id(str(keyset_id)):
            continue
        _require(isinstance(unit, str) and 0 < len(unit) <= _MAX_UNIT_CHARS)
        _require(isinstance(active, bool) and keyset_id not in listing)
        _require(fee is None or (type(fee) is int and 0 <= fee < AMOUNT_LIMIT))
        _require(expiry is None or (type(expiry) is int and expiry >= 0))
        keyset = Keyset(str(keyset_id), str(unit), bool(active), fee or 0, {})
        listing[keyset.id] = keyset, expiry
    return list(listing.values())


def read_keys(document: Mapping[str, Any], keyset_id: str) -> dict[int, str]:
    """Amount → public key of one keyset, ascending (NUT-01)."""
    found = [entry for entry in _items(document, "keysets") if entry.get("id") == keyset_id]
    _require(len(found) == 1)
    value = found[0].get("keys")
    _require(isinstance(value, dict) and 0 < len(value) <= _MAX_KEYS)
    keys = {}
    for amount, key in cast("dict[str, Any]", value).items():
        _require(_AMOUNT_KEY.fullmatch(amount) is not None)
        _require(isinstance(key, str) and is_point(key.lower()))
        keys[int(amount)] = str(key).lower()
    return dict(sorted(keys.items()))


def _signature(entry: Mapping[str, Any]) -> BlindSignature:
    amount, keyset_id, c_ = entry.get("amount"), entry.get("id"), entry.get("C_")
    _require(type(amount) is int and 0 < amount < AMOUNT_LIMIT)
    _require(isinstance(keyset_id, str) and is_keyset_id(keyset_id))
    _require(isinstance(c_, str) and is_point(c_.lower()))
    dleq = _dleq(entry.get("dleq"))
    return BlindSignature(cast("int", amount), str(keyset_id), str(c_).lower(), dleq)


def _dleq(value: object) -> Dleq | None:
    if value is None:
        return None
    _require(isinstance(value, dict))
    fields = cast("dict[str, Any]", value)
    e, s = fields.get("e"), fields.get("s")
    _require(isinstance(e, str) and is_scalar(e.lower()))
    _require(isinstance(s, str) and is_scalar(s.lower()))
    return Dleq(str(e).lower(), str(s).lower())


def read_signatures(
    document: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]]
) -> list[BlindSignature]:
    """One signature per output of the request, in its order, of its amount and keyset."""
    signatures = [_signature(entry) for entry in _items(document, "signatures")]
    asked = [(output["amount"], output["id"]) for output in outputs]
    _require([(signature.amount, signature.keyset_id) for signature in signatures] == asked)
    return signatures


def read_states(document: Mapping[str, Any], ys: Sequence[str]) -> list[State]:
    """One state per ``Y`` asked for, in that order (NUT-07)."""
    by_y: dict[str, State] = {}
    for entry in _items(document, "states"):
        y, state = entry.get("Y"), entry.get("state")
        _require(isinstance(y, str) and isinstance(state, str) and y.lower() not in by_y)
        _require(state in _STATES)
        by_y[str(y).lower()] = cast("State", state)
    _require(by_y.keys() == set(ys))
    return [by_y[y] for y in ys]


def read_restored(
    document: Mapping[str, Any], outputs: Sequence[BlindedMessage]
) -> list[tuple[BlindedMessage, BlindSignature]]:
    """Those of ``outputs`` that came back signed (NUT-09)."""
    asked = {message.b_: message for message in outputs}
    echoed, signatures = _items(document, "outputs"), _items(document, "signatures")
    _require(len(echoed) == len(signatures))
    pairs = []
    for echo, entry in zip(echoed, signatures, strict=True):
        b_, signature = echo.get("B_"), _signature(entry)
        _require(isinstance(b_, str) and b_.lower() in asked)
        message = asked.pop(str(b_).lower())
        _require(signature.keyset_id == message.keyset_id)
        pairs.append((message, signature))
    return pairs


def read_quote(document: Mapping[str, Any]) -> MintQuote:
    """A bolt11 mint quote (NUT-23)."""
    quote, request = document.get("quote"), document.get("request")
    state = document.get("state")
    _require(isinstance(quote, str) and _QUOTE_ID.fullmatch(quote) is not None)
    _require(isinstance(request, str) and 0 < len(request) <= _MAX_INVOICE_CHARS)
    _require(isinstance(state, str) and state in _QUOTE_STATES)
    expiry = _expiry(document)
    return MintQuote(str(quote), str(request), cast("QuoteState", state), expiry)


def read_melt_quote(document: Mapping[str, Any]) -> MeltQuote:
    """A bolt11 melt quote, or the answer to its melt (NUT-05, NUT-08, NUT-23)."""
    quote, amount, reserve = (document.get(n) for n in ("quote", "amount", "fee_reserve"))
    state = document.get("state")
    _require(isinstance(quote, str) and _QUOTE_ID.fullmatch(quote) is not None)
    _require(type(amount) is int and 0 < amount < AMOUNT_LIMIT)
    _require(type(reserve) is int and 0 <= reserve < AMOUNT_LIMIT)
    _require(isinstance(state, str) and state in _MELT_STATES)
    change = None
    if document.get("change") is not None:
        change = tuple(_signature(entry) for entry in _items(document, "change"))
    return MeltQuote(
        str(quote),
        cast("int", amount),
        cast("int", reserve),
        cast("MeltState", state),
        _expiry(document),
        change,
    )


def _expiry(document: Mapping[str, Any]) -> int | None:
    """Unix seconds; 0 stands for none, as some mints write it."""
    expiry = document.get("expiry")
    _require(expiry is None or (type(expiry) is int and 0 <= expiry < AMOUNT_LIMIT))
    return cast("int | None", expiry or None)
