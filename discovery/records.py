"""Codec of what is stored of the directory: one JSON document for each part that changes alone.

    provider   the announcement's event, its pages without their events     by address
    health     what the probes found                                        by address
    models     what its ``/v1/models`` said                                 by address
    review     what a key says about a provider                             by reviewer, kind, key
    tombs      what an author deleted                                       by public key

The file is ours, so a document is believed; one that cannot be read raises ValueError.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import orjson

from discovery.announcement import KIND_PROVIDER, Announcement
from discovery.columns import Offers
from discovery.health import Day, Health
from discovery.nostr.event import Event, Tags, is_hex_key
from discovery.offers import ModelOffer, Page, PageRef, newest_set, words
from discovery.probe import ProbeResult
from discovery.registry import Entry, HeldPage, Tombs, Trust
from discovery.reviews import Review

_UNREADABLE = (KeyError, TypeError, IndexError, AttributeError, OverflowError)


def write_entry(entry: Entry) -> bytes:
    """An entry, whole."""
    return orjson.dumps(
        {
            "announcement": entry.announcement and _announcement(entry.announcement),
            "npub": entry.npub,
            "pages": [
                [
                    held.page.id,
                    held.page.created_at,
                    held.page.ref.index,
                    held.page.ref.total,
                    held.weight_bytes,
                    held.ends,
                    Offers.of(held.page.offers).document(),
                ]
                for held in entry.pages.values()
            ],
            "trust": int(entry.trust),
            "ends": entry.ends,
            "first_seen": entry.first_seen,
        }
    )


def read_entry(address: str, document: bytes, now: float) -> Entry:
    """The entry as it was. Raises ValueError, also for one that has expired by ``now``."""
    kind, pubkey, d = (*address.split(":", 2), "", "")[:3]
    if kind != str(KIND_PROVIDER) or not is_hex_key(pubkey) or not d:
        raise ValueError("not the address of a provider")
    try:
        said = orjson.loads(document)
        entry = Entry(
            address,
            trust=Trust(said["trust"]),
            first_seen=float(said["first_seen"]),
            ends=int(said["ends"]),
            npub=said["npub"],
        )
        if said["announcement"] is not None:
            entry.announcement = _read_announcement(address, said["announcement"])
        for id_, created_at, index, total, weight, ends, offers in said["pages"]:
            page = Page(id_, created_at, PageRef(address, index, total), Offers.read(offers))
            entry.pages[index] = HeldPage(page, weight, ends)
    except _UNREADABLE as error:
        raise ValueError(f"not an entry: {type(error).__name__}") from None
    entry.models = Offers.of(newest_set(held.page for held in entry.pages.values()) or ())
    if entry.announcement is not None and entry.ends <= now:
        raise ValueError("expired")
    return entry


def _announcement(said: Announcement) -> dict[str, Any]:
    """Its fields rather than its event alone: to read that anew takes 100 µs."""
    event = said.event
    return {
        "event": event and [event.id, event.tags, event.content, event.sig],
        "name": said.name,
        "about": said.about,
        "urls": said.urls,
        "mints": said.mints,
        "version": said.version,
        "relays": said.relays,
        "wraps": said.wraps,
        "http": said.http,
        "pubkey_lock": said.pubkey_lock,
        "created_at": said.created_at,
        "expires_at": said.expires_at,
        "models": Offers.of(said.models).document(),
    }


def _read_announcement(address: str, said: dict[str, Any]) -> Announcement:
    kind, pubkey, d = address.split(":", 2)
    event = None
    created_at = said["created_at"]
    if said["event"] is not None:
        id_, tags, content, sig = said["event"]
        event = Event(id_, pubkey, created_at, int(kind), _shared(tags), content, sig)
    return Announcement(
        pubkey=pubkey,
        d=d,
        name=said["name"],
        about=said["about"],
        urls=tuple(said["urls"]),
        mints=tuple(map(sys.intern, said["mints"])),
        version=said["version"],
        relays=tuple(map(sys.intern, said["relays"])),
        wraps=tuple(said["wraps"]),
        http=words(said["http"]),
        pubkey_lock=said["pubkey_lock"],
        created_at=created_at,
        expires_at=said["expires_at"],
        models=Offers.read(said["models"]),
        event=event,
    )


def write_health(health: Health) -> bytes:
    """What the probes found, without the models."""
    result = health.result
    return orjson.dumps(
        {
            "urls": health.urls,
            "result": result
            and [
                result.verified,
                result.reachable,
                result.latency_ms,
                result.reason,
                result.verified_urls,
                result.info.decode(),
                result.url,
            ],
            "asked_at": health.asked_at,
            "reached_at": health.reached_at,
            "verified_at": health.verified_at,
            "verified_urls": health.verified_urls,
            "failures": health.failures,
            "days": [[day.number, day.asked, day.answered, day.latency_ms] for day in health.days],
            "listed_at": health.listed_at,
        }
    )


def read_health(document: bytes) -> Health:
    """Health as it was. Raises ValueError."""
    try:
        said = orjson.loads(document)
        result = None
        if said["result"] is not None:
            verified, reachable, latency_ms, reason, urls, info, url = said["result"]
            result = ProbeResult(
                verified, reachable, latency_ms, reason, tuple(urls), info.encode(), url
            )
        return Health(
            tuple(said["urls"]),
            result,
            int(said["asked_at"]),
            int(said["reached_at"]),
            int(said["verified_at"]),
            tuple(said["verified_urls"]),
            int(said["failures"]),
            [Day(*day) for day in said["days"]],
            listed_at=int(said["listed_at"]),
        )
    except _UNREADABLE as error:
        raise ValueError(f"not a health record: {type(error).__name__}") from None


def write_models(offers: Iterable[ModelOffer]) -> bytes:
    """A list of models."""
    return orjson.dumps(Offers.of(offers).document())


def read_models(document: bytes) -> Offers:
    """A list of models. Raises ValueError."""
    try:
        return Offers.read(orjson.loads(document))
    except _UNREADABLE as error:
        raise ValueError(f"not a list of models: {type(error).__name__}") from None


def write_review(review: Review, event_id: str) -> bytes:
    """A review with the id of its event."""
    return orjson.dumps(
        [
            review.reviewer,
            review.provider,
            review.kind,
            review.label,
            review.created_at,
            review.text,
            event_id,
        ]
    )


def read_review(document: bytes) -> tuple[Review, str]:
    """A review and the id of its event. Raises ValueError."""
    try:
        *fields, event_id = orjson.loads(document)
        return Review(*fields), event_id
    except TypeError:
        raise ValueError("not a review") from None


def review_key(review: Review) -> str:
    """Under which a review is stored: a newer one of the same key takes its place."""
    return f"{review.reviewer}:{review.kind}:{review.provider}"


def write_tombs(tombs: Tombs) -> bytes:
    """What one author deleted."""
    return orjson.dumps([list(tombs.ids), list(tombs.addresses.items())])


def read_tombs(document: bytes) -> Tombs:
    """What one author deleted. Raises ValueError."""
    try:
        ids, addresses = orjson.loads(document)
        tombs = Tombs()
        tombs.ids.update(dict.fromkeys(ids))
        tombs.addresses.update((str(address), int(until)) for address, until in addresses)
    except TypeError:
        raise ValueError("not tombstones") from None
    return tombs


def _shared(tags: list[list[str]]) -> Tags:
    """Names, relays and mints are the same in many announcements."""
    return tuple(tuple(map(sys.intern, tag)) for tag in tags)
