"""How many tokens a chat prompt may have, before anyone has counted them.

Two numbers: ``bound`` is never below the real count and sizes the hold; ``typical`` is close to
it and is charged only when the upstream does not count.

The bound rests on this: tokenisers work on bytes or fall back to bytes, so a text has at most one
token per UTF-8 byte. What the chat template adds is covered by a constant per message and per
request; JSON that a template prints (tools, schemas) is taken at its widest usual rendering.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import orjson

from node.core.money import ceil_div
from node.errors import InvalidJson, InvalidValue

BYTES_PER_TOKEN = 4
"""What a token of ordinary text holds, in UTF-8 bytes."""
MAX_BYTES_PER_TOKEN = 256
"""No vocabulary in use has a longer token: the longest are runs of 128 spaces."""
TOKENS_PER_MESSAGE = 16
"""Role markers and separators around one message; the known templates use 3 to 8."""
TOKENS_PER_REQUEST = 512
"""Preambles that templates put in front of every prompt."""
TOKENS_PER_TOOLS = 1024
"""Instructions that templates and vendors add once when tools are offered (up to about 530)."""
IMAGE_TOKENS = 48_169
"""The most one image is known to count: 8 tiles of high detail (2048 by 768) on the dearest family,
2,833 + 8·5,667. ``detail: low`` is not believed, since not every server heeds it."""
IMAGE_TOKENS_TYPICAL = 765
"""A 1024 by 1024 image of high detail: 85 + 4·170."""

# Request fields that never reach the prompt. Any other field is counted as if it were printed.
_NOT_PROMPT = frozenset({
    "messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n",
    "temperature", "top_p", "top_k", "min_p", "stop", "seed", "user", "metadata", "store",
    "logprobs", "top_logprobs", "logit_bias", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "service_tier", "reasoning_effort", "parallel_tool_calls",
    "safety_identifier", "prompt_cache_key", "modalities", "verbosity",
})  # fmt: skip
# Fields by which a server may add text that nobody can see from here.
_UNSEEN = frozenset({"chat_template"})


@dataclass(slots=True)
class PromptEstimate:
    """Tokens of a prompt. ``unseen`` means that parts of it cannot be measured from here, so
    that only the model's context bounds it."""

    bound: int = TOKENS_PER_REQUEST
    typical: int = 0
    content_bytes: int = 0
    """Text that is in the prompt for certain."""
    unseen: bool = False

    def add_content(self, size_bytes: int) -> None:
        self.content_bytes += size_bytes
        self.add_text(size_bytes)

    def add_text(self, size_bytes: int) -> None:
        self.bound += size_bytes
        self.typical += ceil_div(size_bytes, BYTES_PER_TOKEN)

    def add_string(self, text: str) -> None:
        """Count text that is in the prompt for certain."""
        self.add_content(utf8_bytes(text))

    def add_json(self, value: object) -> None:
        """Count a value as a template may print it. Raises InvalidJson."""
        _add_json(self, value)

    def add_turn(self) -> None:
        """Count what a template puts around one message."""
        self.bound += TOKENS_PER_MESSAGE
        self.typical += 4

    def add_image(self) -> None:
        self.bound += IMAGE_TOKENS
        self.typical += IMAGE_TOKENS_TYPICAL


def estimate_prompt(document: Mapping[str, object]) -> PromptEstimate:
    """Measure a decoded chat completion request.

    Raises:
        InvalidValue: ``messages`` does not have the shape of a conversation, or a tool is not
            the client's own.
        InvalidJson: nested too deeply to be written again.
    """
    estimate = PromptEstimate()
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidValue("messages must be a list of at least one message", param="messages")
    for position, message in enumerate(messages):
        _add_message(estimate, message, f"messages[{position}]")
    for name in document.keys() - _NOT_PROMPT:
        if document[name] is None:
            continue
        if name in _UNSEEN:
            estimate.unseen = True
        else:
            _add_json(estimate, document[name])
    tools = document.get("tools")
    if tools or document.get("functions"):
        estimate.bound += TOKENS_PER_TOOLS
    if isinstance(tools, list) and any(_runs_at_the_server(tool) for tool in tools):
        raise InvalidValue("tools that run at the server are not sold here", param="tools")
    return estimate


def _runs_at_the_server(tool: object) -> bool:
    return not isinstance(tool, dict) or tool.get("type") not in ("function", "custom")


def _add_message(estimate: PromptEstimate, message: object, where: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InvalidValue("every message must be an object with a role", param=where)
    estimate.add_turn()
    for name, value in message.items():
        if name == "content":
            _add_content(estimate, value, f"{where}.content")
        elif name == "audio" and value is not None:
            estimate.unseen = True  # an earlier spoken answer, named by its id
        elif value is not None:
            _add_json(estimate, value)


def _add_content(estimate: PromptEstimate, content: object, where: str) -> None:
    if content is None:
        return
    if isinstance(content, str):
        estimate.add_string(content)
        return
    if not isinstance(content, list):
        raise InvalidValue("content must be a string or a list of parts", param=where)
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise InvalidValue("every part must be an object with a type", param=where)
        _add_part(estimate, part, where)


def _add_part(estimate: PromptEstimate, part: dict[str, object], where: str) -> None:
    match part:
        case {"type": ("text" | "refusal") as kind}:
            text = part.get(kind)
            if not isinstance(text, str):
                raise InvalidValue(f"a {kind} part must hold a string", param=where)
            estimate.add_string(text)
        case {"type": "image_url"}:
            estimate.add_image()
        case {"type": "input_audio", "input_audio": {"data": str(data)}}:
            # tens of tokens for each second, and the leanest codec needs hundreds of bytes for it
            estimate.bound += len(data)
            estimate.typical += ceil_div(len(data), 64)
        case _:
            # files, video and what comes next: the size says nothing about the tokens
            estimate.unseen = True


def _add_json(estimate: PromptEstimate, value: object) -> None:
    """Count ``value`` as a template may print it: indented by four, non-ASCII escaped."""
    try:
        narrow = orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise InvalidJson("the request is nested too deeply") from None
    estimate.bound += _escaped_bytes(narrow)
    if isinstance(value, dict | list):
        estimate.bound += _layout_bytes(value)
    estimate.typical += ceil_div(len(narrow), BYTES_PER_TOKEN)


def _layout_bytes(value: object) -> int:
    """The white space of ``value`` printed with an indent of four.

    It is counted and not printed: deep inside, an indent is a hundred times its item.
    """
    size = 0
    level = [value]
    margin = 1  # of the lines that close the containers of this level: a newline and its indent
    while level:
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                children: Collection[object] = item.values()
                size += len(children)  # a space after each colon
            elif isinstance(item, list):
                children = item
            else:
                continue
            if children:
                size += margin + len(children) * (margin + 4)
                inner.extend(children)
        level = inner
        margin += 4
    return size


_NON_ASCII = bytes(range(0x80, 0x100))


def _escaped_bytes(text: bytes) -> int:
    """Of JSON written in UTF-8: its size when what is not printable ASCII is escaped."""
    size = len(text) + 5 * text.count(b"\x7f")
    if not text.isascii():
        # \uXXXX makes three bytes at most of one byte of UTF-8
        size += 2 * (len(text) - len(text.translate(None, _NON_ASCII)))
    return size


def utf8_bytes(text: str) -> int:
    """The size of ``text``, the most tokens it can have."""
    return len(text) if text.isascii() else len(text.encode())
