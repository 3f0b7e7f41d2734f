"""``GET /v1/providers`` and ``/v1/providers/{key}``: the other nodes, from a directory snapshot.

Pure functions: a snapshot and the query go in, a JSON document comes out. Prices are in sat per
1,000 tokens, as in ``/v1/models``; ``request`` in sat.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from typing import Any, TypeVar

import orjson

from discovery.announcement import ModelOffer
from discovery.directory import DirectorySnapshot, Provider
from discovery.errors import InvalidKey
from discovery.nostr.keys import parse_pubkey
from discovery.wire import mint_url
from node.errors import InvalidValue, NotFound

T = TypeVar("T")

DEFAULT_LIMIT = 100
MAX_LIMIT = 200

_MSAT_PER_MTOK = 1_000_000
"""msat per million tokens in one sat per 1,000 tokens."""
_TRANSPORTS = ("http", "tor", "nostr")
_STATUSES = ("online", "offline", "unknown")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_PRICE = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?", re.ASCII)
_MAX_VALUE_CHARS = 2_000
_PATHS = {
    "chat": "chat/completions",
    "image": "images/generations",
    "images": "images/generations",
    "transcriptions": "audio/transcriptions",
    "translations": "audio/translations",
    "speech": "audio/speech",
}
"""The short endpoint names of model pages, as paths below ``/v1``; others stand for themselves."""


@dataclass(frozen=True, slots=True)
class _Query:
    model: str | None
    mint: str | None
    transport: str | None
    status: str | None
    verified: bool | None
    max_prompt: Decimal | None
    """msat per million tokens, like ``max_completion``."""
    max_completion: Decimal | None
    pubkey: str | None
    limit: int
    after: tuple[int, int, str, str] | None
    include_json: bool

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> _Query:
        """Raises InvalidValue naming the parameter. Unknown parameters are passed over."""
        return cls(
            model=_take(query, "model", str),
            mint=_take(query, "mint", _mint),
            transport=_take(query, "transport", _one_of(_TRANSPORTS)),
            status=_take(query, "status", _one_of(_STATUSES)),
            verified=_take(query, "verified", _boolean),
            max_prompt=_take(query, "max_prompt_price", _price),
            max_completion=_take(query, "max_completion_price", _price),
            pubkey=_take(query, "pubkey", _pubkey),
            limit=_take(query, "limit", _limit) or DEFAULT_LIMIT,
            after=_take(query, "cursor", _decode_cursor),
            include_json=_take(query, "include_json", _boolean) or False,
        )

    def matches(self, provider: Provider) -> bool:
        said = provider.announcement
        return (
            (self.pubkey is None or provider.pubkey == self.pubkey)
            and (self.status is None or provider.status == self.status)
            and (self.verified is None or provider.verified == self.verified)
            and (self.transport is None or self.transport in said.transports)
            and (self.mint is None or self.mint in said.mints)
            and self._sells(provider)
        )

    def _sells(self, provider: Provider) -> bool:
        """Some model fits the name and both price limits at once."""
        if self.model is None and self.max_prompt is None and self.max_completion is None:
            return True
        return any(
            (self.model is None or offer.id == self.model)
            and (self.max_prompt is None or offer.input_per_mtok <= self.max_prompt)
            and (self.max_completion is None or offer.output_per_mtok <= self.max_completion)
            for offer in provider.models
        )


def list_providers(snapshot: DirectorySnapshot, query: Mapping[str, str]) -> dict[str, Any]:
    """One page of providers: verified and online first.

    Args:
        query: ``model`` (exact id), ``mint`` (URL), ``transport`` (http, tor, nostr), ``status``
            (online, offline, unknown), ``verified`` (true, false), ``max_prompt_price`` and
            ``max_completion_price`` (sat per 1,000 tokens; with ``model`` they apply to that
            model, else some model must meet both), ``pubkey`` (hex or npub), ``limit``
            (1 to 200, 100 by default), ``cursor`` (``next_cursor`` of the page before),
            ``include_json`` (each item becomes ``{"provider", "health"}`` with the node's own
            ``/v1/info``).

    Returns ``{"object": "list", "providers": […], "next_cursor": str | None}``. Raises
    InvalidValue with the parameter's name.
    """
    wanted = _Query.parse(query)
    page: list[Provider] = []
    more = False
    for provider in snapshot.providers:
        if wanted.after is not None and provider.rank <= wanted.after:
            continue
        if wanted.matches(provider):
            if len(page) == wanted.limit:
                more = True
                break
            page.append(provider)
    items = [_item(provider) for provider in page]
    if wanted.include_json:
        items = [
            {"provider": item, "health": _health(provider)}
            for item, provider in zip(items, page, strict=True)
        ]
    return {
        "object": "list",
        "providers": items,
        "next_cursor": _encode_cursor(page[-1]) if more else None,
    }


def get_provider(snapshot: DirectorySnapshot, key: str) -> dict[str, Any]:
    """One provider in detail, by public key (hex or npub) or by name.

    Names are not unique. A verified provider goes before one that is not; among several that are
    equally trusted the name is that of the one this node saw first under it, which unlike a key or
    a date cannot be made to measure. ``ambiguous`` is true then and ``others`` lists the npubs of
    the rest; whoever wants to be sure asks by npub. Raises NotFound.
    """
    try:
        pubkey = parse_pubkey(key)
    except InvalidKey:
        return _by_name(snapshot, key)
    for provider in snapshot.providers:
        if provider.pubkey == pubkey:
            return _detail(provider)
    raise _unknown()


def _by_name(snapshot: DirectorySnapshot, name: str) -> dict[str, Any]:
    named = [p for p in snapshot.providers if p.announcement.name == name]
    equal = [p for p in named if p.verified == named[0].verified]
    if not equal:
        raise _unknown()
    owner = min(equal, key=lambda p: (p.first_seen, p.rank)).pubkey
    # The same key may announce several nodes of one name; the snapshot has the best one first.
    chosen = next(p for p in equal if p.pubkey == owner)
    return _detail(chosen, others=dict.fromkeys(p.npub for p in equal if p.pubkey != owner))


def _unknown() -> NotFound:
    return NotFound("no such provider is known here")


def etag(snapshot: DirectorySnapshot, query: Mapping[str, str]) -> str:
    """A strong entity tag of the answer to ``query``, in its quotes."""
    digest = blake2b(snapshot.etag.encode(), digest_size=12)
    digest.update(repr(sorted(query.items())).encode("utf-8", "surrogatepass"))
    return f'"{digest.hexdigest()}"'


def _item(provider: Provider) -> dict[str, Any]:
    said = provider.announcement
    event = said.event
    return {
        "id": said.d,
        "name": said.name,
        "description": said.about,
        "status": provider.status,
        "verified": provider.verified,
        "reason": provider.reason or None,
        "pubkey": provider.pubkey,
        "npub": provider.npub,
        "created_at": said.created_at,
        "last_seen": provider.last_seen,
        "latency_ms": provider.latency_ms,
        "kind": event.kind if event else None,
        "content": event.content if event else "",
        "version": said.version or None,
        "endpoint_url": provider.endpoint_url,
        "endpoint_urls": list(provider.endpoint_urls),
        "verified_urls": list(provider.verified_urls),
        "unverified_urls": list(provider.unverified_urls),
        "mint_urls": list(said.mints),
        "relays": list(said.relays),
        "transports": list(said.transports),
        "endpoints": _endpoints(provider.models),
        "models": [offer.id for offer in provider.models],
        "pricing": {offer.id: _pricing(offer) for offer in provider.models},
    }


def _detail(provider: Provider, others: Iterable[str] = ()) -> dict[str, Any]:
    rivals = list(others)
    return _item(provider) | {
        "ambiguous": bool(rivals),
        "others": rivals,
        "display_name": provider.announcement.name,
        "models": [
            {
                "id": offer.id,
                "name": offer.name or offer.id,
                "context_window": offer.context or None,
                "max_output_tokens": offer.max_output or None,
                "modalities": list(offer.modalities),
                "endpoints": _endpoints((offer,)),
                "pricing": _pricing(offer),
            }
            for offer in provider.models
        ],
        "features": _features(provider),
    }


def _features(provider: Provider) -> list[str]:
    said = provider.announcement
    features = [f"transport:{transport}" for transport in said.transports]
    features += [f"wrap:{kind}" for kind in said.wraps]
    features += [f"nostr:{word}" for word in said.http if not word.isdigit()]
    if said.pubkey_lock:
        features.append("locked-tokens")
    modalities = dict.fromkeys(m for offer in provider.models for m in offer.modalities)
    return features + [f"modality:{modality}" for modality in modalities]


def _health(provider: Provider) -> dict[str, Any]:
    """What the network's other nodes show beside a provider: the answer of its ``/v1/info``."""
    if provider.info:
        return {"status_code": 200, "endpoint": "info", "json": orjson.loads(provider.info)}
    status = 200 if provider.status == "online" else None
    return {"status_code": status, "endpoint": "info", "json": {"error": provider.reason}}


def _endpoints(models: tuple[ModelOffer, ...]) -> list[str]:
    names = dict.fromkeys(name for offer in models for name in offer.endpoints)
    return [_PATHS.get(name, name) for name in names]


def _pricing(offer: ModelOffer) -> dict[str, Any]:
    return {
        "prompt": offer.input_per_mtok / _MSAT_PER_MTOK,
        "completion": offer.output_per_mtok / _MSAT_PER_MTOK,
        "request": offer.per_request / 1_000,
        "unit": "1k tokens",
        "currency": "sat",
    }


def _take(query: Mapping[str, str], name: str, read: Callable[[str], T]) -> T | None:
    """The parameter, None when absent or empty. ``read`` raises ValueError for a bad value."""
    text = query.get(name, "")
    if not text:
        return None
    try:
        if len(text) > _MAX_VALUE_CHARS:
            raise ValueError("is too long")
        return read(text)
    except ValueError as error:
        raise InvalidValue(f"{name} {error}", param=name) from None


def _one_of(values: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in values:
            raise ValueError(f"must be one of {', '.join(values)}")
        return text

    return read


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError("must be true or false")
    return _BOOLEANS[text.lower()]


def _price(text: str) -> Decimal:
    """Sat per 1,000 tokens as msat per million tokens."""
    if not _PRICE.fullmatch(text):
        raise ValueError("must be a decimal number of sat per 1,000 tokens")
    return Decimal(text) * _MSAT_PER_MTOK


def _limit(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= number <= MAX_LIMIT:
        raise ValueError(f"must be a number from 1 to {MAX_LIMIT}")
    return number


def _mint(text: str) -> str:
    url = mint_url(text)
    if url is None:
        raise ValueError("must be a mint's URL")
    return url


def _pubkey(text: str) -> str:
    try:
        return parse_pubkey(text)
    except InvalidKey:
        raise ValueError("must be a public key, hex or npub") from None


def _encode_cursor(provider: Provider) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(provider.rank)).rstrip(b"=").decode()


def _decode_cursor(text: str) -> tuple[int, int, str, str]:
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        unverified, status, pubkey, d = orjson.loads(base64.urlsafe_b64decode(padded))
    except (ValueError, TypeError):
        raise ValueError("is not one this endpoint gave out") from None
    if not (
        isinstance(unverified, int)
        and isinstance(status, int)
        and isinstance(pubkey, str)
        and isinstance(d, str)
    ):
        raise ValueError("is not one this endpoint gave out")
    return (unverified, status, pubkey, d)
