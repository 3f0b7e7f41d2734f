"""Codec of model pages (kind 30078): what is for sale and for how much.

At most 100 models a page, prices in integer msat per million tokens. The pages of one set share
``created_at``; a reader takes the newest complete set.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from discovery.errors import InvalidAnnouncement
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.wire import (
    KIND_MODEL_PAGE,
    KIND_PROVIDER,
    MAX_EVENT_BYTES,
    MAX_IDENTIFIER_CHARS,
    clean,
    is_kind,
    json_object,
    json_text,
    labels,
    sign_bounded,
    text_field,
)

MAX_MODELS_PER_PAGE = 100
MAX_PAGES = 50
MAX_MODELS = 2_000
MAX_PRICE = 2**53 - 1
"""Largest integer every JSON reader keeps exact."""

_PAGE_PREFIX = "inference-models:"
_COLUMNS = (
    "id",
    "name",
    "input_per_mtok",
    "output_per_mtok",
    "per_request",
    "context",
    "max_output",
    "modalities",
    "endpoints",
)


class OtherPrices(NamedTuple):
    """Prices that only some models have, in msat. None: the price of its kind (cached input is
    input, reasoning is output)."""

    cached_per_mtok: int | None = None
    """A million tokens of input that the model server had in its cache."""
    cache_write_per_mtok: int | None = None
    """A million tokens of input that it put there."""
    reasoning_per_mtok: int | None = None
    per_image: int = 0
    """An image made."""
    per_audio_minute: int = 0
    """A minute of audio listened to or made."""
    per_mchar: int = 0
    """A million characters read aloud."""


NO_OTHER_PRICES = OtherPrices()


class ModelOffer(NamedTuple):
    """A model for sale. Prices: ``*_per_mtok`` msat per million tokens, ``per_request`` msat."""

    id: str
    name: str = ""
    input_per_mtok: int = 0
    output_per_mtok: int = 0
    per_request: int = 0
    context: int = 0
    """Context length in tokens; 0 when not said."""
    max_output: int = 0
    """Longest answer in tokens; 0 when not said."""
    modalities: tuple[str, ...] = ("text",)
    endpoints: tuple[str, ...] = ("chat",)
    priced: bool = True
    """False: somebody said it is for sale and not for how much; its prices mean nothing."""
    other: OtherPrices = NO_OTHER_PRICES

    @property
    def free(self) -> bool:
        """Nothing about it has a price."""
        return not (
            self.input_per_mtok or self.output_per_mtok or self.per_request or any(self.other)
        )


@dataclass(frozen=True, slots=True)
class PageRef:
    """Which part of whose catalogue a model page is."""

    provider: str
    """Address of the provider event."""
    index: int
    total: int


@dataclass(frozen=True, slots=True)
class Page:
    """What is kept of a verified model page: a tenth of its event."""

    id: str
    created_at: int
    ref: PageRef
    offers: Sequence[ModelOffer]

    @property
    def address(self) -> str:
        """The page's own address, as a deletion names it."""
        _, pubkey, d = self.ref.provider.split(":", 2)
        return f"{KIND_MODEL_PAGE}:{pubkey}:{page_identifier(d, self.ref.index)}"


def announceable(offer: ModelOffer) -> bool:
    """Can this model stand in a page? Its id must be a short printable line as it is."""
    counts = (
        offer.input_per_mtok,
        offer.output_per_mtok,
        offer.per_request,
        offer.context,
        offer.max_output,
        *(price for price in offer.other if price is not None),
    )
    return (
        offer.priced
        and bool(offer.id)
        and clean(offer.id, MAX_IDENTIFIER_CHARS) == offer.id
        and all(0 <= count <= MAX_PRICE for count in counts)
    )


def build_model_pages(
    keys: Keys,
    d: str,
    offers: Sequence[ModelOffer],
    *,
    created_at: int,
    expires_at: int | None = None,
    max_models: int = MAX_MODELS_PER_PAGE,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> list[Event]:
    """The signed model pages (kind 30078) of provider ``d``; one empty page when there is none.

    The pages of one set share ``created_at``. Raises ValueError for an offer that is not
    :func:`announceable`, or for more than MAX_MODELS models or MAX_PAGES pages.
    """
    if len(offers) > MAX_MODELS or not all(map(announceable, offers)):
        raise ValueError("too many models, or one that cannot be announced")
    provider = f"{KIND_PROVIDER}:{keys.pubkey}:{d}"
    # what an event weighs besides its rows: ids, signature, the fixed tags
    room = max_event_bytes - 1_280 - 3 * len(d.encode())
    pages: list[list[ModelOffer]] = [[]]
    weight = 0
    for offer in offers:
        # in the event the row is JSON inside a JSON string, and the id stands in a tag as well
        row = len(orjson.dumps(json_text([*_row(offer), *offer.other])))
        row += len(orjson.dumps(["m", offer.id])) + 2
        if pages[-1] and (weight + row > room or len(pages[-1]) >= max_models):
            pages.append([])
            weight = 0
        pages[-1].append(offer)
        weight += row
    if len(pages) > MAX_PAGES:
        raise ValueError("too many pages of models")
    events = []
    for index, page in enumerate(pages):
        tags: list[tuple[str, ...]] = [
            ("d", page_identifier(d, index)),
            ("a", provider),
            ("page", str(index), str(len(pages))),
            *(("m", offer.id) for offer in page),
        ]
        if expires_at is not None:
            tags.append(("expiration", str(expires_at)))
        more = _other_columns(page)
        document = {
            "v": 1,
            "unit": "msat",
            "columns": (*_COLUMNS, *more),
            "rows": [[*_row(offer), *(getattr(offer.other, c) for c in more)] for offer in page],
        }
        events.append(sign_bounded(keys, KIND_MODEL_PAGE, json_text(document), tags, created_at))
    return events


def page_identifier(d: str, index: int) -> str:
    """The ``d`` tag of page ``index`` of provider ``d``."""
    return f"{_PAGE_PREFIX}{d}:{index}"


def page_ref(event: Event) -> PageRef:
    """Which page this is, from its tags alone. Raises InvalidAnnouncement."""
    if event.kind != KIND_MODEL_PAGE:
        raise InvalidAnnouncement("not a model page")
    page = next((tag for tag in event.tags if tag[0] == "page"), ())
    if len(page) < 3 or not (is_kind(page[1]) and is_kind(page[2])):
        raise InvalidAnnouncement("a page without its number")
    index, total = int(page[1]), int(page[2])
    identifier = event.first("d") or ""
    d = identifier.removeprefix(_PAGE_PREFIX).rpartition(":")[0]
    address = f"{KIND_PROVIDER}:{event.pubkey}:{d}"
    if (
        not d
        or len(d) > MAX_IDENTIFIER_CHARS
        or page_identifier(d, index) != identifier
        or event.first("a") != address
        or not index < total <= MAX_PAGES
    ):
        raise InvalidAnnouncement("a page whose tags contradict each other")
    return PageRef(address, index, total)


def read_page(event: Event, ref: PageRef | None = None) -> Page:
    """The page with its rows; a bad row is passed over. Raises InvalidAnnouncement.

    Args:
        ref: what :func:`page_ref` gave, when it was asked before.
    """
    return Page(event.id, event.created_at, ref or page_ref(event), _parse_rows(event.content))


def parse_model_pages(events: Iterable[Event]) -> list[ModelOffer] | None:
    """The models of the newest complete set of pages, or None while no set is complete.

    A set is the pages of one provider with the same ``created_at`` and total. Give the verified
    pages of one provider; what is not a page is passed over, and so is a bad row.
    """
    pages = []
    for event in events:
        try:
            pages.append(read_page(event))
        except InvalidAnnouncement:
            continue
    offers = newest_set(pages)
    return None if offers is None else list(offers)


def newest_set(pages: Iterable[Page]) -> Sequence[ModelOffer] | None:
    """The models of the newest complete set among ``pages``; None while no set is complete."""
    sets: dict[tuple[int, int, str], dict[int, Page]] = {}
    for page in pages:
        ref = page.ref
        found = sets.setdefault((page.created_at, ref.total, ref.provider), {})
        if ref.index not in found or page.id < found[ref.index].id:
            found[ref.index] = page
    for (_, total, _), found in sorted(sets.items(), key=lambda item: item[0], reverse=True):
        if len(found) == total:
            if total == 1:
                return found[0].offers
            offers: dict[str, ModelOffer] = {}
            for index in range(total):
                for offer in found[index].offers:
                    offers.setdefault(offer.id, offer)
            return tuple(offers.values())[:MAX_MODELS]
    return None


def _row(offer: ModelOffer) -> list[Any]:
    return [
        offer.id,
        clean(offer.name, MAX_IDENTIFIER_CHARS),
        offer.input_per_mtok,
        offer.output_per_mtok,
        offer.per_request,
        offer.context,
        offer.max_output,
        list(labels(offer.modalities)),
        list(labels(offer.endpoints)),
    ]


def _other_columns(page: Iterable[ModelOffer]) -> list[str]:
    """The prices that some model of the page has besides the usual ones: additional columns."""
    said = [offer.other for offer in page if offer.other != NO_OTHER_PRICES]
    return [
        name
        for name, none in zip(OtherPrices._fields, NO_OTHER_PRICES, strict=True)
        if any(getattr(other, name) != none for other in said)
    ]


def _parse_rows(content: str) -> tuple[ModelOffer, ...]:
    document = json_object(content)
    columns, rows = document.get("columns"), document.get("rows")
    if (
        document.get("v") != 1
        or document.get("unit") != "msat"
        or not isinstance(columns, list)
        or not isinstance(rows, list)
        or not all(isinstance(column, str) for column in columns)
    ):
        return ()
    offers: dict[str, ModelOffer] = {}
    for row in rows[:MAX_MODELS]:
        offer = _parse_row(dict(zip(columns, row, strict=False))) if isinstance(row, list) else None
        if offer is not None:
            offers.setdefault(offer.id, offer)
    return tuple(offers.values())


def _parse_row(row: Mapping[str, Any]) -> ModelOffer | None:
    id_, counts = row.get("id"), [row.get(column, 0) for column in _COLUMNS[2:7]]
    # A model without prices is not an offer: it must not be taken for a free one.
    if not {"input_per_mtok", "output_per_mtok"} <= row.keys():
        return None
    if any(type(count) is not int for count in counts) or not isinstance(id_, str):
        return None
    other = _parse_other(row)
    if other is None:
        return None
    offer = one_offer(
        id_,
        clean(text_field(row, "name"), MAX_IDENTIFIER_CHARS),
        counts,
        words(row.get("modalities")),
        words(row.get("endpoints")),
        other=other,
    )
    return offer if announceable(offer) else None


def _parse_other(row: Mapping[str, Any]) -> OtherPrices | None:
    """The additional prices of a row; None when one of them cannot be read."""
    prices = []
    for name, none in zip(OtherPrices._fields, NO_OTHER_PRICES, strict=True):
        price = row.get(name)
        if price is not None and (type(price) is not int or not 0 <= price <= MAX_PRICE):
            return None
        prices.append(none if price is None else price)
    return one_other(*prices)


def one_offer(
    id_: str,
    name: str,
    counts: Sequence[int],
    modalities: tuple[str, ...],
    endpoints: tuple[str, ...],
    priced: bool = True,
    other: OtherPrices = NO_OTHER_PRICES,
) -> ModelOffer:
    """An offer whose texts and counts are shared with the others that have the same.

    Args:
        counts: input, output, per request, context, longest answer.
    """
    prompt, completion, request, context, max_output = counts
    return ModelOffer(
        sys.intern(id_),
        sys.intern(name),
        prompt,
        completion,
        request,
        _one_int(context),
        _one_int(max_output),
        modalities,
        endpoints,
        priced,
        other,
    )


one_other = lru_cache(maxsize=4_096)(OtherPrices)
"""The same object for the same prices: most models have none of them."""


def one_name(text: str) -> str:
    """The name of a model, printable; one object however many sell it."""
    return sys.intern(clean(text, MAX_IDENTIFIER_CHARS))


def words(values: object) -> tuple[str, ...]:
    """Short printable words as in ``wire.labels``; one object for all who say the same."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return labels(values)
    return _words(tuple(values[:MAX_MODELS]))


@lru_cache(maxsize=1_024)
def _words(values: tuple[str, ...]) -> tuple[str, ...]:
    return labels(values)


@lru_cache(maxsize=4_096)
def _one_int(count: int) -> int:
    """The same object for equal counts: context lengths are few, models are many."""
    return count
