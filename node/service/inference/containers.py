"""How long the sound in a container is: what a decoder finds in it, and the most it can be.

Each function looks at what a decoder must look at too, and gives None for what it cannot vouch
for: other codecs, files in pieces, anything odd.
"""

from __future__ import annotations

from dataclasses import dataclass

OPUS_PACKET_MS = 120

_MAX_PAGES = 100_000
_MAX_PACKETS = 1_500_000
_MAX_ELEMENTS = 200_000

_MASTERS = frozenset({0x18538067, 0x1F43B675, 0xA0, 0x1654AE6B, 0xAE})
"""Segment, cluster, group of blocks, tracks, track: what is inside of them counts."""
_TRACK, _NUMBER, _CODEC, _ENCODINGS = 0xAE, 0xD7, 0x86, 0x6D80
_SIMPLE_BLOCK, _BLOCK = 0xA3, 0xA1


@dataclass(frozen=True, slots=True)
class Sound:
    """Milliseconds; None where nobody can tell from the file."""

    real_ms: int | None = None
    most_ms: int | None = None


def _opus_packets() -> tuple[int, ...]:
    """By the first byte of a packet: its length in units of 2.5 ms. Negative: of one frame, and
    the second byte has their number (RFC 6716, section 3)."""
    lengths = []
    for first in range(256):
        config = first >> 3
        if config < 12:
            units = (4, 8, 16, 24)[config & 3]
        elif config < 16:
            units = (4, 8)[config & 1]
        else:
            units = (1, 2, 4, 8)[config & 3]
        lengths.append((units, 2 * units, 2 * units, -units)[first & 3])
    return tuple(lengths)


_OPUS = _opus_packets()
_OPUS_LONGEST = 48


def _opus_units(data: bytes, at: int, end: int) -> int:
    """The length of a packet in units of 2.5 ms; one without a byte may be filled in."""
    if at >= end:
        return _OPUS_LONGEST
    units = _OPUS[data[at]]
    if units < 0:
        units *= -(data[at + 1] & 63) if at + 1 < end else -1
    return min(units, _OPUS_LONGEST)


def ogg(data: bytes) -> Sound:
    """Opus: its packets. Vorbis: the position of the last page, as far as the packets can be that
    long."""
    head = data[:512]
    kind = b"OpusHead" if b"OpusHead" in head else b"\x01vorbis"
    if kind not in head:
        return Sound()
    position = packets = units = last = 0
    continued: dict[bytes, bool] = {}
    whole = True
    for _ in range(_MAX_PAGES):
        if position >= len(data):
            break
        segments = data[position + 26] if position + 27 <= len(data) else 0
        body = position + 27 + segments
        table = data[position + 27 : body]
        if data[position : position + 4] != b"OggS" or len(table) != segments:
            return Sound()
        flags, serial = data[position + 5], data[position + 14 : position + 18]
        if flags & 2 and data[body : body + len(kind)] != kind:
            return Sound()  # another stream, of another codec, begins here
        packets += segments - table.count(b"\xff")
        last = max(last, int.from_bytes(data[position + 6 : position + 14], "little", signed=True))
        inside = continued.get(serial, False)
        if flags & 1 and not inside:
            whole = False
        inside = inside and bool(flags & 1)
        at = body
        if packets <= _MAX_PACKETS and kind == b"OpusHead":
            for size in table:
                if not inside and data[at : at + 4] != b"Opus":
                    units += _opus_units(data, at, min(at + size, len(data)))
                inside = size == 255
                at += size
        elif segments:
            inside = table[-1] == 255
        continued[serial] = inside
        position = body + sum(table)
    else:
        return Sound()
    if kind == b"\x01vorbis":
        return _vorbis(head, packets, last)
    real = -(-units * 5 // 2) if whole and packets <= _MAX_PACKETS else None
    return Sound(real, packets * OPUS_PACKET_MS)


def _vorbis(head: bytes, packets: int, position: int) -> Sound:
    """Packets are of two lengths, and most are of the longer one."""
    at = head.find(b"\x01vorbis")
    if at + 29 > len(head):
        return Sound()
    rate, longest = int.from_bytes(head[at + 12 : at + 16], "little"), 1 << (head[at + 28] >> 4)
    if not rate or not 64 <= longest <= 8192:
        return Sound()
    most = -(-packets * longest * 500 // rate)
    return Sound(min(max(position * 1000 // rate, most // 2), most), most)


def webm(data: bytes) -> Sound:
    """Every frame, when all sound is Opus and every element is where it should be."""
    position = frames = units = 0
    entries: list[dict[int, bytes]] = []
    codecs: dict[bytes, bytes] | None = None
    whole = True
    for _ in range(_MAX_ELEMENTS):
        if position == len(data):
            break
        name, name_bytes = _ebml(data, position, keep_marker=True)
        size, size_bytes = _ebml(data, position + name_bytes, keep_marker=False)
        if not name_bytes or not size_bytes:
            return Sound()
        position += name_bytes + size_bytes
        if name in _MASTERS:
            if name == _TRACK:
                entries.append({})
                whole = whole and codecs is None
            continue
        if size < 0 or position + size > len(data):
            return Sound()
        if name in (_SIMPLE_BLOCK, _BLOCK):
            if codecs is None:
                codecs = {e.get(_NUMBER, b""): e.get(_CODEC, b"") for e in entries}
                whole = whole and len(codecs) == len(entries) and b"" not in codecs
            _, track_bytes = _ebml(data, position, keep_marker=False)
            flags = position + track_bytes + 2
            if not track_bytes or flags >= position + size:
                return Sound()
            laced = data[flags] & 0x06
            count = 1 + (data[flags + 1] if laced and flags + 1 < len(data) else 0)
            frames += count
            track = _ebml(data, position, keep_marker=False)[0]
            if not codecs.get(_number(track), b"").startswith(b"V_"):
                one = _opus_units(data, flags + 1, position + size)
                units += count * _OPUS_LONGEST if laced else one
        elif name in (_NUMBER, _CODEC):
            value = data[position : position + size]
            if name == _CODEC and value != b"A_OPUS" and not value.startswith(b"V_"):
                return Sound()
            if not entries or name in entries[-1]:
                return Sound()
            entries[-1][name] = value.lstrip(b"\0") if name == _NUMBER else value
        elif name == _ENCODINGS:
            whole = False  # frames are not stored as they are
        position += size
    else:
        return Sound()
    if b"A_OPUS" not in [entry.get(_CODEC) for entry in entries]:
        return Sound()
    return Sound(-(-units * 5 // 2) if whole else None, frames * OPUS_PACKET_MS)


def _number(track: int) -> bytes:
    return track.to_bytes(8, "big").lstrip(b"\0")


def _ebml(data: bytes, at: int, *, keep_marker: bool) -> tuple[int, int]:
    """(value, bytes) of a number of Matroska; -1 for a size that is not known, 0 bytes for
    none."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    if length > 8 or at + length > len(data):
        return 0, 0
    value = int.from_bytes(data[at : at + length], "big")
    if keep_marker:
        return value, length
    value &= (1 << 7 * length) - 1
    return (-1 if value == (1 << 7 * length) - 1 else value), length
