"""A body is read as JSON only when it may be JSON, and only when that takes no time to speak of."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.exchange import Request
from node.errors import InvalidJson, NodeError, RequestTooLarge, UnsupportedMedia
from node.service import json_body
from node.service.endpoints.wallet import WalletEndpoints
from node.service.json_body import MAX_STRUCTURE, json_object

MIB = 1 << 20


def request(body: bytes, content_type: str | None = None) -> Request:
    headers = {} if content_type is None else {"content-type": content_type}
    return Request("r", "POST", "/v1/x", headers, body)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json; profile=x",
        "application/vnd.api+json",
        "application/json;",
    ],
)
def test_json_is_taken_as_json(content_type: str | None) -> None:
    assert json_object(request(b'{"a": 1}', content_type)) == {"a": 1}


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "application/jsonp",
        "application/json, text/plain",
        "application/json; charset=utf-16",
        "application/json; charset=iso-8859-1",
        "json",
        "x" * 60_000,
        ";" * 60_000 + "charset=x",
    ],
)
def test_anything_else_is_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        json_object(request(b'{"a": 1}', content_type))
    assert caught.value.param == "content-type"


def test_curl_is_told_what_to_set() -> None:
    with pytest.raises(UnsupportedMedia, match="Content-Type: application/json"):
        json_object(request(b"{}", "application/x-www-form-urlencoded"))


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [("create", b'{"cashu_token":"x"}'), ("create_balance", b'{"initial_balance_token":"x"}')],
)
async def test_the_wallet_reads_the_same_json(endpoint: str, body: bytes) -> None:
    accounts: Any = SimpleNamespace(open=None)
    unused: Any = None
    call = getattr(WalletEndpoints(accounts, unused, unused, frozenset(), str), endpoint)
    with pytest.raises(UnsupportedMedia):
        await call(request(body, "application/x-www-form-urlencoded"), {})
    with pytest.raises(RequestTooLarge):
        await call(request(array(b"[]", MAX_STRUCTURE)), {})
    # curl -X POST -d '' has a content type and no content
    with pytest.raises(NodeError, match="is missing"):
        await call(request(b"", "application/x-www-form-urlencoded"), {})


# --- structure


def array(item: bytes, count: int) -> bytes:
    return b'{"x":[' + b",".join([item] * count) + b"]}"


@pytest.mark.parametrize(
    "body",
    [
        array(b"[]", 7_000_000),
        array(b"{}", MAX_STRUCTURE),
        array(b"1", 2 * MAX_STRUCTURE),
        array(b'"\\"[\\\\"', 2 * MAX_STRUCTURE),
        array(b'"[[["', 2 * MAX_STRUCTURE),
        array(b'{"a":1}', MAX_STRUCTURE),
        b'{"x":' + b"[" * (MAX_STRUCTURE + 1) + b"]" * (MAX_STRUCTURE + 1) + b"}",
        b'""' * 5_000_000 + b"," * MAX_STRUCTURE + b",,",
    ],
)
def test_too_much_structure_is_refused_before_it_is_parsed(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_body.orjson, "loads", _never)
    with pytest.raises(RequestTooLarge):
        json_object(request(body))


def _never(_: bytes) -> object:
    raise AssertionError("it was parsed")


@pytest.mark.parametrize(
    "text",
    [
        '    value = f(a, b[1], {"k": "v\\n"})  # "\n' * 110_000,
        "1,2,3\n" * 700_000,
        "[{,\\" * MIB,
        '\\"[' * MIB,
        "x" * (19 * MIB),
    ],
)
def test_structure_inside_of_a_prompt_is_no_structure(text: str) -> None:
    document = {"messages": [{"role": "user", "content": text}], "n": [1, 2]}
    assert json_object(request(orjson.dumps(document))) == document


@given(
    st.recursive(
        st.none() | st.integers(0, 99) | st.text(alphabet='ab\\"[{,:é\n', max_size=12),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(alphabet='a\\",[{', max_size=4), inner, max_size=4)
        ),
        max_leaves=30,
    )
)
def test_the_count_is_of_what_is_outside_of_strings(value: object) -> None:
    """At the limit the document is read, one below it is refused."""
    document = {"x": value}
    body = orjson.dumps(document)
    exact = _structure(document)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "MAX_STRUCTURE", exact)
        assert json_object(request(body)) == document
        patch.setattr(json_body, "MAX_STRUCTURE", exact - 1)
        with pytest.raises(RequestTooLarge):
            json_object(request(body))


def _structure(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(0, len(value) - 1) + sum(map(_structure, value.values()))
    if isinstance(value, list):
        return 1 + max(0, len(value) - 1) + sum(map(_structure, value))
    return 0


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_our_error(body: bytes) -> None:
    with contextlib.suppress(InvalidJson):
        assert isinstance(json_object(request(body)), dict)
