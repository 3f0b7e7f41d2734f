"""A model server that speaks chat, OpenAI's responses and Anthropic's messages.

A word is a token and the answer repeats what was said last. It thinks when asked to, calls the
first tool it is offered until it gets a result, counts honestly, and fails when told to.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

FAULTS = frozenset({
    "cut",  # hangs up in the middle of the stream
    "error-event",  # reports an error in the middle of the stream
    "failed",  # the response fails (responses only)
    "no-usage",  # does not count
})  # fmt: skip
TOOL_INPUT = {"city": 'Zürich "old" town', "days": 3, "exact": True}
THOUGHT = "the visitor wants an echo"


@dataclass(slots=True)
class Turn:
    """What is said, whatever the dialect."""

    text: str
    thinking: str = ""
    tool: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    limited: bool = False

    @property
    def prompt(self) -> int:
        return self.usage["prompt"]

    @property
    def completion(self) -> int:
        return self.usage["completion"]


def _words(value: object) -> list[str]:
    if isinstance(value, str):
        return value.split()
    if isinstance(value, dict):
        value = list(value.values())
    return [word for item in value for word in _words(item)] if isinstance(value, list) else []


class DialectServer:
    """``async with DialectServer() as server:`` then talk to ``server.url``.

    Args:
        dialects: the paths it knows: of ``chat``, ``responses``, ``messages``.
        piece_bytes: a stream is sent in pieces of that size; 0 sends each event whole.
        line_end: of the streams.
    """

    def __init__(
        self,
        *,
        dialects: tuple[str, ...] = ("chat", "responses", "messages"),
        piece_bytes: int = 0,
        line_end: str = "\n",
    ) -> None:
        self.fault = ""
        self.calls: deque[tuple[dict[str, str], dict[str, Any]]] = deque(maxlen=100)
        self._piece_bytes = piece_bytes
        self._line_end = line_end
        self._port = 0
        app = web.Application(client_max_size=64 << 20)
        paths = {
            "chat": ("/v1/chat/completions", self._chat),
            "responses": ("/v1/responses", self._responses),
            "messages": ("/v1/messages", self._messages),
        }
        for dialect in dialects:
            app.router.add_post(*paths[dialect])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """The base URL, ``/v1`` included."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def _read(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(await request.read())
        self.calls.append((dict(request.headers), body))
        return body

    # --- chat

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        last = body["messages"][-1]
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        turn = _turn(
            body,
            said=last["content"],
            answered=last["role"] == "tool",
            tool=(body.get("tools") or [{}])[0].get("function", {}).get("name", ""),
            thinks="reasoning_effort" in body,
            limit=limit,
        )
        usage = {
            "prompt_tokens": turn.prompt,
            "completion_tokens": turn.completion,
            "total_tokens": turn.prompt + turn.completion,
            "prompt_tokens_details": {"cached_tokens": 1},
        }
        calls = [_chat_call(turn)] if turn.tool else None
        reason = "tool_calls" if turn.tool else "length" if turn.limited else "stop"
        head = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
            if turn.thinking:
                message["reasoning_content"] = turn.thinking
            if calls:
                message["tool_calls"] = calls
            choice = {"index": 0, "message": message, "finish_reason": reason}
            told = {} if self.fault == "no-usage" else {"usage": usage}
            return web.json_response(
                {**head, "object": "chat.completion", "choices": [choice], **told}
            )

        def chunk(delta: dict[str, Any], why: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": why}
            return {**head, "object": "chat.completion.chunk", "choices": [choice]}

        def events() -> Iterator[str]:
            yield _data(chunk({"role": "assistant", "content": ""}))
            for word in _spaced(turn.thinking):
                yield _data(chunk({"reasoning_content": word}))
            yield ": keep-alive\n\n"
            for word in _spaced(turn.text):
                yield _data(chunk({"content": word}))
            if calls:
                function = calls[0]["function"]
                opened = {**calls[0], "index": 0, "function": {**function, "arguments": ""}}
                yield _data(chunk({"tool_calls": [opened]}))
                for piece in _pieces(function["arguments"]):
                    more = {"index": 0, "function": {"arguments": piece}}
                    yield _data(chunk({"tool_calls": [more]}))
            yield _data(chunk({}, reason))
            if self.fault != "no-usage":
                yield _data({**chunk({}), "choices": [], "usage": usage})
            yield "data: [DONE]\n\n"

        return await self._stream(request, events(), _data({"error": {"message": "secret"}}))

    # --- responses

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        given = body["input"]
        last = given[-1] if isinstance(given, list) else {"content": given}
        tools = body.get("tools") or [{}]
        turn = _turn(
            body,
            said=last.get("output", last.get("content")),
            answered=last.get("type") == "function_call_output",
            tool=tools[0].get("name", ""),
            thinks=False,
            limit=body.get("max_output_tokens"),
        )
        item = _response_item(turn)
        usage = {
            "input_tokens": turn.prompt,
            "input_tokens_details": {"cached_tokens": 1},
            "output_tokens": turn.completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": turn.prompt + turn.completion,
        }
        response = {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": body["model"],
            "status": "incomplete" if turn.limited else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if turn.limited else None,
            "output": [item],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": body.get("tools") or [],
        }
        if self.fault != "no-usage":
            response["usage"] = usage
        if not body.get("stream"):
            if self.fault == "failed":
                response |= {"status": "failed", "error": {"code": "x", "message": "secret"}}
            return web.json_response(response)
        numbers = iter(range(1000))

        def typed(kind: str, **fields: Any) -> str:
            return _typed({"type": kind, "sequence_number": next(numbers), **fields})

        def events() -> Iterator[str]:
            begun = {**response, "status": "in_progress", "output": [], "usage": None}
            yield typed("response.created", response=begun)
            yield typed("response.in_progress", response=begun)
            yield ": keep-alive\n\n"
            where = {"item_id": item["id"], "output_index": 0}
            if turn.tool:
                opened = {**item, "arguments": "", "status": "in_progress"}
                yield typed("response.output_item.added", output_index=0, item=opened)
                for piece in _pieces(item["arguments"]):
                    yield typed("response.function_call_arguments.delta", **where, delta=piece)
                yield typed(
                    "response.function_call_arguments.done", **where, arguments=item["arguments"]
                )
            else:
                where |= {"content_index": 0}
                opened = {**item, "content": [], "status": "in_progress"}
                yield typed("response.output_item.added", output_index=0, item=opened)
                part = {"type": "output_text", "text": "", "annotations": []}
                yield typed("response.content_part.added", **where, part=part)
                for word in _spaced(turn.text):
                    yield typed("response.output_text.delta", **where, delta=word, logprobs=[])
                yield typed("response.output_text.done", **where, text=turn.text, logprobs=[])
                part = {**part, "text": turn.text}
                yield typed("response.content_part.done", **where, part=part)
            yield typed("response.output_item.done", output_index=0, item=item)
            if self.fault == "failed":
                failed = {"status": "failed", "error": {"code": "x", "message": "secret"}}
                yield typed("response.failed", response={**response, **failed})
            else:
                yield typed(f"response.{response['status']}", response=response)

        error = {"type": "error", "code": "x", "message": "secret", "sequence_number": 3}
        return await self._stream(request, events(), _typed(error))

    # --- messages

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        content = body["messages"][-1]["content"]
        results = [
            block["content"]
            for block in (content if isinstance(content, list) else [])
            if block["type"] == "tool_result"
        ]
        turn = _turn(
            body,
            said=results[-1] if results else content,
            answered=bool(results),
            tool=(body.get("tools") or [{}])[0].get("name", ""),
            thinks=body.get("thinking", {}).get("type") == "enabled",
            limit=body["max_tokens"],
        )
        usage = {
            "input_tokens": turn.prompt - 1,
            "cache_read_input_tokens": 1,
            "cache_creation_input_tokens": 0,
            "output_tokens": turn.completion,
        }
        reason = "tool_use" if turn.tool else "max_tokens" if turn.limited else "end_turn"
        blocks: list[dict[str, Any]] = []
        if turn.thinking:
            blocks.append({"type": "thinking", "thinking": turn.thinking, "signature": "c2ln"})
        if turn.text:
            blocks.append({"type": "text", "text": turn.text})
        if turn.tool:
            tool = {"type": "tool_use", "id": "toolu_9", "name": turn.tool, "input": TOOL_INPUT}
            blocks.append(tool)
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": None,
        }
        if self.fault != "no-usage":
            message["usage"] = usage
        if not body.get("stream"):
            return web.json_response(message)

        def events() -> Iterator[str]:
            begun = {**message, "content": [], "stop_reason": None}
            begun["usage"] = {**usage, "output_tokens": 1}
            yield _typed({"type": "message_start", "message": begun})
            yield _typed({"type": "ping"})
            for index, block in enumerate(blocks):
                yield from _block_events(index, block)
            told = {} if self.fault == "no-usage" else {"output_tokens": turn.completion}
            delta = {"stop_reason": reason, "stop_sequence": None}
            yield _typed({"type": "message_delta", "delta": delta, "usage": told})
            yield _typed({"type": "message_stop"})

        error = {"type": "error", "error": {"type": "overloaded_error", "message": "secret"}}
        return await self._stream(request, events(), _typed(error))

    async def _stream(
        self, request: web.Request, events: Iterator[str], error: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for count, text in enumerate(events):
            if count == 5 and self.fault == "cut":
                assert request.transport is not None
                request.transport.abort()
                return response
            if count == 5 and self.fault == "error-event":
                await response.write(error.encode())
                break
            data = text.replace("\n", self._line_end).encode()
            size = self._piece_bytes or len(data)
            for place in range(0, len(data), size):
                await response.write(data[place : place + size])
        await response.write_eof()
        return response


def _turn(
    body: dict[str, Any], *, said: object, answered: bool, tool: str, thinks: bool, limit: int
) -> Turn:
    words = [word for word in _text(said).split() if word]
    spoken = f"You said: {' '.join(words)}".split()
    thinking = THOUGHT if thinks else ""
    tool = "" if answered else tool
    if tool:
        spoken = []
    text = " ".join(spoken[:limit])
    count = len(text.split()) + len(thinking.split()) + (len(TOOL_INPUT) if tool else 0)
    prompt = 3 + len(_words({name: body[name] for name in body if name != "model"}))
    return Turn(
        text,
        thinking,
        tool,
        {"prompt": prompt, "completion": count},
        limited=limit is not None and len(spoken) > limit,
    )


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _chat_call(turn: Turn) -> dict[str, Any]:
    arguments = json.dumps(TOOL_INPUT, ensure_ascii=False)
    return {
        "id": "call_9",
        "type": "function",
        "function": {"name": turn.tool, "arguments": arguments},
    }


def _response_item(turn: Turn) -> dict[str, Any]:
    if turn.tool:
        return {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_9",
            "name": turn.tool,
            "arguments": json.dumps(TOOL_INPUT, ensure_ascii=False),
            "status": "completed",
        }
    return {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": turn.text, "annotations": []}],
    }


def _block_events(index: int, block: dict[str, Any]) -> Iterator[str]:
    kind = block["type"]
    empty: dict[str, Any] = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}
    opened = {**block, **empty.get(kind, {"input": {}})}
    yield _typed({"type": "content_block_start", "index": index, "content_block": opened})
    if kind == "tool_use":
        deltas = [
            {"type": "input_json_delta", "partial_json": piece}
            for piece in _pieces(json.dumps(block["input"], ensure_ascii=False))
        ]
    else:
        deltas = [{"type": f"{kind}_delta", kind: word} for word in _spaced(block[kind])]
        if kind == "thinking":
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
    for delta in deltas:
        yield _typed({"type": "content_block_delta", "index": index, "delta": delta})
    yield _typed({"type": "content_block_stop", "index": index})


def _spaced(text: str) -> list[str]:
    words = text.split()
    return [word if place == 0 else f" {word}" for place, word in enumerate(words)]


def _pieces(text: str) -> list[str]:
    return [text[place : place + 7] for place in range(0, len(text), 7)]


def _data(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"


def _typed(document: dict[str, Any]) -> str:
    return f"event: {document['type']}\n" + _data(document)
