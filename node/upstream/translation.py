"""Endpoints that an upstream does not have, served through one that it has.

Today: Anthropic's messages through chat completions. What the chat dialect cannot say is refused
in so many words, except hints that change no meaning (cache marks, ``top_k``, citations).

| messages | chat |
|---|---|
| ``system`` | a system message |
| text, image, document blocks | text, ``image_url``, ``file`` parts |
| ``tool_use`` | ``tool_calls`` of the assistant's message |
| ``tool_result`` | a ``tool`` message; its images go into the user message after it |
| ``thinking`` blocks of earlier turns | left out: servers want none of them back |
| ``tools``, ``tool_choice`` | functions, ``tool_choice`` and ``parallel_tool_calls`` |
| ``stop_sequences``, ``metadata.user_id`` | ``stop``, ``user`` |
| ``thinking``, ``output_config`` | ``reasoning_effort``, ``response_format`` |

The way back is in ``node.upstream.translation_answers`` and ``translation_stream``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from node.core.catalog import Model
from node.errors import InvalidJson, InvalidValue
from node.ports import UpstreamCall, UpstreamReply
from node.upstream.dialects import Translator
from node.upstream.translation_answers import MessageHead, WholeMessage
from node.upstream.translation_stream import MessageStream

Document = dict[str, Any]

ERROR_MARK = "Error: "
"""What the result of a tool that failed begins with."""
LOW_BUDGET_TOKENS = 4_096
"""A thinking budget below this is low effort, one below the next medium."""
MEDIUM_BUDGET_TOKENS = 16_384

_EVENT_STREAM = "text/event-stream"
_SAME = ("temperature", "top_p")
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def translator_for(endpoint: str, native: Collection[str]) -> Translator | None:
    """What serves ``endpoint`` at an upstream that has the endpoints ``native``; None when it is
    among them or cannot be had."""
    if endpoint == "messages" and endpoint not in native and "chat" in native:
        return MessagesByChat()
    return None


class MessagesByChat:
    """Serves messages at an upstream that speaks chat; implements ``dialects.Translator``."""

    def call(self, call: UpstreamCall) -> UpstreamCall:
        """Raises InvalidValue where the chat dialect has no word for something."""
        document = orjson.loads(call.payload.encode(call.model.backends[0].upstream_id))
        chat = chat_request(document, call.model)
        return replace(
            call,
            endpoint="chat",
            path="/chat/completions",
            payload=_ChatPayload(chat),
            headers={},
        )

    def reply(self, call: UpstreamCall, reply: UpstreamReply) -> UpstreamReply:
        """The chat completion as a message, streamed or whole as it comes."""
        asked = call.payload.encode(call.model.backends[0].upstream_id)
        stops = None
        if b'"stop_sequences"' in asked:
            stops = orjson.loads(asked).get("stop_sequences")
        return TranslatedReply(
            reply,
            model=call.model.id,
            message_id=f"msg_{call.request_id}",
            stop_sequences=stops if isinstance(stops, list) else (),
        )


class TranslatedReply:
    """A chat completion read as a message; implements ``ports.UpstreamReply``.

    Args:
        model: shown in the message.
        message_id: shown in the message when the upstream names none.
        stop_sequences: what the client wanted to stop at.
    """

    def __init__(
        self,
        reply: UpstreamReply,
        *,
        model: str,
        message_id: str,
        stop_sequences: Sequence[object] = (),
    ) -> None:
        self.backend = reply.backend
        self.status = reply.status
        self.content_type = reply.content_type
        self.resumable = False
        self._reply = reply
        self._head = MessageHead(message_id, model, tuple(stop_sequences))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The message as it arrives. Raises UpstreamFailed, UpstreamTimeout."""
        stream = self.content_type == _EVENT_STREAM
        translation = MessageStream(self._head) if stream else WholeMessage(self._head)
        async for data in self._reply.chunks():
            out = translation.feed(data)
            if out:
                yield out
        out = translation.end()
        if out:
            yield out

    async def close(self) -> None:
        await self._reply.close()


class _ChatPayload:
    content_type = "application/json"

    def __init__(self, document: Document) -> None:
        self._document = document
        self.encode("")

    def encode(self, upstream_id: str) -> bytes:
        try:
            return orjson.dumps(self._document | {"model": upstream_id})
        except orjson.JSONEncodeError:
            raise InvalidJson("the request is nested too deeply") from None


def chat_request(document: Mapping[str, Any], model: Model) -> Document:
    """The chat completion request that asks for what the messages request ``document`` asks for,
    without ``model``.

    Raises InvalidValue.
    """
    messages: list[Document] = []
    if document.get("system") is not None:
        messages.append({"role": "system", "content": _plain(document["system"], "system")})
    for position, message in enumerate(document["messages"]):
        messages += _messages(message, f"messages[{position}]")
    thinking = _object(document, "thinking")
    newer = model.max_completion_tokens_only
    chat: Document = {
        "messages": messages,
        "max_completion_tokens" if newer else "max_tokens": document["max_tokens"],
        **{name: document[name] for name in _SAME if document.get(name) is not None},
    }
    if document.get("stop_sequences"):
        chat["stop"] = document["stop_sequences"]
    if isinstance(user := _object(document, "metadata").get("user_id"), str):
        chat["user"] = user
    if document.get("tools"):
        chat["tools"] = [
            _tool(tool, f"tools[{position}]") for position, tool in enumerate(document["tools"])
        ]
        chat |= _tool_choice(_object(document, "tool_choice"))
    chat |= _output(_object(document, "output_config"), thinking)
    if document.get("stream"):
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    return chat


def _output(config: Mapping[str, Any], thinking: Mapping[str, Any]) -> Document:
    fields: Document = {}
    effort, budget = config.get("effort"), thinking.get("budget_tokens")
    if isinstance(effort, str) and effort in _EFFORTS:
        fields["reasoning_effort"] = _EFFORTS[effort]
    elif thinking.get("type") == "enabled" and isinstance(budget, int):
        low, medium = budget < LOW_BUDGET_TOKENS, budget < MEDIUM_BUDGET_TOKENS
        fields["reasoning_effort"] = "low" if low else "medium" if medium else "high"
    wanted = config.get("format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        schema = {"name": "output", "schema": wanted.get("schema"), "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


def _tool(tool: Any, where: str) -> Document:
    if not isinstance(tool, dict) or tool.get("type", "custom") not in ("custom", None):
        raise InvalidValue("the server of this model does not know such tools", param=where)
    function: Document = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {}}
    function |= {name: tool[name] for name in ("description", "strict") if name in tool}
    return {"type": "function", "function": function}


def _tool_choice(choice: Mapping[str, Any]) -> Document:
    fields: Document = {}
    kind = choice.get("type")
    if kind == "tool":
        fields["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(kind, str) and kind in _TOOL_CHOICES:
        fields["tool_choice"] = _TOOL_CHOICES[kind]
    elif choice:
        raise InvalidValue("must be auto, any, none or tool", param="tool_choice.type")
    if choice.get("disable_parallel_tool_use"):
        fields["parallel_tool_calls"] = False
    return fields


def _messages(message: Mapping[str, Any], where: str) -> list[Document]:
    """The chat messages that say what ``message`` says: results of tools come first."""
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks: list[Document] = content if isinstance(content, list) else []
    if role == "assistant":
        return [_assistant(blocks, where)]
    if role != "user":
        return [{"role": role, "content": _plain(blocks, where)}]
    results: list[Document] = []
    pictures: list[Document] = []
    parts: list[Document] = []
    for block in blocks:
        if block["type"] != "tool_result":
            parts += _parts(block, where)
            continue
        told = block.get("content")
        inner = [{"type": "text", "text": told}] if isinstance(told, str) else told or []
        found = [part for item in inner for part in _parts(item, where)]
        texts = [part for part in found if part["type"] == "text"]
        pictures += [part for part in found if part["type"] != "text"]
        result = "\n".join(str(part["text"]) for part in texts)  # few servers read parts here
        if block.get("is_error") is True:
            result = ERROR_MARK + result
        results.append(
            {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result}
        )
    parts = pictures + parts
    if parts or not results:
        results.append({"role": role, "content": _short(parts)})
    return results


def _short(parts: list[Document]) -> str | list[Document]:
    """Parts as text where they are no more than that: some servers read nothing else."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _assistant(blocks: list[Document], where: str) -> Document:
    text = ""
    calls: list[Document] = []
    for block in blocks:
        match block:
            case {"type": "text", "text": str(more)}:
                text += more
            case {"type": "tool_use"}:
                arguments = orjson.dumps(block.get("input") or {}).decode()
                function = {"name": block.get("name"), "arguments": arguments}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case {"type": "thinking" | "redacted_thinking"}:
                pass
            case _:
                raise _cannot(block, where)
    message: Document = {"role": "assistant", "content": text or (None if calls else "")}
    if calls:
        message["tool_calls"] = calls
    return message


def _parts(block: Mapping[str, Any], where: str) -> list[Document]:
    match block:
        case {"type": "text", "text": str(text)}:
            return [{"type": "text", "text": text}]
        case {
            "type": "image",
            "source": {"type": "base64", "media_type": str(kind), "data": str(data)},
        }:
            return [_picture(f"data:{kind};base64,{data}")]
        case {"type": "image", "source": {"type": "url", "url": str(url)}}:
            return [_picture(url)]
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return [{"type": "text", "text": _titled(block, text)}]
        case {
            "type": "document",
            "source": {"type": "base64", "media_type": str(kind), "data": str(data)},
        }:
            name = str(block.get("title") or "document.pdf")
            data_url = f"data:{kind};base64,{data}"
            return [{"type": "file", "file": {"filename": name, "file_data": data_url}}]
        case {"type": "search_result", "content": list(found)}:
            text = "\n\n".join(_text_of(item, where) for item in found)
            return [{"type": "text", "text": _titled(block, text)}]
        case _:
            raise _cannot(block, where)


def _picture(url: str) -> Document:
    return {"type": "image_url", "image_url": {"url": url}}


def _titled(block: Mapping[str, Any], text: str) -> str:
    told = [block.get(name) for name in ("title", "source", "context")]
    return "\n".join([*(line for line in told if isinstance(line, str)), text])


def _plain(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(_text_of(block, where) for block in content)


def _text_of(block: Any, where: str) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            raise _cannot(block, where)


def _cannot(block: Any, where: str) -> InvalidValue:
    kind = block.get("type") if isinstance(block, dict) else None
    kind = kind[:50] if isinstance(kind, str) else "such"
    return InvalidValue(f"the server of this model does not take {kind!r} blocks", param=where)


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidValue(f"{name} must be an object", param=name)
    return value
