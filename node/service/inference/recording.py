"""How long a recording is, before anyone has listened to it.

Two numbers, as for prompts: ``typical`` is what the file says of itself and is charged when the
model server does not tell; ``most`` sizes the hold and must not believe it, since the server that
is paid by the minute decodes what is there.

| format | typical | most |
|---|---|---|
| WAV with PCM, float, A-law or µ-law | exact | all bytes as samples |
| Ogg | position of the last page | every packet as the longest of Opus, 120 ms |
| MP3 | by its frames, the rest alike | 8 kbit/s, the least a frame can have |
| MP4 (M4A) | the header's word | every packet as the longest of AAC, 279 ms |
| WebM | 32 kbit/s | every packet as the longest of Opus |
| FLAC | the header's word | LEAST_BITS_PER_S |
| others, and other codecs in these | 32 kbit/s | LEAST_BITS_PER_S |

Silence takes next to nothing in the last two lines: two bytes of Opus are 120 ms. No answer to a
recording of more than LONGEST_MS comes within the deadlines of an upstream.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from node.service.inference.containers import mp4_most_ms, ogg_most_ms, webm_most_ms

LEAST_BITS_PER_S = 200
"""Opus in its longest, emptiest packets with the container around them takes 200 bits a second;
codecs for radio have more."""
USUAL_BITS_PER_S = 32_000
MP3_LEAST_BITS_PER_S = 8_000
LONGEST_MS = 12 * 3_600_000
"""Twelve hours: 240 times real time for the three minutes that an answer may take to begin."""

_MAX_FRAMES = 20_000
_MAX_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Length:
    """Milliseconds."""

    typical_ms: int
    most_ms: int


def measure(data: bytes) -> Length:
    """The length of a recording in any format. Never raises."""
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        exact = _wav(data)
        if exact is not None:
            return exact
    most = min(_at(data, LEAST_BITS_PER_S), LONGEST_MS)
    typical: int | None = None
    if data[:4] == b"OggS":
        typical = _ogg(data)
        most = min(most, ogg_most_ms(data) or most)
    elif data[:3] == b"ID3" or (data[:1] == b"\xff" and data[1:2] >= b"\xe0"):
        typical = _mp3(data)
        if typical is not None:
            most = min(most, _at(data, MP3_LEAST_BITS_PER_S))
    elif data[:4] == b"fLaC":
        typical = _flac(data)
    elif data[4:8] == b"ftyp":
        typical = _mp4(data)
        most = min(most, mp4_most_ms(data) or most)
    elif data[:4] == b"\x1aE\xdf\xa3":
        most = min(most, webm_most_ms(data) or most)
    if typical is None:
        typical = _at(data, USUAL_BITS_PER_S)
    return Length(min(typical, most), most)


def _at(data: bytes, bits_per_s: int) -> int:
    return -(-len(data) * 8000 // bits_per_s)


def _wav(data: bytes) -> Length | None:
    """Exactly; None when it is not what decoders take as samples of a fixed size."""
    position, bytes_per_s = 12, 0
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            return None
        name, size = data[position : position + 4], _u32(data, position + 4)
        position += 8
        if name == b"fmt ":
            bytes_per_s = _wav_bytes_per_s(data[position : position + min(size, 40)])
        elif name == b"data":
            rest = len(data) - position
            if not bytes_per_s:
                return None
            said = size if 0 < size <= rest else rest
            return Length(-(-said * 1000 // bytes_per_s), -(-rest * 1000 // bytes_per_s))
        position += size + size % 2
    return None


def _wav_bytes_per_s(fmt: bytes) -> int:
    """0 when it is not one of the formats whose samples all have the same size."""
    if len(fmt) < 16:
        return 0
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", fmt)
    if tag == 0xFFFE and len(fmt) >= 26:
        tag = int.from_bytes(fmt[24:26], "little")
    if tag not in (1, 3, 6, 7) or bits not in (8, 16, 24, 32, 64):
        return 0
    if block != channels * bits // 8:
        return 0
    return int(channels * rate * bits // 8)


def _ogg(data: bytes) -> int | None:
    """Where the last page ends, in samples of Opus or Vorbis."""
    last = data.rfind(b"OggS")
    if last + 14 > len(data):
        return None
    position = int.from_bytes(data[last + 6 : last + 14], "little", signed=True)
    head = data[:512]
    if b"OpusHead" in head:
        rate = 48_000
    else:
        vorbis = head.find(b"\x01vorbis")
        rate = _u32(head, vorbis + 12) if 0 <= vorbis <= len(head) - 16 else 0
    if position <= 0 or not rate:
        return None
    return position * 1000 // rate


_MP3_KBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def _mp3(data: bytes) -> int | None:
    """By the frames; None when there is none where the first should be."""
    position = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        size = 0
        for byte in data[6:10]:
            size = size << 7 | byte & 0x7F
        position = 10 + size
    start, duration_s = position, 0.0
    for _ in range(_MAX_FRAMES):
        frame = _mp3_frame(data[position : position + 4])
        if frame is None:
            break
        size, seconds = frame
        position += size
        duration_s += seconds
    if position == start:
        return None
    return int(1000 * duration_s * max(1.0, (len(data) - start) / (position - start)))


def _mp3_frame(head: bytes) -> tuple[int, float] | None:
    """(bytes, seconds) of a frame of layer III."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = _MP3_RATES[version][rate]
    bits_per_s = 1000 * _MP3_KBITS[0 if version == 3 else 1][bitrate]
    samples = 1152 if version == 3 else 576
    return samples // 8 * bits_per_s // hertz + (head[2] >> 1 & 1), samples / hertz


def _flac(data: bytes) -> int | None:
    if len(data) < 26:
        return None
    packed = int.from_bytes(data[18:26], "big")
    rate, samples = packed >> 44, packed & 0xF_FFFF_FFFF
    return samples * 1000 // rate if rate and samples else None


def _mp4(data: bytes) -> int | None:
    at = data.find(b"mvhd")
    if at < 0 or at + 36 > len(data):
        return None
    if data[at + 4] == 1:
        scale, duration = struct.unpack_from(">IQ", data, at + 24)
    else:
        scale, duration = struct.unpack_from(">II", data, at + 16)
    return int(duration * 1000 // scale) if scale and duration else None


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")
