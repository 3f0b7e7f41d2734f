"""What is left of the prepaid key at an upstream that is another node."""

from __future__ import annotations

import asyncio

import structlog
from yarl import URL

from node.core.money import MSAT_PER_SAT, Msat
from node.upstream.fetching import FetchFailed, fetch_json
from node.upstream.lane import Lane

log = structlog.get_logger()

INTERVAL_S = 300.0
TIMEOUT_S = 20.0
MAX_BYTES = 64 << 10
LOW = "low balance"


class BalanceWatch:
    """Asks ``/v1/balance/info`` with the upstream's key, and notes it at its lane when low.

    Args:
        low: balance in msat below which the operator should pay in.
    """

    def __init__(self, lane: Lane, low: Msat, *, interval_s: float = INTERVAL_S) -> None:
        self._lane = lane
        self._low = low
        self._interval_s = interval_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._interval_s)

    async def refresh(self) -> None:
        """Ask once; without an answer the last one stands."""
        server = self._lane.server
        try:
            document = await fetch_json(
                server.session,
                URL(f"{server.base_url}/balance/info"),
                timeout_s=TIMEOUT_S,
                max_bytes=MAX_BYTES,
                headers=server.key_headers(),
            )
        except FetchFailed as error:
            log.warning("upstream_balance_unknown", upstream=server.name, reason=str(error))
            return
        balance = document.get("balance") if isinstance(document, dict) else None
        if type(balance) is not int:
            log.warning("upstream_balance_unknown", upstream=server.name, reason="no balance")
            return
        self._lane.balance_msat = balance
        self._lane.note = LOW if balance < self._low else ""
        level = log.warning if self._lane.note else log.info
        level("upstream_balance", upstream=server.name, sat=balance // MSAT_PER_SAT)
