"""Which models an upstream lists, in each dialect.

| dialect | asked | prices | sizes |
|---|---|---|---|
| openai, vllm | ``{base}/models`` | none | ``max_model_len``, ``context_length`` and others |
| openrouter | ``{base}/models`` | ``pricing``: USD per token, as text | ``context_length``, \
``top_provider`` |
| routstr | ``{base}/models`` | ``sats_pricing``: sat per token | as openrouter |
| anthropic | ``{base}/models?limit=1000`` | none | ``max_input_tokens``, ``max_tokens`` |
| ollama | ``/api/tags`` | none | none |
| azure | ``{base}/models``, or ``{base}/deployments?api-version=…`` | none | none |

What makes no sense is left out, model by model. A model whose listed price is not a price (``-1``:
it depends) is not taken at all.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import structlog
from yarl import URL

from node.core.plans import Listed
from node.core.tariff import Amount, Tariff, exact
from node.upstream.dialects import DialectName
from node.upstream.fetching import FetchFailed, fetch_json
from node.upstream.server import UpstreamServer

log = structlog.get_logger()

MAX_TOKENS = 100_000_000
"""No context is longer, in tokens."""
MAX_LISTED = 5_000
"""Most models read of one list."""
MAX_TEXT_CHARS = 200
"""Names and descriptions are cut to this."""
FIRST_RETRY_S = 10.0
"""Pause after the first failure to get a list; it doubles up to the interval."""
MAX_AGE_S = 86_400.0
"""A list that could not be renewed for so long is void."""

_MAX_TIME = 10_000_000_000
_ID = re.compile(r"[!-~]{1,200}")
_PER_TOKEN = 1_000_000
_KINDS = {
    "prompt": ("input_per_mtok", _PER_TOKEN),
    "completion": ("output_per_mtok", _PER_TOKEN),
    "request": ("per_request", 1),
    "input_cache_read": ("cached_per_mtok", _PER_TOKEN),
    "input_cache_write": ("cache_write_per_mtok", _PER_TOKEN),
    "internal_reasoning": ("reasoning_per_mtok", _PER_TOKEN),
    "audio_minute": ("per_audio_minute", 1),
    "character": ("per_mchar", _PER_TOKEN),
}
"""Their names of prices → ours, and how many of their units are one of ours."""
_SUMS = ("max_prompt_cost", "max_completion_cost", "max_cost", "discount")
"""What stands among the prices and is none."""
_CONTEXT = ("max_model_len", "context_length", "context_window", "max_context_length")
_OUTPUT = ("max_completion_tokens", "max_output_tokens")


async def list_models(server: UpstreamServer, *, timeout_s: float, max_bytes: int) -> list[Listed]:
    """What ``server`` lists now, each id once. Raises FetchFailed."""
    document = await fetch_json(
        server.session,
        _address(server),
        timeout_s=timeout_s,
        max_bytes=max_bytes,
        headers=server.key_headers(),
    )
    return read_list(server.dialect, document)


class Discovery:
    """Keeps the list of one upstream.

    Args:
        found: told the list whenever it was read, and None when it is void.
        interval_s: how often it is read.
    """

    def __init__(
        self,
        server: UpstreamServer,
        found: Callable[[list[Listed] | None], None],
        *,
        interval_s: float,
        timeout_s: float,
        max_bytes: int,
    ) -> None:
        self._server = server
        self._found = found
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._read_at: float | None = None
        self._retry_s = FIRST_RETRY_S

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            pause_s = await self.refresh()
            await asyncio.sleep(pause_s)

    async def refresh(self) -> float:
        """Read the list once; returns after how many seconds to read it again."""
        loop = asyncio.get_running_loop()
        try:
            models = await list_models(
                self._server, timeout_s=self._timeout_s, max_bytes=self._max_bytes
            )
        except FetchFailed as error:
            log.warning("models_not_listed", upstream=self._server.name, reason=str(error))
            if self._read_at is not None and loop.time() - self._read_at > MAX_AGE_S:
                self._read_at = None
                self._found(None)
            pause_s = min(self._retry_s, self._interval_s)
            self._retry_s = 2 * pause_s
            return pause_s
        self._read_at, self._retry_s = loop.time(), FIRST_RETRY_S
        log.info("models_listed", upstream=self._server.name, count=len(models))
        self._found(models)
        return self._interval_s


def _address(server: UpstreamServer) -> URL:
    base = server.base_url
    if server.dialect == "anthropic":
        return URL(f"{base}/models?limit=1000")
    if server.dialect == "ollama":
        return URL(f"{base.removesuffix('/v1')}/api/tags")
    if server.dialect == "azure" and server.api_version:
        return URL(f"{base}/deployments").with_query({"api-version": server.api_version})
    return URL(f"{base}/models")


def read_list(dialect: DialectName, document: object) -> list[Listed]:
    """The models of a list of any shape. Raises FetchFailed when it is no list."""
    key = "models" if dialect == "ollama" else "data"
    items = document.get(key) if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise FetchFailed("the answer is not a list of models")
    models: dict[str, Listed] = {}
    for item in items[:MAX_LISTED]:
        model = _read(dialect, item) if isinstance(item, dict) else None
        if model is not None:
            models.setdefault(model.id, model)
    return list(models.values())


def _read(dialect: DialectName, item: dict[str, Any]) -> Listed | None:
    model_id = item.get("model" if dialect == "ollama" else "id") or item.get("name")
    if not isinstance(model_id, str) or not _ID.fullmatch(model_id):
        return None
    if dialect == "azure" and item.get("status", "succeeded") != "succeeded":
        return None
    if dialect in ("openrouter", "routstr"):
        return _read_priced(dialect, model_id, item)
    if dialect == "anthropic":
        return Listed(
            model_id,
            name=_text(item.get("display_name")),
            context_length=_tokens(item, ("max_input_tokens",)),
            max_output_tokens=_tokens(item, ("max_tokens",)),
        )
    return Listed(
        model_id,
        context_length=_tokens(item, _CONTEXT),
        max_output_tokens=_tokens(item, _OUTPUT),
        created=_count(item.get("created")),
    )


def _read_priced(dialect: DialectName, model_id: str, item: dict[str, Any]) -> Listed | None:
    shape = _object(item.get("architecture"))
    top = _object(item.get("top_provider"))
    made = _words(shape.get("output_modalities"))
    makes_images = "image" in made
    raw = item.get("pricing" if dialect == "openrouter" else "sats_pricing")
    if not isinstance(raw, dict):
        return None
    try:
        prices = dict(_prices(raw))
    except ValueError:
        return None
    if not {"prompt", "completion"} <= prices.keys():
        return None
    # of a node like this one "image" is the price of an image made; else of one in the prompt
    by_image = dialect == "routstr" and makes_images
    kinds = _KINDS | ({"image": ("per_image", 1)} if by_image else {})
    usd = dialect == "openrouter"
    amounts = {
        kinds[name][0]: Amount(value * kinds[name][1] * (1 if usd else 1000), usd)
        for name, value in prices.items()
        if name in kinds
    }
    unmetered = [name for name in prices if name not in kinds]
    if (makes_images and not by_image) or ("audio" in made and dialect == "openrouter"):
        unmetered.append("output")
    contexts = [_tokens(item, ("context_length",)), _tokens(top, ("context_length",))]
    return Listed(
        model_id,
        tariff=Tariff(amounts),
        context_length=min([tokens for tokens in contexts if tokens], default=0),
        max_output_tokens=_tokens(top, ("max_completion_tokens",)),
        name=_text(item.get("name")),
        description=_text(item.get("description")),
        modalities=_words(shape.get("input_modalities")),
        output_modalities=made,
        endpoints=("embeddings",) if made == ("embeddings",) else (),
        created=_count(item.get("created")),
        unmetered=tuple(unmetered),
    )


def _prices(raw: Mapping[str, Any]) -> Iterator[tuple[str, Fraction]]:
    """What costs something. Raises ValueError for a price that is none."""
    for name, value in raw.items():
        if name in _SUMS or isinstance(value, dict | list) or value is None:
            continue
        price = exact(value)
        if price is None:
            raise ValueError(name)
        # nothing for what is cached or hidden means that it costs what the others do
        if price or name in ("prompt", "completion"):
            yield name, price


def _tokens(item: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((tokens for name in names if (tokens := _count(item.get(name), MAX_TOKENS))), 0)


def _count(value: object, most: int = _MAX_TIME) -> int:
    return value if type(value) is int and 0 < value <= most else 0


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    if not isinstance(value, str):
        return ""
    words = "".join(c if c.isprintable() else " " for c in value[:MAX_TEXT_CHARS]).split()
    return " ".join(words)


def _words(value: object) -> tuple[str, ...]:
    known = ("text", "image", "audio", "embeddings")
    words = [word for word in known if word in value] if isinstance(value, list) else []
    return tuple(words) or ("text",)
