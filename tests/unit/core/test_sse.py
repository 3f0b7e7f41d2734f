"""The SSE splitter changes no byte and finds the same events however the stream is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.sse import SseEvent, SseEventTooLarge, SseSplitter, event_data, event_name

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.sampled_from(
    [b"data: one", b"data:two", b"data", b"data:  x", b": comment", b"event: e", b"", b"id: 7"]
)
STREAMS = st.one_of(
    st.lists(st.tuples(LINES, LINE_ENDS)).map(lambda rows: b"".join(a + b for a, b in rows)),
    st.binary(max_size=200),
    st.lists(st.sampled_from([b"\r", b"\n", b"data: a", b":"])).map(b"".join),
)


def split(chunks: list[bytes]) -> list[SseEvent]:
    splitter = SseSplitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return events + splitter.flush()


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


@given(STREAMS, st.lists(st.integers(0, 1000)))
def test_raws_joined_are_the_input(stream: bytes, places: list[int]) -> None:
    assert b"".join(event.raw for event in split(cut(stream, places))) == stream


@given(STREAMS, st.lists(st.integers(0, 1000)))
def test_data_does_not_depend_on_the_cuts(stream: bytes, places: list[int]) -> None:
    whole = [event.data for event in split([stream])]
    cut_up = [event.data for event in split(cut(stream, places))]
    assert [data for data in cut_up if data] == [data for data in whole if data]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_one_event_per_blank_line(end: bytes) -> None:
    stream = b"data: a" + end + b"data: b" + end * 2 + b": ping" + end * 2 + b"data:c" + end * 2
    expected = [b"a\nb", b"c"]
    assert [event.data for event in split([stream]) if event.data] == expected
    by_bytes = split([bytes([byte]) for byte in stream])
    assert [event.data for event in by_bytes if event.data] == expected
    assert [event.data for event in split([stream])] == [b"a\nb", b"", b"c"]


def test_an_event_leaves_as_soon_as_it_is_complete() -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        splitter = SseSplitter()
        assert splitter.feed(b"data: a" + end) == []
        assert [event.data for event in splitter.feed(end)] == [b"a"]
        assert splitter.pending == b""


def test_a_late_line_feed_belongs_to_the_event_before() -> None:
    splitter = SseSplitter()
    assert [event.data for event in splitter.feed(b"data: a\r\n\r")] == [b"a"]
    assert not splitter.at_boundary
    assert splitter.feed(b"\n") == []
    assert [event.data for event in splitter.feed(b"data: b\n\n")] == [b"b"]
    assert splitter.at_boundary


def test_flush_gives_the_unterminated_event() -> None:
    splitter = SseSplitter()
    assert splitter.feed(b"data: [DONE]") == []
    assert splitter.flush() == [SseEvent(b"data: [DONE]", b"[DONE]")]
    assert splitter.flush() == []


def test_only_one_space_is_removed_and_a_byte_order_mark_is_skipped() -> None:
    assert event_data(b"data:  x\n\n") == b" x"
    assert event_data(b"\xef\xbb\xbfdata: x\n\n") == b"x"
    assert event_data(b"database: x\n\n") == b""


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"event: ping\ndata: x\n\n", "ping"),
        (b"\xef\xbb\xbfevent:ping\r\n\r\n", "ping"),
        (b"event: a\revent:  b\r\r", " b"),
        (b"event: a\nevent\n\n", ""),
        (b"eventful: a\n: event: b\n\n", ""),
        (b"event: \xff\n\n", "\ufffd"),
    ],
)
def test_the_last_name_of_an_event_counts(raw: bytes, name: str) -> None:
    assert event_name(raw) == name


@pytest.mark.parametrize("tail", [b"", b"\n\n"])
def test_the_buffer_is_bounded(tail: bytes) -> None:
    splitter = SseSplitter(max_event_bytes=100)
    assert len(splitter.feed(b"data: x\n\n" * 100)) == 100
    with pytest.raises(SseEventTooLarge):
        splitter.feed(b"data: " + b"x" * 100 + tail)
