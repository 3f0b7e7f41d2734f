"""The wallet endpoints: ``/v1/wallet`` in sat, ``/v1/balance`` in msat, one implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from node.core.accounts import Operation
from node.core.exchange import Request
from node.core.money import MSAT_PER_SAT, Msat
from node.errors import InvalidValue, MintNotAccepted
from node.service.accounts import Accounts
from node.service.dispatch import Reply
from node.service.json_body import json_object

MAX_AMOUNT_SAT = 1 << 50


class WalletEndpoints:
    """Request → Reply for every wallet route.

    Args:
        mints: the allowlist, normalised.
        normalize_mint: one spelling of a mint's URL; raises ValueError.
    """

    def __init__(
        self, accounts: Accounts, mints: frozenset[str], normalize_mint: Callable[[str], str]
    ) -> None:
        self._accounts = accounts
        self._mints = mints
        self._normalize_mint = normalize_mint

    # -- /v1/wallet ------------------------------------------------------------------------

    async def create(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``{cashu_token, admin_key?}`` → ``{api_key, admin_key, balance, mint, unit}``."""
        body = _body(request)
        admin_key = _text(body, "admin_key")
        opened = await self._accounts.open(_need(body, "cashu_token"), admin_key)
        balance = await self._accounts.balance_of(opened.account_id)
        return Reply(
            {
                "api_key": opened.api_key,
                "admin_key": admin_key,
                "balance": balance.balance // MSAT_PER_SAT,
                "balance_msat": balance.balance,
                "mint": opened.mint,
                "unit": "sat",
            },
            headers=_PRIVATE,
        )

    async def balance(self, request: Request, _: Mapping[str, str]) -> Reply:
        """→ ``{balance, currency, reserved, …}`` in sat, rounded down; msat beside it."""
        account = await self._accounts.authenticate(request)
        balance = await self._accounts.balance_of(account.id)
        return Reply(
            {
                "balance": balance.balance // MSAT_PER_SAT,
                "currency": "sat",
                "reserved": -(-balance.held // MSAT_PER_SAT),
                "available": balance.free // MSAT_PER_SAT,
                "balance_msat": balance.balance,
                "reserved_msat": balance.held,
                "mint": balance.mint,
            },
            headers=_PRIVATE,
        )

    async def topup(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``{cashu_token}`` → ``{balance, amount_added, currency}`` in sat."""
        account = await self._accounts.authenticate(request)
        added = await self._accounts.topup(account, _need(_body(request), "cashu_token"))
        balance = await self._accounts.balance_of(account.id)
        return Reply(
            {
                "balance": balance.balance // MSAT_PER_SAT,
                "amount_added": added // MSAT_PER_SAT,
                "currency": "sat",
                "balance_msat": balance.balance,
                "amount_added_msat": added,
            },
            headers=_PRIVATE,
        )

    async def withdraw(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``{amount?, mint?}`` (sat) → ``{cashu_token, amount, mint}``."""
        account = await self._accounts.authenticate(request)
        body = _body(request)
        amount = body.get("amount")
        if amount is not None and (type(amount) is not int or not 0 < amount < MAX_AMOUNT_SAT):
            raise InvalidValue("amount must be a positive integer, in sat", param="amount")
        operation = await self._accounts.withdraw(
            account,
            None if amount is None else Msat(amount * MSAT_PER_SAT),
            mint=self._mint(body),
            request_key=request.idempotency_key,
        )
        return Reply(
            {
                "cashu_token": operation.token,
                "amount": operation.value // MSAT_PER_SAT,
                "amount_msat": operation.value,
                "mint": operation.mint,
                "unit": operation.unit,
            },
            headers=_PRIVATE,
            on_end=partial(self._accounts.handed_over, operation),
        )

    # -- /v1/balance -----------------------------------------------------------------------

    async def create_balance(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``initial_balance_token`` in body or query → ``{api_key, balance}`` in msat."""
        opened = await self._accounts.open(
            _need({**request.query, **_body(request)}, "initial_balance_token")
        )
        balance = await self._accounts.balance_of(opened.account_id)
        return Reply({"api_key": opened.api_key, "balance": balance.balance}, headers=_PRIVATE)

    async def balance_info(self, request: Request, _: Mapping[str, str]) -> Reply:
        """→ ``{api_key, balance, reserved}`` in msat."""
        account = await self._accounts.authenticate(request)
        balance = await self._accounts.balance_of(account.id)
        return Reply(
            {
                "api_key": self._accounts.api_key(request),
                "balance": balance.balance,
                "reserved": balance.held,
            },
            headers=_PRIVATE,
        )

    async def topup_balance(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``cashu_token`` in body or query → ``{msats}``."""
        account = await self._accounts.authenticate(request)
        token = _need({**request.query, **_body(request)}, "cashu_token")
        return Reply({"msats": await self._accounts.topup(account, token)}, headers=_PRIVATE)

    async def refund(self, request: Request, _: Mapping[str, str]) -> Reply:
        """→ ``{token, sats|msats}``: all that is free, or the change of ``X-Cashu``'s token."""
        paid_with = request.headers.get("x-cashu")
        if paid_with:
            return Reply(_refund(await self._accounts.change_of(paid_with)), headers=_PRIVATE)
        account = await self._accounts.authenticate(request)
        operation = await self._accounts.withdraw(account, request_key=request.idempotency_key)
        on_end = partial(self._accounts.handed_over, operation)
        return Reply(_refund(operation), headers=_PRIVATE, on_end=on_end)

    def _mint(self, body: Mapping[str, Any]) -> str | None:
        text = _text(body, "mint")
        if text is None:
            return None
        try:
            mint = self._normalize_mint(text)
        except ValueError:
            raise InvalidValue("mint must be a mint's URL", param="mint") from None
        if mint not in self._mints:
            raise MintNotAccepted
        return mint


_PRIVATE = {"cache-control": "no-store"}


def _refund(operation: Operation) -> dict[str, Any]:
    return {"token": operation.token, f"{operation.unit}s": operation.amount}


def _body(request: Request) -> dict[str, Any]:
    """The JSON object of the body; an empty body is an empty object."""
    return json_object(request) if request.body.strip() else {}


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidValue(f"{name} must be a string", param=name)
    return value or None


def _need(body: Mapping[str, Any], name: str) -> str:
    value = _text(body, name)
    if value is None:
        raise InvalidValue(f"{name} is missing", param=name)
    return value
