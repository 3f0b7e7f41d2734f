"""Promise: the change is taken out of a streamed answer and nothing else of it is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway.change import ChangeTaker, change_within

USAGE = {"id": "x", "choices": [], "usage": {"prompt_tokens": 3, "cost": 7}}


def run(body: bytes, sizes: list[int]) -> tuple[bytes, str | None]:
    taker, out, at = ChangeTaker(), b"", 0
    for size in sizes:
        out += taker.feed(body[at : at + size])
        at += size
    out += taker.feed(body[at:]) + taker.end()
    return out, taker.token


def event(document: object) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


@given(st.lists(st.integers(0, 40), max_size=30))
def test_however_the_bytes_arrive(sizes: list[int]) -> None:
    head = event({"choices": [{"delta": {"content": "x_cashu is a word"}}]}) + b": ping\n\n"
    body = head + event({**USAGE, "x_cashu": "cashuBabc"}) + b"data: [DONE]\n\n"
    out, token = run(body, sizes)
    assert token == "cashuBabc"
    assert out == head + event(USAGE) + b"data: [DONE]\n\n"


@given(st.binary(max_size=300), st.lists(st.integers(0, 20), max_size=20))
def test_what_holds_no_change_passes_as_it_is(body: bytes, sizes: list[int]) -> None:
    assert run(body, sizes) == (body, None)


def test_odd_events_pass_as_they_are() -> None:
    for line in (b'data: {"x_cashu": 5}\n', b'data: {"x_cashu"\n', b'data: ["x_cashu"]\n'):
        assert run(line, []) == (line, None)


def test_an_error_and_a_whole_document_can_hold_it() -> None:
    out, token = run(event({"error": {"message": "m"}, "x_cashu": "cashuBe"}), [])
    assert (out, token) == (event({"error": {"message": "m"}}), "cashuBe")
    out, token = run(b'{"text":"t","x_cashu":"cashuBd"}', [3])
    assert (out, token) == (b'{"text":"t"}', "cashuBd")


def test_typed_events_keep_their_names() -> None:
    body = b"event: message_delta\r\n" + b'data: {"type":"message_delta","x_cashu":"cashuBm"}\r\n'
    out, token = run(body + b"\r\n", [])
    assert out == b'event: message_delta\r\ndata: {"type":"message_delta"}\r\n\r\n'
    assert token == "cashuBm"


class Whole:
    """An answer that is here."""

    def __init__(self, body: bytes, headers: dict[str, str], trailers: dict[str, str]) -> None:
        self._body = body
        self.headers: Mapping[str, str] = headers
        self.trailers: Mapping[str, str] = trailers

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), 7):
            yield self._body[start : start + 7]


EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("answer", "change"),
    [
        (Whole(b'data: {"x_cashu":"cashuBinside"}\n\n', EVENTS, {}), "cashuBinside"),
        (Whole(b'{"x_cashu":"cashuBinside"}', JSON, {"x-cashu": "cashuBafter"}), "cashuBafter"),
        (Whole(b"{}", JSON | {"x-cashu": "cashuBbefore"}, {}), "cashuBbefore"),
        (Whole(b"{}", JSON | {"x-cashu": "creqAasks"}, {}), None),
        (Whole(b"{}", JSON, {}), None),
    ],
)
async def test_change_is_found_wherever_an_answer_has_it(answer: Whole, change: str | None) -> None:
    assert await change_within(answer) == change
