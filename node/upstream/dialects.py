"""How each kind of model server wants to be addressed.

| dialect | key goes into | path of a call | native endpoints |
|---|---|---|---|
| ``openai`` | ``Authorization: Bearer`` | ``{base}{path}`` | all but messages |
| ``anthropic`` | ``x-api-key`` (chat: Bearer), with ``anthropic-version`` | ``{base}{path}`` | \
messages, chat |
| ``azure`` | ``api-key`` | ``{base}/openai/v1{path}``, or with an ``api_version`` \
``{base}/openai/deployments/{model}{path}?api-version=…`` | OpenAI's |
| ``ollama`` | Bearer | ``{base}/v1{path}`` | chat, completions, embeddings |
| ``vllm`` | Bearer | ``{base}{path}`` | all that vLLM has but messages |
| ``openrouter`` | Bearer | ``{base}{path}`` | chat, completions, embeddings, responses, messages |
| ``routstr`` | Bearer: a prepaid ``sk-…`` of a node | ``{base}/v1{path}`` | all but messages |

An endpoint that is not native may be translated into one that is; see ``Translator``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias, get_args
from urllib.parse import quote, urlsplit

from yarl import URL

from node.core.catalog import ENDPOINTS
from node.ports import UpstreamCall, UpstreamReply

DialectName: TypeAlias = Literal[
    "openai", "anthropic", "azure", "ollama", "vllm", "openrouter", "routstr"
]
DIALECTS: tuple[DialectName, ...] = get_args(DialectName)

ANTHROPIC_VERSION = "2023-06-01"

_ALL = frozenset(ENDPOINTS)
_OPENAI = _ALL - {"messages", "rerank"}
NATIVE: Mapping[DialectName, frozenset[str]] = {
    # "openai" stands for whatever is compatible, and some of that ranks documents too
    "openai": _ALL - {"messages"},
    "anthropic": frozenset({"messages", "chat"}),
    "azure": _OPENAI - {"moderations"},
    "ollama": frozenset({"chat", "completions", "embeddings"}),
    "vllm": _ALL - {"messages", "images", "speech", "moderations"},
    "openrouter": frozenset({"chat", "completions", "embeddings", "responses", "messages"}),
    "routstr": _ALL - {"messages"},
}

_TAIL = {"anthropic": "/v1", "ollama": "/v1", "routstr": "/v1", "openrouter": "/api/v1"}
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}")
_BETAS = re.compile(r"[a-z0-9,. -]{1,500}")


class Translator(Protocol):
    """Serves an endpoint through another one."""

    def call(self, call: UpstreamCall) -> UpstreamCall:
        """What the upstream is asked instead."""
        ...

    def reply(self, call: UpstreamCall, reply: UpstreamReply) -> UpstreamReply:
        """The upstream's ``reply`` as the answer to ``call``, which the client had made."""
        ...


def base_of(dialect: DialectName, url: str, api_version: str = "") -> str:
    """What all paths are appended to, out of the forms operators write.

    Azure: the resource, with or without ``/openai`` or ``/openai/v1``. Anthropic, Ollama and
    nodes: with or without ``/v1``. OpenRouter: with or without ``/api/v1``. Others: as it is.
    """
    url = url.rstrip("/")
    if dialect == "azure":
        root = url.removesuffix("/v1").removesuffix("/openai")
        return f"{root}/openai" if api_version else f"{root}/openai/v1"
    tail = _TAIL.get(dialect)
    if tail is None or url.endswith("/v1"):
        return url
    if dialect == "openrouter" and urlsplit(url).path == "/api":
        return f"{url}/v1"
    return url + tail


def url_of(dialect: DialectName, base: str, path: str, model: str, api_version: str = "") -> URL:
    """Where a call goes. ``model`` is what the operator's catalogue says, never the client's."""
    if dialect == "azure" and api_version:
        # responses alone name their deployment in the body
        place = "" if path == "/responses" else f"/deployments/{quote(model, safe='')}"
        query = quote(api_version, safe="")
        return URL(f"{base}{place}{path}?api-version={query}", encoded=True)
    return URL(base + path)


def key_headers(dialect: DialectName, endpoint: str, api_key: str) -> dict[str, str]:
    """The headers by which the operator is known."""
    headers: dict[str, str] = {}
    if dialect == "anthropic" and endpoint != "chat":
        headers["anthropic-version"] = ANTHROPIC_VERSION
        if api_key:
            headers["x-api-key"] = api_key
    elif api_key:
        name = "api-key" if dialect == "azure" else "authorization"
        headers[name] = api_key if dialect == "azure" else f"Bearer {api_key}"
    return headers


def passed_on(dialect: DialectName, headers: Mapping[str, str]) -> dict[str, str]:
    """Those of a client's headers that may reach the server: none that names an account, a
    destination or a feature that costs extra."""
    passed = {}
    if dialect == "anthropic":
        version = headers.get("anthropic-version", "")
        if _VERSION.fullmatch(version):
            passed["anthropic-version"] = version
        if _BETAS.fullmatch(
            headers.get("anthropic-beta", "")
        ):  # the service has left those that cost extra out
            passed["anthropic-beta"] = headers["anthropic-beta"]
    return passed
