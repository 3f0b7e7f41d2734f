"""What is under way with the mints and has no outcome yet."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from node.admin.exchange import AdminRequest, AdminRoute
from node.admin.parts import DeskParts
from node.admin.query import limit_of
from node.ledger.journal_reports import OpenOperation, open_operations
from node.ops.check import resolution
from node.ops.check_report import Stuck


class OperationsSection:
    """``/operations``: the journal's intents, the oldest first."""

    def __init__(self, parts: DeskParts) -> None:
        self._parts = parts

    def routes(self) -> Iterable[AdminRoute]:
        yield AdminRoute("GET", "/operations", answer=self._operations)

    async def _operations(self, request: AdminRequest) -> dict[str, Any]:
        limit = limit_of(request)
        found, count = await self._parts.reader.read(partial(open_operations, limit=limit))
        mints = {mint.url for mint in self._parts.settings().mints}
        return {
            "operations": [_document(operation, operation.mint in mints) for operation in found],
            "count": count,
        }


def _document(operation: OpenOperation, configured: bool) -> dict[str, Any]:
    return {
        "id": operation.id,
        "kind": operation.kind,
        "mint": operation.mint,
        "amount_msat": operation.amount_msat,
        "state": operation.state,
        "attempts": operation.attempts,
        "created_at": operation.created_at,
        "error": operation.error,
        "account_id": operation.account_id,
        "outlook": resolution(_stuck(operation), configured, True, None),
    }


def _stuck(operation: OpenOperation) -> Stuck:
    return Stuck(
        id=operation.id,
        kind=operation.kind,
        mint=operation.mint,
        unit=operation.unit,
        amount=operation.amount,
        age_s=max(0, int(time.time()) - operation.created_at),
        attempts=operation.attempts,
        reason=operation.error or "",
        resolution="",
    )
