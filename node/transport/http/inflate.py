"""Compressed request bodies, each encoding behind one small interface; bounded at every step.

A body is one whole stream: gzip (RFC 1952), deflate (RFC 1950, 1951), br (RFC 7932) or zstd
(RFC 8878, windows of up to 8 MiB as it recommends). Checksums are verified where there are any.
"""

from __future__ import annotations

import zlib
from typing import Protocol

import brotli
from backports import zstd

from node.errors import InvalidValue

ENCODINGS = frozenset({"gzip", "deflate", "br", "zstd"})
OUT_BYTES = 1 << 20
"""About what one step gives at most."""
_ZSTD_WINDOW_LOG = 23


class Inflater(Protocol):
    """Decompresses one stream step by step."""

    @property
    def ended(self) -> bool:
        """The stream is whole."""
        ...

    @property
    def excess(self) -> bool:
        """Something followed it."""
        ...

    @property
    def hungry(self) -> bool:
        """No more comes out before more is fed."""
        ...

    def feed(self, data: bytes) -> bytes:
        """At most about ``OUT_BYTES`` of what is in ``data`` and what was fed before; feed nothing
        for the rest until it is hungry. Raises InvalidValue."""
        ...


def inflater(encoding: str, first_byte: int) -> Inflater:
    """For a body of one of ``ENCODINGS`` that begins with ``first_byte``."""
    match encoding:
        case "br":
            return _Brotli()
        case "zstd":
            return _Zstd()
        case "gzip":
            return _Zlib(16 + zlib.MAX_WBITS)
    # some clients leave the header of RFC 1950 out
    return _Zlib(zlib.MAX_WBITS if first_byte & 0x0F == 8 else -zlib.MAX_WBITS)


def _broken() -> InvalidValue:
    return InvalidValue("the body cannot be decompressed")


class _Zlib:
    def __init__(self, window_bits: int) -> None:
        self._stream = zlib.decompressobj(window_bits)
        self._full = False

    @property
    def ended(self) -> bool:
        return self._stream.eof

    @property
    def excess(self) -> bool:
        return bool(self._stream.unused_data)

    @property
    def hungry(self) -> bool:
        return self.ended or not (self._stream.unconsumed_tail or self._full)

    def feed(self, data: bytes) -> bytes:
        try:
            piece = self._stream.decompress(self._stream.unconsumed_tail + data, OUT_BYTES)
        except zlib.error:
            raise _broken() from None
        self._full = len(piece) == OUT_BYTES
        return piece


class _Brotli:
    def __init__(self) -> None:
        self._stream = brotli.Decompressor()
        self.excess = False

    @property
    def ended(self) -> bool:
        return bool(self._stream.is_finished())

    @property
    def hungry(self) -> bool:
        return self.ended or bool(self._stream.can_accept_more_data())

    def feed(self, data: bytes) -> bytes:
        if data and self.ended:
            self.excess = True
            return b""
        try:
            return bytes(self._stream.process(data, output_buffer_limit=OUT_BYTES))
        except brotli.error:  # what follows a whole stream is one, too
            raise _broken() from None


class _Zstd:
    def __init__(self) -> None:
        self._stream = zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        )
        self._late = False

    @property
    def ended(self) -> bool:
        return self._stream.eof

    @property
    def excess(self) -> bool:
        return self._late or bool(self._stream.unused_data)

    @property
    def hungry(self) -> bool:
        return self.ended or self._stream.needs_input

    def feed(self, data: bytes) -> bytes:
        if self._stream.eof:
            self._late = self._late or bool(data)
            return b""
        try:
            return self._stream.decompress(data, OUT_BYTES)
        except zstd.ZstdError:
            raise _broken() from None
