"""How many packets of sound a container can hold, so that nobody need believe what it says of
its length.

Each function looks at what a decoder must look at too, and gives None for what it cannot vouch
for: other codecs, files in pieces, anything odd.
"""

from __future__ import annotations

AAC_PACKET_MS = 279
"""2,048 samples at the lowest rate that decoders take, 7,350 Hz."""
OPUS_PACKET_MS = 120

_MAX_PAGES = 100_000
_MAX_TABLES = 64
_MAX_ELEMENTS = 200_000

_MP4_CODECS = frozenset({b"mp4a", b"Opus", b"avc1", b"hvc1", b"hev1", b"mp4v", b"av01", b"vp09"})

_MASTERS = frozenset({0x18538067, 0x1F43B675, 0xA0, 0x1654AE6B, 0xAE})
"""Segment, cluster, group of blocks, tracks, track: what is inside of them counts."""
_SIMPLE_BLOCK, _BLOCK, _CODEC = 0xA3, 0xA1, 0x86


def ogg_most_ms(data: bytes) -> int | None:
    """Every packet at its longest, when all of the file is pages of Opus."""
    if b"OpusHead" not in data[:512]:
        return None
    position = packets = 0
    for _ in range(_MAX_PAGES):
        if position >= len(data):
            return packets * OPUS_PACKET_MS
        segments = data[position + 26] if position + 27 <= len(data) else 0
        body = position + 27 + segments
        table = data[position + 27 : body]
        if data[position : position + 4] != b"OggS" or len(table) != segments:
            return None
        if data[position + 5] & 2 and data[body : body + 8] != b"OpusHead":
            return None  # another stream, of another codec, begins here
        packets += segments - table.count(b"\xff")
        position = body + sum(table)
    return None


def mp4_most_ms(data: bytes) -> int | None:
    """Every sample of every table at its longest.

    The tables are looked for by name, wherever they are: one that is no table only adds.
    """
    if any(name in data for name in (b"moof", b"cmov", b"stz2")):
        return None
    codecs = [data[at + 16 : at + 20] for at in _all(data, b"stsd")]
    sizes = [at + 16 for at in _all(data, b"stsz")]
    if not codecs or not sizes or max(len(codecs), len(sizes)) > _MAX_TABLES:
        return None
    if not _MP4_CODECS.issuperset(codecs):
        return None
    if any(data[at + 8 : at + 12] != b"\0\0\0\1" for at in _all(data, b"stsd")):
        return None  # several formats in a track
    samples = sum(int.from_bytes(data[at - 4 : at], "big") for at in sizes)
    return samples * AAC_PACKET_MS


def _all(data: bytes, name: bytes) -> list[int]:
    """Where ``name`` is found; one more than _MAX_TABLES at most."""
    found: list[int] = []
    at = data.find(name)
    while at >= 0 and len(found) <= _MAX_TABLES:
        found.append(at)
        at = data.find(name, at + 1)
    return found


def webm_most_ms(data: bytes) -> int | None:
    """Every frame at its longest, when all sound is Opus and every element is where it should
    be."""
    position = frames = 0
    opus = False
    for _ in range(_MAX_ELEMENTS):
        if position == len(data):
            return frames * OPUS_PACKET_MS if opus else None
        name, name_bytes = _ebml(data, position, keep_marker=True)
        size, size_bytes = _ebml(data, position + name_bytes, keep_marker=False)
        if not name_bytes or not size_bytes:
            return None
        position += name_bytes + size_bytes
        if name in _MASTERS:
            continue
        if size < 0 or position + size > len(data):
            return None
        if name in (_SIMPLE_BLOCK, _BLOCK):
            _, track_bytes = _ebml(data, position, keep_marker=False)
            flags = position + track_bytes + 2
            if not track_bytes or flags >= position + size:
                return None
            laced = data[flags] & 0x06
            frames += 1 + (data[flags + 1] if laced and flags + 1 < len(data) else 0)
        elif name == _CODEC:
            codec = data[position : position + size]
            if codec != b"A_OPUS" and not codec.startswith(b"V_"):
                return None
            opus = opus or codec == b"A_OPUS"
        position += size
    return None


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
