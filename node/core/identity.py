"""Who this node is and where it can be found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What the node says about itself: in ``/v1/info`` and in its announcement."""

    name: str
    about: str
    version: str
    npub: str
    mints: tuple[str, ...] = ()
    """Normalised URLs of the mints whose tokens it takes."""
    http_urls: tuple[str, ...] = ()
    """Public base URLs without ``/v1``; the first is the preferred one."""
    onion_url: str | None = None
    pubkey_lock: str = ""
    """The key to which tokens for it may be locked (NUT-11), a compressed point, hex."""
    relays: tuple[str, ...] = ()
    """Relays on which it reads requests."""
    wraps: tuple[int, ...] = (21059, 1059)
    """Kinds of gift wrap it reads (NIP-59), the preferred one first."""

    @property
    def transports(self) -> tuple[str, ...]:
        """The carriages by which it can be reached from outside."""
        http = ("http",) if self.http_urls or self.onion_url else ()
        return http + (("nostr",) if self.relays else ())
