"""The money, as the operator sees it: overview, balance sheet, accounts, transfers, earnings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any, cast

from node import __version__
from node.admin.exchange import AdminRequest, AdminRoute
from node.admin.parts import DeskParts
from node.admin.query import (
    choice,
    cursor_text,
    read_page,
    whole,
)
from node.errors import InvalidValue, NotFound
from node.ledger import reports
from node.ledger.books import Books
from node.ledger.reports import DAY_S, HOUR_S, Order, Point

MAX_POINTS = 1_500
"""Of a plot: two months of hours, four years of days."""
BUSY_S = 2.0
"""The overview within this of the last one has the same sums."""

_BUCKETS = {"hour": HOUR_S, "day": DAY_S}
_DEFAULT_POINTS = {"hour": 48, "day": 30}


class BooksSection:
    """``/overview``, ``/balances``, ``/accounts``, ``/transactions``, ``/earnings``.

    Args:
        clock: unix seconds.
    """

    def __init__(self, parts: DeskParts, *, clock: Callable[[], float] = time.time) -> None:
        self._parts = parts
        self._reader = parts.reader
        self._clock = clock
        self._started_at = int(clock())
        self._last: tuple[float, Books, Point] | None = None

    def routes(self) -> Iterable[AdminRoute]:
        yield AdminRoute("GET", "/overview", answer=self._overview)
        yield AdminRoute("GET", "/balances", answer=self._balances)
        yield AdminRoute("GET", "/accounts", answer=self._accounts)
        yield AdminRoute("GET", "/accounts/{id}/transactions", answer=self._statement)
        yield AdminRoute("GET", "/transactions", answer=self._transactions)
        yield AdminRoute("GET", "/earnings", answer=self._earnings)

    async def _overview(self, request: AdminRequest) -> dict[str, Any]:
        del request
        parts = self._parts
        books, today = await self._sums()
        ready, checks = await parts.health.ready()
        return {
            "name": parts.settings().node.name,
            "npub": parts.npub,
            "version": __version__,
            "started_at": self._started_at,
            "now": int(self._clock()),
            "ready": ready,
            "checks": checks,
            "earned_msat": books.earned_msat,
            "earned_today_msat": today.charged_msat,
            "requests_today": today.requests,
            "active_requests": parts.active(),
            "models": len(parts.catalog),
            "providers": parts.providers(),
            "liabilities_msat": books.liabilities_msat,
            "coins_msat": books.proofs_msat,
            "net_msat": books.equity_msat,
            "draining": parts.draining(),
        }

    async def _sums(self) -> tuple[Books, Point]:
        now = self._clock()
        if self._last is not None and 0 <= now - self._last[0] < BUSY_S:
            return self._last[1:]
        midnight = int(now) - int(now) % DAY_S
        books, today = await self._reader.read(
            lambda conn: (reports.books(conn), reports.charged_since(conn, midnight))
        )
        self._last = (now, books, today)
        return books, today

    async def _balances(self, request: AdminRequest) -> dict[str, Any]:
        del request
        parts = self._parts
        accepted = [(mint.url, unit) for mint in parts.settings().mints for unit in mint.units]
        books, holdings = await self._reader.read(
            lambda conn: (reports.books(conn), reports.holdings(conn, accepted))
        )
        barred = parts.solvency()
        problems = books.problems()
        if barred is not None and not problems:
            problems.append(barred)
        return {
            "mints": [
                {
                    **asdict(holding),
                    "circuit": _trouble(parts, holding.url),
                    "accepted": (holding.url, holding.unit) in accepted,
                }
                for holding in holdings
            ],
            "books": _document(books),
            "problems": problems,
        }

    async def _accounts(self, request: AdminRequest) -> dict[str, Any]:
        order = cast("Order", choice(request, "order", ("created", "balance")))
        report = partial(reports.accounts, order=order)
        accounts, following = await read_page(self._reader, request, report)
        return {
            "accounts": [asdict(account) for account in accounts],
            "next_cursor": cursor_text(following),
        }

    async def _statement(self, request: AdminRequest) -> dict[str, Any]:
        account_id = whole(request.parameters, "id", 0)
        report = partial(reports.statement, account_id=account_id)
        found = await read_page(self._reader, request, report)
        if found is None:
            raise NotFound("there is no such account")
        lines, following = found
        return {
            "transactions": [asdict(line) for line in lines],
            "next_cursor": cursor_text(following),
        }

    async def _transactions(self, request: AdminRequest) -> dict[str, Any]:
        rows, following = await read_page(self._reader, request, reports.transfers)
        return {
            "transactions": [
                {
                    "id": row.id,
                    "created_at": row.created_at,
                    "from": row.source,
                    "to": row.destination,
                    "amount_msat": row.amount_msat,
                    "reference": row.reference,
                    "model": row.model,
                }
                for row in rows
            ],
            "next_cursor": cursor_text(following),
        }

    async def _earnings(self, request: AdminRequest) -> dict[str, Any]:
        bucket = choice(request, "bucket", tuple(_BUCKETS))
        bucket_s = _BUCKETS[bucket]
        now = int(self._clock())
        end = whole(request.query, "to", now + 1)
        begin = whole(request.query, "from", end - _DEFAULT_POINTS[bucket] * bucket_s)
        if begin >= end:
            raise InvalidValue("from must be before to", param="from")
        begin -= begin % bucket_s
        if end - begin > MAX_POINTS * bucket_s:
            raise InvalidValue(f"at most {MAX_POINTS} {bucket}s at a time", param="from")
        points, models = await self._reader.read(
            partial(reports.earnings, begin=begin, end=end, bucket_s=bucket_s)
        )
        return {
            "bucket_s": bucket_s,
            "points": [asdict(point) for point in points],
            "by_model": [asdict(model) for model in models],
        }


def _trouble(parts: DeskParts, url: str) -> str | None:
    circuit = parts.circuits.get(url)
    if circuit is None:
        return "not configured"
    return None if circuit.state == "closed" else "does not answer"


def _document(books: Books) -> dict[str, int]:
    return {
        "received_msat": books.received_msat,
        "input_fees_msat": books.input_fees_msat,
        "charged_msat": books.revenue_msat,
        "dust_msat": books.dust_msat,
        "issued_msat": books.issued_msat,
        "in_transit_msat": books.transit_msat,
        "open_balances_msat": books.open_msat,
        "held_msat": books.held_msat,
        "capital_msat": books.capital_msat,
        "own_fees_msat": books.own_fees_msat,
        "lost_msat": books.loss_msat,
        "paid_out_msat": books.payouts_msat,
        "kept_msat": books.claims_msat,
        "earned_msat": books.earned_msat,
        "coins_msat": books.proofs_msat,
        "liabilities_msat": books.liabilities_msat,
        "net_msat": books.equity_msat,
    }
