"""Every error a client can be told, in one tree; the class attributes are the table.

An error knows its wire form (status, ``type``, ``code``, retry hints) and one public
``message``. What only the operator may know goes to ``private`` and never leaves the node.

    NodeError
    ├── InvalidJson, InvalidValue, ModelNotFound, NotFound, MethodNotAllowed   the request is wrong
    │   ContextLengthExceeded, RequestTooLarge, UnsupportedMedia, RequestIncomplete
    ├── ForbiddenOrigin                                        of a gateway, of the admin pages
    ├── MissingKey, InvalidApiKey, KeyExpired                                  who are you?
    │   NotLoggedIn, WrongPassword                                             of the admin pages
    ├── InsufficientBalance                                                    pay first (NUT-24)
    ├── LimitExceeded                                                          of a child key
    ├── TokenMalformed, TokenAlreadySpent, MintNotAccepted, FeesExceedAmount   the token is wrong
    ├── MintUnreachable, MintFull, MintLiquidity, Pending                      the mint; ask again
    ├── IdempotencyConflict, IdempotencyInProgress, RateLimitExceeded, ServerDraining, Interrupted
    ├── PriceUnknown                                                           ask again
    ├── NotConfigured, PaymentRefused                                          of the admin pages
    ├── UpstreamFailed, UpstreamTimeout, UpstreamUnavailable                   nothing charged
    └── InternalError                                                          a bug
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, ClassVar

ERRORS: dict[str, type[NodeError]] = {}
"""``code`` → class, filled as classes are defined: the documentation test reads it."""


class NodeError(Exception):
    """Base of all errors a client may see.

    Args:
        message: one public sentence; the class's default when omitted.
        param: the field of the request that is wrong.
        retry_after_s: seconds after which asking again makes sense.
        private: context for the log; never sent.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    default: ClassVar[str] = "internal error"
    retry: ClassVar[bool | None] = None
    """What ``x-should-retry`` says; None leaves the header out and the client decides."""

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        private: str = "",
    ) -> None:
        self.message = message or self.default
        self.param = param
        self.retry_after_s = retry_after_s
        self.private = private
        super().__init__(f"{self.code}: {self.message}" + (f" ({private})" if private else ""))

    def __init_subclass__(cls) -> None:
        if "code" in cls.__dict__:
            if cls.code in ERRORS:
                raise TypeError(f"two errors share the code {cls.code!r}")
            ERRORS[cls.code] = cls

    def body(self, request_id: str) -> bytes:
        """The one error body of HTTP and Nostr, as JSON bytes."""
        return json.dumps(self.document(request_id), separators=(",", ":")).encode()

    def document(self, request_id: str) -> dict[str, Any]:
        """The error body as a JSON-able dict."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "code": self.code,
                "param": self.param,
            },
            "request_id": request_id,
        }

    def headers(self) -> dict[str, str]:
        """Response headers that go with the status, such as ``Retry-After``."""
        headers: dict[str, str] = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.retry is not None:
            headers["x-should-retry"] = "true" if self.retry else "false"
        return headers


class _InvalidRequest(NodeError):
    status = 400
    type = "invalid_request_error"
    retry = False


class InvalidJson(_InvalidRequest):
    code = "invalid_json"
    default = "the request body is not valid JSON"


class InvalidValue(_InvalidRequest):
    code = "invalid_value"
    default = "a value of the request is not valid"


class ContextLengthExceeded(_InvalidRequest):
    code = "context_length_exceeded"
    default = "the request is longer than the model's context"


class ModelNotFound(_InvalidRequest):
    status = 404
    code = "model_not_found"
    default = "this node does not sell that model; see /v1/models"


class NotFound(_InvalidRequest):
    status = 404
    code = "not_found"
    default = "there is nothing here"


class MethodNotAllowed(_InvalidRequest):
    status = 405
    code = "method_not_allowed"
    default = "this path does not take that method"

    def __init__(
        self, message: str | None = None, *, allow: Collection[str] = (), **details: Any
    ) -> None:
        """``allow``: the methods that the path takes."""
        super().__init__(message, **details)
        self.allow = tuple(sorted(allow))

    def headers(self) -> dict[str, str]:
        headers = super().headers()
        if self.allow:
            headers["allow"] = ", ".join(self.allow)
        return headers


class RequestIncomplete(_InvalidRequest):
    status = 408
    code = "request_incomplete"
    default = "parts of the request did not arrive in time"


class RequestTooLarge(NodeError):
    status = 413
    type = "request_too_large"
    code = "request_too_large"
    default = "the request is larger than this node accepts"
    retry = False


class UnsupportedMedia(NodeError):
    status = 415
    type = "unsupported_media"
    code = "unsupported_media"
    default = "this content type is not supported here"
    retry = False


class ForbiddenOrigin(_InvalidRequest):
    """Of a gateway and of the admin pages: what a node sells is open to all."""

    status = 403
    code = "forbidden_origin"
    default = "this endpoint is for programs of its own machine"


class _Authentication(NodeError):
    status = 401
    type = "authentication_error"
    retry = False


class MissingKey(_Authentication):
    code = "missing_key"
    default = "send an API key or a Cashu token: Authorization: Bearer …, or X-Cashu: …"


class InvalidApiKey(_Authentication):
    code = "invalid_api_key"
    default = "this API key is not known here"


class KeyExpired(_Authentication):
    code = "key_expired"
    default = "this API key has expired"


class NotLoggedIn(_Authentication):
    code = "not_logged_in"
    default = "log in first"


class WrongPassword(_Authentication):
    code = "wrong_password"
    default = "this is not the password"


class InsufficientBalance(NodeError):
    """NUT-24: ``payment_request`` (NUT-18 ``creqA…``) goes into the ``X-Cashu`` header."""

    status = 402
    type = "insufficient_quota"
    code = "insufficient_balance"
    default = "the balance does not cover this request"
    retry = False

    payment_request: str | None = None

    def headers(self) -> dict[str, str]:
        headers = super().headers()
        if self.payment_request:
            headers["x-cashu"] = self.payment_request
        return headers


class LimitExceeded(NodeError):
    """Paying more does not help: the owner of the key has set the limit."""

    status = 402
    type = "insufficient_quota"
    code = "balance_limit_exceeded"
    default = "the spending limit of this key does not cover this request"
    retry = False


class _InvalidToken(NodeError):
    status = 400
    type = "invalid_token"
    retry = False


class TokenMalformed(_InvalidToken):
    code = "token_malformed"
    default = "this is not a valid Cashu token"


class TokenAlreadySpent(_InvalidToken):
    code = "token_already_spent"
    default = "this token has been spent already"


class MintNotAccepted(_InvalidToken):
    status = 422
    code = "mint_not_accepted"
    default = "this node does not accept tokens of that mint; see /v1/info"


class FeesExceedAmount(_InvalidToken):
    status = 422
    code = "fees_exceed_amount"
    default = "the mint's fees leave nothing of this token"


class _MintTrouble(NodeError):
    status = 503
    type = "mint_error"


class MintUnreachable(_MintTrouble):
    """The mint could not be asked and no money has moved."""

    code = "mint_unreachable"
    default = "the mint cannot be reached; your token is untouched"
    retry = True


class MintLiquidity(_MintTrouble):
    status = 422
    code = "mint_liquidity"
    default = "no single mint holds that much here; ask for less or name another mint"
    retry = False


class MintFull(_MintTrouble):
    status = 422
    code = "mint_full"
    default = (
        "this node holds as much of that mint's money as it wants to; your token is untouched,"
        " pay with one of another mint"
    )
    retry = False


class Pending(NodeError):
    """The mint's answer is not known yet: ask again, the answer will be the same."""

    status = 425
    type = "pending"
    code = "pending"
    default = "the outcome is not known yet; ask again with the same request"
    retry = True


class IdempotencyConflict(_InvalidRequest):
    status = 409
    code = "idempotency_conflict"
    default = "this id was used for another request"


class IdempotencyInProgress(_InvalidRequest):
    status = 409
    code = "idempotency_in_progress"
    default = "this request is being answered now; ask again for its answer"
    retry = True


class Interrupted(NodeError):
    """The node stopped while it worked on this request. Nothing was charged for it, or the
    charge stands and the answer is lost; the message says which."""

    status = 409
    type = "server_error"
    code = "interrupted"
    default = "the node was interrupted while it answered this request"
    retry = False


class Answered(Interrupted):
    """This request was answered and charged before; its answer may still be known."""

    def __init__(self, hold_id: int) -> None:
        """``hold_id``: of the hold that paid."""
        super().__init__("this request was answered and charged; it is not run again")
        self.hold_id = hold_id


class NotConfigured(_InvalidRequest):
    """Of the admin pages: the settings do not provide for it. The message names the setting."""

    status = 409
    code = "not_configured"
    default = "this node is not set up for that"


class PaymentRefused(_InvalidRequest):
    """Of the admin pages: earnings stay where they are. The message says why."""

    status = 409
    code = "payment_refused"
    default = "nothing was paid"


class RateLimitExceeded(NodeError):
    status = 429
    type = "rate_limit_exceeded"
    code = "rate_limit_exceeded"
    default = "too many requests"


class ServerDraining(NodeError):
    status = 503
    type = "server_draining"
    code = "server_draining"
    default = "this node is shutting down; use another one"


class UpstreamFailed(NodeError):
    status = 502
    type = "upstream_error"
    code = "upstream_error"
    default = "the model server failed; nothing was charged"
    retry = False


class AnswerTooLarge(UpstreamFailed):
    """The upstream did its work, and what came of it is above a bound of ours. It is charged for:
    else a request that makes it so would be free for its client and not for the operator."""

    code = "answer_too_large"
    default = "the answer is larger than this node passes on; its making was charged"


class UpstreamTimeout(NodeError):
    """``sent``: the upstream had the whole request and may have worked on it."""

    sent = False
    status = 504
    type = "upstream_timeout"
    code = "upstream_timeout"
    default = "the model server did not answer in time; nothing was charged"
    retry = False


class UpstreamUnavailable(NodeError):
    """No model server was asked: all that serve the model are busy or did not answer lately."""

    status = 503
    type = "upstream_error"
    code = "upstream_unavailable"
    default = "no model server can take this request now; nothing was charged"
    retry = True


class PriceUnknown(NodeError):
    """The model has its price in USD and the exchange rate is not known."""

    status = 503
    type = "server_error"
    code = "price_unknown"
    default = "the price of this model is not known at the moment; nothing was charged"
    retry = True


class InternalError(NodeError):
    code = "internal_error"
    default = "internal error; the request id helps the operator find it"
    retry = False
