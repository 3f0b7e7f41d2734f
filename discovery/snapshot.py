"""What the directory knows at one moment, as immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from discovery.announcement import Announcement, ModelOffer
from discovery.reviews import Review

Status: TypeAlias = Literal["online", "offline", "unknown"]
ModelsSource: TypeAlias = Literal["pages", "endpoint", "announcement", ""]
"""Where the models come from: signed pages, the node's ``/v1/models``, the announcement."""

_MAX_REMEMBERED_MODELS = 1_000
_STATUS_RANK = {"online": 0, "unknown": 1, "offline": 2}


@dataclass(frozen=True, slots=True)
class Provider:
    """Another node as we see it. Times are unix seconds."""

    pubkey: str
    npub: str
    announcement: Announcement
    models: tuple[ModelOffer, ...]
    """What it sells, for prices that are known."""
    verified: bool
    """A probed URL names the signer and no probed URL names anyone else."""
    status: Status
    latency_ms: int | None
    last_seen: int
    """When a probe last reached it; when it last announced itself, if none did."""
    reason: str
    """Why it is not verified or not online."""
    verified_urls: tuple[str, ...] = ()
    first_seen: float = 0.0
    """When we first saw it under its present name."""
    info: bytes = b""
    """Its own ``/v1/info`` as JSON; empty when unknown."""
    models_source: ModelsSource = "pages"
    unpriced: tuple[ModelOffer, ...] = ()
    """What it names without saying for how much in sat."""
    uptime: float | None = None
    """Share of the probes of the last days that were answered, 0 to 1; None when never asked."""
    usual_latency_ms: int | None = None
    """Mean of those answers."""
    reviews: tuple[Review, ...] = ()
    """What others say, newest first."""
    _offers: dict[str, ModelOffer] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def offer(self, model: str) -> ModelOffer | None:
        """What it says of one model, priced or not."""
        return (self._offers or self._index()).get(model)

    def _index(self) -> dict[str, ModelOffer]:
        self._offers.update((offer.id, offer) for offer in self.named)
        return self._offers

    @property
    def named(self) -> tuple[ModelOffer, ...]:
        """All models it names, those with prices first."""
        return self.models + self.unpriced

    def said_by(self, other: Provider) -> bool:
        """Do both views rest on the same event?"""
        mine, theirs = self.announcement.event, other.announcement.event
        return mine is theirs or (mine is not None and theirs is not None and mine.id == theirs.id)

    @property
    def endpoint_urls(self) -> tuple[str, ...]:
        """URLs to use: of a verified provider the proven ones only, else what it announces."""
        return self.verified_urls if self.verified else self.announcement.urls

    @property
    def unverified_urls(self) -> tuple[str, ...]:
        """What it announces and no probe has found it at; it may be someone else's."""
        return tuple(url for url in self.announcement.urls if url not in self.verified_urls)

    @property
    def endpoint_url(self) -> str | None:
        """The URL to use first. None when it is reached by relay only."""
        return next(iter(self.endpoint_urls), None)

    @property
    def rank(self) -> tuple[int, int, str, str]:
        """Position in the snapshot: verified and online first, then by key; stable for paging."""
        return (
            not self.verified,
            _STATUS_RANK[self.status],
            self.pubkey,
            self.announcement.d,
        )


@dataclass(frozen=True, slots=True)
class DirectorySnapshot:
    """All providers at one moment, by rank. ``etag`` changes exactly when the content does."""

    providers: tuple[Provider, ...] = ()
    etag: str = "empty"
    taken_at: float = 0.0
    _keyed: dict[tuple[str, str], Provider] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _selling: dict[str, tuple[Provider, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def selling(self, model: str) -> tuple[Provider, ...]:
        """The providers that name this model, by rank."""
        found = self._selling.get(model)
        if found is None:
            # all of them are looked at: 1 ms for 10,000 without a call each
            found = tuple(p for p in self.providers if model in (p._offers or p._index()))
            if len(self._selling) >= _MAX_REMEMBERED_MODELS:
                self._selling.clear()
            self._selling[model] = found
        return found

    def keyed(self) -> Mapping[tuple[str, str], Provider]:
        """The providers by public key and identifier (``d``)."""
        if not self._keyed:
            self._keyed.update(((p.pubkey, p.announcement.d), p) for p in self.providers)
        return self._keyed
