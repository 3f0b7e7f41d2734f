"""What the directory knows at one moment, as immutable values."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from discovery.announcement import Announcement, ModelOffer
from discovery.columns import find, ids_of
from discovery.reviews import WARNING, Review

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
    models: Sequence[ModelOffer]
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
    unpriced: Sequence[ModelOffer] = ()
    """What it names without saying for how much in sat."""
    uptime: float | None = None
    """Share of the probes of the last days that were answered, 0 to 1; None when never asked."""
    usual_latency_ms: int | None = None
    """Mean of those answers."""
    reviews: tuple[Review, ...] = ()
    """What others say, newest first."""
    trust_distance: int | None = None
    """Of its own key from the operator of this directory, by who follows whom; None: unknown."""

    def offer(self, model: str) -> ModelOffer | None:
        """What it says of one model, priced or not."""
        return find(self.models, model) or find(self.unpriced, model)

    @property
    def ids(self) -> tuple[str, ...]:
        """All models it names, those with prices first."""
        return ids_of(self.models) + ids_of(self.unpriced) if self.unpriced else ids_of(self.models)

    @property
    def named(self) -> Sequence[ModelOffer]:
        """What it says of these models."""
        return (*self.models, *self.unpriced) if self.unpriced else self.models

    @property
    def vouched_distance(self) -> int | None:
        """Of the nearest key that speaks for it."""
        return _nearest(review for review in self.reviews if review.favourable)

    @property
    def trust(self) -> int | None:
        """The smaller of both distances; None also when a key as near warns of it."""
        near = [d for d in (self.trust_distance, self.vouched_distance) if d is not None]
        warned = _nearest(review for review in self.reviews if review.label == WARNING)
        return min(near) if near and (warned is None or min(near) < warned) else None

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


def _nearest(reviews: Iterable[Review]) -> int | None:
    return min((r.distance for r in reviews if r.distance is not None), default=None)


class Sellers:
    """Who names which model, as positions in the list of a snapshot.

    Made when the first is asked for: 40 ms for half a million offers. It is good for all
    snapshots that list the same providers with the same models in the same order.
    """

    def __init__(self) -> None:
        self._positions: dict[str, array[int]] | None = None

    def of(self, providers: Sequence[Provider], model: str) -> Sequence[int]:
        """The positions of those who name the model, by rank."""
        if self._positions is None:
            self._positions = {}
            for position, provider in enumerate(providers):
                for id_ in provider.ids:
                    found = self._positions.get(id_)
                    if found is None:
                        found = self._positions[id_] = array("I")
                    if not found or found[-1] != position:
                        found.append(position)
        return self._positions.get(model, ())


@dataclass(frozen=True, slots=True)
class DirectorySnapshot:
    """All providers at one moment, by rank. ``etag`` changes exactly when the content does."""

    providers: tuple[Provider, ...] = ()
    etag: str = "empty"
    taken_at: float = 0.0
    sellers: Sellers = field(default_factory=Sellers, repr=False, compare=False)
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
            positions = self.sellers.of(self.providers, model)
            found = tuple([self.providers[position] for position in positions])
            if len(self._selling) >= _MAX_REMEMBERED_MODELS:
                self._selling.clear()
            self._selling[model] = found
        return found

    def keyed(self) -> Mapping[tuple[str, str], Provider]:
        """The providers by public key and identifier (``d``)."""
        if not self._keyed:
            self._keyed.update(((p.pubkey, p.announcement.d), p) for p in self.providers)
        return self._keyed
