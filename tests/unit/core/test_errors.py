"""Every error has one wire form, and what is private stays here."""

from __future__ import annotations

import json
import re

import pytest

from node.errors import (
    ERRORS,
    IdempotencyConflict,
    InsufficientBalance,
    InternalError,
    MethodNotAllowed,
    MintUnreachable,
    NodeError,
    Pending,
    RateLimitExceeded,
    UpstreamFailed,
)

# status and type by code, as the wire contract has them
TABLE = {
    "invalid_json": (400, "invalid_request_error"),
    "invalid_value": (400, "invalid_request_error"),
    "model_not_found": (404, "invalid_request_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "request_too_large": (413, "request_too_large"),
    "unsupported_media": (415, "unsupported_media"),
    "missing_key": (401, "authentication_error"),
    "invalid_api_key": (401, "authentication_error"),
    "key_expired": (401, "authentication_error"),
    "insufficient_balance": (402, "insufficient_quota"),
    "token_malformed": (400, "invalid_token"),
    "token_already_spent": (400, "invalid_token"),
    "mint_not_accepted": (422, "invalid_token"),
    "fees_exceed_amount": (422, "invalid_token"),
    "mint_unreachable": (503, "mint_error"),
    "pending": (425, "pending"),
    "rate_limit_exceeded": (429, "rate_limit_exceeded"),
    "server_draining": (503, "server_draining"),
    "upstream_error": (502, "upstream_error"),
    "upstream_timeout": (504, "upstream_timeout"),
    "internal_error": (500, "server_error"),
}


@pytest.mark.parametrize("code", sorted(TABLE))
def test_the_table(code: str) -> None:
    error = ERRORS[code]
    assert (error.status, error.type) == TABLE[code]


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_the_body_is_complete_and_holds_nothing_private(code: str) -> None:
    error = ERRORS[code](private="the-secret", param="some.field")
    body = json.loads(error.body("req-1"))
    assert body["request_id"] == "req-1"
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert body["error"]["code"] == code
    assert body["error"]["param"] == "some.field"
    assert body["error"]["message"]
    assert b"the-secret" not in error.body("req-1")
    assert "the-secret" not in json.dumps(error.headers())


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_codes_are_snake_case_and_statuses_are_errors(code: str) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
    assert 400 <= ERRORS[code].status < 600


def test_retry_hints() -> None:
    assert RateLimitExceeded(retry_after_s=7).headers() == {"retry-after": "7"}
    hints = {"retry-after": "0", "x-should-retry": "true"}
    for asked_again in (MintUnreachable, Pending):
        assert asked_again(retry_after_s=0).headers() == hints
    for error in (UpstreamFailed, IdempotencyConflict, InternalError):
        assert error().headers() == {"x-should-retry": "false"}


def test_a_402_names_the_payment_request() -> None:
    error = InsufficientBalance()
    assert "x-cashu" not in error.headers()
    error.payment_request = "creqA1"
    assert error.headers()["x-cashu"] == "creqA1"


def test_a_405_names_the_methods() -> None:
    assert "allow" not in MethodNotAllowed().headers()
    assert MethodNotAllowed(allow=["POST", "GET"]).headers()["allow"] == "GET, POST"


def test_two_errors_cannot_share_a_code() -> None:
    with pytest.raises(TypeError, match="invalid_json"):
        type("Another", (NodeError,), {"code": "invalid_json"})
