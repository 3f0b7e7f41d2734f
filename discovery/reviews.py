"""What others say about providers: recommendations (kind 38000, NIP-87) and reviews (38425).

    38000   ``["k","38421"]``, ``["a","38421:<pubkey>:<d>"]``            recommends that provider
    38425   ``["node","<pubkey>"]``, ``["t","lgtm" | "avoid" | …]``     approves of it, warns of it

Anyone can make a thousand keys and review with each, so a number alone says little: the keys are
kept, for the reader to see whom he knows. Pure state without I/O; bounded.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from discovery.announcement import MAX_FUTURE_S
from discovery.errors import InvalidEvent
from discovery.nostr.event import Event, is_hex_key
from discovery.wire import KIND_DELETION, KIND_PROVIDER, MAX_LABEL_CHARS, clean

KIND_RECOMMENDATION = 38_000
KIND_REVIEW = 38_425
APPROVAL = "lgtm"
WARNING = "avoid"
_RECOMMENDED = "recommended"
_MAX_TARGETS_PER_EVENT = 8
_MAX_CONTENT_CHARS = 280
_MAX_DELETED_PER_EVENT = 64


@dataclass(frozen=True, slots=True)
class Review:
    """One key's word about one provider. ``created_at`` in unix seconds."""

    reviewer: str
    """Public key, hex."""
    provider: str
    """Public key, hex."""
    kind: int
    label: str
    """``lgtm``, ``avoid``, ``recommended`` or whatever else the reviewer calls it."""
    created_at: int
    text: str = ""
    distance: int | None = None
    """Of the reviewer from the operator of this directory, by who follows whom; None: unknown."""

    @property
    def favourable(self) -> bool:
        """Does it speak for the provider?"""
        return self.label in (APPROVAL, _RECOMMENDED)


class Reviews:
    """The newest word of each reviewer about each provider.

    Args:
        max_reviews: kept in all, ``max_per_provider`` of them about one; the oldest go.
        max_age_s: an older review does not count.
        clock: unix seconds.
    """

    def __init__(
        self,
        *,
        max_reviews: int = 20_000,
        max_per_provider: int = 100,
        max_age_s: int = 365 * 86_400,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._max = max_reviews
        self._max_per_provider = max_per_provider
        self._max_age_s = max_age_s
        self._clock = clock
        self._all: OrderedDict[tuple[str, int, str], tuple[Review, str]] = OrderedDict()
        """By reviewer, kind and provider, with the event's id; the order is that of arrival."""
        self._about: dict[str, dict[tuple[str, int, str], None]] = {}
        self._by: dict[str, dict[tuple[str, int, str], None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[tuple[Review, str]]:
        """Every review with the id of its event."""
        return iter(self._all.values())

    def about(self, pubkey: str) -> tuple[Review, ...]:
        """What is said about a provider, newest first."""
        if pubkey not in self._about:
            return ()
        oldest = self._clock() - self._max_age_s
        found = (self._all[key][0] for key in self._about[pubkey])
        return tuple(
            sorted((r for r in found if r.created_at >= oldest), key=lambda r: -r.created_at)
        )

    def get(self, key: str) -> tuple[Review, str] | None:
        """The review under ``reviewer:kind:provider``, with the id of its event."""
        reviewer, kind, provider = key.split(":")
        return self._all.get((reviewer, int(kind), provider))

    def offer(self, event: Event) -> tuple[str, ...]:
        """Take in an event of any origin, verified last; gives the providers it is news about.

        Never raises.
        """
        now = self._clock()
        if event.created_at > now + MAX_FUTURE_S:
            return ()
        try:
            if event.kind == KIND_DELETION:
                return self._delete(event)
            if event.created_at < now - self._max_age_s:
                return ()
            if event.expiration is not None and event.expiration <= now:
                return ()
            return self._offer(event)
        except InvalidEvent:
            return ()

    def restore(self, review: Review, event_id: str) -> None:
        """Put back what an earlier process held."""
        self._put(review, event_id)

    def _offer(self, event: Event) -> tuple[str, ...]:
        if event.kind == KIND_REVIEW:
            targets = [key for key in event.values("node") if is_hex_key(key)]
            label = clean(event.first("t") or "", MAX_LABEL_CHARS).lower()
        elif event.kind == KIND_RECOMMENDATION and str(KIND_PROVIDER) in event.values("k"):
            addresses = (value.split(":", 2) for value in event.values("a"))
            targets = [
                part[1]
                for part in addresses
                if len(part) == 3 and part[0] == str(KIND_PROVIDER) and is_hex_key(part[1])
            ]
            label = _RECOMMENDED
        else:
            return ()
        text = clean(event.content[: 4 * _MAX_CONTENT_CHARS], _MAX_CONTENT_CHARS)
        fresh = []
        for target in dict.fromkeys(targets[:_MAX_TARGETS_PER_EVENT]):
            known = self._all.get((event.pubkey, event.kind, target))
            # who praises himself says nothing
            if target != event.pubkey and (known is None or _supersedes(event, *known)):
                fresh.append(
                    Review(event.pubkey, target, event.kind, label, event.created_at, text)
                )
        if fresh:
            event.verify()
        for review in fresh:
            self._put(review, event.id)
        return tuple(review.provider for review in fresh)

    def _put(self, review: Review, event_id: str) -> None:
        key = (review.reviewer, review.kind, review.provider)
        self._all[key] = (review, event_id)
        self._all.move_to_end(key)
        self._by.setdefault(review.reviewer, {})[key] = None
        about = self._about.setdefault(review.provider, {})
        about[key] = None
        if len(about) > self._max_per_provider:
            self._drop(min(about, key=lambda k: self._all[k][0].created_at))
        if len(self._all) > self._max:
            self._drop(next(iter(self._all)))

    def _delete(self, event: Event) -> tuple[str, ...]:
        ids = set(event.values("e")[:_MAX_DELETED_PER_EVENT])
        dead = [key for key in self._by.get(event.pubkey, ()) if self._all[key][1] in ids]
        if not dead:
            return ()
        event.verify()
        for key in dead:
            self._drop(key)
        return tuple(key[2] for key in dead)

    def _drop(self, key: tuple[str, int, str]) -> None:
        del self._all[key]
        for index, name in ((self._by, key[0]), (self._about, key[2])):
            del index[name][key]
            if not index[name]:
                del index[name]


def summary(reviews: tuple[Review, ...]) -> Mapping[str, int]:
    """How many keys recommend, approve (``lgtm``), warn (``avoid``), and say something else."""
    labels = Counter(review.label for review in reviews)
    known = {_RECOMMENDED, APPROVAL, WARNING}
    return {
        "recommendations": labels[_RECOMMENDED],
        "approvals": labels[APPROVAL],
        "warnings": labels[WARNING],
        "others": sum(count for label, count in labels.items() if label not in known),
    }


def _supersedes(event: Event, current: Review, current_id: str) -> bool:
    return event.created_at > current.created_at or (
        event.created_at == current.created_at and event.id < current_id
    )
