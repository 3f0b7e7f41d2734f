"""The metrics of a running node, put together from its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack

from discovery.nostr.pool import RelayPool
from node.background import spawn
from node.core.circuit import Breaker
from node.ops.health import Health
from node.ops.metrics import CONTENT_TYPE, Metrics, RelayCounts, Sources
from node.ops.traffic import LoopLag, Traffic
from node.ops.watchdog import Watchdog
from node.service.dispatch import Dispatcher
from node.settings import Settings
from node.transport.http.scrape import ScrapeServer
from node.upstream.lane import LaneState


async def open_metrics(
    settings: Settings,
    stack: AsyncExitStack,
    tasks: list[asyncio.Task[None]],
    *,
    dispatcher: Dispatcher,
    health: Health,
    watchdog: Watchdog,
    mints: Mapping[str, Breaker],
    upstreams: Callable[[], Iterable[LaneState]],
    pool: RelayPool | None,
    providers: Callable[[], int],
    models: Callable[[], int],
) -> ScrapeServer:
    """Count requests from now on and answer scrapes until ``stack`` ends.

    Raises OSError when the address is taken.
    """
    traffic, lag = Traffic(), LoopLag()
    dispatcher.observers.append(traffic)
    spawn(tasks, "loop lag", lag.run)
    metrics = Metrics(
        Sources(
            database=settings.node.database,
            traffic=traffic,
            lag=lag,
            health=health,
            watchdog=watchdog,
            running=lambda: dispatcher.active,
            mints=mints,
            upstreams=upstreams,
            relays=lambda: _relays(pool),
            providers=providers,
            models=models,
        )
    )
    server = ScrapeServer(
        metrics.render,
        host=settings.metrics.host,
        port=settings.metrics.port,
        content_type=CONTENT_TYPE,
    )
    await server.start()
    stack.push_async_callback(server.stop)
    return server


def _relays(pool: RelayPool | None) -> dict[str, RelayCounts]:
    if pool is None:
        return {}
    return {
        url: RelayCounts(
            connected=health.connected,
            events=health.events,
            invalid=health.invalid,
            published=health.published,
            refused=health.refused,
        )
        for url, health in pool.health().items()
    }
