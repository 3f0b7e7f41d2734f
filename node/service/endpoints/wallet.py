"""The wallet endpoints: ``/v1/wallet`` in sat, ``/v1/balance`` in msat, one implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from node.core.accounts import Account, Operation
from node.core.exchange import Request
from node.core.keys import ChildKey, ChildTerms, Spending
from node.core.money import MSAT_PER_SAT, Msat
from node.errors import InvalidApiKey, InvalidValue, MintNotAccepted, MissingKey, NotFound
from node.ports import Refunder, Statements
from node.service.accounts import Accounts
from node.service.dispatch import Reply
from node.service.endpoints.fields import (
    body_fields,
    child_request,
    needed,
    new_account_terms,
)
from node.service.endpoints.statement import page_document, page_query
from node.service.keys import ChildKeys
from node.service.terms import text_field

MAX_AMOUNT_SAT = 1 << 50


class WalletEndpoints:
    """Request → Reply for every wallet route.

    Args:
        mints: the allowlist, normalised.
        normalize_mint: one spelling of a mint's URL; raises ValueError.
        refunder: refunds expired keys over Lightning, if anything does.
    """

    def __init__(
        self,
        accounts: Accounts,
        keys: ChildKeys,
        statements: Statements,
        mints: frozenset[str],
        normalize_mint: Callable[[str], str],
        *,
        refunder: Refunder | None = None,
    ) -> None:
        self._accounts = accounts
        self._keys = keys
        self._statements = statements
        self._refunder = refunder
        self._mints = mints
        self._normalize_mint = normalize_mint

    # -- /v1/wallet ------------------------------------------------------------------------

    async def create(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``{cashu_token, admin_key?, …}`` → ``{api_key, admin_key, balance, mint, unit}``."""
        body = body_fields(request)
        admin_key = text_field(body, "admin_key")
        token = needed(body, "cashu_token")
        terms = new_account_terms(request, body, self._refunder)
        opened = await self._accounts.open(token, admin_key, terms)
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
        left = await self._keys.left(account)
        available = balance.free if left is None else min(left, balance.free)
        document: dict[str, Any] = {
            "balance": balance.balance // MSAT_PER_SAT,
            "currency": "sat",
            "reserved": -(-balance.held // MSAT_PER_SAT),
            "available": available // MSAT_PER_SAT,
            "balance_msat": balance.balance,
            "reserved_msat": balance.held,
            "mint": balance.mint,
        }
        if account.role != "child":
            document |= await self._terms(account)
        return Reply(document, headers=_PRIVATE)

    async def topup(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``{cashu_token}`` → ``{balance, amount_added, currency}`` in sat."""
        account = await self._accounts.authenticate(request)
        added = await self._accounts.topup(account, needed(body_fields(request), "cashu_token"))
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
        body = body_fields(request)
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

    async def transactions(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``?limit&cursor`` → ``{object, transactions, next_cursor}``, newest first.

        Tokens that were issued are shown to a key that may withdraw, and count as delivered then.
        """
        account = await self._accounts.authenticate(request)
        if account.role == "child":
            raise InvalidApiKey("a child key has no statement; use its parent")
        limit, after = page_query(request.query)
        tokens = await self._accounts.may_withdraw(account)
        page = await self._statements.page(account.id, after, limit)
        issued = [line.operation_id for line in page.lines if tokens and line.operation_id]
        return Reply(
            page_document(page, tokens=tokens),
            headers=_PRIVATE,
            on_end=partial(self._accounts.shown, issued),
        )

    async def change(self, request: Request, params: Mapping[str, str]) -> Reply:
        """The change of the request of that id → ``{token, sats|msats}``.

        ``X-Cashu`` is the token that paid: a request's id is no secret.
        """
        paid_with = request.headers.get("x-cashu")
        if not paid_with:
            raise MissingKey("send the token that paid for the request: X-Cashu: …")
        account_id = await self._accounts.paid_with(paid_with)
        if not await self._statements.paid_for(account_id, params["request_id"]):
            raise NotFound("this token did not pay for that request")
        return Reply(_refund(await self._accounts.change_of(account_id)), headers=_PRIVATE)

    # -- /v1/balance -----------------------------------------------------------------------

    async def create_balance(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``initial_balance_token`` in body or query → ``{api_key, balance}`` in msat."""
        fields = {**request.query, **body_fields(request)}
        token = needed(fields, "initial_balance_token")
        terms = new_account_terms(request, fields, self._refunder)
        opened = await self._accounts.open(token, terms=terms)
        balance = await self._accounts.balance_of(opened.account_id)
        return Reply({"api_key": opened.api_key, "balance": balance.balance}, headers=_PRIVATE)

    async def balance_info(self, request: Request, _: Mapping[str, str]) -> Reply:
        """→ ``{api_key, balance, reserved, is_child, total_spent, …}`` in msat."""
        account = await self._accounts.authenticate(request)
        balance = await self._accounts.balance_of(account.id)
        info = await self._keys.info(account)
        document: dict[str, Any] = {
            "api_key": self._accounts.api_key(request),
            "balance": balance.balance,
            "reserved": balance.held,
            "is_child": info.own is not None,
        }
        if info.own is None:
            document |= _usage(None, info.spent) | await self._terms(account)
        else:
            document |= _usage(info.own, info.spent)
            document["parent_key_preview"] = f"{info.own.parent}..."
        if info.children:
            document["child_keys"] = [
                {"api_key": key, **_usage(child, spent)}
                for key, (child, spent) in info.children.items()
            ]
        return Reply(document, headers=_PRIVATE)

    async def create_child_keys(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``{count, balance_limit?, balance_limit_reset?, validity_date?}`` → ``{api_keys, …}``."""
        account = await self._accounts.authenticate(request)
        count, terms = child_request(body_fields(request))
        api_keys, cost = await self._keys.create(
            account, self._accounts.api_key(request), count, terms, request.idempotency_key
        )
        balance = await self._accounts.balance_of(account.id)
        return Reply(
            {
                "api_keys": api_keys,
                "count": count,
                "cost_msats": cost,
                "cost_sats": cost // MSAT_PER_SAT,
                "parent_balance": balance.balance,
                "parent_balance_sats": balance.balance // MSAT_PER_SAT,
            },
            headers=_PRIVATE,
        )

    async def reset_child_key(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``{child_key}`` → ``{success, message}``: its limit begins anew."""
        account = await self._accounts.authenticate(request)
        await self._keys.reset(account, needed(body_fields(request), "child_key"))
        return Reply({"success": True, "message": "the limit begins anew"}, headers=_PRIVATE)

    async def revoke_child_key(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``{child_key}`` → ``{success, message}``: it is good for nothing any more."""
        account = await self._accounts.authenticate(request)
        await self._keys.revoke(account, needed(body_fields(request), "child_key"))
        return Reply({"success": True, "message": "the key is revoked"}, headers=_PRIVATE)

    async def topup_balance(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``cashu_token`` in body or query → ``{msats}``."""
        account = await self._accounts.authenticate(request)
        token = needed({**request.query, **body_fields(request)}, "cashu_token")
        return Reply({"msats": await self._accounts.topup(account, token)}, headers=_PRIVATE)

    async def refund(self, request: Request, _: Mapping[str, str]) -> Reply:
        """→ ``{token, sats|msats}``: all that is free, or the change of ``X-Cashu``'s token."""
        paid_with = request.headers.get("x-cashu")
        if paid_with:
            account_id = await self._accounts.paid_with(paid_with)
            return Reply(_refund(await self._accounts.change_of(account_id)), headers=_PRIVATE)
        account = await self._accounts.authenticate(request)
        operation = await self._accounts.withdraw(account, request_key=request.idempotency_key)
        on_end = partial(self._accounts.handed_over, operation)
        return Reply(_refund(operation), headers=_PRIVATE, on_end=on_end)

    async def _terms(self, account: Account) -> dict[str, Any]:
        terms = await self._accounts.terms_of(account.id)
        return {"validity_date": terms.expires_at, "refund_address": terms.refund_address}

    def _mint(self, body: Mapping[str, Any]) -> str | None:
        text = text_field(body, "mint")
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


def _usage(child: ChildKey | None, spending: Spending) -> dict[str, Any]:
    """What a key has spent and may spend; ``child`` None: an account's own key.

    ``total_spent`` of a child key is what counts against its limit.
    """
    terms = ChildTerms() if child is None else child.terms
    return {
        "total_requests": spending.requests,
        "total_spent": spending.spent if child is None else child.spent,
        "lifetime_spent": spending.spent,
        "balance_limit": terms.limit,
        "balance_limit_reset": terms.reset,
        "validity_date": terms.expires_at,
    }
