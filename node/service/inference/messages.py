"""``POST /v1/messages`` (Anthropic's dialect)."""

from __future__ import annotations

import re
from typing import Any

import orjson

from node.core.catalog import Catalog, Model
from node.core.exchange import Request
from node.core.usage import Usage
from node.errors import InvalidValue
from node.service.inference.call import (
    EVENT_STREAM,
    JSON,
    JsonPayload,
    PreparedCall,
    check_fits,
    model_for,
    prompt_bound,
    wants_change_in_stream,
)
from node.service.inference.checks import refuse_long_caches
from node.service.inference.estimate import (
    TOKENS_PER_TOOLS,
    PromptEstimate,
)
from node.service.inference.fields import flag, limit_output, optional_int
from node.service.inference.messages_meter import messages_meter
from node.service.inference.typed_events import Document
from node.service.json_body import json_object

DEFAULT_VERSION = "2023-06-01"
MAX_BETAS = 16
FREE_BETAS = (
    "claude-code-", "computer-use-", "effort-", "fine-grained-tool-streaming-",
    "interleaved-thinking-", "max-tokens-", "output-128k-", "pdfs-", "prompt-caching-",
    "structured-outputs-", "token-efficient-tools-", "tool-examples-",
)  # fmt: skip
"""Betas, without their date, that change neither a token's price nor what is counted as one."""
LONG_CONTEXT_TOKENS = 200_000
"""A longer context costs more at the upstream, and a beta header asks for it."""

_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}")
_BETA = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_MAX_DEPTH = 4
# Tools that run at the client and whose definition the server knows.
_KNOWN_TOOLS = ("bash_", "text_editor_", "memory_", "computer_", "browser_")
# What is paid for by other means than tokens, or brings a server's own work.
_NOT_SOLD = ("mcp_servers", "container", "context_management", "fallbacks")
# Fields that never reach the prompt. Any other field is counted as if it were printed.
_NOT_PROMPT = frozenset({
    "model", "messages", "system", "tools", "max_tokens", "metadata", "stop_sequences", "stream",
    "temperature", "top_k", "top_p", "thinking", "service_tier", "cache_control", "speed",
    "inference_geo", *_NOT_SOLD,
})  # fmt: skip


def prepare_messages(request: Request, catalog: Catalog) -> PreparedCall:
    """Check and bound a request for a message.

    The upstream gets the client's JSON with its own model id and with ``max_tokens`` (and a
    thinking budget beyond it) never above the model's. ``anthropic-version`` and those betas go
    along that cost nothing.

    Raises:
        UnsupportedMedia, RequestTooLarge: see ``json_object``.
        InvalidJson, InvalidValue: with ``param`` where one field is wrong or cannot be paid here.
        ModelNotFound, ContextLengthExceeded: the latter only when it is certain.
    """
    document = json_object(request)
    model = model_for(catalog, document.get("model"), "messages")
    refuse_long_caches(document, request.body)
    _refuse_what_is_dear(document)
    estimate = _estimate(document)
    check_fits(estimate, model, "messages")
    stream = flag(document, "stream")
    most = _limit_output(document, model)
    bound = prompt_bound(estimate, model)
    return PreparedCall(
        model=model,
        endpoint="messages",
        path="/messages",
        payload=JsonPayload(document, model),
        stream=stream,
        most=Usage(bound, most),
        typical=Usage(min(estimate.typical, bound), source="estimated"),
        make_meter=messages_meter,
        include_usage=True,
        change_in_stream=wants_change_in_stream(request),
        accept=(EVENT_STREAM,) if stream else (JSON,),
        headers=_headers(request, model),
    )


def _headers(request: Request, model: Model) -> dict[str, str]:
    version = request.headers.get("anthropic-version", DEFAULT_VERSION)
    if not _VERSION.fullmatch(version):
        raise InvalidValue("anthropic-version must be a date", param="anthropic-version")
    headers = {"anthropic-version": version}
    betas = [beta.strip() for beta in request.headers.get("anthropic-beta", "").split(",")]
    betas = [beta for beta in betas if beta]
    if len(betas) > MAX_BETAS or not all(map(_BETA.fullmatch, betas)):
        raise InvalidValue("anthropic-beta is not a list of betas", param="anthropic-beta")
    long = ("context-1m-",) if model.context_length > LONG_CONTEXT_TOKENS else ()
    betas = [beta for beta in betas if beta.startswith((*FREE_BETAS, *long))]
    if betas:
        headers["anthropic-beta"] = ",".join(betas)
    return headers


def _limit_output(document: Document, model: Model) -> int:
    wanted = optional_int(document, "max_tokens")
    if wanted is None:
        raise InvalidValue("max_tokens is required", param="max_tokens")
    limit = limit_output(document, model, ("max_tokens",), default="max_tokens")
    thinking = document.get("thinking")
    if thinking is None:
        return limit
    if not isinstance(thinking, dict):
        raise InvalidValue("thinking must be an object", param="thinking")
    budget = thinking.get("budget_tokens")
    if budget is not None and (type(budget) is not int or budget < 1):
        raise InvalidValue("must be an integer of at least 1", param="thinking.budget_tokens")
    if budget is not None and limit < wanted and budget >= limit:
        document["thinking"] = {**thinking, "budget_tokens": max(1, limit - 1)}
    return limit


def _refuse_what_is_dear(document: Document) -> None:
    """What makes the model server charge more than its tokens' price."""
    for name in _NOT_SOLD:
        if document.get(name):
            raise InvalidValue(f"{name} is not sold here", param=name)
    if document.get("speed") not in (None, "standard"):
        raise InvalidValue("this speed is not sold here", param="speed")
    if document.get("inference_geo") not in (None, "global"):
        raise InvalidValue("this place is not sold here", param="inference_geo")


def _estimate(document: Document) -> PromptEstimate:
    estimate = PromptEstimate()
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidValue("messages must be a list of at least one message", param="messages")
    for position, message in enumerate(messages):
        where = f"messages[{position}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidValue("every message must be an object with a role", param=where)
        estimate.add_turn()
        estimate.add_json(message["role"])
        _add_content(estimate, message.get("content"), f"{where}.content")
    if document.get("system") is not None:
        estimate.add_turn()
        estimate.add_json("system")
        _add_content(estimate, document["system"], "system")
    _add_tools(estimate, document.get("tools"))
    for name in document.keys() - _NOT_PROMPT:
        if document[name] is not None:
            estimate.add_json(document[name])
    return estimate


def _add_tools(estimate: PromptEstimate, tools: object) -> None:
    if not tools:
        return
    if not isinstance(tools, list):
        raise InvalidValue("tools must be a list", param="tools")
    estimate.bound += TOKENS_PER_TOOLS
    for position, tool in enumerate(tools):
        kind = tool.get("type", "custom") if isinstance(tool, dict) else ""
        if kind == "custom" or kind is None:
            # as an upstream of the chat dialect gets it, which is the longer way to say it
            estimate.add_json([{"type": "function", "function": {**tool, "parameters": None}}])
        elif isinstance(kind, str) and kind.startswith(_KNOWN_TOOLS):
            estimate.unseen = True
        else:
            raise InvalidValue(
                "only tools that run at the client are sold here", param=f"tools[{position}].type"
            )


def _add_content(
    estimate: PromptEstimate, content: object, where: str, depth: int = _MAX_DEPTH
) -> None:
    if isinstance(content, str):
        estimate.add_string(content)
        return
    if not isinstance(content, list):
        raise InvalidValue("content must be a string or a list of blocks", param=where)
    if not depth:
        raise InvalidValue("content is nested too deeply", param=where)
    for block in content:
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidValue("every block must be an object with a type", param=where)
        _add_block(estimate, block, where, depth - 1)


def _add_call(estimate: PromptEstimate, block: dict[str, Any]) -> None:
    """A tool's call in the longer of the ways to say it: the chat dialect has its arguments as a
    text within the JSON."""
    plain, as_text = PromptEstimate(bound=0), PromptEstimate(bound=0)
    plain.add_json([block])
    arguments = orjson.dumps(block.get("input")).decode()
    as_text.add_json([{**block, "input": None, "function": {"arguments": arguments}}])
    estimate.bound += max(plain.bound, as_text.bound)
    estimate.typical += plain.typical


def _add_block(estimate: PromptEstimate, block: dict[str, Any], where: str, depth: int) -> None:
    match block:
        case {"type": "text", "text": str(text)}:
            estimate.bound += 2  # what may separate it from the next
            estimate.add_string(text)
        case {"type": "text"}:
            raise InvalidValue("a text block must hold a string", param=where)
        case {"type": "image"}:
            estimate.add_image()
        case {"type": "tool_use"}:
            estimate.add_turn()
            _add_call(estimate, block)
        case {"type": "tool_result"}:
            estimate.add_turn()
            estimate.add_json({name: block[name] for name in block if name != "content"})
            if block.get("content") is not None:
                _add_content(estimate, block["content"], where, depth)
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            estimate.add_turn()
            estimate.add_json({name: block[name] for name in block if name != "source"})
            estimate.add_string(text)
        case {"type": "search_result"}:
            estimate.add_turn()
            estimate.add_json({name: block[name] for name in block if name != "content"})
            _add_content(estimate, block.get("content"), where, depth)
        case _:
            # other documents, thinking (its signature holds it, encrypted), what a server's tools
            # found and what comes next: the size says nothing about the tokens
            estimate.unseen = True
