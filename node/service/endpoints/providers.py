"""``GET /v1/providers`` and ``/v1/providers/{key}``: the other nodes, from a directory snapshot.

Pure functions: a snapshot and the query go in, a JSON document comes out. Prices are in sat per
1,000 tokens, as in ``/v1/models``; ``request`` in sat.
"""

from __future__ import annotations

import base64
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from typing import Any, TypeAlias, TypeVar

import orjson

from discovery.announcement import ModelOffer
from discovery.directory import DirectorySnapshot, Provider
from discovery.documents import provider_detail, provider_item
from discovery.errors import InvalidKey
from discovery.market import total_price
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
_SORTS = ("rank", "price", "latency", "uptime", "trust")
_NOWHERE = 2**53
"""Where those come who have no price, no latency."""

Position: TypeAlias = tuple[int, tuple[int, int, str, str]]
"""Place in a sorted list: the value sorted by, then the rank."""


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters of a list of providers; see :func:`list_providers`."""

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
    after: Position | None
    include_json: bool
    sort: str
    max_trust_distance: int | None = None

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Query:
        """Raises InvalidValue naming the parameter. Unknown parameters are passed over."""
        sort = _take(query, "sort", _one_of(_SORTS)) or "rank"
        if sort == "price" and not query.get("model"):
            raise InvalidValue("sort=price needs a model", param="sort")
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
            sort=sort,
            max_trust_distance=_take(query, "max_trust_distance", _distance),
        )

    def position(self, provider: Provider) -> Position:
        """Where it stands in the list, lowest first."""
        value = 0
        if self.sort == "price":
            offer = provider.offer(self.model or "")
            value = total_price(offer) if offer is not None and offer.priced else _NOWHERE
        elif self.sort == "latency":
            value = _NOWHERE if provider.latency_ms is None else provider.latency_ms
        elif self.sort == "uptime":
            value = _NOWHERE if provider.uptime is None else -round(10_000 * provider.uptime)
        elif self.sort == "trust":
            value = _NOWHERE if provider.trust is None else provider.trust
        return value, provider.rank

    def matches(self, provider: Provider) -> bool:
        said = provider.announcement
        return (
            (self.pubkey is None or provider.pubkey == self.pubkey)
            and (self.status is None or provider.status == self.status)
            and (self.verified is None or provider.verified == self.verified)
            and (self.transport is None or self.transport in said.transports)
            and (self.mint is None or self.mint in said.mints)
            and self._trusts(provider)
            and self._sells(provider)
        )

    def _trusts(self, provider: Provider) -> bool:
        furthest = self.max_trust_distance
        return furthest is None or (provider.trust is not None and provider.trust <= furthest)

    def _sells(self, provider: Provider) -> bool:
        """Some model fits the name and both price limits at once."""
        limits = self.max_prompt is not None or self.max_completion is not None
        if not limits:
            return self.model is None or self.model in provider.ids
        if self.model is not None:
            offer = provider.offer(self.model)
            return offer is not None and self._affords((offer,))
        return self._affords(provider.models)

    def _affords(self, offers: Iterable[ModelOffer]) -> bool:
        return any(
            offer.priced
            and (self.max_prompt is None or offer.input_per_mtok <= self.max_prompt)
            and (self.max_completion is None or offer.output_per_mtok <= self.max_completion)
            for offer in offers
        )


def list_providers(
    snapshot: DirectorySnapshot,
    query: Mapping[str, str],
    item: Callable[[Provider], Any] = provider_item,
) -> dict[str, Any]:
    """One page of providers: verified and online first.

    Args:
        query: ``model`` (exact id), ``mint`` (URL), ``transport`` (http, tor, nostr), ``status``
            (online, offline, unknown), ``verified`` (true, false), ``max_prompt_price`` and
            ``max_completion_price`` (sat per 1,000 tokens; with ``model`` they apply to that
            model, else some model must meet both), ``pubkey`` (hex or npub), ``limit``
            (1 to 200, 100 by default), ``cursor`` (``next_cursor`` of the page before),
            ``sort`` (``rank``, the default: verified and online first; ``price``, which needs
            ``model``: prompt and completion together; ``latency``; ``uptime``; ``trust``: the
            nearest to the operator first), ``max_trust_distance`` (0 to 3), ``include_json``
            (each item becomes ``{"provider", "health"}`` with the node's own
            ``/v1/info``).

        item: shows one provider.

    Returns ``{"object": "list", "providers": […], "next_cursor": str | None}``. Raises
    InvalidValue with the parameter's name.
    """
    wanted = Query.parse(query)
    page, more = select(snapshot, wanted)
    items = [item(provider) for provider in page]
    if wanted.include_json:
        items = [
            {"provider": shown, "health": _health(provider)}
            for shown, provider in zip(items, page, strict=True)
        ]
    return {
        "object": "list",
        "providers": items,
        "next_cursor": _encode_cursor(wanted.position(page[-1])) if more else None,
    }


def select(snapshot: DirectorySnapshot, wanted: Query) -> tuple[list[Provider], bool]:
    """One page of those that fit, in order, and whether there are more."""
    named = snapshot.providers if wanted.model is None else snapshot.selling(wanted.model)
    if wanted.sort != "rank":
        named = tuple(sorted(named, key=wanted.position))
    page: list[Provider] = []
    for provider in named:
        if wanted.after is not None and wanted.position(provider) <= wanted.after:
            continue
        if wanted.matches(provider):
            if len(page) == wanted.limit:
                return page, True
            page.append(provider)
    return page, False


class Pages:
    """Answers to the same question of the same snapshot are made once, and so is the item of a
    provider as long as nothing about it changes.

    Args:
        max_bytes: of all answers kept.
        max_items: providers whose item is kept.
    """

    def __init__(self, *, max_bytes: int = 16 * 1024 * 1024, max_items: int = 2_000) -> None:
        self._max_bytes = max_bytes
        self._max_items = max_items
        self._items: OrderedDict[int, tuple[Provider, bytes]] = OrderedDict()
        """By identity, which the provider beside it keeps from being given to another."""
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def get(
        self,
        snapshot: DirectorySnapshot,
        key: str,
        make: Callable[[], Mapping[str, Any]],
    ) -> orjson.Fragment:
        """The document that ``make`` gives for ``key``, as JSON."""
        found = self._kept.get((snapshot.etag, key))
        if found is None:
            found = orjson.dumps(make())
            self._kept[snapshot.etag, key] = found
            self._bytes += len(found)
            while self._bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest)
        return orjson.Fragment(found)

    def item(self, provider: Provider) -> orjson.Fragment:
        """The provider as lists show it, as JSON."""
        found = self._items.get(id(provider))
        if found is None:
            found = self._items[id(provider)] = provider, orjson.dumps(provider_item(provider))
            if len(self._items) > self._max_items:
                self._items.popitem(last=False)
        else:
            self._items.move_to_end(id(provider))
        return orjson.Fragment(found[1])


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
            return provider_detail(provider)
    raise _unknown()


def _by_name(snapshot: DirectorySnapshot, name: str) -> dict[str, Any]:
    named = [p for p in snapshot.providers if p.announcement.name == name]
    equal = [p for p in named if p.verified == named[0].verified]
    if not equal:
        raise _unknown()
    owner = min(equal, key=lambda p: (p.first_seen, p.rank)).pubkey
    # The same key may announce several nodes of one name; the snapshot has the best one first.
    chosen = next(p for p in equal if p.pubkey == owner)
    return provider_detail(chosen, others=dict.fromkeys(p.npub for p in equal if p.pubkey != owner))


def _unknown() -> NotFound:
    return NotFound("no such provider is known here")


def etag(snapshot: DirectorySnapshot, query: Mapping[str, str]) -> str:
    """A strong entity tag of the answer to ``query``, in its quotes."""
    digest = blake2b(snapshot.etag.encode(), digest_size=12)
    digest.update(repr(sorted(query.items())).encode("utf-8", "surrogatepass"))
    return f'"{digest.hexdigest()}"'


def _health(provider: Provider) -> dict[str, Any]:
    """What the network's other nodes show beside a provider: the answer of its ``/v1/info``."""
    if provider.info:
        return {"status_code": 200, "endpoint": "info", "json": orjson.loads(provider.info)}
    status = 200 if provider.status == "online" else None
    return {"status_code": status, "endpoint": "info", "json": {"error": provider.reason}}


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


def _distance(text: str) -> int:
    if text not in ("0", "1", "2", "3"):
        raise ValueError("must be a number from 0 to 3")
    return int(text)


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


def _encode_cursor(position: Position) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(position)).rstrip(b"=").decode()


def _decode_cursor(text: str) -> Position:
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        value, (unverified, status, pubkey, d) = orjson.loads(base64.urlsafe_b64decode(padded))
    except (ValueError, TypeError):
        raise ValueError("is not one this endpoint gave out") from None
    if not (
        all(isinstance(number, int) for number in (value, unverified, status))
        and isinstance(pubkey, str)
        and isinstance(d, str)
    ):
        raise ValueError("is not one this endpoint gave out")
    return value, (unverified, status, pubkey, d)
