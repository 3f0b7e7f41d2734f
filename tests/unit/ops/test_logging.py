"""Promise: one line for each event, ours or a library's, as JSON or text, and never a token, a
key or a bearer value in it, wherever it hid."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from node.ops.logging import configure
from node.ops.redaction import MAX_VALUE_CHARS, may_hold_secrets, redact, redact_value

TOKEN_A = "cashuA" + "eyJ0b2tlbiI6W3sibWludCI6Imh0dHA6Ly94" * 3
TOKEN_B = "cashuB" + "o2FteBtodHRwczovL21pbnQuZXhhbXBsZS5jb20_-=" * 3
NSEC = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5"
API_KEY = "sk-Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA"
HEX = "5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592"

SECRETS = {
    TOKEN_A: TOKEN_A[6:],
    TOKEN_B: TOKEN_B[6:],
    NSEC: NSEC[5:],
    API_KEY: API_KEY[3:],
    "Authorization: Bearer abc.def~ghi": "abc.def~ghi",
    f'{{"secret":"{HEX}"}}': HEX,
    f"{{'secret': '{HEX}'}}": HEX,
    f'"{{\\"secret\\": \\"{HEX}\\"}}"': HEX,
    f"secret_key={HEX}": HEX,
}


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object() -> None:
    stream = io.StringIO()
    configure("info", "json", stream=stream)
    structlog.get_logger("x").info("request_done", cost_msat=12, models=["a", "b"], ok=True)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request_done",
        "level": "info",
        "logger": "x",
        "cost_msat": 12,
        "models": ["a", "b"],
        "ok": True,
    }


def test_a_logger_is_named_like_its_module() -> None:
    stream = io.StringIO()
    configure("info", "json", stream=stream)
    structlog.get_logger().info("unbound")
    structlog.get_logger().bind().info("bound")
    assert [line["logger"] for line in lines(stream)] == [__name__, __name__]


def test_the_level_holds_for_us_and_for_libraries() -> None:
    stream = io.StringIO()
    configure("warning", "json", stream=stream)
    structlog.get_logger().info("quiet")
    logging.getLogger("something").info("quiet")
    structlog.get_logger().warning("loud")
    logging.getLogger("something").warning("loud too")
    assert [line["event"] for line in lines(stream)] == ["loud", "loud too"]


def test_chatty_libraries_stay_quiet_even_in_debug() -> None:
    stream = io.StringIO()
    configure("debug", "json", stream=stream)
    logging.getLogger("websockets.client").debug("< TEXT 'body'")
    logging.getLogger("aiohttp.access").info("GET /")
    logging.getLogger("aiohttp.server").error("Unhandled exception")
    assert [line["logger"] for line in lines(stream)] == ["aiohttp.server"]


@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_passes(secret: str, format_: Any) -> None:
    stream = io.StringIO()
    configure("debug", format_, stream=stream)
    ours = structlog.get_logger()
    ours.info(f"event {secret}")
    ours.info("value", detail=secret, deep={"a": [{"b": (secret,)}], secret: 1})
    ours.info("bytes", body=secret.encode(), error=ValueError(secret))
    ours.bind(bound=secret).info("bound")
    with structlog.contextvars.bound_contextvars(request=secret):
        ours.info("context")
    theirs = logging.getLogger("aiohttp.server")
    theirs.error("failed on %s", secret, extra={"payload": secret})
    try:
        raise RuntimeError(secret)
    except RuntimeError:
        ours.exception("ours")
        theirs.exception("theirs")
    written = stream.getvalue()
    assert written.count("[redacted]") >= 9
    assert SECRETS[secret] not in written
    assert "RuntimeError" in written


@given(
    secret=st.sampled_from([TOKEN_A, TOKEN_B, NSEC, API_KEY]),
    before=st.text(max_size=20).filter(lambda text: not text or not text[-1].isalnum()),
    after=st.text(max_size=20),
)
def test_no_secret_passes_whatever_surrounds_it(secret: str, before: str, after: str) -> None:
    assert secret[12:40] not in redact(f"{before} {secret}{after}")


@given(
    st.recursive(
        st.just(API_KEY),
        lambda inner: st.lists(inner) | st.dictionaries(st.just(TOKEN_A), inner),
        max_leaves=9,
    )
)
def test_no_secret_passes_at_any_depth(value: Any) -> None:
    assert API_KEY[3:] not in repr(redact_value(value))
    assert TOKEN_A[6:] not in repr(redact_value(value))


_PIECES = [
    TOKEN_A,
    TOKEN_B,
    NSEC,
    API_KEY,
    HEX,
    "Bearer abc",
    "secret",
    "plain",
    "\u017fecret=",
    "\u0131",
    "x" * 4001,
]


@given(
    st.dictionaries(
        st.sampled_from(["event", "path", "api_key", "x_token", "my_secret", "Password"]),
        st.lists(st.sampled_from(_PIECES) | st.text(max_size=9), max_size=4).map(" ".join)
        | st.text()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.none()
        | st.booleans()
        | st.binary(max_size=9)
        | st.lists(st.sampled_from(_PIECES), max_size=2),
    )
)
def test_the_quick_look_misses_nothing(event: dict[str, Any]) -> None:
    redacted = {key: redact_value(value, key) for key, value in event.items()}
    assert may_hold_secrets(event) or redacted == event


def test_the_line_of_a_request_needs_no_more_than_a_quick_look() -> None:
    line = {"event": "request", "request_id": HEX[:32], "path": "/v1/chat/completions", "status": 2}
    assert not may_hold_secrets(line | {"logger": "node.service.dispatch", "duration_ms": 1.5})


def test_what_is_named_a_secret_goes_whatever_it_looks_like() -> None:
    assert redact_value({"api_key": "plain-looking-but-long-value"}) == {"api_key": "[redacted]"}
    assert redact_value({"password": HEX}) == {"password": "[redacted]"}


@pytest.mark.parametrize(
    "text",
    [
        "creqAo2F0gaNhdGVub3N0cmFheKlucHJvZmlsZTFxeTI4d3VtbjhnaGo3dW45ZDNzaGp0bnl2OWtoMnVld2Q5aHN6OQ",
        f"pubkey {HEX}",
        "npub1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5",
        "secret_file_open_to_others",
        "task-force disk-usage",
    ],
)
def test_what_is_public_stays(text: str) -> None:
    assert redact(text) == text


def test_values_are_bounded_and_never_cut_into_a_secret() -> None:
    text = "x " * 5000 + TOKEN_A + " y" * 990
    short = redact(text)
    assert len(short) < MAX_VALUE_CHARS + 100
    assert TOKEN_A[-20:] not in short
    assert f"[{len(text)} chars]" in short
    assert len(redact_value(list(range(10_000)))) < 1000


def test_a_value_that_cannot_be_shown_does_not_fail_the_caller() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    assert redact_value(Broken()) == "<Broken>"


def test_configuring_again_writes_each_line_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure("info", "json", stream=first)
    configure("info", "json", stream=second)
    logging.getLogger("x").warning("once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1
