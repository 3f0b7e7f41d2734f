"""A small CBOR (RFC 8949) reader for text that strangers send.

A general decoder acts on tags: it compiles regular expressions, builds dates and huge
integers, resolves shared references. This one knows plain data only, looks through tags, and
bounds depth and size by the input's length.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

Plain: TypeAlias = (
    "bool | int | float | str | bytes | list[Plain] | dict[str | int | bytes, Plain] | None"
)

_INDEFINITE = 31
_FLOATS = {25: ">e", 26: ">f", 27: ">d"}
_SIMPLE: dict[int, bool | None] = {20: False, 21: True, 22: None, 23: None}


class CborError(ValueError):
    """The bytes are not one complete, plain CBOR item."""


class _Break:
    """The stop code of an item of indefinite length."""


_BREAK = _Break()


def loads(data: bytes, *, max_depth: int = 16) -> Plain:
    """Decode exactly one item. Raises CborError.

    Tags are dropped and their content kept; duplicate map keys are refused.
    """
    reader = _Reader(data, max_depth)
    item = reader.item(0)
    if reader.position != len(data):
        raise CborError("bytes follow the item")
    return item


class _Reader:
    def __init__(self, data: bytes, max_depth: int) -> None:
        self._data = data
        self._max_depth = max_depth
        self.position = 0

    def item(self, depth: int) -> Plain:
        value = self._next(depth)
        if isinstance(value, _Break):
            raise CborError("a stop code where an item belongs")
        return value

    def _next(self, depth: int) -> Plain | _Break:
        if depth > self._max_depth:
            raise CborError("nested too deeply")
        initial = self._take(1)[0]
        major, info = initial >> 5, initial & 0x1F
        match major:
            case 0:
                return self._argument(info)
            case 1:
                return -1 - self._argument(info)
            case 2:
                return self._string(2, info)
            case 3:
                return self._text(self._string(3, info))
            case 4:
                return self._array(info, depth)
            case 5:
                return self._map(info, depth)
            case 6:
                self._argument(info)
                return self.item(depth + 1)
            case _:
                return self._simple(info)

    def _take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise CborError("cut short")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _argument(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise CborError("reserved length")
        return int.from_bytes(self._take(1 << (info - 24)), "big")

    def _string(self, major: int, info: int) -> bytes:
        if info != _INDEFINITE:
            return self._take(self._argument(info))
        parts = []
        while (initial := self._take(1)[0]) != 0xFF:
            if initial >> 5 != major or initial & 0x1F == _INDEFINITE:
                raise CborError("a foreign chunk in a string")
            parts.append(self._take(self._argument(initial & 0x1F)))
        return b"".join(parts)

    @staticmethod
    def _text(raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise CborError("text is not UTF-8") from None

    def _array(self, info: int, depth: int) -> Plain:
        items: list[Plain] = []
        if info != _INDEFINITE:
            for _ in range(self._count(info)):
                items.append(self.item(depth + 1))  # noqa: PERF401 — fails at the first bad item
            return items
        while not isinstance(value := self._next(depth + 1), _Break):
            items.append(value)
        return items

    def _map(self, info: int, depth: int) -> Plain:
        pairs: dict[str | int | bytes, Plain] = {}
        remaining = self._count(info) if info != _INDEFINITE else None
        while remaining != 0:
            key = self._next(depth + 1)
            if isinstance(key, _Break) and remaining is None:
                break
            if not isinstance(key, str | int | bytes) or key in pairs:
                raise CborError("a map key is repeated or of no use")
            pairs[key] = self.item(depth + 1)
            if remaining is not None:
                remaining -= 1
        return pairs

    def _count(self, info: int) -> int:
        count = self._argument(info)
        if count > len(self._data) - self.position:  # every item takes a byte at least
            raise CborError("cut short")
        return count

    def _simple(self, info: int) -> bool | float | _Break | None:
        if info == _INDEFINITE:
            return _BREAK
        if info in _FLOATS:
            value: float = struct.unpack(_FLOATS[info], self._take(1 << (info - 24)))[0]
            return value
        if info in _SIMPLE:
            return _SIMPLE[info]
        raise CborError("unknown simple value")
