"""A recording is charged by what a decoder finds in it, and more than that is set aside."""

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


OPUS_PACKETS = {20: b"\x08x", 60: b"\x18" + bytes(299), 120: b"\x0b\x06", 40: b"\xf9" + bytes(254)}


@given(st.lists(st.sampled_from(sorted(OPUS_PACKETS)), max_size=40), st.integers(-48, 10**9))
def test_opus_is_charged_by_its_packets_and_held_for_the_longest(
    packets: list[int], position: int
) -> None:
    data = page([OPUS_HEAD], 0, first=True) + page([b"OpusTags" + bytes(300)], 0)
    data += b"".join(page([OPUS_PACKETS[ms]], position) for ms in packets)
    length = measure(data + page([b"\x08"], 960))  # its word is not taken either
    assert length.typical_ms == sum(packets) + 20
    assert length.most_ms >= length.typical_ms
    assert length.measured


def test_a_packet_over_two_pages_is_one() -> None:
    head, packet = page([OPUS_HEAD], 0, first=True), b"\x08" + bytes(300)
    half = b"OggS\0\0" + struct.pack("<qIII", -1, 1, 0, 0) + b"\x01\xff" + packet[:255]
    rest = b"OggS\0\1" + struct.pack("<qIII", 960, 1, 0, 0) + b"\x01\x2e" + packet[255:]
    assert measure(head + half + rest).typical_ms == 20
    length = measure(head + rest)  # of what?
    assert (length.typical_ms, length.measured) == (length.most_ms, False)


def vorbis(packets: int, position: int) -> bytes:
    head = b"\x01vorbis" + bytes(5) + struct.pack("<I", 32_000) + bytes(12) + b"\xa8\1"
    return page([head], 0, first=True) + page([b"\0" * 9] * packets, position)


@pytest.mark.parametrize(("position", "ms"), [(60_800, 1900), (32, 976), (10**9, 1952)])
def test_vorbis_is_believed_as_far_as_its_packets_reach(position: int, ms: int) -> None:
    assert measure(vorbis(121, position)).typical_ms == ms
    assert measure(vorbis(121, position)).most_ms == 1952  # of 1,024 samples, half of them new


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


def test_frames_of_another_kind_behind_the_first_are_taken_for_the_longest() -> None:
    """An hour at 8 kbit/s behind one frame of 320 kbit/s and a byte of nothing."""
    small = (b"\xff\xf3\x14\0" + bytes(20)) * 15_000
    data = b"\xff\xfb\xe0\0" + bytes(144 * 320_000 // 44_100 - 4) + b"\0" + small
    assert measure(data).typical_ms >= 360_000


@given(st.binary(max_size=30).filter(lambda junk: b"\xff" not in junk))
def test_frames_behind_junk_are_found(junk: bytes) -> None:
    data = b"ID3\4\0\0\0\0\0\3abc" + mp3(20) + junk + mp3(30, 1)
    expected = 50 * 1152 * 1000 // 44_100 + len(junk)  # a byte is a millisecond at 8 kbit/s
    assert abs(measure(data).typical_ms - expected) <= 1


def test_one_header_is_no_frame() -> None:
    data = b"ID3\4\0\0\0\0\0\4\xff\xf3\x14\0" + b"\xff\xf3\x14\0" + bytes(70) + mp3(20)
    assert measure(data).typical_ms == 20 * 1152 * 1000 // 44_100 + 74


def flac_frame(number: int, rate_code: int = 0) -> bytes:
    """4,096 samples; the checksum by the polynomial itself."""
    head = bytes([0xFF, 0xF8, 0xC0 | rate_code, 0x08, number % 128])
    crc = int.from_bytes(head, "big") << 8
    for bit in range(crc.bit_length() - 1, 7, -1):
        if crc >> bit & 1:
            crc ^= 0x107 << bit - 8
    return head + bytes([crc]) + bytes(10)


@given(st.integers(1, 60), st.sampled_from([(0, 16_000), (9, 44_100), (10, 48_000)]))
def test_flac_is_charged_by_its_frames(frames: int, rate: tuple[int, int]) -> None:
    """STREAMINFO says that it is one sample long."""
    told = (16_000 << 44 | 15 << 36 | 1).to_bytes(8, "big")
    head = b"fLaC\x80\0\0\x22" + bytes(10) + told + bytes(16)
    length = measure(head + b"".join(flac_frame(n, rate[0]) for n in range(frames)))
    assert length.measured
    assert abs(length.typical_ms - min(frames * 4_096_000 / rate[1], length.most_ms)) <= 1
    assert not measure(head + bytes(2000)).measured
    broken = flac_frame(0)[:5] + b"\0" + bytes(10)
    assert broken != flac_frame(0)
    assert not measure(head + broken * frames).measured


def adts(frames: int) -> bytes:
    return (b"\xff\xf1\x60\x40\x02\x7f\xfc" + bytes(12)) * frames


def test_aac_without_a_container() -> None:
    """19 bytes a frame at 16 kHz."""
    assert measure(adts(50)).typical_ms == 3200
    assert not measure(adts(50) + b"x").measured


@pytest.mark.parametrize("data", [b"RIFF\0\0\0\0AIFF", b"MThd", b"#!AMR\n", b"caff"])
def test_what_shows_no_length_is_charged_as_it_is_held(data: bytes) -> None:
    length = measure(data + bytes(3000))
    assert (length.typical_ms, length.measured) == (length.most_ms, False)


def test_samples_behind_the_first_are_samples_too() -> None:
    data = bytearray(wav(8000, 1, 1, 800))
    data[40:44] = struct.pack("<I", 80)  # of 800
    hidden = bytes(data[:124]) + b"data" + struct.pack("<I", 8000) + bytes(8000)
    assert measure(hidden).typical_ms == 1010
    fast = data[12:20] + struct.pack("<HHIIHH", 1, 1, 96_000, 0, 1, 8)
    assert not measure(bytes(data[:36]) + fast + bytes(data[36:])).measured  # at which rate?
    tagged = wav(8000, 1, 1, 800) + b"LIST" + struct.pack("<I", 400) + bytes(400)
    assert measure(tagged).typical_ms == 100


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


def descriptor(tag: int, body: bytes) -> bytes:
    return bytes([tag, 0x80, 0x80, 0x80, len(body)]) + body


def track(samples: int, codec: bytes = b"mp4a", config: bytes = b"\x12\x10") -> bytes:
    """AAC LC at 44,100 Hz."""
    decoder = descriptor(4, b"\x40" + bytes(12) + descriptor(5, config))
    esds = box(b"esds", bytes(4) + descriptor(3, bytes(3) + decoder))
    stsd = box(b"stsd", bytes(4) + struct.pack(">I", 1) + box(codec, bytes(28) + esds))
    stsz = box(b"stsz", bytes(4) + struct.pack(">II", 0, samples) + bytes(4 * samples))
    return box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", stsd + stsz))))


def m4a(
    samples: int, codec: bytes = b"mp4a", more: bytes = b"", config: bytes = b"\x12\x10"
) -> bytes:
    """Its header says that it is a millisecond long."""
    mvhd = box(b"mvhd", bytes(12) + struct.pack(">II", 1000, 1) + bytes(80))
    moov = box(b"moov", mvhd + track(samples, codec, config) + more)
    return box(b"ftyp", b"M4A " + bytes(8)) + moov + box(b"mdat", bytes(samples * 100))


@given(st.integers(1, 500))
def test_aac_is_charged_by_its_packets_and_held_for_the_longest(samples: int) -> None:
    length = measure(m4a(samples))
    assert length.typical_ms == -(-samples * 1_024_000 // 44_100)
    assert length.most_ms == samples * 279
    # spectral replication: 1,024 samples at half of the rate that is heard
    doubled = measure(m4a(samples, config=b"\x2b\x8a\x08\x00"))
    assert doubled.typical_ms == -(-samples * 1_024_000 // 22_050)
    film = measure(m4a(samples, more=track(9_000, b"avc1")))
    assert film.typical_ms == length.typical_ms


def test_aac_in_fragments() -> None:
    run = box(b"trun", bytes(4) + struct.pack(">I", 100))
    piece = box(b"moof", box(b"mfhd", bytes(8)) + box(b"traf", box(b"tfhd", bytes(8)) + run))
    data = m4a(0) + (piece + box(b"mdat", bytes(10_000))) * 3
    assert measure(data).typical_ms == -(-300 * 1_024_000 // 44_100)
    assert not measure(m4a(0, more=track(0)) + piece).measured


@pytest.mark.parametrize(
    "data",
    [
        m4a(100, b"alac"),
        m4a(100, more=track(1, b"Opus")),
        m4a(100, config=b"\x17\x90"),  # a rate of its own, which nobody looks up here
        m4a(100) + box(b"moov", track(1)),
        m4a(100).replace(b"esds", b"xxxx"),
        m4a(100)[:-1],
        m4a(100, more=box(b"trak", b"")),
    ],
)
def test_an_mp4_that_is_odd_is_charged_as_it_is_held(data: bytes) -> None:
    length = measure(data)
    assert (length.typical_ms, length.measured) == (length.most_ms, False)


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
    assert measure(data).typical_ms == -(-50 * 1_024_000 // 44_100)


UNKNOWN = b"\x01\xff\xff\xff\xff\xff\xff\xff"


def element(name: bytes, body: bytes) -> bytes:
    return name + struct.pack(">Q", 1 << 56 | len(body)) + body


def webm(
    blocks: list[tuple[int, bool]],
    codec: bytes = b"A_OPUS",
    packet: bytes = b"\x0b\x06",
    more: bytes = b"",
) -> bytes:
    """Blocks as (frames, in a group); sizes of segment and cluster are not known, as live."""
    track = element(
        b"\x16\x54\xae\x6b",
        element(b"\xae", element(b"\xd7", b"\1") + element(b"\x86", codec) + more),
    )
    made = b""
    for frames, grouped in blocks:
        lacing = bytes([0x04, frames - 1]) if frames > 1 else b"\x00"
        body = b"\x81\x00\x00" + lacing + packet * frames
        made += element(b"\xa0", element(b"\xa1", body)) if grouped else element(b"\xa3", body)
    cluster = b"\x1f\x43\xb6\x75" + UNKNOWN + element(b"\xe7", b"\0") + made
    return element(b"\x1aE\xdf\xa3", b"") + b"\x18\x53\x80\x67" + UNKNOWN + track + cluster


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=40))
def test_webm_is_held_for_every_frame(blocks: list[tuple[int, bool]]) -> None:
    data = webm(blocks)
    real_ms = sum(frames for frames, _ in blocks) * 120
    assert measure(data).most_ms == min(real_ms, -(-len(data) * 8000 // 200))
    assert real_ms <= -(-len(data) * 8000 // 200)


@given(st.sampled_from(sorted(OPUS_PACKETS)), st.integers(1, 60))
def test_webm_is_charged_by_its_packets(packet_ms: int, count: int) -> None:
    data = webm([(1, False)] * count, packet=OPUS_PACKETS[packet_ms])
    assert measure(data).typical_ms == count * packet_ms
    stripped = webm([(1, False)] * count, more=element(b"\x6d\x80", b""))
    assert not measure(stripped).measured
    picture = element(b"\xd7", b"\2") + element(b"\x86", b"V_VP8")
    film = webm([(1, False)] * count, packet=OPUS_PACKETS[20], more=b"")
    shown = element(b"\xa3", b"\x82\0\0\0\x0b\x06")
    film = film.replace(b"\x1f\x43\xb6\x75", element(b"\xae", picture) + b"\x1f\x43\xb6\x75", 1)
    assert measure(film + shown).typical_ms == count * 20


@pytest.mark.parametrize(
    "data",
    [webm([(1, False)] * 20, b"A_FLAC"), webm([(1, False)] * 20) + b"\xa3",
     webm([(1, True)] * 20)[:-1], webm([(1, False)] * 20) + element(b"\x86", b"A_VORBIS")],
)  # fmt: skip
def test_what_else_is_in_a_webm_is_not_measured_by_its_frames(data: bytes) -> None:
    assert measure(data).most_ms == -(-len(data) * 8000 // 200)
