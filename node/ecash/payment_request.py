"""Payment requests as a 402 answer carries them (NUT-24): ``creqA`` (NUT-18), ``creqB`` (NUT-26).

Only what a payment in band needs: amount, unit, mints, lock. A reader skips the rest. Both forms
say the same; a wallet has to read both.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, TypeAlias

import cbor2

from node.ecash import cbor

Format: TypeAlias = Literal["creqA", "creqB"]

MAX_REQUEST_CHARS = 16_384
"""A reader takes no longer request."""

_HRP = "creqb"
_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES = {char: value for value, char in enumerate(_CHARSET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_BECH32M = 0x2BC830A3
_CHECKSUM_CHARS = 6
_U64 = 1 << 64

_AMOUNT, _UNIT, _MINT, _NUT10 = 0x02, 0x03, 0x05, 0x08
_KIND, _DATA, _TAG = 0x01, 0x02, 0x03
_KINDS = ("P2PK", "HTLC")
_SAT = b"\0"


class BadRequest(ValueError):
    """The text is not a payment request."""


@dataclass(frozen=True, slots=True)
class LockOption:
    """The NUT-10 condition that the coins must have."""

    kind: str
    data: str
    tags: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class PaymentRequest:
    """Asks for a token worth ``amount`` of ``unit``, from one of ``mints``."""

    amount: int | None
    unit: str | None
    mints: tuple[str, ...]
    lock: LockOption | None = None

    def encode(self, format_: Format = "creqA") -> str:
        """As text. Raises BadRequest for what the format cannot carry."""
        return self._creq_a() if format_ == "creqA" else self._creq_b()

    @classmethod
    def decode(cls, text: str) -> PaymentRequest:
        """Read either form. Raises BadRequest and nothing else."""
        if len(text) > MAX_REQUEST_CHARS:
            raise BadRequest("the payment request is too long")
        bare = text.strip()
        try:
            if bare.lower().startswith(_HRP + "1"):
                return _from_tlv(_bech32m_decode(bare))
            if bare[:5].lower() == "creqa":
                return _from_map(cbor.loads(_base64_decode(bare[5:])))
        except (cbor.CborError, UnicodeDecodeError, binascii.Error):
            raise BadRequest("the payment request is damaged") from None
        raise BadRequest("a payment request begins with creqA or CREQB1")

    def _creq_a(self) -> str:
        document: dict[str, Any] = {}
        if self.amount is not None:
            document["a"] = self.amount
        if self.unit is not None:
            document["u"] = self.unit
        if self.mints:
            document["m"] = list(self.mints)
        if self.lock is not None:
            document["nut10"] = {"k": self.lock.kind, "d": self.lock.data}
            if self.lock.tags:
                document["nut10"]["t"] = [list(tag) for tag in self.lock.tags]
        return "creqA" + base64.urlsafe_b64encode(cbor2.dumps(document)).decode().rstrip("=")

    def _creq_b(self) -> str:
        raw = b""
        if self.amount is not None:
            if not 0 <= self.amount < _U64:
                raise BadRequest("the amount does not fit")
            raw += _entry(_AMOUNT, self.amount.to_bytes(8, "big"))
        if self.unit is not None:
            raw += _entry(_UNIT, _SAT if self.unit == "sat" else self.unit.encode())
        for mint in self.mints:
            raw += _entry(_MINT, mint.encode())
        if self.lock is not None:
            raw += _entry(_NUT10, _lock_tlv(self.lock))
        return _bech32m_encode(raw).upper()


# -- creqA -----------------------------------------------------------------------------------


def _base64_decode(text: str) -> bytes:
    bare = text.rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)


def _from_map(document: object) -> PaymentRequest:
    _require(isinstance(document, dict))
    fields: dict[Any, Any] = document  # type: ignore[assignment]
    amount, unit, mints = fields.get("a"), fields.get("u"), fields.get("m")
    _require(amount is None or (type(amount) is int and 0 <= amount < _U64))
    _require(unit is None or isinstance(unit, str))
    mints = [] if mints is None else mints
    _require(isinstance(mints, list) and all(isinstance(mint, str) for mint in mints))
    lock = fields.get("nut10")
    return PaymentRequest(amount, unit, tuple(mints), None if lock is None else _option(lock))


def _option(value: object) -> LockOption:
    _require(isinstance(value, dict))
    fields: dict[Any, Any] = value  # type: ignore[assignment]
    kind, data, tags = fields.get("k"), fields.get("d"), fields.get("t")
    tags = [] if tags is None else tags
    _require(isinstance(kind, str) and isinstance(data, str) and isinstance(tags, list))
    for tag in tags:
        _require(isinstance(tag, list) and bool(tag) and all(isinstance(t, str) for t in tag))
    return LockOption(str(kind), str(data), tuple(map(tuple, tags)))


# -- creqB -----------------------------------------------------------------------------------


def _lock_tlv(lock: LockOption) -> bytes:
    if lock.kind not in _KINDS:
        raise BadRequest("creqB has no number for that kind of lock")
    raw = _entry(_KIND, bytes([_KINDS.index(lock.kind)])) + _entry(_DATA, lock.data.encode())
    for tag in lock.tags:
        parts = [part.encode() for part in tag]
        if any(len(part) > 255 for part in parts):
            raise BadRequest("a tag of the lock is too long")
        raw += _entry(_TAG, b"".join(bytes([len(part)]) + part for part in parts))
    return raw


def _entry(type_: int, value: bytes) -> bytes:
    if len(value) > 0xFFFF:
        raise BadRequest("a field of the payment request is too long")
    return bytes([type_]) + len(value).to_bytes(2, "big") + value


def _entries(raw: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(raw):
        start = position + 3
        _require(start <= len(raw))
        end = start + int.from_bytes(raw[position + 1 : start], "big")
        _require(end <= len(raw))
        yield raw[position], raw[start:end]
        position = end


def _from_tlv(raw: bytes) -> PaymentRequest:
    amount: int | None = None
    unit: str | None = None
    mints: list[str] = []
    lock: LockOption | None = None
    for type_, value in _entries(raw):
        if type_ == _AMOUNT:
            _require(len(value) == 8)
            amount = int.from_bytes(value, "big")
        elif type_ == _UNIT:
            unit = "sat" if value == _SAT else value.decode()
        elif type_ == _MINT:
            mints.append(value.decode())
        elif type_ == _NUT10:
            lock = _lock_from_tlv(value)
    return PaymentRequest(amount, unit, tuple(mints), lock)


def _lock_from_tlv(raw: bytes) -> LockOption:
    kind, data = None, ""
    tags: list[tuple[str, ...]] = []
    for type_, value in _entries(raw):
        if type_ == _KIND:
            _require(len(value) == 1)
            kind = _KINDS[value[0]] if value[0] < len(_KINDS) else str(value[0])
        elif type_ == _DATA:
            data = value.decode()
        elif type_ == _TAG:
            tags.append(_tag(value))
    _require(kind is not None)
    return LockOption(str(kind), data, tuple(tags))


def _tag(raw: bytes) -> tuple[str, ...]:
    parts = []
    position = 0
    while position < len(raw):
        end = position + 1 + raw[position]
        _require(end <= len(raw))
        parts.append(raw[position + 1 : end].decode())
        position = end
    _require(bool(parts))
    return tuple(parts)


def _require(condition: bool) -> None:
    if not condition:
        raise BadRequest("the payment request does not have the right shape")


# -- bech32m (BIP-350, without its limit of length) --------------------------------------------


def _polymod(values: list[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATOR):
            check ^= generator if top >> bit & 1 else 0
    return check


_EXPANDED_HRP = [ord(char) >> 5 for char in _HRP] + [0] + [ord(char) & 31 for char in _HRP]


def _bech32m_encode(raw: bytes) -> str:
    bits = "".join(f"{byte:08b}" for byte in raw)
    words = [int("".join(group), 2) for group in zip_longest(*[iter(bits)] * 5, fillvalue="0")]
    check = _polymod(_EXPANDED_HRP + words + [0] * _CHECKSUM_CHARS) ^ _BECH32M
    words += [check >> 5 * (_CHECKSUM_CHARS - 1 - index) & 31 for index in range(_CHECKSUM_CHARS)]
    return f"{_HRP}1" + "".join(_CHARSET[word] for word in words)


def _bech32m_decode(text: str) -> bytes:
    """The bytes after ``creqb1``. Raises BadRequest."""
    if text not in (text.lower(), text.upper()):
        raise BadRequest("the payment request mixes upper and lower case")
    words = [_VALUES.get(char, -1) for char in text.lower()[len(_HRP) + 1 :]]
    _require(len(words) >= _CHECKSUM_CHARS and -1 not in words)
    if _polymod(_EXPANDED_HRP + words) != _BECH32M:
        raise BadRequest("the payment request's checksum is wrong")
    bits = "".join(f"{word:05b}" for word in words[:-_CHECKSUM_CHARS])
    padding = len(bits) % 8
    _require(padding < 5 and "1" not in bits[len(bits) - padding :])
    return bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits) - padding, 8))
