"""A recording is never taken for shorter than it is when money is set aside for it."""

from __future__ import annotations

import io
import struct
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.service.inference.recording import LONGEST_MS, measure

SIZES = st.integers(0, 3000)


def wav(rate: int, channels: int, width: int, frames: int) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as opened:
        opened.setnchannels(channels)
        opened.setsampwidth(width)
        opened.setframerate(rate)
        opened.writeframes(bytes(frames * channels * width))
    return target.getvalue()


@given(
    st.sampled_from([8000, 16000, 22050, 44100, 48000]),
    st.integers(1, 6),
    st.sampled_from([1, 2, 3, 4]),
    SIZES,
)
def test_wav_is_exact(rate: int, channels: int, width: int, frames: int) -> None:
    length = measure(wav(rate, channels, width, frames))
    assert length.typical_ms == length.most_ms == -(-frames * 1000 // rate)


@given(st.integers(0, 2**32 - 1), st.binary(max_size=40))
def test_wav_that_lies_about_its_size_is_held_for_all_of_it(size: int, rest: bytes) -> None:
    data = bytearray(wav(8000, 1, 1, 800))
    data[40:44] = struct.pack("<I", size)
    length = measure(bytes(data) + rest)
    assert length.most_ms >= 100
    assert length.typical_ms <= length.most_ms


def test_wav_that_lies_about_its_bytes_a_second_is_not_believed() -> None:
    data = bytearray(wav(8000, 1, 2, 8000))
    data[28:32] = struct.pack("<I", 2**31)  # the field nobody decodes by
    assert measure(bytes(data)).typical_ms == 1000


def page(packets: list[bytes], position: int, *, first: bool = False) -> bytes:
    table = b"".join(b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in packets)
    head = b"OggS\0" + bytes([2 if first else 0]) + struct.pack("<qIII", position, 1, 0, 0)
    return head + bytes([len(table)]) + table + b"".join(packets)


OPUS_HEAD = b"OpusHead\x01\x01\0\0\x80\xbb\0\0\0\0\0"


@given(st.lists(st.integers(1, 40), max_size=20), st.sampled_from([20, 60, 120]), st.booleans())
def test_opus_is_held_for_every_packet(counts: list[int], packet_ms: int, honest: bool) -> None:
    real_ms = sum(counts) * packet_ms
    position = 48 * real_ms if honest else 48
    pages = [page([b"\x0b\x06"] * count, position) for count in counts]
    data = page([OPUS_HEAD], 0, first=True) + b"".join(pages)
    length = measure(data)
    assert length.most_ms >= real_ms
    if honest and counts:
        assert length.typical_ms == real_ms


def test_another_codec_behind_opus_is_not_measured_as_opus() -> None:
    opus = page([OPUS_HEAD], 0, first=True) + page([b"xx"] * 10, 480)
    data = opus + page([b"\x7fFLAC"], 0, first=True) + page([b"x" * 14] * 10, 480)
    assert measure(data).most_ms == -(-len(data) * 8000 // 200)


def mp3(frames: int, bitrate_index: int = 9) -> bytes:
    kbits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128)[bitrate_index]
    size = 144 * kbits * 1000 // 44_100
    return (bytes([0xFF, 0xFB, bitrate_index << 4, 0]) + bytes(size - 4)) * frames


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=9))
def test_mp3_by_its_frames(runs: list[tuple[int, int]]) -> None:
    frames = sum(count for count, _ in runs)
    length = measure(b"".join(mp3(count, rate) for count, rate in runs))
    assert length.typical_ms == int(1000 * frames * 1152 / 44_100)
    assert length.most_ms >= frames * 1152 * 1000 // 44_100


def test_the_longest_mp3_frames_are_within_the_bound() -> None:
    """MPEG 2.5 at 8 kHz and 8 kbit/s."""
    data = (b"\xff\xe3\x18\xc4" + bytes(68)) * 100
    assert measure(data).typical_ms == 7200
    assert measure(data).most_ms == 7200


def test_what_headers_say_is_charged_and_not_believed() -> None:
    rate_and_samples = (44_100 << 44 | 1 << 41 | 15 << 36 | 44_100 * 5).to_bytes(8, "big")
    flac = b"fLaC\0\0\0\x22" + bytes(10) + rate_and_samples + bytes(2000)
    assert measure(flac).typical_ms == 5000
    assert measure(flac).most_ms > 80_000
    mvhd = b"mvhd" + bytes(12) + struct.pack(">II", 600, 1800) + bytes(80)
    mp4 = b"\0\0\0\x18ftypM4A " + bytes(12) + mvhd + bytes(2000)
    assert measure(mp4).typical_ms == 3000


@given(st.binary(max_size=400))
def test_whatever_it_is_it_has_a_length(data: bytes) -> None:
    heads = (b"", b"RIFFxxxxWAVE", b"OggS", b"ID3", b"\xff\xfb", b"fLaC", b"xxxxftyp", b"OggS\0\2",
             b"\x1aE\xdf\xa3\x80", b"xxxxftyp" + m4a(3))  # fmt: skip
    for head in heads:
        length = measure(head + data)
        assert 0 <= length.typical_ms <= length.most_ms


@pytest.mark.parametrize("head", [b"", b"OggS", b"fLaC"])
def test_no_hold_is_longer_than_an_answer_can_take(head: bytes) -> None:
    assert measure(head + bytes(2_000_000)).most_ms == LONGEST_MS


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + name + body


def m4a(samples: int, codec: bytes = b"mp4a", more: bytes = b"") -> bytes:
    mvhd = box(b"mvhd", bytes(12) + struct.pack(">II", 1000, samples * 23) + bytes(80))
    stsd = box(b"stsd", bytes(4) + struct.pack(">I", 1) + box(codec, bytes(28)))
    stsz = box(b"stsz", bytes(4) + struct.pack(">II", 0, samples) + bytes(4 * samples))
    moov = box(b"moov", mvhd + box(b"trak", stsd + stsz) + more)
    return box(b"ftyp", b"M4A " + bytes(8)) + moov + box(b"mdat", bytes(samples * 100))


@given(st.integers(1, 500))
def test_aac_is_held_for_every_packet(samples: int) -> None:
    length = measure(m4a(samples))
    assert length.typical_ms == samples * 23
    assert length.most_ms == samples * 279


@pytest.mark.parametrize(
    "data",
    [
        m4a(100, b"alac"),
        m4a(100, b"fLaC"),
        m4a(100) + box(b"moof", b""),
        m4a(100, more=box(b"stsd", bytes(4) + b"\0\0\0\2" + box(b"mp4a", bytes(28)))),
        m4a(100).replace(b"stsz", b"stz2"),
        m4a(100).replace(b"stsd", b"xxxx"),
    ],
)
def test_what_else_is_in_an_mp4_is_not_measured_by_its_packets(data: bytes) -> None:
    assert measure(data).most_ms == min(-(-len(data) * 8000 // 200), LONGEST_MS)


def test_a_second_table_only_adds() -> None:
    decoy = box(b"free", b"stsz" + bytes(4) + struct.pack(">II", 0, 1))
    data = box(b"ftyp", b"M4A " + bytes(8)) + decoy + m4a(50)
    assert measure(data).most_ms == 51 * 279


UNKNOWN = b"\x01\xff\xff\xff\xff\xff\xff\xff"


def element(name: bytes, body: bytes) -> bytes:
    return name + struct.pack(">Q", 1 << 56 | len(body)) + body


def webm(blocks: list[tuple[int, bool]], codec: bytes = b"A_OPUS") -> bytes:
    """Blocks as (frames, in a group); sizes of segment and cluster are not known, as live."""
    track = element(b"\x16\x54\xae\x6b", element(b"\xae", element(b"\x86", codec)))
    made = b""
    for frames, grouped in blocks:
        lacing = bytes([0x04, frames - 1]) if frames > 1 else b"\x00"
        body = b"\x81\x00\x00" + lacing + b"\x0b\x06" * frames
        made += element(b"\xa0", element(b"\xa1", body)) if grouped else element(b"\xa3", body)
    cluster = b"\x1f\x43\xb6\x75" + UNKNOWN + element(b"\xe7", b"\0") + made
    return element(b"\x1aE\xdf\xa3", b"") + b"\x18\x53\x80\x67" + UNKNOWN + track + cluster


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=40))
def test_webm_is_held_for_every_frame(blocks: list[tuple[int, bool]]) -> None:
    data = webm(blocks)
    real_ms = sum(frames for frames, _ in blocks) * 120
    assert measure(data).most_ms == min(real_ms, -(-len(data) * 8000 // 200))
    assert real_ms <= -(-len(data) * 8000 // 200)


@pytest.mark.parametrize(
    "data",
    [webm([(1, False)] * 20, b"A_FLAC"), webm([(1, False)] * 20) + b"\xa3",
     webm([(1, True)] * 20)[:-1], webm([(1, False)] * 20) + element(b"\x86", b"A_VORBIS")],
)  # fmt: skip
def test_what_else_is_in_a_webm_is_not_measured_by_its_frames(data: bytes) -> None:
    assert measure(data).most_ms == -(-len(data) * 8000 // 200)
