"""How long the sound in an MP4 file (M4A) is, by the samples that its tables say it has.

``mvhd`` and ``stts`` tell a length, too, and no decoder goes by them: what is decoded is the
samples, each of 1,024 at the rate of the decoder's own configuration.
"""

from __future__ import annotations

from collections.abc import Iterator

from node.service.inference.frames import AAC_RATES

AAC_PACKET_MS = 279
"""2,048 samples at the lowest rate that decoders take, 7,350 Hz."""

_MAX_TABLES = 64
_MAX_BOXES = 50_000
_PICTURES = frozenset({b"avc1", b"hvc1", b"hev1", b"mp4v", b"av01", b"vp09", b"jpeg"})
_CODECS = _PICTURES | {b"mp4a", b"Opus"}
_AAC_OBJECTS = frozenset({0x40, 0x66, 0x67, 0x68})
_AAC_KINDS = frozenset({1, 2, 3, 4, 5, 29})
"""Main, LC, SSR, LTP, and LC with SBR and PS, which double the rate and the samples."""

Box = tuple[bytes, int, int]
"""Name, where its content begins, where it ends."""


class _Odd(Exception):
    """Not as every decoder would read it."""


def most_ms(data: bytes) -> int | None:
    """Every sample of every table at its longest; None for what cannot be bounded so.

    The tables are looked for by name, wherever they are: one that is no table only adds.
    """
    if any(name in data for name in (b"moof", b"cmov", b"stz2")):
        return None
    codecs = [data[at + 16 : at + 20] for at in _all(data, b"stsd")]
    sizes = [at + 16 for at in _all(data, b"stsz")]
    if not codecs or not sizes or max(len(codecs), len(sizes)) > _MAX_TABLES:
        return None
    if not _CODECS.issuperset(codecs):
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


def real_ms(data: bytes) -> int | None:
    """The longest of its tracks of AAC, whole or in fragments; None for other codecs and what is
    odd."""
    try:
        top = list(_boxes(data, 0, len(data)))
        moov = _only(top, b"moov")
        tracks = [box for box in _inside(data, moov) if box[0] == b"trak"]
        sounds = [sound for sound in (_track(data, box) for box in tracks) if sound is not None]
        pieces = [box for box in top if box[0] == b"moof"]
        if pieces and (len(tracks) != 1 or len(sounds) != 1):
            return None
        more = sum(_fragment(data, box) for box in pieces)
    except _Odd:
        return None
    if not sounds:
        return None
    return max(-(-(samples + more) * 1_024_000 // rate) for samples, rate in sounds)


def _boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    at = start
    for _ in range(_MAX_BOXES):
        if at >= end:
            return
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = end - at
        if size < head or at + size > end:
            raise _Odd
        yield data[at + 4 : at + 8], at + head, at + size
        at += size
    raise _Odd


def _inside(data: bytes, box: Box) -> list[Box]:
    return list(_boxes(data, box[1], box[2]))


def _only(boxes: list[Box], name: bytes) -> Box:
    found = [box for box in boxes if box[0] == name]
    if len(found) != 1:
        raise _Odd
    return found[0]


def _track(data: bytes, track: Box) -> tuple[int, int] | None:
    """(samples, samples of sound a second); None for a track of pictures."""
    box = track
    for name in (b"mdia", b"minf", b"stbl"):
        box = _only(_inside(data, box), name)
    tables = _inside(data, box)
    _, start, end = _only(tables, b"stsd")
    _, sizes, sizes_end = _only(tables, b"stsz")
    if data[start + 4 : start + 8] != b"\0\0\0\1" or sizes + 12 > sizes_end:
        raise _Odd
    entry = _only(list(_boxes(data, start + 8, end)), data[start + 12 : start + 16])
    if entry[0] in _PICTURES:
        return None
    if entry[0] != b"mp4a":
        raise _Odd
    return int.from_bytes(data[sizes + 8 : sizes + 12], "big"), _aac_rate(data, entry)


def _fragment(data: bytes, moof: Box) -> int:
    """Samples of one fragment."""
    samples = 0
    for box in _inside(data, moof):
        if box[0] == b"traf":
            for name, start, end in _inside(data, box):
                if name == b"trun" and start + 8 <= end:
                    samples += int.from_bytes(data[start + 4 : start + 8], "big")
    return samples


def _aac_rate(data: bytes, entry: Box) -> int:
    """The rate of the decoder's configuration (``esds``)."""
    _, start, end = entry
    version = int.from_bytes(data[start + 8 : start + 10], "big")
    if version > 1:
        raise _Odd
    at, end = _only(list(_boxes(data, start + (44 if version else 28), end)), b"esds")[1:]
    at, end = _descriptor(data, at + 4, end, 3)
    if at + 3 > end or data[at + 2]:
        raise _Odd
    at, end = _descriptor(data, at + 3, end, 4)
    if at >= end or data[at] not in _AAC_OBJECTS:
        raise _Odd
    at, end = _descriptor(data, at + 13, end, 5)
    if at + 2 > end:
        raise _Odd
    kind, index = data[at] >> 3, (data[at] & 7) << 1 | data[at + 1] >> 7
    if kind not in _AAC_KINDS or index >= len(AAC_RATES):
        raise _Odd
    return AAC_RATES[index]


def _descriptor(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Where the content of one begins and ends."""
    if at >= end or data[at] != tag:
        raise _Odd
    size = 0
    for _ in range(4):
        at += 1
        if at >= end:
            raise _Odd
        size = size << 7 | data[at] & 0x7F
        if data[at] < 0x80:
            break
    at += 1
    if at + size > end:
        raise _Odd
    return at, at + size
