"""What the services need of the world outside, as Protocols. The adapters implement them."""

from __future__ import annotations

from asyncio import Future
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Literal, Protocol

from node.core.accounts import (
    Account,
    Balance,
    Closed,
    CounterRange,
    FoundCoin,
    HoldRequest,
    IssueRequest,
    NewAccount,
    Operation,
    OwnCoin,
    Role,
    Settled,
    Source,
)
from node.core.catalog import Backend, Model
from node.core.ecash import Keyset, Proof, Token
from node.core.exchange import StoredAnswer
from node.core.keys import ChildKey, NewChildren, Spending, Terms
from node.core.lightning import (
    Invoice,
    Melt,
    MeltRequest,
    NewInvoice,
    Payable,
    PayRequest,
    Quoted,
    Room,
)
from node.core.money import Msat
from node.core.transactions import Page, Position
from node.core.usage import Usage
from node.errors import NodeError


class Payload(Protocol):
    """The body of a call, in a form in which the model can be named as each upstream does."""

    @property
    def content_type(self) -> str: ...

    def encode(self, upstream_id: str) -> bytes:
        """The bytes for an upstream that calls the model so."""
        ...


@dataclass(frozen=True, slots=True)
class UpstreamCall:
    """One call to whichever model server serves it."""

    model: Model
    endpoint: str
    """Of ``catalog.ENDPOINTS``."""
    path: str
    """OpenAI path below the base URL, such as ``/chat/completions``."""
    payload: Payload
    request_id: str
    accept: tuple[str, ...] = ("application/json",)
    """Content types the answer may have; one that ends in ``/`` stands for all of its kind."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the client's headers those that may be passed on; lower-case names."""


class UpstreamReply(Protocol):
    """An answer of which the headers have arrived."""

    backend: Backend
    """Who serves it, at which price."""
    status: int
    content_type: str
    resumable: bool
    """After a read was cancelled, ``chunks`` called anew goes on where it was."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises UpstreamFailed, UpstreamTimeout."""
        ...

    async def close(self) -> None:
        """Stop reading; cancels the generation when the body is not complete. Idempotent."""
        ...


class Upstream(Protocol):
    async def open(self, call: UpstreamCall) -> UpstreamReply:
        """Send ``call`` to one of the model's backends and wait for a 2xx answer to begin.

        Raises UpstreamFailed, UpstreamTimeout, or the error that tells the client what is
        wrong with its own request (InvalidValue, ContextLengthExceeded, RateLimitExceeded …).
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A complete answer kept for replay."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    trailers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """What is known of a Nostr request (sender, id).

    state: ``new`` (just stored), ``started`` (stored before, no reply kept: it runs now or the
    node stopped meanwhile), ``done`` (``reply`` is set), ``conflict`` (another body, same id).
    """

    state: Literal["new", "started", "done", "conflict"]
    reply: StoredReply | None = None


class MessageLog(Protocol):
    """Exactly once for requests over Nostr: durable before any money moves."""

    async def begin(self, sender: str, message_id: str, digest: str) -> MessageRecord:
        """Store (sender, id, digest of the whole request) or find what was stored."""
        ...

    async def finish(self, sender: str, message_id: str, reply: StoredReply) -> None:
        """Keep the answer for replay."""
        ...

    async def prune(self, older_than_s: int) -> int:
        """Forget what is older; returns how many."""
        ...


class AnswerStore(Protocol):
    """Answers to paid requests with an idempotency key; see ``node.ledger.answers``."""

    async def keep(self, hold_id: int, key: str, digest: str, answer: StoredAnswer) -> None: ...
    async def find(self, hold_id: int, key: str, digest: str) -> StoredAnswer | None: ...
    async def prune(self, older_than_s: int) -> int: ...


class Ledger(Protocol):
    """Accounts and holds; see ``node.ledger.accounts`` for states and outcomes."""

    async def account(self, key: str, role: Role = "spend") -> Account: ...
    async def has_admin_key(self, account_id: int) -> bool: ...
    async def balance(self, account_id: int) -> Balance: ...
    async def terms(self, account_id: int) -> Terms: ...
    def hold(
        self, account_id: int, request: HoldRequest, ran: Future[int] | None = None
    ) -> Future[int]: ...
    def settle(self, hold_id: int, cost: Msat, usage: Usage) -> Awaitable[Msat]: ...
    def release(self, hold_id: int) -> Awaitable[None]: ...
    async def release_all(self) -> int: ...


class KeyStore(Protocol):
    """Child keys and the terms of accounts; see ``node.ledger.keys``."""

    def create(self, account_id: int, new: NewChildren) -> Awaitable[list[ChildKey]]: ...
    async def children(self, account_id: int) -> list[ChildKey]: ...
    async def child(self, child_id: int) -> ChildKey: ...
    async def spending(self, account_id: int) -> dict[int | None, Spending]: ...
    async def reset(self, account_id: int, hashed: str) -> None: ...
    async def revoke(self, account_id: int, hashed: str) -> None: ...
    async def to_refund(self, limit: int, floor: Msat = ...) -> list[tuple[int, str]]: ...
    async def count_try(self, account_id: int, first_s: float, most_s: float) -> None: ...
    async def forget_tries(self, account_id: int) -> None: ...


class Statements(Protocol):
    """What happened on an account; see ``node.ledger.transactions``."""

    async def page(self, account_id: int, after: Position | None, limit: int) -> Page: ...
    async def paid_for(self, account_id: int, request_id: str) -> bool: ...


class Refunder(Protocol):
    """Pays what an account has over Lightning once it has expired."""

    def check(self, address: str) -> None:
        """Raise InvalidValue when ``address`` is not one that could be paid."""
        ...


class WalletStore(Protocol):
    """The journal and the inventory; see ``node.ledger.wallet`` for states and outcomes.

    What returns an awaitable has taken effect in order once called, whoever waits for it.
    """

    async def keysets(self, mint: str) -> list[Keyset]: ...
    async def save_keysets(self, mint: str, keysets: Iterable[Keyset]) -> None: ...
    def begin_receive(
        self,
        operation_id: str,
        token: Token,
        ys: Sequence[str],
        fee: int,
        keyset: Keyset,
        into: NewAccount | int,
        *,
        max_balance: Msat | None = ...,
        barred: NodeError | None = ...,
    ) -> Awaitable[Operation]: ...
    def finish_receive(
        self, operation: Operation, coins: Sequence[tuple[str, Proof]]
    ) -> Awaitable[Operation]: ...
    def begin_send(
        self, request: IssueRequest, sources: Sequence[Source]
    ) -> Awaitable[Operation]: ...
    def begin_refill(self, operation_id: str, source: Source) -> Awaitable[Operation | None]: ...
    def finish_send(
        self,
        operation: Operation,
        kept: Sequence[tuple[str, Proof]],
        issued: Sequence[tuple[str, Proof]],
    ) -> Awaitable[Operation]: ...
    def settle_and_close(
        self,
        operation_id: str,
        hold_id: int,
        cost: Msat,
        usage: Usage | None,
        sources: Sequence[Source],
    ) -> Awaitable[Closed]: ...
    def close_idle(
        self, operation_id: str, account_id: int, sources: Sequence[Source]
    ) -> Awaitable[Closed]: ...
    def fail(
        self, operation: Operation, error: str, *, unused: bool = False, used: bool = False
    ) -> Awaitable[None]: ...
    def write_off(
        self, operation: Operation, spent: Sequence[str], error: str
    ) -> Awaitable[None]: ...
    def salvage(
        self, operation: Operation, coins: Sequence[tuple[str, Proof]]
    ) -> Awaitable[None]: ...
    async def ended_sharing(self, operation_id: str) -> list[Operation]: ...
    async def failed_unknown(self, since_s: int) -> list[Operation]: ...
    async def counter(self, keyset_id: str) -> int: ...
    async def skip_counters(self, mint: str, keyset_id: str, to: int) -> None: ...
    async def note_attempt(self, operation_id: str) -> None: ...
    async def operation(self, operation_id: str) -> Operation: ...
    async def open_operations(self) -> list[Operation]: ...
    def mark_delivered(self, operation_id: str) -> Future[None]: ...
    async def undelivered(self, account_id: int) -> list[Operation]: ...
    async def last_send(self, account_id: int) -> Operation | None: ...
    async def last_reference(self, account_id: int) -> str: ...
    async def account_state(self, account_id: int) -> tuple[str, bool]: ...
    async def idle_request_accounts(self, older_than_s: int) -> list[int]: ...
    async def secret(self, name: str, make: Callable[[], str]) -> str: ...


class ReconcileStore(Protocol):
    """Our coins after a restore; see ``node.ledger.reconciling`` for states and outcomes."""

    async def unchecked(self, mints: Collection[str]) -> list[str]: ...
    async def finish(self, mints: Collection[str]) -> bool: ...
    async def parked(self) -> list[str]: ...
    async def coins(self, mint: str) -> list[OwnCoin]: ...
    async def counter(self, keyset_id: str) -> int: ...
    async def free(self, keyset_id: str) -> list[CounterRange]: ...
    async def watched(self) -> list[str]: ...
    async def ranges(self, mint: str) -> list[CounterRange]: ...
    async def unknown(self, ys: Collection[str]) -> set[str]: ...
    async def settle(
        self,
        mint: str,
        *,
        spent: Sequence[str] = ...,
        pending: Sequence[str] = ...,
        unspent: Sequence[str] = ...,
        found: Sequence[FoundCoin] = ...,
        counters: Mapping[str, int] | None = ...,
        watch_s: int = ...,
        looked_at: Sequence[CounterRange] = ...,
    ) -> Settled: ...


class LightningStore(Protocol):
    """Invoices and payouts; see ``node.ledger.lightning`` for states and outcomes."""

    async def check_room(self, peer: str, room: Room) -> None: ...
    def open_invoice(
        self, new: NewInvoice, into: NewAccount | int, room: Room
    ) -> Awaitable[Invoice]: ...
    async def invoice(self, hashed: str) -> Invoice | None: ...
    async def pending_invoices(self) -> list[Invoice]: ...
    def forget(self, hashed: str) -> Awaitable[None]: ...
    async def exposure(self, mint: str) -> Msat: ...
    def begin_mint(
        self, operation_id: str, hashed: str, keyset: Keyset
    ) -> Awaitable[Operation | None]: ...
    def finish_mint(
        self, operation: Operation, coins: Sequence[tuple[str, Proof]], *, of: str = ...
    ) -> Awaitable[None]: ...
    def fail_mint(
        self, operation: Operation, error: str, *, used: bool = ...
    ) -> Awaitable[None]: ...
    async def ended_mints(self, mint: str, quote: str) -> list[Operation]: ...
    def credit_restored(
        self, mint: str, quote: str, operation: Operation | None, error: str
    ) -> Awaitable[bool]: ...
    def begin_melt(self, request: MeltRequest) -> Awaitable[Operation]: ...
    def finish_melt(
        self, operation: Operation, change: Sequence[tuple[str, Proof]], missing: int = ...
    ) -> Awaitable[None]: ...
    def salvage_melt(
        self, operation: Operation, change: Sequence[tuple[str, Proof]], missing: int = ...
    ) -> Awaitable[None]: ...
    def late_change(
        self, operation: Operation, coins: Sequence[tuple[str, Proof]]
    ) -> Awaitable[Msat]: ...
    def fail_melt(self, operation: Operation, error: str) -> Awaitable[None]: ...
    def write_off_melt(
        self, operation: Operation, spent: Sequence[str], error: str
    ) -> Awaitable[None]: ...
    async def note_paid(self, operation_id: str) -> int: ...
    async def melt(self, operation_id: str) -> Melt: ...
    async def missing_change(self, since_s: int) -> list[Operation]: ...
    async def payable(self, source: Source, account_id: int = ...) -> Payable: ...


class Lightning(Protocol):
    """Lightning through the mints; see ``node.ecash.lightning.Lightning``."""

    async def quote(
        self, amount_sat: int, first: str | None = None, *, only: str | None = None
    ) -> Quoted: ...
    async def collect(self, invoice: Invoice) -> Literal["paid", "unpaid", "gone", "unknown"]: ...
    async def payable(self, account_id: int = ...) -> list[Payable]: ...
    def read(self, bolt11: str) -> PayRequest: ...
    async def pay(
        self,
        request: PayRequest,
        destination: str,
        payable: Payable,
        *,
        max_fee: Msat,
        reserve: Msat = ...,
        account_id: int = ...,
    ) -> Operation: ...


class Payee(Protocol):
    """Makes invoices for a Lightning address; see ``node.ecash.lnurl``."""

    def check(self, destination: str) -> None: ...
    async def invoice(
        self, destination: str, amount: Msat, *, or_less: bool = ...
    ) -> PayRequest: ...


class Wallet(Protocol):
    """Crossings to the mints; see ``node.ecash.wallet.Wallet`` for arguments and errors."""

    def parse(self, text: str) -> Token: ...
    def accept(self, text: str) -> Token: ...
    async def receive(
        self,
        token: Token,
        into: NewAccount | int,
        *,
        at_least: Msat = ...,
        on_begun: Callable[[], None] | None = None,
        on_credit: Callable[[int], None] | None = None,
    ) -> Operation: ...
    async def issue(
        self,
        account_id: int,
        amount: Msat | None,
        *,
        only: str | None = None,
        request_key: str | None = None,
        reserve: Msat = ...,
    ) -> Operation: ...
    async def settle_and_close(
        self, account_id: int, hold_id: int, cost: Msat, usage: Usage | None
    ) -> Closed: ...
    async def close_idle(self, account_id: int) -> Closed: ...
    async def finish(self, operation: Operation, *, fresh: bool = ...) -> Operation: ...
