"""The parts of a running node that the admin endpoints look at and work on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from discovery.announcer import Announcer
from discovery.nostr.pool import RelayHealth, RelayPool
from node.admin.feed import Feed
from node.admin.log_tail import LogTail
from node.core.catalog import Catalog
from node.core.circuit import Breaker
from node.core.plans import ModelPlan
from node.ledger.reports import Reader
from node.ops.health import Health
from node.ports import Wallet
from node.service.payout import Payouts
from node.settings import Settings
from node.upstream.lane import LaneState


class Stock(Protocol):
    """What could be sold; see ``node.service.shelf.Shelf``."""

    def wanted(self) -> list[ModelPlan]: ...


ChangeSettings = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""What ``PATCH /admin/api/settings`` does with its document: {"applied": …, "needs_restart": …}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskParts:
    """What the sections need. Functions are called at each request."""

    settings: Callable[[], Settings]
    """Those in effect."""
    npub: str
    """Of the key that this process runs with."""
    reader: Reader
    health: Health
    solvency: Callable[[], str | None]
    """Why no money may leave the node now; ``Watchdog.problem``."""
    active: Callable[[], int]
    """Requests under way."""
    draining: Callable[[], bool]
    catalog: Catalog
    stock: Stock
    upstreams: Callable[[], Iterable[LaneState]]
    providers: Callable[[], int]
    """Other nodes that are known."""
    circuits: Mapping[str, Breaker]
    """Of the mints, by URL."""
    wallet: Wallet
    payouts: Payouts | None
    """None: payout.address is not set."""
    pool: RelayPool | None
    announcer: Callable[[], Announcer | None]
    feed: Feed
    log: LogTail
    change_settings: ChangeSettings
    overridden_models: Callable[[], Collection[str]] = tuple
    """Ids of models that the admin pages have changed."""
    learnt: Callable[[], Mapping[str, RelayHealth]] = dict
    """Relays that are read because verified nodes name them."""
