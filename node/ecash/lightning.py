"""Lightning through the mints: invoices that become balances, payouts and refunds.

    quote ──▶ (the client pays) ──▶ collect: UNPAID ─▶ ask again later
                                             PAID   ─▶ minting (node/ecash/minting.py) ─▶ credited
    pay   ──▶ quote, checked ──▶ melting (node/ecash/melting.py)

No mint is asked for an invoice while it cools down after a failure, if there is another one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import structlog

from node.core.accounts import Operation
from node.core.lightning import (
    OPERATOR,
    Invoice,
    MeltRequest,
    Payable,
    PayoutError,
    PayRequest,
    Quoted,
)
from node.core.money import MSAT_PER_SAT, UNIT_MSAT, Msat, ceil_div, to_msat
from node.ecash.bolt11 import read_bolt11
from node.ecash.keysets import AcceptedMint
from node.ecash.melting import Melting
from node.ecash.mint import MintError
from node.ecash.minting import Minting
from node.ecash.wallet import Wallet
from node.errors import MintFull, MintUnreachable, Pending
from node.ports import LightningStore, WalletStore

log = structlog.get_logger()

TYPICAL_INPUTS = 30
"""Coins whose fee is left aside when the amount of a payout is chosen."""
COOLDOWN_S = 30.0
"""How long a mint that gave no invoice is asked last."""
_LATEST = 1 << 53
"""Invoices may claim to be good for longer than a database can count."""
_NOTHING = Msat(0)


class Lightning:
    """Implements ``node.ports.Lightning``; make it before ``wallet.start``.

    Args:
        mints: the allowlist, in order of preference.
        seed: NUT-13 seed of our secrets.
    """

    def __init__(
        self,
        wallet: Wallet,
        store: WalletStore,
        lightning: LightningStore,
        mints: Mapping[str, AcceptedMint],
        seed: bytes,
    ) -> None:
        self._wallet = wallet
        self._store = lightning
        self._mints = mints
        self._failed_at: dict[str, float] = {}
        wallet.adopt("mint", lambda keysets: Minting(store, lightning, mints, keysets, seed))
        wallet.adopt("melt", lambda keysets: Melting(store, lightning, mints, keysets, seed))

    # -- in --------------------------------------------------------------------------------

    async def quote(
        self, amount_sat: int, first: str | None = None, *, only: str | None = None
    ) -> Quoted:
        """An invoice over ``amount_sat`` of the first mint that gives one.

        Args:
            first: the mint to ask before the others.
            only: the one mint to ask.

        Raises MintUnreachable, MintFull when that were more than we want to hold of any mint.
        """
        now = time.monotonic()
        order = sorted(
            (url for url in self._mints if only in (None, url)),
            key=lambda url: (
                now - self._failed_at.get(url, -COOLDOWN_S) < COOLDOWN_S,
                url != first,
            ),
        )
        full = bool(order)
        for url in order:
            mint = self._mints[url]
            unit = "sat" if "sat" in mint.units else mint.units[0]
            amount = amount_sat * MSAT_PER_SAT // UNIT_MSAT[unit]
            if mint.max_balance is not None and (
                await self._store.exposure(url) + to_msat(amount, unit) > mint.max_balance
            ):
                continue
            full = False
            try:
                answer = await mint.client.mint_quote(amount, unit)
                request = read_bolt11(answer.request)
                if request.amount != to_msat(amount, unit):
                    raise ValueError("the invoice is over another amount")
            except (MintError, ValueError) as error:
                self._failed_at[url] = time.monotonic()
                log.warning("no_invoice_from_mint", mint=url, reason=str(error))
                continue
            self._failed_at.pop(url, None)
            expires_at = min(request.expires_at, answer.expiry or request.expires_at)
            return Quoted(url, unit, amount, answer.quote, request, expires_at, mint.max_balance)
        if full:
            raise MintFull("this node holds as much money as it wants to; ask for less")
        raise MintUnreachable("no mint gives an invoice now", retry_after_s=int(COOLDOWN_S))

    async def collect(self, invoice: Invoice) -> Literal["paid", "unpaid", "gone", "unknown"]:
        """Ask whether an invoice is paid; if so, take its ecash and credit the account.

        ``gone``: it is not ours to ask about any more. ``unknown``: ask again. When the mint gave
        its ecash to us in a past that this database, from a backup, does not know, the account is
        credited as soon as the mint's coins are checked.
        """
        current = await self._store.invoice(invoice.hash)
        mint = self._mints.get(invoice.mint)
        if current is None:
            return "gone"
        if current.state == "paid":
            return "paid"
        if mint is None:
            return "unknown"
        if current.operation_id is None:
            try:
                quote = await mint.client.mint_quote_state(invoice.quote)
            except MintError as error:  # a refusal proves nothing: mints refuse when in trouble
                log.info("quote_unknown", mint=invoice.mint, reason=str(error))
                return "unknown"
            if quote.state == "UNPAID":
                return "unpaid"
            if quote.state == "ISSUED" and not await self._store.ended_mints(
                invoice.mint, invoice.quote
            ):
                current = await self._store.invoice(invoice.hash)  # another may have been quicker
                if current is not None and current.operation_id is None:
                    return await self._taken_before(invoice)
        try:
            keyset = await self._wallet.active_keyset(invoice.mint, invoice.unit)
            operation_id = uuid.uuid4().hex
            operation = await self._store.begin_mint(operation_id, invoice.hash, keyset)
            if operation is None:
                return "gone"
            fresh = operation.id == operation_id
            operation = await self._wallet.finish(operation, fresh=fresh)
        except (Pending, MintUnreachable):
            return "unknown"
        return "paid" if operation.state == "done" else "unknown"

    async def _taken_before(self, invoice: Invoice) -> Literal["paid", "unknown"]:
        """The ecash of an invoice is taken, and no operation has taken it."""
        if await self._store.credit_restored(invoice.mint, invoice.quote, None, ""):
            log.warning(
                "invoice_of_before_the_restore_credited",
                account=invoice.account_id,
                amount_msat=invoice.value,
            )
            return "paid"
        log.error("ecash_of_invoice_is_gone", account=invoice.account_id, mint=invoice.mint)
        return "unknown"

    # -- out -------------------------------------------------------------------------------

    async def payable(self, account_id: int = OPERATOR) -> list[Payable]:
        """What could be paid with each mint's coins, the most first.

        Args:
            account_id: out of that account; OPERATOR: out of earnings.
        """
        found = []
        for source in self._wallet.sources():
            payable = await self._store.payable(source, account_id)
            fee = ceil_div(max(source.fee_ppk.values(), default=0) * TYPICAL_INPUTS, 1000)
            fee_msat = max(payable.input_fee, to_msat(fee, source.unit))
            found.append(replace(payable, input_fee=fee_msat))
        return sorted(found, key=lambda payable: -payable.available)

    def read(self, bolt11: str) -> PayRequest:
        """Decode an invoice. Raises ValueError."""
        return read_bolt11(bolt11)

    async def pay(
        self,
        request: PayRequest,
        destination: str,
        payable: Payable,
        *,
        max_fee: Msat,
        reserve: Msat = _NOTHING,
        account_id: int = OPERATOR,
        by_owner: bool = False,
    ) -> Operation:
        """Pay an invoice with coins of ``payable``'s mint.

        Args:
            destination: where it goes, for the operator's eyes.
            max_fee: the most that Lightning may reserve on top.
            reserve: earnings that must stay.
            account_id: out of that account; OPERATOR: out of earnings.
            by_owner: the account's owner asks; else it must have expired.

        Raises PayoutError when nothing was paid, Pending while the outcome is not known,
        InvalidValue, InsufficientBalance, MintLiquidity (see ``begin_melt``).
        """
        mint, unit = self._mints[payable.mint].client, payable.unit
        if request.expires_at <= time.time():
            raise PayoutError("the invoice has expired")
        try:
            quote = await mint.melt_quote(request.bolt11, unit)
            change = _gives_change(await mint.info())
            await self._wallet.active_keyset(payable.mint, unit)
        except (MintError, MintUnreachable) as error:
            raise PayoutError(f"the mint gives no quote: {error}") from error
        if quote.amount != ceil_div(request.amount, UNIT_MSAT[unit]):
            raise PayoutError(f"the mint asks {quote.amount} {unit} for {request.amount} msat")
        if to_msat(quote.fee_reserve, unit) > max_fee:
            raise PayoutError(
                f"Lightning may cost {quote.fee_reserve} {unit}, at most {max_fee} msat are allowed"
            )
        sources = [s for s in self._wallet.sources(payable.mint) if s.unit == unit]
        if not sources:
            raise PayoutError(f"the mint has no keyset for {unit} any more")
        operation = await self._store.begin_melt(
            MeltRequest(
                operation_id=uuid.uuid4().hex,
                source=sources[0],
                quote=quote.quote,
                amount=quote.amount,
                fee_reserve=quote.fee_reserve,
                payment_hash=request.payment_hash,
                destination=destination,
                reserve=reserve,
                change=change,
                expires_at=min(request.expires_at, _LATEST),
                account_id=account_id,
                by_owner=by_owner,
            )
        )
        operation = await self._wallet.finish(operation, fresh=True)
        if operation.state != "done":
            raise PayoutError("the mint could not pay the invoice; nothing was paid")
        return operation


def _gives_change(info: Mapping[str, object]) -> bool:
    """Whether the mint says that it returns overpaid fees (NUT-06, NUT-08)."""
    nuts = info.get("nuts")
    entry = nuts.get("8") if isinstance(nuts, dict) else None
    return isinstance(entry, dict) and entry.get("supported") is True
