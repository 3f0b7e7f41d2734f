"""Earnings to the operator: as a Cashu token, or over Lightning to payout.address.

Only what is earned is given: never what clients are owed, what is kept for claims, or
payout.reserve_sat; and nothing while the watchdog says that the books are not right. The
transaction that sets the money aside checks it (node/ledger/withdrawals.py, payouts.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import structlog

from node.admin.exchange import AdminRequest, AdminRoute
from node.admin.parts import DeskParts
from node.admin.query import amount_of, cursor_text, read_page, text_of
from node.core.lightning import OPERATOR, PayoutError
from node.core.money import MSAT_PER_SAT, ceil_div, to_msat
from node.errors import (
    IdempotencyConflict,
    InsufficientBalance,
    InvalidValue,
    NotConfigured,
    PaymentRefused,
    Pending,
)
from node.ledger import journal_reports

log = structlog.get_logger()

_KEY = re.compile(r"[!-~]{8,100}")
MAX_URL_CHARS = 500


class PaymentsSection:
    """``/withdraw``, ``/withdrawals``, ``/payout`` and ``/payouts``."""

    def __init__(self, parts: DeskParts) -> None:
        self._parts = parts
        self._reader = parts.reader

    def routes(self) -> Iterable[AdminRoute]:
        yield AdminRoute("POST", "/withdraw", answer=self._withdraw)
        yield AdminRoute("GET", "/withdrawals", answer=self._withdrawals)
        yield AdminRoute("POST", "/payout", answer=self._payout)
        yield AdminRoute("GET", "/payouts", answer=self._payouts)

    # -- tokens ----------------------------------------------------------------------------

    async def _withdraw(self, request: AdminRequest) -> dict[str, Any]:
        """A token; asked again with the same key, the same one, whatever the books say then."""
        parts = self._parts
        document = request.document
        key = text_of(document, "idempotency_key", most=100)
        if not _KEY.fullmatch(key):
            raise InvalidValue(
                "idempotency_key must be 8 to 100 characters without spaces, a random one for each"
                " withdrawal",
                param="idempotency_key",
            )
        amount = amount_of(document, required=True)
        mint = self._mint(text_of(document, "mint", most=MAX_URL_CHARS))
        if not await self._reader.read(partial(journal_reports.withdrawal_known, key=key)):
            barred = parts.solvency()
            if barred is not None:
                raise PaymentRefused(f"payments are stopped: {barred}")
        try:
            operation = await parts.wallet.issue(
                OPERATOR,
                amount,
                only=mint,
                request_key=key,
                reserve=to_msat(parts.settings().payout.reserve_sat, "sat"),
            )
        except InsufficientBalance as error:
            raise PaymentRefused(error.message) from None
        if mint not in (None, operation.mint):
            raise IdempotencyConflict("this key was used for a token of another mint")
        log.warning("earnings_withdrawn", operation=operation.id, amount_msat=operation.value)
        return {
            "id": operation.id,
            "token": operation.token,
            "amount_sat": operation.value // MSAT_PER_SAT,
            "mint": operation.mint,
        }

    def _mint(self, text: str) -> str | None:
        """A configured mint's URL, however it is spelled; None for any."""
        if not text:
            return None
        for url in self._parts.circuits:
            if url == text.rstrip("/"):
                return url
        raise InvalidValue("this mint is not configured", param="mint")

    async def _withdrawals(self, request: AdminRequest) -> dict[str, Any]:
        rows, following = await read_page(self._reader, request, journal_reports.withdrawals)
        return {
            "withdrawals": [asdict(row) for row in rows],
            "next_cursor": cursor_text(following),
        }

    # -- Lightning -------------------------------------------------------------------------

    async def _payout(self, request: AdminRequest) -> dict[str, Any]:
        """Pay to payout.address now: ``amount_sat``, or all that may be paid."""
        parts = self._parts
        address = parts.settings().payout.address
        if parts.payouts is None or not address:
            raise NotConfigured("there is nowhere to pay to: set payout.address")
        amount = amount_of(request.document, required=False)
        before = await self._reader.read(journal_reports.open_payout)
        try:
            made = (await parts.payouts.pay(address, amount)).id
        except (PayoutError, InsufficientBalance) as error:
            reason = error.message if isinstance(error, InsufficientBalance) else str(error)
            raise PaymentRefused(reason) from None
        except Pending:  # this one goes on without us, unless it is another one's
            begun = await self._reader.read(journal_reports.open_payout)
            if begun is None or begun == before:
                raise
            made = begun
        row = await self._reader.read(partial(journal_reports.payout, operation_id=made))
        assert row is not None
        return {
            "id": row.id,
            "state": "pending" if row.state == "intent" else row.state,
            "amount_sat": row.amount_msat // MSAT_PER_SAT,
            "fee_sat": None if row.fee_msat is None else ceil_div(row.fee_msat, MSAT_PER_SAT),
            "mint": row.mint,
        }

    async def _payouts(self, request: AdminRequest) -> dict[str, Any]:
        rows, following = await read_page(self._reader, request, journal_reports.payouts)
        return {
            "payouts": [asdict(row) for row in rows],
            "next_cursor": cursor_text(following),
        }
