"""All sections of the admin API but login and settings, put together.

DeskParts ─▶ sections ─▶ AdminRoute …  (node/transport/http/admin.py serves them)
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any

from node.admin.books import BooksSection
from node.admin.exchange import AdminRequest, AdminRoute, Answer
from node.admin.feed import FeedSection
from node.admin.keys import KeysSection
from node.admin.log_tail import LogSection
from node.admin.market import MarketSection
from node.admin.operations import OperationsSection
from node.admin.parts import DeskParts
from node.admin.payments import PaymentsSection
from node.admin.relays import RelaysSection
from node.errors import InternalError, InvalidValue
from node.ledger.reports import TooSlow

__all__ = ["DeskParts", "sections"]


def sections(parts: DeskParts) -> list[AdminRoute]:
    """The endpoints below ``/admin/api``."""
    routes = [
        *BooksSection(parts).routes(),
        *MarketSection(parts).routes(),
        *RelaysSection(parts).routes(),
        *FeedSection(parts.feed).routes(),
        *LogSection(parts.log).routes(),
        *OperationsSection(parts).routes(),
        *PaymentsSection(parts).routes(),
        *KeysSection(parts).routes(),
    ]
    return [
        route if route.answer is None else replace(route, answer=_guarded(route.answer))
        for route in routes
    ]


def _guarded(answer: Answer) -> Answer:
    async def guarded(request: AdminRequest) -> Any:
        try:
            return await answer(request)
        except TooSlow:
            raise InvalidValue("this takes too long to add up; ask for less") from None
        except sqlite3.Error as error:
            raise InternalError(
                "the database cannot be read; the log says why", private=str(error)
            ) from error

    return guarded
