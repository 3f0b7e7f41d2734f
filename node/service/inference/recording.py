"""How long a recording is, before anyone has listened to it.

Two numbers, as for prompts: ``typical`` is charged when the model server does not tell, ``most``
sizes the hold. Neither is what the file says of itself, since that is its sender's word; the
server that is paid by the minute decodes what is there.

| format | typical | most |
|---|---|---|
| WAV with PCM, float, A-law or µ-law | exact | all bytes as samples |
| Ogg, WebM with Opus | by its packets | every packet as the longest, 120 ms |
| Ogg with Vorbis | position of the last page; half of the most at least | every packet as long |
| MP3 | by its frames | 8 kbit/s, the least a frame can have |
| MP4 (M4A) with AAC | by its packets | every packet as the longest, 279 ms |
| FLAC, AAC in ADTS | by its frames | LEAST_BITS_PER_S |
| others, and other codecs in these | the most | LEAST_BITS_PER_S |

Silence takes next to nothing in the last two lines: two bytes of Opus are 120 ms. No answer to a
recording of more than LONGEST_MS comes within the deadlines of an upstream.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from node.service.inference import containers, mp4
from node.service.inference.frames import MP3_LEAST_BITS_PER_S, adts_ms, flac_ms, mp3_ms

LEAST_BITS_PER_S = 200
"""Opus in its longest, emptiest packets with the container around them takes 200 bits a second;
codecs for radio have more."""
LONGEST_MS = 12 * 3_600_000
"""Twelve hours: 240 times real time for the three minutes that an answer may take to begin."""

_MAX_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Length:
    """Milliseconds."""

    typical_ms: int
    most_ms: int
    measured: bool = True
    """False: the file does not show how long it is, and both are the most that it can be."""


def measure(data: bytes) -> Length:
    """The length of a recording in any format. Never raises."""
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        exact = _wav(data)
        if exact is not None:
            return exact
    most = min(_at(data, LEAST_BITS_PER_S), LONGEST_MS)
    real, bound = _measured(data)
    if bound is not None:
        most = min(most, bound)
    return Length(most, most, measured=False) if real is None else Length(min(real, most), most)


def _measured(data: bytes) -> tuple[int | None, int | None]:
    """(what it is, the most it can be), in milliseconds where the file shows it."""
    if data[:4] == b"OggS":
        sound = containers.ogg(data)
        return sound.real_ms, sound.most_ms
    if data[:4] == b"\x1aE\xdf\xa3":
        sound = containers.webm(data)
        return sound.real_ms, sound.most_ms
    if data[4:8] == b"ftyp":
        return mp4.real_ms(data), mp4.most_ms(data)
    if data[:4] == b"fLaC":
        return flac_ms(data), None
    if data[:1] == b"\xff" and data[1:2] in (b"\xf0", b"\xf1", b"\xf8", b"\xf9"):
        return adts_ms(data), None
    if data[:3] == b"ID3" or (data[:1] == b"\xff" and data[1:2] >= b"\xe0"):
        real = mp3_ms(data)
        return real, None if real is None else _at(data, MP3_LEAST_BITS_PER_S)
    return None, None


def _at(data: bytes, bits_per_s: int) -> int:
    return -(-len(data) * 8000 // bits_per_s)


def _wav(data: bytes) -> Length | None:
    """Exactly; None when it is not what decoders take as samples of a fixed size.

    Some decoders take what follows the first samples for more of them, so all of that is counted
    that is not a chunk with another name.
    """
    position, bytes_per_s, sound_bytes, first = 12, 0, 0, 0
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            break
        name, size = data[position : position + 4], _u32(data, position + 4)
        position += 8
        if name == b"fmt ":
            if bytes_per_s:
                return None  # of two nobody knows which one is taken
            bytes_per_s = _wav_bytes_per_s(data[position : position + min(size, 40)])
        elif name == b"data":
            first = first or position
            if not bytes_per_s:
                return None
            rest = len(data) - position
            size = size if 0 < size <= rest else rest
            sound_bytes += size
        position += size + size % 2
    else:
        sound_bytes += max(0, len(data) - position)
    if not first:
        return None
    rest = len(data) - first
    return Length(-(-min(sound_bytes, rest) * 1000 // bytes_per_s), -(-rest * 1000 // bytes_per_s))


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


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")
