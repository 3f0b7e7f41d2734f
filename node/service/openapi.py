"""``GET /openapi.json``: the HTTP interface as an OpenAPI 3.1 document.

What a route takes and gives stands here, by method and path. Without an entry for every route
there is no document, and no test that passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from node.core.identity import NodeInfo
from node.errors import ERRORS
from node.service.dispatch import Route

Schema: TypeAlias = dict[str, Any]
Auth: TypeAlias = Literal["none", "payer", "account", "token"]
"""payer: a key or a token for this call. account: a key. token: ``X-Cashu``, not spent."""

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_TOKEN: Schema = {"type": "string", "description": "a Cashu token, cashuA… or cashuB… (NUT-00)"}
_UNIX: Schema = {"type": ["integer", "null"], "description": "unix seconds"}
_BINARY: Schema = {"type": "string", "format": "binary"}
_LIST: Schema = {"type": "array", "items": {"type": "object"}}


def _object(*required: str, **properties: Schema) -> Schema:
    """An object with at least these; others pass, as later versions may have more."""
    return {"type": "object", "required": list(required), "properties": properties}


@dataclass(frozen=True, slots=True)
class Operation:
    """What one route takes and gives."""

    tag: str
    auth: Auth = "none"
    request: Schema | None = None
    request_type: str = "application/json"
    response: Schema = field(default_factory=lambda: {"type": "object"})
    response_types: tuple[str, ...] = ("application/json",)
    stream: bool = False
    """``"stream": true`` gives server-sent events."""
    query: Mapping[str, Schema] = field(default_factory=dict)
    needs_query: frozenset[str] = frozenset()
    idempotent: bool = False
    """Takes ``Idempotency-Key``."""


def _paid(
    request: Schema,
    response: Schema,
    *,
    stream: bool = False,
    request_type: str = "application/json",
    response_types: tuple[str, ...] = ("application/json",),
) -> Operation:
    return Operation(
        "inference",
        "payer",
        request,
        request_type,
        response,
        response_types,
        stream,
        idempotent=True,
    )


_USAGE = _object(
    "cost",
    cost={"type": "integer", "minimum": 0, "description": "msat"},
    estimated={"type": "boolean", "description": "the model server did not count"},
)
_MODEL_AND = {"model": {"type": "string", "minLength": 1}}
_FILE = _object("model", "file", **_MODEL_AND, file=_BINARY)
_TRANSCRIPT = (
    _FILE,
    _object("text", text=_TEXT),
)
_OPENED = _object("api_key", "balance", api_key=_TEXT, balance=_COUNT)
_EXPIRY = {"validity_date": _UNIX, "refund_address": {"type": ["string", "null"]}}
_CHANGE = _object("token", token=_TOKEN, sats=_COUNT, msats=_COUNT)
_INVOICE = Operation(
    "lightning",
    "none",
    _object(
        "amount_sats",
        amount_sats={"type": "integer", "minimum": 1},
        purpose={"enum": ["create", "topup"]},
        api_key=_TEXT,
    ),
    response=_object(
        "invoice_id",
        "bolt11",
        "amount_sats",
        "expires_at",
        "payment_hash",
        invoice_id=_TEXT,
        bolt11=_TEXT,
        amount_sats=_COUNT,
        expires_at=_WHOLE,
        payment_hash={"type": ["string", "null"]},
    ),
    idempotent=True,
)
_INVOICE_STATUS = Operation(
    "lightning",
    response=_object(
        "status",
        "amount_sats",
        status={"enum": ["pending", "paid", "expired"]},
        amount_sats=_COUNT,
        api_key={"type": ["string", "null"]},
        paid_at=_UNIX,
        created_at=_UNIX,
        expires_at=_UNIX,
    ),
)
_MODEL = _object("id", "object", "sats_pricing", id=_TEXT, object={"const": "model"})
_PROVIDER = _object("name", "pubkey", "npub", "status", name=_TEXT, pubkey=_TEXT, npub=_TEXT)
_PROVIDER_FILTERS: dict[str, Schema] = {
    **dict.fromkeys(("model", "mint", "pubkey"), _TEXT),
    "transport": {"enum": ["http", "tor", "nostr"]},
    "status": {"enum": ["online", "offline", "unknown"]},
    "verified": _FLAG,
    **dict.fromkeys(("max_prompt_price", "max_completion_price"), _NUMBER),
    "max_trust_distance": {"type": "integer", "minimum": 0, "maximum": 3},
}

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): _paid(
        _object("model", "messages", **_MODEL_AND, messages=_LIST, stream=_FLAG),
        _object("choices", "usage", choices=_LIST, usage=_USAGE),
        stream=True,
    ),
    ("POST", "/v1/completions"): _paid(
        _object("model", "prompt", **_MODEL_AND, prompt={}, stream=_FLAG),
        _object("choices", "usage", choices=_LIST, usage=_USAGE),
        stream=True,
    ),
    ("POST", "/v1/responses"): _paid(
        _object("model", "input", **_MODEL_AND, input={}, stream=_FLAG),
        _object("id", "output", id=_TEXT, output=_LIST, usage=_USAGE),
        stream=True,
    ),
    ("POST", "/v1/messages"): _paid(
        _object(
            "model",
            "messages",
            "max_tokens",
            **_MODEL_AND,
            messages=_LIST,
            max_tokens={"type": "integer", "minimum": 1},
            stream=_FLAG,
        ),
        _object("id", "content", id=_TEXT, content=_LIST, usage=_USAGE),
        stream=True,
    ),
    ("POST", "/v1/embeddings"): _paid(
        _object("model", "input", **_MODEL_AND, input={}),
        _object("data", "usage", data=_LIST, usage=_USAGE),
    ),
    ("POST", "/v1/moderations"): _paid(
        _object("input", **_MODEL_AND, input={}), _object("results", results=_LIST)
    ),
    ("POST", "/v1/rerank"): _paid(
        _object(
            "model", "query", "documents", **_MODEL_AND, query=_TEXT, documents={"type": "array"}
        ),
        _object("results", results=_LIST),
    ),
    ("POST", "/v1/images/generations"): _paid(
        _object("model", "prompt", **_MODEL_AND, prompt=_TEXT, n=_WHOLE, stream=_FLAG),
        _object("data", data=_LIST, usage=_USAGE),
        stream=True,
    ),
    ("POST", "/v1/audio/transcriptions"): _paid(
        *_TRANSCRIPT,
        stream=True,
        request_type="multipart/form-data",
        response_types=("application/json", "text/plain"),
    ),
    ("POST", "/v1/audio/translations"): _paid(
        *_TRANSCRIPT,
        request_type="multipart/form-data",
        response_types=("application/json", "text/plain"),
    ),
    ("POST", "/v1/audio/speech"): _paid(
        _object("model", "input", **_MODEL_AND, input=_TEXT, voice={}),
        _BINARY,
        stream=True,
        response_types=("audio/mpeg",),
    ),
    ("GET", "/v1/models"): Operation(
        "catalogue",
        response=_object(
            "object", "data", object={"const": "list"}, data={"type": "array", "items": _MODEL}
        ),
    ),
    ("GET", "/v1/models/{id}"): Operation("catalogue", response=_MODEL),
    ("GET", "/v1/info"): Operation(
        "catalogue",
        response=_object(
            "name", "npub", "mints", name=_TEXT, npub=_TEXT, mints={"type": "array", "items": _TEXT}
        ),
    ),
    ("POST", "/v1/wallet/create"): Operation(
        "wallet",
        request=_object(
            "cashu_token",
            cashu_token=_TOKEN,
            admin_key={"type": "string", "minLength": 16, "maxLength": 200},
            **_EXPIRY,
        ),
        response=_OPENED,
    ),
    ("GET", "/v1/wallet/balance"): Operation(
        "wallet",
        "account",
        response=_object("balance", "currency", balance=_COUNT, currency={"const": "sat"}),
    ),
    ("POST", "/v1/wallet/topup"): Operation(
        "wallet",
        "account",
        _object("cashu_token", cashu_token=_TOKEN),
        response=_object("balance", "amount_added", balance=_COUNT, amount_added=_COUNT),
    ),
    ("POST", "/v1/wallet/withdraw"): Operation(
        "wallet",
        "account",
        _object(amount={"type": "integer", "minimum": 1}, mint=_TEXT),
        response=_object(
            "cashu_token", "amount", "mint", cashu_token=_TOKEN, amount=_COUNT, mint=_TEXT
        ),
        idempotent=True,
    ),
    ("GET", "/v1/wallet/transactions"): Operation(
        "wallet",
        "account",
        query={"limit": {"type": "integer", "minimum": 1, "maximum": 200}, "cursor": _TEXT},
        response=_object(
            "transactions", transactions=_LIST, next_cursor={"type": ["string", "null"]}
        ),
    ),
    ("GET", "/v1/wallet/change/{request_id}"): Operation("wallet", "token", response=_CHANGE),
    ("GET", "/v1/balance/create"): Operation(
        "wallet",
        query={"initial_balance_token": _TOKEN},
        needs_query=frozenset({"initial_balance_token"}),
        response=_OPENED,
    ),
    ("POST", "/v1/balance/create"): Operation(
        "wallet",
        request=_object("initial_balance_token", initial_balance_token=_TOKEN, **_EXPIRY),
        response=_OPENED,
    ),
    ("GET", "/v1/balance/info"): Operation(
        "wallet",
        "account",
        response=_object("api_key", "balance", "reserved", api_key=_TEXT, balance=_COUNT),
    ),
    ("POST", "/v1/balance/topup"): Operation(
        "wallet",
        "account",
        _object(cashu_token=_TOKEN),
        query={"cashu_token": _TOKEN},
        response=_object("msats", msats=_COUNT),
    ),
    ("POST", "/v1/balance/refund"): Operation(
        "wallet", "account", response=_CHANGE, idempotent=True
    ),
    ("POST", "/v1/balance/child-key"): Operation(
        "wallet",
        "account",
        _object(
            "count",
            count={"type": "integer", "minimum": 1, "maximum": 50},
            balance_limit={"type": ["integer", "null"], "description": "msat"},
            balance_limit_reset={"enum": ["daily", "weekly", "monthly", None]},
            validity_date=_UNIX,
        ),
        response=_object(
            "api_keys", "count", api_keys={"type": "array", "items": _TEXT}, count=_COUNT
        ),
        idempotent=True,
    ),
    ("DELETE", "/v1/balance/child-key"): Operation(
        "wallet",
        "account",
        _object("child_key", child_key=_TEXT),
        response=_object("success", success=_FLAG),
    ),
    ("POST", "/v1/balance/child-key/reset"): Operation(
        "wallet",
        "account",
        _object("child_key", child_key=_TEXT),
        response=_object("success", success=_FLAG),
    ),
    ("POST", "/v1/balance/lightning/invoice"): _INVOICE,
    ("GET", "/v1/balance/lightning/invoice/{secret}/status"): _INVOICE_STATUS,
    ("POST", "/lightning/invoice"): _INVOICE,
    ("GET", "/lightning/invoice/{secret}/status"): _INVOICE_STATUS,
    ("GET", "/v1/providers"): Operation(
        "discovery",
        query={
            **_PROVIDER_FILTERS,
            "sort": {"enum": ["rank", "price", "latency", "uptime", "trust"]},
            "cursor": _TEXT,
            "include_json": _FLAG,
            "limit": {"type": "integer", "minimum": 1, "maximum": 200},
        },
        response=_object("providers", providers={"type": "array", "items": _PROVIDER}),
    ),
    ("GET", "/v1/providers/stream"): Operation(
        "discovery",
        query=_PROVIDER_FILTERS,
        response=_object("event", "data", event=_TEXT, id=_TEXT, data=_TEXT),
        response_types=("text/event-stream",),
    ),
    ("GET", "/v1/market/{model}"): Operation(
        "discovery",
        query={
            **{name: schema for name, schema in _PROVIDER_FILTERS.items() if name != "model"},
            "limit": {"type": "integer", "minimum": 1, "maximum": 200},
        },
        response=_object(
            "model", "asks", "prices", model=_TEXT, asks=_LIST, prices={"type": "object"}
        ),
    ),
    ("GET", "/v1/providers/{name}"): Operation("discovery", response=_PROVIDER),
    ("GET", "/openapi.json"): Operation("operations"),
}

_HEALTH = Operation("operations", response=_object("status", "checks", status=_TEXT))
_SECURITY: dict[Auth, list[dict[str, list[str]]]] = {
    "none": [],
    "payer": [{"key": []}, {"token": []}],
    "account": [{"key": []}],
    "token": [{"token": []}],
}
_OVER_NOSTR = (
    "Every path under /v1 but the stream also answers over Nostr, as NIP-59 gift wraps to the"
    " node's key at the relays it announces: a rumor of kind 80 holds the request (method, url,"
    " headers and body as here), one of kind 81 the reply, which streams in frames. Change comes"
    " among the reply's headers or trailers. `nodestr ask` and the local gateway speak it;"
    " docs/protocol.md, section 2, has the format."
)
_BEYOND_ROUTES = {
    "/health/live": "The process runs",
    "/health/ready": "Requests can be served; else 503 with the reasons",
}


def openapi_document(routes: Iterable[Route], info: NodeInfo) -> dict[str, Any]:
    """The document. Raises KeyError for a route that has no entry in ``OPERATIONS``."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r"\{(\w+):path\}", r"{\1}", route.path)
        operation = OPERATIONS[route.method, path]
        entry = _entry(operation, route.summary, re.findall(r"\{(\w+)\}", path))
        paths.setdefault(path, {})[route.method.lower()] = entry
        if route.bare:
            bare = path.removeprefix("/v1")
            paths.setdefault(bare, {})[route.method.lower()] = entry
    for path, summary in _BEYOND_ROUTES.items():
        paths[path] = {"get": _entry(_HEALTH, summary, [])}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": info.name,
            "version": info.version,
            "description": f"{info.about or 'AI inference for ecash.'}\n\n{_OVER_NOSTR}",
        },
        "servers": [{"url": url} for url in info.http_urls] or [{"url": "/"}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "sk-… of an account, or a Cashu token, which opens one",
                },
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Cashu",
                    "description": "a Cashu token that pays for this call; its change comes back"
                    " in the same header",
                },
            },
            "schemas": {"Error": _error_schema()},
        },
        "x-errors": [
            {
                "code": code,
                "status": error.status,
                "type": error.type,
                "message": error.default,
            }
            for code, error in sorted(ERRORS.items())
        ],
    }


def _entry(operation: Operation, summary: str, in_path: list[str]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in in_path
    ]
    parameters += [
        {"name": name, "in": "query", "required": name in operation.needs_query, "schema": schema}
        for name, schema in operation.query.items()
    ]
    if operation.idempotent:
        key = {"type": "string", "minLength": 1, "maxLength": 255}
        parameters.append({"name": "Idempotency-Key", "in": "header", "schema": key})
    content = {kind: {"schema": operation.response} for kind in operation.response_types}
    if operation.stream:
        content["text/event-stream"] = {"schema": _TEXT}
    entry: dict[str, Any] = {
        "summary": summary,
        "tags": [operation.tag],
        "parameters": parameters,
        "responses": {
            "200": {"description": "OK", "content": content},
            "default": {
                "description": "what went wrong; the codes are the enum of error.code",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
        "security": _SECURITY[operation.auth],
    }
    if operation.request is not None:
        entry["requestBody"] = {
            "required": True,
            "content": {operation.request_type: {"schema": operation.request}},
        }
    return entry


def _error_schema() -> Schema:
    return _object(
        "error",
        "request_id",
        error=_object(
            "message",
            "type",
            "code",
            message=_TEXT,
            type={"enum": sorted({error.type for error in ERRORS.values()})},
            code={"enum": sorted(ERRORS)},
            param={"type": ["string", "null"]},
        ),
        request_id=_TEXT,
    )
