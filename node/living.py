"""What of a running node takes other settings without a restart (``node/reload.py``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from discovery.nostr.pool import RelayPool
from node.building import payout_terms, rate_limits, refund_terms
from node.core.identity import NodeInfo
from node.market import Market
from node.ops.health import Health
from node.ops.logging import configure
from node.reload import Part
from node.service.limits import Limiter
from node.service.payout import Payouts
from node.service.refunds import Refunds
from node.settings import Settings

LIST_TERMS = (
    "only",
    "exclude",
    "max_models",
    "markup_percent",
    "free",
    "sell_unmetered",
    "default_input_per_mtok_msat",
    "default_output_per_mtok_msat",
    "default_per_request_msat",
    "default_input_per_mtok_usd",
    "default_output_per_mtok_usd",
    "default_per_request_usd",
    "default_context_length",
    "default_max_output_tokens",
    "endpoints",
    "priority",
    "weight",
)
"""Fields of [[upstreams]] about what is sold and for how much, not about how it is reached."""
REQUEST_LIMITS = (
    "requests_per_minute",
    "requests_per_hour",
    "requests_per_day",
    "max_concurrent_per_account",
)

REFUND_TERMS = (
    "floor_sat",
    "interval_s",
    "retry_s",
    "max_retry_s",
    "max_fee_ppm",
    "max_fee_base_sat",
)


class Identity:
    """What the node says about itself at this moment."""

    def __init__(self, info: NodeInfo) -> None:
        self.info = info
        self.changed: Callable[[], object] = lambda: None
        """Called after it has become another."""


def live_parts(
    *,
    limiter: Limiter,
    market: Market,
    identity: Identity,
    describe: Callable[[Settings], NodeInfo],
    payouts: Payouts,
    refunds: Refunds | None,
    pool: RelayPool | None,
    health: Health,
) -> list[Part]:
    """Those of a running node.

    Args:
        describe: what the node says about itself with other settings.
    """

    def introduce(fresh: Settings) -> None:
        identity.info = describe(fresh)
        identity.changed()

    living = [
        Part((("log", "*"),), lambda fresh: configure(fresh.log.level, fresh.log.format)),
        Part(
            tuple(("limits", key) for key in REQUEST_LIMITS),
            lambda fresh: limiter.change(rate_limits(fresh)),
        ),
        Part(
            (
                ("models", "*"),
                ("models", "*", "*"),
                *(("upstreams", "*", key) for key in LIST_TERMS),
            ),
            market.change,
        ),
        Part(
            (
                ("node", "name"),
                ("node", "about"),
                ("http", "public_urls"),
                ("http", "onion_url"),
                *((("nostr", "relays"),) if pool is not None else ()),
            ),
            introduce,
        ),
        Part((("payout", "*"),), lambda fresh: payouts.change(payout_terms(fresh))),
    ]
    if refunds is not None:
        terms = tuple(("refund", key) for key in REFUND_TERMS)
        living.append(Part(terms, lambda fresh: refunds.change(refund_terms(fresh))))
    if pool is not None:
        living.insert(0, Part((("nostr", "relays"),), partial(_use_relays, pool, health)))
    return living


async def _use_relays(pool: RelayPool, health: Health, fresh: Settings) -> None:
    """Other relays from now on. Raises RelayError when one of them is none."""
    before = pool.urls
    await pool.set_urls(fresh.nostr.relays)
    for url in set(before) - set(pool.urls):
        health.remove(f"relay {url}")
    show_relays(pool, health)


def show_relays(pool: RelayPool, health: Health) -> None:
    """A row in ``/health/ready`` for each relay."""
    for url in pool.urls:
        health.add(f"relay {url}", partial(pool.trouble, url), detail=True)
