"""How long sound is by its frames: what a decoder plays, whatever a header says of it.

Each function gives milliseconds, and None for what it cannot vouch for. Every frame that a decoder
would find is found; bytes that are in none are taken for sound at the lowest rate there is.
"""

from __future__ import annotations

import re

MP3_LEAST_BITS_PER_S = 8_000

_MAX_FRAMES = 1_500_000
_MAX_CANDIDATES = 300_000
"""Places that look like the beginning of a frame at first sight."""

# kbit/s of layers I, II and III of MPEG 1, of layer I and of the others of MPEG 2 and 2.5
_V1_L1 = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448)
_V1_L2 = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_V1_L3 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_V2_L1 = (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_V2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBITS = {(3, 3): _V1_L1, (3, 2): _V1_L2, (3, 1): _V1_L3, (2, 3): _V2_L1, (0, 3): _V2_L1}
_MPEG_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def _mpeg_frames() -> dict[int, tuple[int, int, int, int]]:
    """By the second and third byte of a header: bytes, samples, samples a second, and the kind
    of stream, which no frame of it changes."""
    frames = {}
    for second in range(0xE0, 0x100):
        version, layer = second >> 3 & 3, second >> 1 & 3
        if version == 1 or layer == 0:
            continue
        for third in range(256):
            index, rate_index, padded = third >> 4, third >> 2 & 3, third >> 1 & 1
            if index in (0, 15) or rate_index == 3:
                continue
            rate = _MPEG_RATES[version][rate_index]
            bits_per_s = 1000 * _KBITS.get((version, layer), _V2)[index - 1]
            samples = 384 if layer == 3 else 576 if layer == 1 and version != 3 else 1152
            if layer == 3:
                size = (12 * bits_per_s // rate + padded) * 4
            else:
                size = samples // 8 * bits_per_s // rate + padded
            kind = (second & 0xFE) << 8 | third & 0x0C
            frames[second << 8 | third] = (size, samples, rate, kind)
    return frames


_FRAMES = _mpeg_frames()
_MPEG_SYNC = re.compile(rb"\xff[\xe0-\xff]")


def mp3_ms(data: bytes) -> int | None:
    """MPEG audio of any layer; None without a frame."""
    start = _after_id3(data)
    end = len(data) - (128 if data[-128:-125] == b"TAG" else 0)
    position, candidates = start, 0
    covered = samples = 0
    rate, kind = 1, -1
    for _ in range(_MAX_FRAMES):
        frame = _mpeg_frame(data, position)
        if frame is not None and (frame[3] == kind or (kind < 0 and _chained(data, position))):
            samples += frame[1]
            rate, kind = frame[2:]
            covered += min(frame[0], end - position)
            position += frame[0]
            continue
        while candidates < _MAX_CANDIDATES:
            candidates += 1
            found = _MPEG_SYNC.search(data, position + 1, end)
            position = found.start() if found else end
            frame = _mpeg_frame(data, position)
            if found is None or (
                frame is not None and kind in (-1, frame[3]) and _chained(data, position)
            ):
                break
        if position >= end or candidates >= _MAX_CANDIDATES:
            break
    if kind < 0:
        return None
    loose_bytes = max(0, end - start - covered)
    return samples * 1000 // rate + loose_bytes * 8000 // MP3_LEAST_BITS_PER_S


def _mpeg_frame(data: bytes, at: int) -> tuple[int, int, int, int] | None:
    if at + 4 > len(data) or data[at] != 0xFF:
        return None
    return _FRAMES.get(data[at + 1] << 8 | data[at + 2])


def _chained(data: bytes, at: int) -> bool:
    """Whether the frame there ends where another of its kind begins, or with the data."""
    frame = _mpeg_frame(data, at)
    if frame is None:
        return False
    after = at + frame[0]
    following = _mpeg_frame(data, after)
    return after >= len(data) - 128 or (following is not None and following[3] == frame[3])


def _after_id3(data: bytes) -> int:
    position = 0
    while data[position : position + 3] == b"ID3" and len(data) >= position + 10:
        size = 0
        for byte in data[position + 6 : position + 10]:
            size = size << 7 | byte & 0x7F
        position += 10 + size
    return position


AAC_RATES = (
    96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000,
    7_350,
)  # fmt: skip


def adts_ms(data: bytes) -> int | None:
    """AAC in frames; None when there is anything else in between."""
    position, duration_ms = 0, 0.0
    for _ in range(_MAX_FRAMES):
        if position >= len(data):
            return round(duration_ms)
        head = data[position : position + 7]
        if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
            return None
        rate_index = head[2] >> 2 & 15
        size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if size < 7 or rate_index >= len(AAC_RATES):
            return None
        duration_ms += 1000 * 1024 * (1 + (head[6] & 3)) / AAC_RATES[rate_index]
        position += size
    return None


_FLAC_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_FLAC_RATES = (
    0, 88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000,
)  # fmt: skip


def _crc8_table() -> bytes:
    table = bytearray(256)
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
        table[value] = crc
    return bytes(table)


_CRC8 = _crc8_table()


def flac_ms(data: bytes) -> int | None:
    """FLAC, by every header of a frame whose checksum is right; None without any."""
    own_rate = int.from_bytes(data[18:21], "big") >> 4
    duration_ms = 0.0
    for looked_at, found in enumerate(_FLAC_SYNC.finditer(data, 4)):
        if looked_at >= _MAX_FRAMES:
            return None
        duration_ms += _flac_frame_ms(data[found.start() : found.start() + 16], own_rate)
    return round(duration_ms) or None


def _flac_frame_ms(head: bytes, own_rate: int) -> float:
    """0 for what is no frame."""
    if len(head) < 6 or head[3] >> 4 > 10 or head[3] & 1:
        return 0.0
    size_code, rate_code = head[2] >> 4, head[2] & 15
    number_bytes = 8 - (head[4] ^ 0xFF).bit_length() if head[4] >= 0x80 else 1
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    rate_bytes = {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    at = 4 + number_bytes
    end = at + size_bytes + rate_bytes
    if not size_code or rate_code == 15 or end >= len(head):
        return 0.0
    crc = 0
    for byte in head[:end]:
        crc = _CRC8[crc ^ byte]
    if crc != head[end]:
        return 0.0
    if size_bytes:
        samples = int.from_bytes(head[at : at + size_bytes], "big") + 1
    elif size_code == 1:
        samples = 192
    else:
        samples = 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8
    rate = own_rate
    if rate_bytes:
        told = int.from_bytes(head[at + size_bytes : end], "big")
        rate = told * {12: 1000, 13: 1, 14: 10}[rate_code]
    elif rate_code:
        rate = _FLAC_RATES[rate_code]
    return 1000 * samples / rate if rate else 0.0
