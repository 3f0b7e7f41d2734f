"""``POST /v1/responses`` (OpenAI).

The answer may not depend on what a server keeps: all clients of this node are one customer to its
upstreams, so an id that one of them learns would open what another one wrote. Nothing is stored
(``store`` is always false) and whatever names something stored is refused. So is what is paid for
by other means than tokens: tools that run at the server, and answers in the background.
"""

from __future__ import annotations

import re
from typing import Any

from node.core.catalog import Catalog
from node.core.exchange import Request
from node.core.money import Msat, ceil_div
from node.core.usage import Usage, usage_from_responses
from node.errors import InvalidValue, UpstreamFailed
from node.service.inference.call import (
    EVENT_STREAM,
    JSON,
    JsonPayload,
    Meter,
    PreparedCall,
    check_fits,
    model_for,
    prompt_bound,
    wants_change_in_stream,
)
from node.service.inference.estimate import (
    TOKENS_PER_TOOLS,
    PromptEstimate,
)
from node.service.inference.fields import flag, limit_output
from node.service.inference.typed_events import (
    Document,
    TypedBodyMeter,
    TypedStreamMeter,
    event,
    usage_field,
)
from node.service.json_body import json_object

_STORED = ("previous_response_id", "conversation", "prompt")
_CLIENT_TOOLS = frozenset({
    "function", "custom", "namespace", "computer", "computer_use_preview", "local_shell",
    "apply_patch",
})  # fmt: skip
# Fields that never reach the prompt. Any other field is counted as if it were printed.
_NOT_PROMPT = frozenset({
    "model", "input", "instructions", "stream", "stream_options", "max_output_tokens",
    "temperature", "top_p", "top_k", "top_logprobs", "user", "metadata", "store",
    "parallel_tool_calls", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "service_tier", "include", "truncation", "max_tool_calls",
    "reasoning", "background", "moderation", *_STORED,
})  # fmt: skip
# Items that are what they look like; the text of any other may be elsewhere, or encrypted.
_PLAIN_ITEMS = frozenset({
    "function_call", "custom_tool_call", "computer_call", "local_shell_call",
    "local_shell_call_output", "apply_patch_call", "apply_patch_call_output",
})  # fmt: skip
_DELTAS = re.compile(rb'"delta"\s*:\s*"((?:[^"\\]++|\\.)++)"', re.DOTALL)
_TEXTS = re.compile(
    rb'"(?:text|refusal|arguments|input|transcript|code|result)"\s*:\s*"((?:[^"\\]++|\\.)++)"',
    re.DOTALL,
)
_SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')
_HEAD_FIELDS = ("id", "object", "created_at", "model", "metadata")


def prepare_responses(request: Request, catalog: Catalog) -> PreparedCall:
    """Check and bound a request for a model response.

    The upstream gets the client's JSON with these changes: its own model id, ``store`` false, and
    an output limit always present and never above the model's.

    Raises:
        UnsupportedMedia, RequestTooLarge: see ``json_object``.
        InvalidJson, InvalidValue: with ``param`` where one field is wrong or cannot be paid here.
        ModelNotFound, ContextLengthExceeded: the latter only when it is certain.
    """
    document = json_object(request)
    model = model_for(catalog, document.get("model"), "responses")
    _refuse_what_is_kept(document)
    _check_tools(document)
    _refuse_what_is_dear(document)
    estimate = _estimate(document)
    cut = document.get("truncation") == "auto"
    if not cut:
        check_fits(estimate, model, "input")
    stream = flag(document, "stream")
    most = limit_output(document, model, ("max_output_tokens",), default="max_output_tokens")
    document["store"] = False
    bound = prompt_bound(estimate, model)
    if cut:
        bound = min(bound, model.largest_context)
    return PreparedCall(
        model=model,
        endpoint="responses",
        path="/responses",
        payload=JsonPayload(document, model),
        stream=stream,
        most=Usage(bound, most),
        typical=Usage(min(estimate.typical, bound), source="estimated"),
        make_meter=_meter_for,
        include_usage=True,
        change_in_stream=wants_change_in_stream(request),
        accept=(EVENT_STREAM,) if stream else (JSON,),
    )


def _refuse_what_is_kept(document: Document) -> None:
    for name in _STORED:
        if document.get(name) is not None:
            raise InvalidValue(
                f"{name} names something stored, and this node has nothing stored: send all of"
                " the conversation in input",
                param=name,
            )
    if flag(document, "background"):
        raise InvalidValue("answers in the background are not sold here", param="background")
    flag(document, "store")


def _refuse_what_is_dear(document: Document) -> None:
    """What makes the model server charge more than its tokens' price."""
    if document.get("context_management"):
        raise InvalidValue(
            "context management is more work for a model than is sold here",
            param="context_management",
        )


def _check_tools(document: Document) -> None:
    tools = document.get("tools")
    if tools is None:
        return
    if not isinstance(tools, list):
        raise InvalidValue("tools must be a list", param="tools")
    for position, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or kind not in _CLIENT_TOOLS:
            raise InvalidValue(
                "only tools that run at the client are sold here, such as function and custom",
                param=f"tools[{position}].type",
            )


def _estimate(document: Document) -> PromptEstimate:
    estimate = PromptEstimate()
    given = document.get("input")
    if isinstance(given, str):
        estimate.add_turn()
        estimate.add_string(given)
    elif isinstance(given, list):
        for position, item in enumerate(given):
            _add_item(estimate, item, f"input[{position}]")
    else:
        raise InvalidValue("input must be a string or a list of items", param="input")
    instructions = document.get("instructions")
    if isinstance(instructions, str):
        estimate.add_turn()
        estimate.add_string(instructions)
    elif instructions is not None:
        raise InvalidValue("instructions must be a string", param="instructions")
    for name in document.keys() - _NOT_PROMPT:
        if document[name] is not None:
            estimate.add_json(document[name])
    tools = document.get("tools")
    if tools:
        estimate.bound += TOKENS_PER_TOOLS
        if any(tool["type"] not in ("function", "custom", "namespace") for tool in tools):
            estimate.unseen = True  # the server knows their definitions, we do not
    return estimate


def _add_item(estimate: PromptEstimate, item: object, where: str) -> None:
    if not isinstance(item, dict):
        raise InvalidValue("every item of input must be an object", param=where)
    estimate.add_turn()
    kind = item.get("type", "message")
    if not isinstance(kind, str):
        raise InvalidValue("the type of an item must be a string", param=where)
    if kind == "message":
        if not isinstance(item.get("role"), str):
            raise InvalidValue("every message must have a role", param=where)
        _add_content(estimate, item.get("content"), f"{where}.content")
    elif kind == "item_reference":
        raise InvalidValue(
            "an item_reference names something stored, and this node has nothing stored",
            param=where,
        )
    elif kind in ("function_call_output", "custom_tool_call_output"):
        estimate.add_json(item.get("call_id"))
        _add_content(estimate, item.get("output"), f"{where}.output")
    elif kind == "computer_call_output":
        estimate.add_image()
        estimate.add_json({name: item[name] for name in item if name != "output"})
    elif (kind == "reasoning" and not item.get("encrypted_content")) or kind in _PLAIN_ITEMS:
        estimate.add_json(item)
    else:
        estimate.unseen = True


def _add_content(estimate: PromptEstimate, content: object, where: str) -> None:
    if isinstance(content, str):
        estimate.add_string(content)
        return
    if not isinstance(content, list):
        raise InvalidValue("must be a string or a list of parts", param=where)
    for part in content:
        match part:
            case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
                estimate.add_string(text)
            case {"type": "refusal", "refusal": str(text)}:
                estimate.add_string(text)
            case {"type": "input_image"}:
                estimate.add_image()
            case {"type": "input_audio", "input_audio": {"data": str(data)}}:
                estimate.bound += len(data)
                estimate.typical += ceil_div(len(data), 64)
            case {"type": "input_text" | "output_text" | "text" | "refusal"}:
                raise InvalidValue("a text part must hold a string", param=where)
            case {"type": str()}:
                estimate.unseen = True  # files and what comes next
            case _:
                raise InvalidValue("every part must be an object with a type", param=where)


def _meter_for(call: PreparedCall) -> Meter:
    if call.stream:
        return ResponsesStreamMeter(call)
    return TypedBodyMeter(call, usage_from_responses, _TEXTS, total=True)


class ResponsesStreamMeter(TypedStreamMeter):
    """Holds back the event that ends the response: completed, incomplete or failed."""

    marks = (
        b"response.created",
        b"response.completed",
        b"response.incomplete",
        b"response.failed",
        b"response.cancelled",
        b'"error"',
        b"event: error",
        b"event:error",
        b"[DONE]",
    )
    texts = _DELTAS

    def __init__(self, call: PreparedCall) -> None:
        super().__init__(call)
        self._head: Document = {"object": "response"}

    def look(self, kind: str, document: Document, raw: bytes) -> bytes:
        response = document.get("response")
        if not isinstance(response, dict):
            response = {}
        match kind:
            case "response.completed" | "response.incomplete" if response:
                self._hold(document, response)
                self._ended = True
                return b""
            case "response.failed" | "response.cancelled":
                self._hold(document, response)
                self._failure = UpstreamFailed(private="the model server reported a failure")
                return b""
            case "error":
                self._failure = UpstreamFailed(private="the stream held an error event")
                return b""
            case "response.created":
                self._head |= {name: response[name] for name in _HEAD_FIELDS if name in response}
        if document.get("error"):
            self._failure = UpstreamFailed(private="the stream held an error event")
            return b""
        self._output.add(raw)
        self._last = raw
        return raw

    def usage(self) -> Usage:
        return self._counted or self._output.usage(self._call)

    def finish(self, cost: Msat, change: str | None) -> bytes:
        """The end of the response, its cost in ``response.usage.cost``."""
        document = self._held or {"type": "response.completed", "response": self._head}
        return self._end(document, cost, change)

    def cut(self, cost: Msat, change: str | None) -> bytes:
        """The response ends incomplete: its client wanted no more."""
        response = self._head | {
            "status": "incomplete",
            "incomplete_details": {"reason": "cancelled"},
            "output": [],
        }
        document = {
            "type": "response.incomplete",
            "sequence_number": self._next_number(),
            "response": response,
        }
        return self._end(document, cost, change)

    def abort(self, document: dict[str, Any], change: str | None = None) -> bytes:
        """The failure as the dialect has it: of the response when it was told so, else an error
        event, of the documented fields and of our error body."""
        error = document["error"]
        if self._held is not None:
            failed = self._held
            response = {
                **self._head,
                **(failed["response"] if isinstance(failed.get("response"), dict) else {}),
                "error": {"code": "server_error", "message": error["message"]},
            }
            failed = {**failed, "response": response, "request_id": document["request_id"]}
            return event(failed["type"], self.with_change(failed, change))
        told = {
            "type": "error",
            "sequence_number": self._next_number(),
            "code": error["code"],
            "message": error["message"],
            "param": error["param"],
            **document,
        }
        return event("error", self.with_change(told, change))

    def _hold(self, document: Document, response: Document) -> None:
        self._held = document
        self._counted = usage_from_responses(response.get("usage"))

    def _end(self, document: Document, cost: Msat, change: str | None) -> bytes:
        response = document["response"]
        usage = usage_field(response.get("usage"), self.usage(), cost, total=True)
        document = {**document, "response": {**response, "usage": usage}}
        return event(document["type"], self.with_change(document, change))

    def _next_number(self) -> int:
        numbers = _SEQUENCE.findall(self._last)
        return int(numbers[-1]) + 1 if numbers else 0
