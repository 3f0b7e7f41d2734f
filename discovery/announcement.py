"""Codec of what a node says about itself: provider event, profile, relay lists.

    provider event   kind 38421, addressable (RIP-02)    Announcement
    model pages      kind 30078, addressable (NIP-78)    list[ModelOffer], in discovery.offers
    profile          kind 0 (NIP-01)      relay lists    kinds 10002 (NIP-65), 10050 (NIP-17)

Builder and parser stand side by side. Both go through :func:`normalise`, so what is parsed from
an event we built is what was announced.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from discovery.dialects import claimed_models, content_mints, content_urls
from discovery.errors import InvalidAnnouncement
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.offers import (
    ModelOffer,
    PageRef,
    announceable,
    build_model_pages,
    page_identifier,
    page_ref,
    parse_model_pages,
)
from discovery.wire import (
    KIND_DELETION,
    KIND_INBOX_RELAYS,
    KIND_MODEL_PAGE,
    KIND_PROFILE,
    KIND_PROVIDER,
    KIND_RELAY_LIST,
    MAX_EVENT_BYTES,
    MAX_IDENTIFIER_CHARS,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_NAME_CHARS,
    clean,
    clean_lines,
    distinct,
    endpoint_url,
    is_kind,
    is_onion,
    json_object,
    json_text,
    labels,
    mint_url,
    relay_url,
    sign_bounded,
    text_field,
)

__all__ = [
    "KIND_DELETION",
    "KIND_INBOX_RELAYS",
    "KIND_MODEL_PAGE",
    "KIND_PROFILE",
    "KIND_PROVIDER",
    "KIND_RELAY_LIST",
    "MAX_EVENT_BYTES",
    "MAX_FUTURE_S",
    "Announcement",
    "ModelOffer",
    "PageRef",
    "announceable",
    "build_deletion",
    "build_model_pages",
    "build_profile",
    "build_provider_event",
    "build_relay_lists",
    "default_identifier",
    "is_onion",
    "normalise",
    "order_urls",
    "page_identifier",
    "page_ref",
    "parse_model_pages",
    "parse_provider_event",
]

MAX_FUTURE_S = 900
"""How far ahead of our clock an event may be dated."""
MAX_ABOUT_CHARS = 4_000
MAX_URLS = 8
MAX_MINTS = 32
MAX_RELAYS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A node's own description. Times are unix seconds."""

    pubkey: str
    d: str
    name: str = ""
    about: str = ""
    urls: tuple[str, ...] = ()
    """Base URLs without trailing slash and without ``/v1``; as built: https, http, onion."""
    mints: tuple[str, ...] = ()
    version: str = ""
    relays: tuple[str, ...] = ()
    wraps: tuple[int, ...] = ()
    """Gift wrap kinds the node reads."""
    http: tuple[str, ...] = ()
    """How requests travel over Nostr: rumor kinds and framing, such as 80, 81, frames-v1."""
    pubkey_lock: str = ""
    """Key for NUT-11 locked tokens, compressed hex; empty when tokens are not to be locked."""
    created_at: int = 0
    expires_at: int | None = None
    models: Sequence[ModelOffer] = field(default=(), compare=False)
    """What older dialects name in the announcement itself; as built there are none."""
    event: Event | None = field(default=None, compare=False)

    @property
    def address(self) -> str:
        """``kind:pubkey:d``: what a newer event of the same node replaces."""
        return f"{KIND_PROVIDER}:{self.pubkey}:{self.d}"

    @property
    def transports(self) -> tuple[str, ...]:
        """The ways in: ``http``, ``tor``, ``nostr``."""
        found = []
        if any(not is_onion(url) for url in self.urls):
            found.append("http")
        if any(is_onion(url) for url in self.urls):
            found.append("tor")
        if self.relays and self.http:
            found.append("nostr")
        return tuple(found)


def default_identifier(pubkey: str) -> str:
    """The ``d`` of a node that has none configured or published."""
    return pubkey[:12]


def normalise(announcement: Announcement) -> Announcement:
    """The announcement as it can be published: clean text, normal URLs, bounded lists.

    Raises InvalidAnnouncement when ``d`` cannot stand in an address or there is no way in.
    """
    a = announcement
    if not a.d or clean(a.d, MAX_IDENTIFIER_CHARS) != a.d:
        raise InvalidAnnouncement("the d tag is missing or not a short printable line")
    a = replace(
        a,
        name=clean(a.name) or a.d[:MAX_NAME_CHARS].strip(),
        about=clean_lines(a.about, MAX_ABOUT_CHARS),
        urls=distinct(map(endpoint_url, a.urls), MAX_URLS),
        mints=distinct(map(mint_url, a.mints), MAX_MINTS),
        version=clean(a.version, MAX_LABEL_CHARS),
        relays=distinct(map(relay_url, a.relays), MAX_RELAYS),
        wraps=tuple(dict.fromkeys(kind for kind in a.wraps if 0 <= kind <= 65_535))[:MAX_LABELS],
        http=labels(a.http),
        pubkey_lock=clean(a.pubkey_lock, MAX_LABEL_CHARS + 2),
    )
    if not a.urls and not (a.relays and a.http):
        raise InvalidAnnouncement("neither a usable u tag nor both relay and http")
    return a


def order_urls(urls: Iterable[str]) -> tuple[str, ...]:
    """Base URLs in the order readers expect: https, http, onion; stable within each."""
    return tuple(sorted(urls, key=lambda url: (is_onion(url), not url.startswith("https:"))))


def build_provider_event(keys: Keys, announcement: Announcement) -> Event:
    """The signed provider event (kind 38421).

    Raises InvalidAnnouncement as :func:`normalise` does. ``announcement.pubkey`` must be that
    of ``keys`` (ValueError).
    """
    if announcement.pubkey != keys.pubkey:
        raise ValueError("an announcement is signed by the key it names")
    a = normalise(announcement)
    tags = [("d", a.d)]
    tags += [("u", url) for url in order_urls(a.urls)]
    tags += [("mint", url) for url in a.mints]
    if a.version:
        tags.append(("version", a.version))
    # a reader of the network splits tag values at commas and brackets
    tags.append(("name", " ".join(re.sub(r"[,\[\]]", " ", a.name).split()) or a.d))
    tags += [("relay", url) for url in a.relays]
    if a.wraps:
        tags.append(("encryption", "nip44_v2"))
    tags += [("wrap", str(kind)) for kind in a.wraps]
    carriage = [("http", *a.http)] if a.http else []
    if a.pubkey_lock:
        tags.append(("pubkey-lock", a.pubkey_lock))
    if a.expires_at is not None:
        tags.append(("expiration", str(a.expires_at)))
    content = json_text({"name": a.name, "about": a.about})
    return sign_bounded(keys, KIND_PROVIDER, content, [*tags, *carriage], a.created_at)


def parse_provider_event(event: Event, *, now: int | None = None) -> Announcement:
    """What a verified provider event says.

    Another project uses the same kind: what has no ``d`` or no way in is not ours. Raises
    InvalidAnnouncement, also when expired or dated more than 15 minutes ahead of ``now``.
    """
    now = int(time.time()) if now is None else now
    if event.kind != KIND_PROVIDER:
        raise InvalidAnnouncement("not a provider event")
    if event.created_at > now + MAX_FUTURE_S:
        raise InvalidAnnouncement("dated in the future")
    if event.expiration is not None and event.expiration <= now:
        raise InvalidAnnouncement("expired")
    about = json_object(event.content)
    models = claimed_models(event, about)
    urls, mints = event.values("u"), event.values("mint")
    if models:
        # Without models a content that holds a URL may be another project's.
        urls = urls or [*event.values("url"), *event.values("onion"), *content_urls(about)]
        mints = mints or content_mints(about)
    carriage = next((tag[1:] for tag in event.tags if tag[0] == "http"), ())
    return normalise(
        Announcement(
            pubkey=event.pubkey,
            d=event.first("d") or "",
            name=text_field(about, "name")
            or event.first("name")
            or text_field(about, "display_name"),
            about=text_field(about, "about"),
            urls=tuple(urls),
            mints=tuple(mints),
            version=event.first("version") or "",
            relays=tuple(event.values("relay")),
            wraps=tuple(int(kind) for kind in event.values("wrap") if is_kind(kind)),
            http=tuple(carriage),
            pubkey_lock=event.first("pubkey-lock") or "",
            created_at=event.created_at,
            expires_at=event.expiration,
            models=models,
            event=event,
        )
    )


def build_profile(keys: Keys, *, name: str, about: str, created_at: int, known: str = "") -> Event:
    """The profile (kind 0); fields of the earlier profile's content ``known`` are kept."""
    profile = json_object(known)
    profile |= {"name": clean(name), "about": clean_lines(about, MAX_ABOUT_CHARS)}
    content = json_text(profile)
    if len(content.encode()) > MAX_EVENT_BYTES // 4:
        content = json_text({"name": profile["name"], "about": profile["about"]})
    return sign_bounded(keys, KIND_PROFILE, content, [], created_at)


def build_relay_lists(
    keys: Keys, *, relays: Iterable[str], inbox: Iterable[str], created_at: int
) -> list[Event]:
    """Where the node writes and reads (kind 10002) and takes private messages (kind 10050)."""
    general = [("r", url) for url in distinct(map(relay_url, relays), MAX_RELAYS)]
    private = [("relay", url) for url in distinct(map(relay_url, inbox), MAX_RELAYS)]
    return [
        sign_bounded(keys, KIND_RELAY_LIST, "", general, created_at),
        sign_bounded(keys, KIND_INBOX_RELAYS, "", private, created_at),
    ]


def build_deletion(
    keys: Keys, addresses: Iterable[str], *, created_at: int, ids: Iterable[str] = ()
) -> Event:
    """A request to delete all versions of ``addresses`` up to ``created_at`` (NIP-09).

    ``ids`` names single events besides: some relays know deletion by id only, or misread an
    address whose ``d`` holds a colon.
    """
    addresses = list(addresses)
    kinds = dict.fromkeys(address.partition(":")[0] for address in addresses)
    tags = [("a", address) for address in addresses] + [("e", id_) for id_ in ids]
    tags += [("k", kind) for kind in kinds]
    return sign_bounded(keys, KIND_DELETION, "", tags, created_at)
