"""``GET /openapi.json``: the HTTP interface as an OpenAPI 3.1 document.

What a route takes and gives stands in ``operations``. Without an entry for every route there is no
document, and no test that passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from node.core.identity import NodeInfo
from node.errors import ERRORS
from node.service.dispatch import Route
from node.service.operations import OPERATIONS, TEXT, Auth, Operation, Schema, object_of

_HEALTH = Operation("operations", response=object_of("status", "checks", status=TEXT))
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
        {"name": name, "in": "path", "required": True, "schema": TEXT} for name in in_path
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
        content["text/event-stream"] = {"schema": TEXT}
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
    return object_of(
        "error",
        "request_id",
        error=object_of(
            "message",
            "type",
            "code",
            message=TEXT,
            type={"enum": sorted({error.type for error in ERRORS.values()})},
            code={"enum": sorted(ERRORS)},
            param={"type": ["string", "null"]},
        ),
        request_id=TEXT,
    )
