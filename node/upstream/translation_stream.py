"""A stream of chat completion chunks as the events of an Anthropic message.

A message's blocks follow each other, so one is open at a time. Text and thinking open and close as
they alternate. Of several tool calls the first streams; what comes of the others meanwhile waits
until it is complete, for the chat dialect lets them interleave.
"""

from __future__ import annotations

from node.core.sse import SseEventTooLarge, SseSplitter, event_data
from node.errors import AnswerTooLarge, UpstreamFailed
from node.upstream.translation_answers import (
    Document,
    MessageHead,
    block,
    calls,
    event,
    first_choice,
    json_object,
    message_usage,
    texts,
)

MAX_EVENT_BYTES = 8 << 20
MAX_WAITING_BYTES = 8 << 20
"""Arguments of tools that wait for their turn."""
MAX_TOOLS = 1024


class _Tool:
    """A tool call of which pieces arrive."""

    __slots__ = ("id", "name", "waiting")

    def __init__(self, id_: str, name: str) -> None:
        self.id = id_
        self.name = name
        self.waiting: list[str] = []


class MessageStream:
    """Translates a stream of completion chunks as they come.

    Every wait is the reader's; buffers are bounded by MAX_EVENT_BYTES and MAX_WAITING_BYTES.
    """

    def __init__(self, head: MessageHead) -> None:
        self._head = head
        self._splitter = SseSplitter(MAX_EVENT_BYTES)
        self._begun = False
        self._failed = False
        self._done = False
        self._index = -1
        self._open = ""
        self._tools: dict[object, _Tool] = {}
        self._streaming: _Tool | None = None
        self._queue: list[_Tool] = []
        self._waiting_bytes = 0
        self._tool_count = 0
        self._refused = False
        self._choice: Document | None = None
        self._usage: Document = {}

    def feed(self, data: bytes) -> bytes:
        """Take some of the stream; gives the events it makes. Raises UpstreamFailed."""
        try:
            raws = self._splitter.feed_raw(data)
        except SseEventTooLarge:
            raise AnswerTooLarge(private="an event of the stream is too large") from None
        return b"".join([self._take(raw) for raw in raws])

    def end(self) -> bytes:
        """The end of the message; nothing when the stream broke off before its own."""
        out = b"".join([self._take(last.raw) for last in self._splitter.flush()])
        whole = self._done or self._choice is not None or self._usage
        if not whole or not self._begun or self._failed:
            return out
        choice = self._choice or {"finish_reason": "stop"}
        delta = self._head.stop(choice, tools=bool(self._tool_count))
        if self._refused:
            delta["stop_reason"] = "refusal"
        document = {"type": "message_delta", "delta": delta, "usage": self._usage}
        return out + self._close() + event(document) + event({"type": "message_stop"})

    def _take(self, raw: bytes) -> bytes:
        data = event_data(raw)
        if self._failed or self._done:
            return b""
        if not data.strip():
            if not raw.strip():
                return b""
            # a comment keeps the connection alive; Anthropic's way to say it is a ping
            return event({"type": "ping"}) if self._begun else raw
        if data.strip() == b"[DONE]":
            self._done = True
            return b""
        chunk = json_object(data)
        if chunk.get("error") or chunk.get("object") == "error":
            self._failed = True
            error = {"type": "api_error", "message": "the model server failed"}
            return event({"type": "error", "error": error})
        out = b"" if self._begun or not chunk else self._begin(chunk)
        usage = message_usage(chunk.get("usage"))
        if usage:
            self._usage = usage
        choice = first_choice(chunk)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            out += self._delta(delta)
        if choice.get("finish_reason"):
            self._choice = {
                name: choice[name] for name in ("finish_reason", "stop_reason") if name in choice
            }
        return out

    def _begin(self, chunk: Document) -> bytes:
        self._begun = True
        message = self._head.message(chunk, [])
        return event({"type": "message_start", "message": message})

    def _delta(self, delta: Document) -> bytes:
        out = b""
        for kind, text in texts(delta):
            if self._open != kind:
                out += self._close() + self._start(block(kind, ""), kind)
            out += self._piece({"type": f"{kind}_delta", kind: text})
        self._refused = self._refused or bool(delta.get("refusal"))
        for call in calls(delta):
            out += self._tool_delta(call)
        return out

    def _tool_delta(self, call: Document) -> bytes:
        key, id_ = call.get("index", 0), call.get("id")
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        name, arguments = function.get("name"), function.get("arguments")
        arguments = arguments if isinstance(arguments, str) else ""
        if not isinstance(key, int):
            key = 0
        tool = self._tools.get(key)
        # some servers give every call the index 0, and each its own id
        another = isinstance(id_, str) and id_ and tool is not None and tool.id != id_ and name
        out = b""
        if tool is None or another:
            if not isinstance(name, str) or not name:
                raise UpstreamFailed(private="a tool call without a name")
            self._tool_count += 1
            if self._tool_count > MAX_TOOLS:
                raise UpstreamFailed(private="too many tool calls")
            given = id_ if isinstance(id_, str) and id_ else f"toolu_{self._tool_count}"
            tool = self._tools[key] = _Tool(given, name)
            if self._streaming is None:
                out = self._close() + self._start_tool(tool)
            else:
                self._queue.append(tool)
        if not arguments:
            return out
        if tool is self._streaming:
            return out + self._piece({"type": "input_json_delta", "partial_json": arguments})
        self._waiting_bytes += len(arguments)
        if tool not in self._queue or self._waiting_bytes > MAX_WAITING_BYTES:
            raise UpstreamFailed(private="tool calls that cannot be put in order")
        tool.waiting.append(arguments)
        return out

    def _start_tool(self, tool: _Tool) -> bytes:
        self._streaming = tool
        return self._start(
            {"type": "tool_use", "id": tool.id, "name": tool.name, "input": {}}, "tool_use"
        )

    def _start(self, block: Document, kind: str) -> bytes:
        self._index += 1
        self._open = kind
        return event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _piece(self, delta: Document) -> bytes:
        return event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> bytes:
        """End the open block, and the tool calls that waited for it."""
        if not self._open:
            return b""
        out = self._stop()
        self._streaming = None
        for tool in self._queue:
            out += self._start_tool(tool)
            if tool.waiting:
                arguments = "".join(tool.waiting)
                out += self._piece({"type": "input_json_delta", "partial_json": arguments})
            out += self._stop()
        self._queue.clear()
        self._waiting_bytes = 0
        self._streaming = None
        return out

    def _stop(self) -> bytes:
        self._open = ""
        return event({"type": "content_block_stop", "index": self._index})
