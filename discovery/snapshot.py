"""What the directory knows at one moment, as immutable values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from discovery.announcement import Announcement, ModelOffer

Status: TypeAlias = Literal["online", "offline", "unknown"]

_STATUS_RANK = {"online": 0, "unknown": 1, "offline": 2}


@dataclass(frozen=True, slots=True)
class Provider:
    """Another node as we see it. Times are unix seconds."""

    pubkey: str
    npub: str
    announcement: Announcement
    models: tuple[ModelOffer, ...]
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
