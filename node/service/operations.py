"""What each route takes and gives, by method and path: the source of ``/openapi.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Schema: TypeAlias = dict[str, Any]
Auth: TypeAlias = Literal["none", "payer", "account", "token"]
"""payer: a key or a token for this call. account: a key. token: ``X-Cashu``, not spent."""

TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_TOKEN: Schema = {"type": "string", "description": "a Cashu token, cashuA… or cashuB… (NUT-00)"}
_UNIX: Schema = {"type": ["integer", "null"], "description": "unix seconds"}
_BINARY: Schema = {"type": "string", "format": "binary"}
_LIST: Schema = {"type": "array", "items": {"type": "object"}}


def object_of(*required: str, **properties: Schema) -> Schema:
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


_USAGE = object_of(
    "cost",
    cost={"type": "integer", "minimum": 0, "description": "msat"},
    estimated={"type": "boolean", "description": "the model server did not count"},
)
_MODEL_AND = {"model": {"type": "string", "minLength": 1}}
_FILE = object_of("model", "file", **_MODEL_AND, file=_BINARY)
_TRANSCRIPT = (
    _FILE,
    object_of("text", text=TEXT),
)
_OPENED = object_of("api_key", "balance", api_key=TEXT, balance=_COUNT)
_EXPIRY = {"validity_date": _UNIX, "refund_address": {"type": ["string", "null"]}}
_CHANGE = object_of("token", token=_TOKEN, sats=_COUNT, msats=_COUNT)
_INVOICE = Operation(
    "lightning",
    "none",
    object_of(
        "amount_sats",
        amount_sats={"type": "integer", "minimum": 1},
        purpose={"enum": ["create", "topup"]},
        api_key=TEXT,
    ),
    response=object_of(
        "invoice_id",
        "bolt11",
        "amount_sats",
        "expires_at",
        "payment_hash",
        invoice_id=TEXT,
        bolt11=TEXT,
        amount_sats=_COUNT,
        expires_at=_WHOLE,
        payment_hash={"type": ["string", "null"]},
    ),
    idempotent=True,
)
_INVOICE_STATUS = Operation(
    "lightning",
    response=object_of(
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
_MODEL = object_of("id", "object", "sats_pricing", id=TEXT, object={"const": "model"})
_PROVIDER = object_of("name", "pubkey", "npub", "status", name=TEXT, pubkey=TEXT, npub=TEXT)
_PROVIDER_FILTERS: dict[str, Schema] = {
    **dict.fromkeys(("model", "mint", "pubkey"), TEXT),
    "transport": {"enum": ["http", "tor", "nostr"]},
    "status": {"enum": ["online", "offline", "unknown"]},
    "verified": _FLAG,
    **dict.fromkeys(("max_prompt_price", "max_completion_price"), _NUMBER),
    "max_trust_distance": {"type": "integer", "minimum": 0, "maximum": 3},
}

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): _paid(
        object_of("model", "messages", **_MODEL_AND, messages=_LIST, stream=_FLAG),
        object_of("choices", "usage", choices=_LIST, usage=_USAGE),
        stream=True,
    ),
    ("POST", "/v1/completions"): _paid(
        object_of("model", "prompt", **_MODEL_AND, prompt={}, stream=_FLAG),
        object_of("choices", "usage", choices=_LIST, usage=_USAGE),
        stream=True,
    ),
    ("POST", "/v1/responses"): _paid(
        object_of("model", "input", **_MODEL_AND, input={}, stream=_FLAG),
        object_of("id", "output", id=TEXT, output=_LIST, usage=_USAGE),
        stream=True,
    ),
    ("POST", "/v1/messages"): _paid(
        object_of(
            "model",
            "messages",
            "max_tokens",
            **_MODEL_AND,
            messages=_LIST,
            max_tokens={"type": "integer", "minimum": 1},
            stream=_FLAG,
        ),
        object_of("id", "content", id=TEXT, content=_LIST, usage=_USAGE),
        stream=True,
    ),
    ("POST", "/v1/embeddings"): _paid(
        object_of("model", "input", **_MODEL_AND, input={}),
        object_of("data", "usage", data=_LIST, usage=_USAGE),
    ),
    ("POST", "/v1/moderations"): _paid(
        object_of("input", **_MODEL_AND, input={}), object_of("results", results=_LIST)
    ),
    ("POST", "/v1/rerank"): _paid(
        object_of(
            "model", "query", "documents", **_MODEL_AND, query=TEXT, documents={"type": "array"}
        ),
        object_of("results", results=_LIST),
    ),
    ("POST", "/v1/images/generations"): _paid(
        object_of("model", "prompt", **_MODEL_AND, prompt=TEXT, n=_WHOLE, stream=_FLAG),
        object_of("data", data=_LIST, usage=_USAGE),
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
        object_of("model", "input", **_MODEL_AND, input=TEXT, voice={}),
        _BINARY,
        stream=True,
        response_types=("audio/mpeg",),
    ),
    ("GET", "/v1/models"): Operation(
        "catalogue",
        response=object_of(
            "object", "data", object={"const": "list"}, data={"type": "array", "items": _MODEL}
        ),
    ),
    ("GET", "/v1/models/{id}"): Operation("catalogue", response=_MODEL),
    ("GET", "/v1/info"): Operation(
        "catalogue",
        response=object_of(
            "name", "npub", "mints", name=TEXT, npub=TEXT, mints={"type": "array", "items": TEXT}
        ),
    ),
    ("POST", "/v1/wallet/create"): Operation(
        "wallet",
        request=object_of(
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
        response=object_of("balance", "currency", balance=_COUNT, currency={"const": "sat"}),
    ),
    ("POST", "/v1/wallet/topup"): Operation(
        "wallet",
        "account",
        object_of("cashu_token", cashu_token=_TOKEN),
        response=object_of("balance", "amount_added", balance=_COUNT, amount_added=_COUNT),
    ),
    ("POST", "/v1/wallet/withdraw"): Operation(
        "wallet",
        "account",
        object_of(amount={"type": "integer", "minimum": 1}, mint=TEXT),
        response=object_of(
            "cashu_token", "amount", "mint", cashu_token=_TOKEN, amount=_COUNT, mint=TEXT
        ),
        idempotent=True,
    ),
    ("GET", "/v1/wallet/transactions"): Operation(
        "wallet",
        "account",
        query={"limit": {"type": "integer", "minimum": 1, "maximum": 200}, "cursor": TEXT},
        response=object_of(
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
        request=object_of("initial_balance_token", initial_balance_token=_TOKEN, **_EXPIRY),
        response=_OPENED,
    ),
    ("GET", "/v1/balance/info"): Operation(
        "wallet",
        "account",
        response=object_of("api_key", "balance", "reserved", api_key=TEXT, balance=_COUNT),
    ),
    ("POST", "/v1/balance/topup"): Operation(
        "wallet",
        "account",
        object_of(cashu_token=_TOKEN),
        query={"cashu_token": _TOKEN},
        response=object_of("msats", msats=_COUNT),
    ),
    ("POST", "/v1/balance/refund"): Operation(
        "wallet", "account", response=_CHANGE, idempotent=True
    ),
    ("POST", "/v1/balance/child-key"): Operation(
        "wallet",
        "account",
        object_of(
            "count",
            count={"type": "integer", "minimum": 1, "maximum": 50},
            balance_limit={"type": ["integer", "null"], "description": "msat"},
            balance_limit_reset={"enum": ["daily", "weekly", "monthly", None]},
            validity_date=_UNIX,
        ),
        response=object_of(
            "api_keys", "count", api_keys={"type": "array", "items": TEXT}, count=_COUNT
        ),
        idempotent=True,
    ),
    ("DELETE", "/v1/balance/child-key"): Operation(
        "wallet",
        "account",
        object_of("child_key", child_key=TEXT),
        response=object_of("success", success=_FLAG),
    ),
    ("POST", "/v1/balance/child-key/reset"): Operation(
        "wallet",
        "account",
        object_of("child_key", child_key=TEXT),
        response=object_of("success", success=_FLAG),
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
            "cursor": TEXT,
            "include_json": _FLAG,
            "limit": {"type": "integer", "minimum": 1, "maximum": 200},
        },
        response=object_of("providers", providers={"type": "array", "items": _PROVIDER}),
    ),
    ("GET", "/v1/providers/stream"): Operation(
        "discovery",
        query=_PROVIDER_FILTERS,
        response=object_of("event", "data", event=TEXT, id=TEXT, data=TEXT),
        response_types=("text/event-stream",),
    ),
    ("GET", "/v1/market/{model}"): Operation(
        "discovery",
        query={
            **{name: schema for name, schema in _PROVIDER_FILTERS.items() if name != "model"},
            "limit": {"type": "integer", "minimum": 1, "maximum": 200},
        },
        response=object_of(
            "model", "asks", "prices", model=TEXT, asks=_LIST, prices={"type": "object"}
        ),
    ),
    ("GET", "/v1/providers/{name}"): Operation("discovery", response=_PROVIDER),
    ("GET", "/openapi.json"): Operation("operations"),
}
