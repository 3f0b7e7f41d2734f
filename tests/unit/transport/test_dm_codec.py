"""Messages over Nostr are read strictly, never raise but BadMessage, and always fit one event."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from discovery.nostr.event import Rumor
from discovery.nostr.giftwrap import wrap
from discovery.nostr.keys import Keys
from node.errors import InvalidJson, InvalidValue, NotFound, RequestTooLarge
from node.transport.dm.codec import (
    BadMessage,
    Cancel,
    Nack,
    RequestPart,
    parse_reply,
    parse_request,
)
from node.transport.dm.cutter import PART_BYTES, FrameCutter, fitting
from node.transport.dm.target import parse_target
from node.transport.dm.writing import build_cancel, build_nack, build_reply, build_request

RELAY_LIMIT_BYTES = 65_536
SENDER, RECIPIENT = Keys.generate(), Keys.generate()

PART: dict[str, Any] = {
    "id": "7d5e2b52-6d0c-4f7e-9c1e-0a5c6c1b9f10",
    "partIndex": 0,
    "parts": 1,
    "bodyBase64": "eyJhIjoxfQ==",
    "headers": {"Content-Type": "application/json", "user-agent": "curl/8", "accept": "*/*"},
    "method": "POST",
    "url": "/v1/chat/completions",
}
FRAME: dict[str, Any] = {
    "id": "a",
    "seq": 0,
    "status": 200,
    "headers": {"content-type": "application/json"},
    "bodyBase64": "",
    "final": True,
    "frames": 1,
    "sha256": "0" * 64,
    "trailers": {"x-cost-msat": "1234"},
}


def request(**changes: Any) -> str:
    return json.dumps({**PART, **changes})


def event_bytes(content: str) -> int:
    """The size on the wire of the gift wrap that holds ``content``."""
    rumor = Rumor.new(SENDER.pubkey, 80, content)
    expiration = 1_790_000_000
    wrapped = wrap(rumor, SENDER, RECIPIENT.pubkey, kind=1059, expiration=expiration)
    return len(json.dumps(["EVENT", wrapped.to_dict()], separators=(",", ":")))


# ------------------------------------------------------------------ requests


def test_http2nostr_request_is_read_and_headers_reduced() -> None:
    part = parse_request(request())
    assert isinstance(part, RequestPart)
    assert part.body == b'{"a":1}'
    assert part.head is not None
    assert (part.head.method, part.head.url) == ("POST", "/v1/chat/completions")
    assert part.head.headers == {"content-type": "application/json", "accept": "*/*"}
    assert (part.frames, part.expires, part.relays, part.wrap) == (False, None, (), ())


def test_our_fields_are_read() -> None:
    digest = hashlib.sha256(b'{"a":1}').hexdigest()
    part = parse_request(
        request(
            v=1,
            frames=True,
            sha256=digest,
            expires=1_790_000_000,
            relays=["wss://Relay.example.com/", "wss://relay.example.com"],
            wrap=[21059, 1059],
            unknown={"is": "ignored"},
        )
    )
    assert isinstance(part, RequestPart)
    assert part.head is not None
    assert part.head.sha256 == digest
    assert part.frames
    assert part.expires == 1_790_000_000
    assert part.relays == ("wss://relay.example.com",)
    assert part.wrap == (21059, 1059)


def test_nack_and_cancel() -> None:
    assert parse_request(build_nack("a", [5, 3, 5])) == Nack("a", (3, 5))
    assert parse_request(build_cancel("a")) == Cancel("a")


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": True},
        {"parts": 1.0},
        {"parts": 0},
        {"parts": 2**60},
        {"partIndex": 1},
        {"partIndex": -1},
        {"method": "post"},
        {"method": "GET /"},
        {"method": None},
        {"url": 7},
        {"headers": []},
        {"headers": {"accept": 1}},
        {"headers": {"accept": "a\r\nb: c"}},
        {"headers": {"bad name": "x"}},
        {"headers": {"X-Cashu": "a", "x-cashu": "b"}},
        {"headers": {f"h{n}": "" for n in range(65)}},
        {"bodyBase64": None},
        {"bodyBase64": "%%%%"},
        {"bodyBase64": "YQ"},
        {"bodyBase64": "é"},
        {"frames": 1},
        {"v": "1"},
        {"v": 0},
        {"sha256": "A" * 64},
        {"expires": -1},
        {"expires": "soon"},
        {"relays": ["https://example.com"]},
        {"relays": ["wss://user:pass@example.com"]},
        {"relays": ["wss://relay.example.com"] * 6},
        {"relays": "wss://relay.example.com"},
        {"wrap": [4]},
        {"wrap": [True]},
        {"nack": []},
        {"nack": [-1]},
        {"nack": [1.5]},
        {"nack": list(range(257))},
        {"cancel": 1},
    ],
)
def test_wrong_value_is_refused_with_its_id(changes: dict[str, Any]) -> None:
    with pytest.raises(BadMessage) as caught:
        parse_request(request(**changes))
    assert caught.value.id == PART["id"]
    assert isinstance(caught.value.error, InvalidValue)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"id": NaN}',
        "[" * 5000,
        request(id=""),
        request(id="x" * 101),
        request(id=5),
        request(id="a\u0000b"),
        '{"id":"\\ud800"}',
    ],
)
def test_without_usable_id_there_is_nobody_to_answer(content: str) -> None:
    with pytest.raises(BadMessage) as caught:
        parse_request(content)
    assert caught.value.id is None
    assert isinstance(caught.value.error, InvalidJson | InvalidValue)


def test_part_beyond_its_size_is_too_large() -> None:
    body = base64.b64encode(bytes(PART_BYTES + 1)).decode()
    with pytest.raises(BadMessage) as caught:
        parse_request(request(bodyBase64=body))
    assert isinstance(caught.value.error, RequestTooLarge)
    assert isinstance(
        parse_request(request(bodyBase64=base64.b64encode(bytes(PART_BYTES)).decode())),
        RequestPart,
    )


def test_error_says_which_format_was_asked_for() -> None:
    with pytest.raises(BadMessage) as caught:
        parse_request(request(frames=True, method="?"))
    assert caught.value.frames


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*PART, *FRAME, "nack", "cancel", "wrap"]), inner)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from([*PART, *FRAME, "nack", "cancel", "wrap", "v"]), _json))
def test_no_document_raises_anything_else(changes: dict[str, Any]) -> None:
    for valid, parse in ((PART, parse_request), (FRAME, parse_reply)):
        with contextlib.suppress(BadMessage):
            parse(json.dumps({**valid, **changes}))


@given(st.text())
def test_no_text_raises_anything_else(content: str) -> None:
    for parse in (parse_request, parse_reply):
        with pytest.raises(BadMessage):
            parse(content)


def test_secrets_are_not_in_repr() -> None:
    content = request(headers={"x-cashu": "cashuBsecret"}, bodyBase64="cHJvbXB0")
    assert "secret" not in repr(parse_request(content))
    assert "prompt" not in repr(parse_request(content))


# ------------------------------------------------------------------ sizes


@settings(max_examples=25)
@given(
    size=st.integers(0, 3 * PART_BYTES),
    token=st.integers(0, 20_000),
    quotes=st.integers(0, 1_000),
    relays=st.integers(0, 5),
)
def test_every_part_of_a_request_fits_one_event(
    size: int, token: int, quotes: int, relays: int
) -> None:
    body = b"x" * size
    contents = build_request(
        "i" * 100,
        "POST",
        "/v1/chat/completions",
        {"x-cashu": "c" * token, "idempotency-key": '"' * quotes},
        body,
        expires=1_790_000_000,
        relays=[f"wss://{number}.{'r' * 60}.example.com" for number in range(relays)],
        wrap=[21059, 1059],
    )
    parts = [parse_request(content) for content in contents]
    assert all(isinstance(part, RequestPart) and part.parts == len(parts) for part in parts)
    assert b"".join(part.body for part in parts if isinstance(part, RequestPart)) == body
    assert max(event_bytes(content) for content in contents) <= RELAY_LIMIT_BYTES


def test_headers_beyond_one_event_are_refused_by_the_builder() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        build_request("a", "GET", "/v1/models", {"x-cashu": "c" * 30_000})


@settings(max_examples=25)
@given(
    chunks=st.lists(st.integers(0, 2 * PART_BYTES), max_size=5),
    head=st.integers(0, 24_000),
    trailer=st.integers(0, 24_000),
)
@example(chunks=[5734], head=0, trailer=20_356)
@example(chunks=[5734], head=20_356, trailer=0)
def test_every_frame_fits_one_event_and_together_they_are_the_body(
    chunks: list[int], head: int, trailer: int
) -> None:
    cutter = FrameCutter("i" * 100, 200, {"x-cashu": "h" * head})
    contents, body = [], b""
    for number, size in enumerate(chunks):
        data = bytes([number]) * size
        cutter.feed(data)
        body += data
        while cutter.full:
            contents.append(cutter.cut())
    contents += cutter.finish({"x-cashu": "t" * trailer})
    frames = [parse_reply(content) for content in contents]
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert b"".join(frame.body for frame in frames) == body
    assert frames[0].headers == {"x-cashu": "h" * head}
    assert frames[-1].total == len(frames)
    assert frames[-1].sha256 == hashlib.sha256(body).hexdigest()
    assert frames[-1].trailers == {"x-cashu": "t" * trailer}
    assert all(frame.total is None for frame in frames[:-1])
    assert max(event_bytes(content) for content in contents) <= RELAY_LIMIT_BYTES


def test_header_too_large_for_any_event_is_left_out() -> None:
    assert fitting({"b": "x" * 30_000, "a": "1", "c": "2"}) == {"a": "1", "c": "2"}


def test_change_too_large_for_any_event_leaves_a_note() -> None:
    note = {"x-cashu-omitted": "too-large"}
    assert fitting({"a": "1", "x-cashu": "x" * 30_000}) == {"a": "1", **note}
    # Whatever stands beside it, a note that is there stays there.
    crowd = {f"h{number}": "y" * 1_000 for number in range(30)}
    once = fitting({"x-cashu": "x" * 1_100, **crowd})
    assert once["x-cashu-omitted"] == "too-large"
    assert fitting(once) == once


# ------------------------------------------------------------------ replies


@given(st.binary(max_size=3 * PART_BYTES))
@settings(max_examples=25)
def test_plain_reply_is_what_http2nostr_reads(body: bytes) -> None:
    contents = build_reply("a", 402, {"x-cashu": "creqA", "retry-after": "5"}, body)
    documents = [json.loads(content) for content in contents]
    for index, document in enumerate(documents):
        assert document["id"] == "a"
        assert (document["partIndex"], document["parts"]) == (index, len(documents))
        assert isinstance(document["bodyBase64"], str)
    assert documents[0]["status"] == 402
    assert all(isinstance(value, str) for value in documents[0]["headers"].values())
    assert b"".join(base64.b64decode(d["bodyBase64"]) for d in documents) == body


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": -1},
        {"status": 42},
        {"status": "200"},
        {"headers": None},
        {"frames": 2},
        {"frames": None},
        {"sha256": "x"},
        {"final": 1},
        {"trailers": {"a": 1}},
    ],
)
def test_wrong_frame_is_refused(changes: dict[str, Any]) -> None:
    assert parse_reply(json.dumps(FRAME)).total == 1
    with pytest.raises(BadMessage):
        parse_reply(json.dumps({**FRAME, **changes}))


# ------------------------------------------------------------------ targets


@pytest.mark.parametrize(
    ("url", "path", "query"),
    [
        ("/v1/models", "/v1/models", {}),
        ("/v1/models/a%2Fb:free", "/v1/models/a/b:free", {}),
        ("/v1/models/a%20b", "/v1/models/a b", {}),
        ("/v1/providers?limit=5&mint=https%3A%2F%2Fm", "/v1/providers",
         {"limit": "5", "mint": "https://m"}),
        ("/v1/providers?cursor=", "/v1/providers", {"cursor": ""}),
        ("/v1/x?q=../../admin", "/v1/x", {"q": "../../admin"}),
    ],
)  # fmt: skip
def test_path_under_v1_passes(url: str, path: str, query: dict[str, str]) -> None:
    assert parse_target(url) == (path, query)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/",
        "/v1",
        "/v1/",
        "v1/models",
        "/admin/api/settings",
        "/metrics",
        "/v2/models",
        "/V1/models",
        "//evil.example/v1/models",
        "http://127.0.0.1/v1/models",
        "https://evil.example/v1/models",
        "/v1/../admin/api/login",
        "/v1/%2e%2e/admin",
        "/v1/x/..%2f..%2fadmin",
        "/v1/x%2f..%2f..%2fadmin",
        "/v1/%252e%252e/admin",
        "/v1/..;/admin",
        "/v1//admin",
        "/v1/./admin",
        "/v1/x/",
        "/v1/x\\..\\admin",
        "/v1/x%5c..%5cadmin",
        "/%761/models",
        "/v1%2fmodels",
        "/v1/x#y",
        "/v1/x%23y",
        "/v1/x%3fy",
        "/v1/x%00",
        "/v1/x%0d%0ahost:evil",
        "/v1/x y",
        "/v1/x\n",
        "/v1/é",
        "/v1/%ff",
        "/v1/%",
        "/v1/%zz",
        "/v1/" + "x" * 5000,
    ],
)
def test_anything_else_is_not_found(url: str) -> None:
    with pytest.raises(NotFound):
        parse_target(url)


def test_query_with_too_many_fields_is_refused() -> None:
    with pytest.raises(InvalidValue):
        parse_target("/v1/x?" + "&".join(f"a{n}=1" for n in range(40)))


@given(st.text(max_size=60).map(lambda tail: "/v1/" + tail))
def test_no_target_leaves_v1(url: str) -> None:
    try:
        path, _ = parse_target(url)
    except (NotFound, InvalidValue):
        return
    assert path.startswith("/v1/")
    assert not {"", ".", ".."} & set(path.split("/")[1:])
