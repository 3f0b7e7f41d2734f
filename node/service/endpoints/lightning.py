"""The Lightning endpoints (RIP-08): an invoice that opens or tops up an account, its status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from node.core.exchange import KEY_HEADERS, Request
from node.core.money import MSAT_PER_SAT
from node.errors import InvalidApiKey, InvalidValue
from node.service.accounts import Accounts, Unopened, check_date, is_token
from node.service.dispatch import Reply
from node.service.invoices import Invoices
from node.service.json_body import json_object

_PRIVATE = {"cache-control": "no-store"}


class LightningEndpoints:
    """Request → Reply for the Lightning routes."""

    def __init__(self, invoices: Invoices, accounts: Accounts) -> None:
        self._invoices = invoices
        self._accounts = accounts

    async def create(self, request: Request, _: Mapping[str, str]) -> Reply:
        """``{amount_sats, purpose, api_key?}`` → ``{invoice_id, bolt11, expires_at, …}``."""
        body = json_object(request)
        amount = body.get("amount_sats")
        if type(amount) is not int or amount <= 0:
            raise InvalidValue("amount_sats must be a positive integer", param="amount_sats")
        purpose = body.get("purpose", "create")
        if purpose not in ("create", "topup"):
            raise InvalidValue('purpose must be "create" or "topup"', param="purpose")
        account_id = None
        if purpose == "topup":
            account_id = await self._account(request, body.get("api_key"))
        else:
            self._accounts.count_stranger(request)
        # Only what the client chose to be its key: what else names a request is no secret.
        key = request.headers.get("idempotency-key")
        made = await self._invoices.create(amount, request.peer, account_id, key)
        return Reply(
            {
                "invoice_id": made.invoice_id,
                "bolt11": made.invoice.bolt11,
                "amount_sats": made.invoice.value // MSAT_PER_SAT,
                "expires_at": made.invoice.expires_at,
                "payment_hash": made.payment_hash,
            },
            headers=_PRIVATE,
        )

    async def status(self, request: Request, params: Mapping[str, str]) -> Reply:
        """→ ``{status, api_key, amount_sats, paid_at, created_at, expires_at}``."""
        progress = await self._invoices.status(params["secret"])
        invoice = progress.invoice
        return Reply(
            {
                "status": progress.status,
                "api_key": progress.api_key,
                "amount_sats": invoice.value // MSAT_PER_SAT,
                "paid_at": invoice.paid_at,
                "created_at": invoice.created_at,
                "expires_at": invoice.expires_at,
            },
            headers=_PRIVATE,
        )

    async def _account(self, request: Request, api_key: object) -> int:
        """The account to top up: by ``Authorization``, else by ``api_key`` in the body."""
        if api_key is not None and request.headers.keys().isdisjoint(KEY_HEADERS):
            if not isinstance(api_key, str) or is_token(api_key):
                raise InvalidValue("api_key must be an API key", param="api_key")
            request = replace(request, headers={"authorization": f"Bearer {api_key}"})
        account = await self._accounts.identify(request)
        if isinstance(account, Unopened):
            raise InvalidApiKey("this token has no account yet; open one with it first")
        check_date(account)
        return account.id
