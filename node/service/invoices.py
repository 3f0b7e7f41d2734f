"""Lightning invoices as clients know them: made for an account, watched, credited (RIP-08).

    create ─▶ pending ─▶ paid            the ecash is ours and the account is credited
                 │  └──▶ expired         nobody paid; still watched for a while, and paid after all
                 └─────▶ gone            deleted once its mint will not take the payment any more

| what happens                       | outcome                                                 |
|------------------------------------|---------------------------------------------------------|
| paid, nobody asks                  | ``run`` finds it and credits                            |
| paid after ``expires_at``          | the same, until ``watch_until``                         |
| the mint is away                   | asked again, less and less often; never given up on     |
| the node was down                  | every pending invoice is asked for at the start         |
| never paid                         | at ``watch_until``, asked for the last time, deleted    |

The id of an invoice is a secret: who knows it gets the API key of the account it opens. The key
is an HMAC of it, so it can be told again and is stored nowhere.

Asked for under a request key, the id is an HMAC of that key (and of the account it tops up) under
the node's secret: asking again gives the same invoice, and nothing of it is stored but the hash of
the id. So the request key of an invoice that opens an account is a secret itself, as nothing else
tells who asks: it must not be guessable (MIN_SECRET_CHARS). One that tops up is the account's own.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import structlog

from node.core.accounts import NewAccount, key_hash
from node.core.lightning import Invoice, NewInvoice, Purpose, Room, invoice_hash
from node.core.money import MSAT_PER_SAT
from node.errors import IdempotencyConflict, InvalidValue, NotFound
from node.ports import Ledger, Lightning, LightningStore

log = structlog.get_logger()

Status: TypeAlias = Literal["pending", "paid", "expired"]

TICK_S = 0.5
"""How often the watcher looks what is due."""
MIN_POLL_S = 1.0
MAX_POLL_S = 60.0
"""Pause between two questions for one invoice: a tenth of its age, within these."""
LATE_POLL_S = 300.0
"""The same once it has expired, and for a mint that did not answer."""
LATE_PER_TICK = 2
"""Expired invoices asked for at a tick: however many there are, the mint hardly notices."""
MAX_ASKING = 16
"""Invoices asked for at once."""
MIN_SECRET_CHARS = 22
"""Of a request key that opens an account: 128 bits in base64."""
ASKED_KEEP_S = 120.0
"""How long a client's question makes the watcher look again soon."""


@dataclass(frozen=True, slots=True)
class InvoiceLimits:
    """What clients may ask for."""

    min_sat: int = 1
    max_sat: int = 1_000_000
    max_open: int = 1000
    """Unpaid invoices of everybody."""
    max_open_per_peer: int = 50
    """Unpaid invoices of one sender or address."""
    expiry_s: int = 3600
    """After this an invoice is told to be expired, or earlier when its mint says so."""
    grace_s: int = 86_400
    """How long beyond both expiries a payment is still looked for."""


@dataclass(frozen=True, slots=True)
class Created:
    """An invoice and the id under which its status is found."""

    invoice_id: str = field(repr=False)
    invoice: Invoice
    payment_hash: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an invoice stands. ``api_key``: of the account it opened, once paid."""

    status: Status
    invoice: Invoice
    api_key: str | None = field(repr=False)


class Invoices:
    """Makes, watches and looks up invoices.

    Args:
        key_secret: API keys are an HMAC of the invoice's id under it.
    """

    def __init__(
        self,
        lightning: Lightning,
        store: LightningStore,
        ledger: Ledger,
        key_secret: bytes,
        limits: InvoiceLimits,
    ) -> None:
        self._lightning = lightning
        self._store = store
        self._ledger = ledger
        self._key_secret = key_secret
        self._limits = limits
        self._room = Room(limits.max_open, limits.max_open_per_peer, limits.expiry_s)
        self._watched: dict[str, Invoice] | None = None
        self._due: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, float] = {}

    async def create(
        self,
        amount_sat: int,
        peer: str,
        account_id: int | None,
        request_key: str | None = None,
        *,
        mint: str | None = None,
    ) -> Created:
        """An invoice that opens an account, or tops up ``account_id``.

        Args:
            peer: whom the limit on unpaid invoices counts against.
            request_key: asking again under it gives the same invoice, whatever has become of it.
                Without an account it is a secret (see above).
            mint: of this mint; by default of any, that of the account first.

        Raises InvalidValue, IdempotencyConflict (same request key, other amount),
        RateLimitExceeded, MintUnreachable.
        """
        limits = self._limits
        if not limits.min_sat <= amount_sat <= limits.max_sat:
            raise InvalidValue(
                f"amount_sats must be between {limits.min_sat} and {limits.max_sat}",
                param="amount_sats",
            )
        invoice_id = secrets.token_urlsafe(32)
        if request_key is not None:
            if account_id is None and len(request_key) < MIN_SECRET_CHARS:
                raise InvalidValue(
                    "the idempotency key of an invoice that opens an account is a secret: it needs"
                    f" {MIN_SECRET_CHARS} random characters or more",
                    param="idempotency-key",
                )
            invoice_id = _named_id(self._key_secret, account_id, request_key)
            known = await self._store.invoice(invoice_hash(invoice_id))
            if known is not None:
                return self._same(invoice_id, known, amount_sat)
        await self._store.check_room(peer, self._room)
        purpose: Purpose = "create"
        into: NewAccount | int = NewAccount(
            "key", {key_hash(self._api_key(invoice_id), "spend"): "spend"}
        )
        first = None
        if account_id is not None:
            purpose, into = "topup", account_id
            first = (await self._ledger.balance(account_id)).mint
        quoted = await self._lightning.quote(amount_sat, first, only=mint)
        new = NewInvoice(
            hash=invoice_hash(invoice_id),
            purpose=purpose,
            mint=quoted.mint,
            unit=quoted.unit,
            amount=quoted.amount,
            quote=quoted.quote,
            bolt11=quoted.request.bolt11,
            peer=peer,
            expires_at=min(int(time.time()) + limits.expiry_s, quoted.expires_at),
            watch_until=max(int(time.time()) + limits.expiry_s, quoted.expires_at) + limits.grace_s,
            max_balance=quoted.max_balance,
        )
        invoice = await self._store.open_invoice(new, into, self._room)
        if invoice.quote != new.quote:  # the same was asked for at the same time
            return self._same(invoice_id, invoice, amount_sat)
        self._due[invoice.hash] = time.monotonic() + MIN_POLL_S
        if self._watched is not None:
            self._watched[invoice.hash] = invoice
        return Created(invoice_id, invoice, quoted.request.payment_hash)

    def _same(self, invoice_id: str, known: Invoice, amount_sat: int) -> Created:
        """The invoice that was made before under a request key. Raises IdempotencyConflict."""
        if known.value != amount_sat * MSAT_PER_SAT:
            raise IdempotencyConflict
        return Created(invoice_id, known, self._lightning.read(known.bolt11).payment_hash)

    async def status(self, invoice_id: str) -> Progress:
        """Where an invoice stands; the watcher looks again soon. Raises NotFound."""
        invoice = await self._store.invoice(invoice_hash(invoice_id))
        if invoice is None:
            raise NotFound("there is no such invoice")
        if invoice.state == "paid":
            api_key = self._api_key(invoice_id) if invoice.purpose == "create" else None
            return Progress("paid", invoice, api_key)
        now = time.monotonic()
        self._asked[invoice.hash] = now
        self._due[invoice.hash] = min(self._due.get(invoice.hash, now), now + MIN_POLL_S)
        expired = invoice.expires_at <= time.time()
        return Progress("expired" if expired else "pending", invoice, None)

    async def run(self) -> None:
        """Watch all pending invoices, for ever; whatever was paid meanwhile is found at once."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(TICK_S)
        finally:
            asking = list(self._asking.values())
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def look(self) -> None:
        """Ask for the invoices that are due, the longest overdue first."""
        if self._watched is None:
            pending = await self._store.pending_invoices()
            self._watched = {invoice.hash: invoice for invoice in pending}
        watched, now, clock = self._watched, time.monotonic(), time.time()
        self._asked = {h: at for h, at in self._asked.items() if now - at < ASKED_KEEP_S}
        due = sorted(
            (self._due.get(hashed, 0.0), hashed)
            for hashed in watched
            if hashed not in self._asking and self._due.get(hashed, 0.0) <= now
        )
        fresh: list[str] = []
        late: list[str] = []
        for _, hashed in due:
            in_time = watched[hashed].expires_at > clock or hashed in self._asked
            (fresh if in_time else late).append(hashed)
        for hashed in (*late[:LATE_PER_TICK], *fresh)[: max(0, MAX_ASKING - len(self._asking))]:
            task = asyncio.create_task(self._ask(watched[hashed]))
            self._asking[hashed] = task
            task.add_done_callback(lambda _, hashed=hashed: self._asking.pop(hashed))  # type: ignore[misc]

    async def _ask(self, invoice: Invoice) -> None:
        pause_s = LATE_POLL_S
        try:
            outcome = await self._lightning.collect(invoice)
            over = invoice.watch_until <= time.time()
            if outcome == "paid":
                self._drop(invoice.hash)
                log.info("invoice_paid", account=invoice.account_id, amount_msat=invoice.value)
            elif outcome in ("unpaid", "gone") and over:
                await self._store.forget(invoice.hash)
                if await self._store.invoice(invoice.hash) is None:
                    self._drop(invoice.hash)
            elif outcome == "unknown":
                pause_s = min(MAX_POLL_S, max(5.0, self._pause_s(invoice)))
            elif outcome == "unpaid":
                pause_s = self._pause_s(invoice)
        except Exception:
            log.exception("invoice_watch_failed", account=invoice.account_id)
        if self._watched and invoice.hash in self._watched:
            self._due[invoice.hash] = time.monotonic() + pause_s

    def _drop(self, hashed: str) -> None:
        if self._watched is not None:
            self._watched.pop(hashed, None)
        self._due.pop(hashed, None)

    def _pause_s(self, invoice: Invoice) -> float:
        if invoice.hash in self._asked:
            return MIN_POLL_S
        if invoice.expires_at <= time.time():
            return LATE_POLL_S
        age_s = time.time() - invoice.created_at
        return min(MAX_POLL_S, max(MIN_POLL_S, age_s / 10))

    def _api_key(self, invoice_id: str) -> str:
        return invoice_key(self._key_secret, invoice_id)


def invoice_key(key_secret: bytes, invoice_id: str) -> str:
    """The API key of the account that an invoice opens."""
    digest = hmac.new(key_secret, f"invoice:{invoice_id}".encode(), hashlib.sha256)
    return f"sk-{digest.hexdigest()}"


def _named_id(key_secret: bytes, account_id: int | None, request_key: str) -> str:
    """The id of the invoice that a request key asks for: follows from both, tells neither."""
    scope = "create" if account_id is None else f"topup:{account_id}"
    name = f"invoice-id:{scope}:{request_key}".encode()
    digest = hmac.new(key_secret, name, hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
