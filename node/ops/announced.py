"""Is what the relays have of this node what its configuration says?"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from discovery.announcement import Announcement, parse_provider_event
from discovery.errors import InvalidAnnouncement
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from discovery.offers import ModelOffer, parse_model_pages
from discovery.wire import KIND_MODEL_PAGE, KIND_PROVIDER
from node.building import announcement, node_info
from node.ops.probes import MAX_NAMED, Finding, passed
from node.settings import Settings

_RESTART = "restart the node: it announces what is configured when it starts"


async def check_announcement(
    settings: Settings, keys: Keys, *, runs: bool, timeout_s: float
) -> list[Finding]:
    """Fetch our own provider event and model pages, and compare them with the settings.

    Args:
        runs: whether the node is up, so that it should be announced.

    Prices in USD and of listed models change by themselves; of those only the names are looked at.
    """
    if not settings.nostr.relays:
        return []
    author = [keys.pubkey]
    async with RelayPool(settings.nostr.relays, keys=keys, connect_timeout_s=timeout_s) as pool:
        wanted = announcement(settings, node_info(settings, keys), settings.catalog(), pool)
        events = await pool.query(
            [{"authors": author, "kinds": [KIND_PROVIDER, KIND_MODEL_PAGE]}], timeout_s=timeout_s
        )
        event, found = _newest(events, settings)
        refusals: list[Finding] = []
        if event is not None and settings.node.announce and runs:
            refusals = await _refusals(pool, event, timeout_s)
    if found is None:
        return [_absent(settings, runs=runs)]
    if not settings.node.announce:
        return [
            Finding(
                "announcement",
                "warn",
                "is on the relays though node.announce is false",
                "it ends by itself within a day; or start the node once with announce and"
                " retract_on_stop set to true",
            )
        ]
    address = found.address
    pages = [e for e in events if e.kind == KIND_MODEL_PAGE and e.first("a") == address]
    offers = parse_model_pages(pages)
    problems = [*_compare_head(found, wanted.urls, wanted.mints)]
    if offers is None:
        problems.append("the pages of its models are not all there")
    else:
        problems += _compare_offers(offers, wanted.offers, _other_names(settings), settings)
    if problems:
        return [*(Finding("announcement", "fail", text, _RESTART) for text in problems), *refusals]
    return [passed("announcement", f"is what is configured: {len(offers or ())} models"), *refusals]


def _newest(
    events: Iterable[Event], settings: Settings
) -> tuple[Event, Announcement] | tuple[None, None]:
    """Our newest provider event that can be read. ``events`` come newest first."""
    for event in events:
        if event.kind == KIND_PROVIDER and settings.node.d in (None, event.first("d")):
            with suppress(InvalidAnnouncement):
                return event, parse_provider_event(event)
    return None, None


async def _refusals(pool: RelayPool, event: Event, timeout_s: float) -> list[Finding]:
    """Offer each relay our announcement, as it is, again: which do not take it (NIP-01, OK)?"""
    results = await pool.publish(event, timeout_s=timeout_s)
    health = pool.health()
    refused = {
        url: result.message or "no answer"
        for url, result in results.items()
        # one that does not answer at all has its own finding
        if not result.ok and not result.message.startswith("duplicate:") and health[url].connected
    }
    taken = sum(result.ok for result in results.values())
    return [
        Finding(
            "relay",
            "warn" if taken else "fail",
            f"does not take the announcement: {message}",
            "do what it says (pay, prove work, register the npub), or choose another relay in"
            " nostr.relays",
            url,
        )
        for url, message in refused.items()
    ]


def _absent(settings: Settings, *, runs: bool) -> Finding:
    if not settings.node.announce:
        return passed("announcement", "none, as configured (node.announce = false)")
    if not runs:
        return Finding(
            "announcement", "warn", "there is none yet", "start the node: it announces itself"
        )
    return Finding(
        "announcement",
        "fail",
        "none is on the relays, though the node runs",
        "see the relays' findings; a relay that refuses our events is named in the log"
        " (announce_refused, announce_failed)",
    )


def _other_names(settings: Settings) -> frozenset[str]:
    """Models whose prices are not in the settings."""
    fixed = {model.id for model in settings.catalog()}
    return frozenset(plan.id for plan in settings.plans() if plan.id not in fixed or plan.in_usd)


def _compare_head(found: Announcement, urls: Iterable[str], mints: Iterable[str]) -> list[str]:
    problems = []
    if set(found.urls) != {url.rstrip("/") for url in urls}:
        problems.append(f"its URLs are {_names(found.urls)}, configured are {_names(urls)}")
    if set(found.mints) != {url.rstrip("/") for url in mints}:
        problems.append(f"its mints are {_names(found.mints)}, configured are {_names(mints)}")
    return problems


def _compare_offers(
    offers: Iterable[ModelOffer],
    wanted: Iterable[ModelOffer],
    others: frozenset[str],
    settings: Settings,
) -> list[str]:
    announced = {offer.id: offer for offer in offers}
    configured = {offer.id: offer for offer in wanted if offer.id not in others}
    problems = []
    missing = configured.keys() - announced.keys()
    if missing:
        problems.append(f"it lacks models that are configured: {_names(missing)}")
    discovering = any(upstream.discover for upstream in settings.upstreams)
    extra = announced.keys() - configured.keys() - others
    if extra and not discovering:
        problems.append(f"it has models that are not configured: {_names(extra)}")
    for name in sorted(configured.keys() & announced.keys()):
        was, is_ = _terms(announced[name]), _terms(configured[name])
        differing = [
            f"{field} {was[field]} (configured: {is_[field]})"
            for field in is_
            if was[field] != is_[field]
        ]
        if differing:
            problems.append(f'model "{name}" is announced with {", ".join(differing)}')
    return problems


def _terms(offer: ModelOffer) -> dict[str, int | None]:
    return {
        "input_per_mtok_msat": offer.input_per_mtok,
        "output_per_mtok_msat": offer.output_per_mtok,
        "per_request_msat": offer.per_request,
        "context_length": offer.context,
        "max_output_tokens": offer.max_output,
        **{f"{name}_msat": price for name, price in offer.other._asdict().items()},
    }


def _names(values: Iterable[str]) -> str:
    names = sorted(values)
    more = " …" if len(names) > MAX_NAMED else ""
    return (", ".join(names[:MAX_NAMED]) or "none") + more
