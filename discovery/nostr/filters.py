"""Filters (NIP-01), checked here as well: relays leak other people's events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from discovery.nostr.event import Event

Filter = Mapping[str, Any]
"""``ids``, ``authors``, ``kinds``, ``since``, ``until``, ``limit``, ``#x`` as NIP-01 names them."""


class Matcher:
    """Filters compiled once for many events. ``limit`` and ``search`` are the relay's business."""

    __slots__ = ("_filters",)

    def __init__(self, filters: Iterable[Filter]) -> None:
        self._filters = tuple(_Compiled(f) for f in filters)

    def __call__(self, event: Event) -> bool:
        """Whether any of the filters matches."""
        return any(compiled.matches(event) for compiled in self._filters)


def matches(filter: Filter, event: Event) -> bool:  # noqa: A002 - the field's word
    """Whether ``event`` satisfies every condition of one filter."""
    return _Compiled(filter).matches(event)


class _Compiled:
    __slots__ = ("authors", "ids", "kinds", "since", "tags", "until")

    def __init__(self, conditions: Filter) -> None:
        self.ids = _as_set(conditions.get("ids"))
        self.authors = _as_set(conditions.get("authors"))
        self.kinds = _as_set(conditions.get("kinds"))
        self.since: int | None = conditions.get("since")
        self.until: int | None = conditions.get("until")
        self.tags = tuple(
            (key[1:], frozenset(wanted))
            for key, wanted in conditions.items()
            if len(key) == 2 and key[0] == "#"
        )

    def matches(self, event: Event) -> bool:
        return (
            (self.kinds is None or event.kind in self.kinds)
            and (self.since is None or event.created_at >= self.since)
            and (self.until is None or event.created_at <= self.until)
            and (self.authors is None or event.pubkey in self.authors)
            and (self.ids is None or event.id in self.ids)
            and all(
                any(len(t) > 1 and t[0] == name and t[1] in wanted for t in event.tags)
                for name, wanted in self.tags
            )
        )


def _as_set(values: Sequence[Any] | None) -> frozenset[Any] | None:
    return None if values is None else frozenset(values)
