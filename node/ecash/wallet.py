"""The node's wallet: receives tokens into accounts and issues tokens from them.

Every crossing to a mint is an operation in the journal, driven by ``node.ecash.crossing`` in a
task of its own that no caller can cancel. A caller waits for it for a while; then, or when the
outcome is not known, it is told Pending, and recovery goes on.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping

import structlog

from node.core.accounts import Closed, IssueRequest, NewAccount, Operation, Source
from node.core.ecash import Keyset, Token, input_fee
from node.core.money import Msat, to_msat
from node.core.usage import Usage
from node.ecash.circuit import Circuit
from node.ecash.crossing import START_AGAIN, Crossing
from node.ecash.crypto import hash_to_curve_hex
from node.ecash.failures import FailureMemory
from node.ecash.gate import Gate, PaymentTerms
from node.ecash.keysets import AcceptedMint, Keysets
from node.ecash.mint import MintError
from node.ecash.reconcile import Reconciler
from node.ecash.search import GAP
from node.ecash.token import parse_token
from node.errors import (
    ERRORS,
    FeesExceedAmount,
    InsufficientBalance,
    MintLiquidity,
    MintUnreachable,
    NodeError,
    Pending,
    TokenMalformed,
)
from node.ports import ReconcileStore, WalletStore

log = structlog.get_logger()

PENDING_RETRY_S = 5
"""What a client is told to wait before it asks again for an unknown outcome."""
MAX_FRESH_STARTS = 4
"""How often an operation that failed for our own reasons is begun anew before giving up."""
WATCH_S = 86_400
"""How long a failed operation whose outcome was once unknown is looked at for a late landing."""
MAX_RECOVERIES = 8
"""Operations driven at once by recovery, of each mint."""
_NOTHING = Msat(0)


class Wallet:
    """Receives and issues tokens for accounts.

    Args:
        mints: the allowlist, by normalised URL, in order of preference for issuing.
        seed: NUT-13 seed of our secrets.
        wait_s: how long a client's call waits for a mint before it is told Pending.
        terms: how the node wants to be paid.
    """

    def __init__(
        self,
        store: WalletStore,
        mints: Mapping[str, AcceptedMint],
        seed: bytes,
        *,
        wait_s: float = 30.0,
        terms: PaymentTerms = PaymentTerms(),  # noqa: B008 — frozen
    ) -> None:
        self._store = store
        self._mints = mints
        self._seed = seed
        self._wait_s = wait_s
        self._keysets = Keysets(store, mints, seed)
        failures = FailureMemory()
        self._gate = Gate(mints, self._keysets, failures, terms)
        self._crossing = Crossing(store, mints, self._keysets, seed, failures)
        self._driving: dict[str, asyncio.Task[Operation]] = {}

    def adopt(self, kind: str, build: Callable[[Keysets], Crossing]) -> None:
        """Let operations of ``kind`` cross as what ``build`` gives says; before ``start``."""
        self._crossing.kinds[kind] = build(self._keysets)

    async def start(self) -> None:
        """Load what is known of the mints' keysets from the store; asks no mint."""
        await self._keysets.start()

    async def refresh(self, mint: str) -> None:
        """Ask a mint for its keysets and get ready to make its coins. Raises MintUnreachable."""
        await self._keysets.refresh(mint)
        await self._keysets.prepare(mint)

    async def active_keyset(self, mint: str, unit: str) -> Keyset:
        """The keyset for new coins of a mint. Raises MintUnreachable."""
        return await self._keysets.active(mint, unit)

    def reconciler(self, store: ReconcileStore, gap: int = GAP) -> Reconciler:
        """What checks this wallet's coins against the mints after a restore.

        Args:
            gap: counters in a row without a coin before the search for coins ends.
        """
        return Reconciler(store, self._store, self._mints, self._keysets, self._seed, gap)

    def circuits(self) -> dict[str, Circuit]:
        """The state of each mint, by URL."""
        return {url: mint.circuit for url, mint in self._mints.items()}

    def sources(self, only: str | None = None) -> list[Source]:
        """Where tokens may be issued from, in order of preference."""
        return self._keysets.sources(only)

    # -- receive ---------------------------------------------------------------------------

    def parse(self, text: str) -> Token:
        """Parse a token, of whatever mint; no I/O. Raises TokenMalformed."""
        return parse_token(text)

    def accept(self, text: str) -> Token:
        """Parse a token, check its mint against the allowlist, and its locks; no I/O.

        Raises TokenMalformed, MintNotAccepted.
        """
        return self._gate.accept(text)

    async def receive(
        self,
        token: Token,
        into: NewAccount | int,
        *,
        at_least: Msat = _NOTHING,
        on_begun: Callable[[], None] | None = None,
        on_credit: Callable[[int], None] | None = None,
    ) -> Operation:
        """Redeem a token into an account (id) or a new one; returns the finished operation.

        Args:
            token: that ``accept`` gave.
            at_least: what the token must be worth after the mint's fee, else it is not touched.
            on_begun: called once a token that never was here before is claimed and journalled,
                when all that is left is to wait for the mint.
            on_credit: called with the account's id when its credit is queued to be written:
                what is queued by it shares the commit. Not called when that has begun before,
                nor once this call has ended.

        Asking again with the same token for the same purpose gives the same operation. Raises
        TokenMalformed, MintFull, FeesExceedAmount, InsufficientBalance, TokenAlreadySpent,
        MintUnreachable, Pending.
        """
        admitted = await self._gate.admit(token)
        token = admitted.token
        fee = input_fee(token.proofs, self._keysets.fees(token.mint))
        if token.amount <= fee:
            raise FeesExceedAmount
        credit = to_msat(token.amount - fee, token.unit)
        if credit < at_least:
            raise InsufficientBalance(
                f"this request may cost up to {at_least} msat, the token is worth {credit} msat;"
                " it was not spent"
            )
        ys = [hash_to_curve_hex(proof.secret) for proof in token.proofs]
        for _ in range(MAX_FRESH_STARTS):
            keyset = await self._keysets.active(token.mint, token.unit)
            operation_id = uuid.uuid4().hex
            operation = await self._store.begin_receive(
                operation_id,
                token,
                ys,
                fee,
                keyset,
                into,
                max_balance=admitted.max_balance,
                barred=admitted.barred,
            )
            fresh = operation.id == operation_id
            if fresh and on_begun is not None:
                on_begun()
            operation = await self._finish_receive(operation, fresh, on_credit)
            if operation.state == "done":
                return operation
            if operation.error != START_AGAIN:
                raise _refusal(operation)
        raise MintUnreachable(retry_after_s=PENDING_RETRY_S)

    async def _finish_receive(
        self, operation: Operation, fresh: bool, on_credit: Callable[[int], None] | None
    ) -> Operation:
        if on_credit is None or not fresh:
            return await self._finish(operation, fresh=fresh)
        with self._crossing.on_credit(operation.id, on_credit):
            return await self._finish(operation, fresh=fresh)

    def payment_request(self, amount: Msat) -> str | None:
        """A request (NUT-24) for a token worth ``amount``; None when no mint is accepted."""
        return self._gate.payment_request(amount)

    # -- issue -----------------------------------------------------------------------------

    async def issue(
        self,
        account_id: int,
        amount: Msat | None,
        *,
        only: str | None = None,
        request_key: str | None = None,
        reserve: Msat = _NOTHING,
    ) -> Operation:
        """Issue a token from an account; returns the finished operation with its ``token``.

        Args:
            account_id: OPERATOR for a token out of what is earned and owed to nobody.
            amount: msat; None for all that is free.
            only: the mint to use; by default the account's own is preferred.
            request_key: asking again under it gives the same token.
            reserve: earnings that must stay, when the token is the operator's.

        Raises InsufficientBalance, MintLiquidity, MintUnreachable, Pending,
        IdempotencyConflict.
        """
        deadline = asyncio.get_running_loop().time() + self._wait_s
        starts = 0
        while starts < MAX_FRESH_STARTS:
            operation_id = uuid.uuid4().hex
            try:
                operation = await self._store.begin_send(
                    IssueRequest(operation_id, account_id, amount, request_key, reserve),
                    self.sources(only),
                )
            except MintLiquidity:
                if await self._get_ready(only) or await self._coins_come_back(deadline):
                    continue
                self._blame_mints(only)
                raise
            starts += 1
            operation = await self._finish(operation, fresh=operation.id == operation_id)
            if operation.state == "done":
                return operation
            if operation.error != START_AGAIN:
                raise _refusal(operation)
        raise MintUnreachable(retry_after_s=PENDING_RETRY_S)

    async def settle_and_close(
        self, account_id: int, hold_id: int, cost: Msat, usage: Usage | None
    ) -> Closed:
        """Charge a pay-per-request account (``usage`` None: nothing) and issue its change.

        The charge is on disk when this returns. A change that needs the mint and is not there
        yet comes back as an operation without ``token``; recovery finishes it and the client
        looks it up.
        """
        operation_id = uuid.uuid4().hex
        closed = await self._store.settle_and_close(
            operation_id, hold_id, cost, usage, self.sources()
        )
        if closed.open:
            later = await self.close_idle(account_id)
            return Closed(closed.cost, later.dust, later.change, later.open)
        return await self._finish_change(closed, operation_id)

    async def close_idle(self, account_id: int) -> Closed:
        """Issue what an unused pay-per-request account holds, as its change. Raises Pending."""
        deadline = asyncio.get_running_loop().time() + self._wait_s
        while True:
            operation_id = uuid.uuid4().hex
            closed = await self._store.close_idle(operation_id, account_id, self.sources())
            if not closed.open:
                return await self._finish_change(closed, operation_id)
            if not (await self._get_ready(None) or await self._coins_come_back(deadline)):
                return closed

    async def _finish_change(self, closed: Closed, operation_id: str) -> Closed:
        if closed.change is None or closed.change.state == "done":
            return closed
        try:
            change = await self._finish(closed.change, fresh=closed.change.id == operation_id)
        except Pending:
            return closed
        if change.state == "failed":  # the money is back on the account
            return Closed(closed.cost, closed.dust, None, open=True)
        return Closed(closed.cost, closed.dust, change)

    async def refill(self) -> int:
        """Swap coins of ours for small ones where change would soon need a mint.

        Only while no crossing is under way: it must not stand in anybody's way. Returns how many
        swaps were made; what has no outcome yet is left to recovery.
        """
        made = 0
        for source in self.sources():
            if self._driving:
                break
            operation = await self._store.begin_refill(uuid.uuid4().hex, source)
            if operation is None:
                continue
            try:
                finished = await self._finish(operation, fresh=True)
            except Pending:
                continue
            made += finished.state == "done"
            log.info("inventory_refilled", mint=source.mint, state=finished.state)
        return made

    def _blame_mints(self, only: str | None) -> None:
        """Raises MintUnreachable when a mint that does not answer may have what is missing."""
        for url, mint in self._mints.items():
            if only in (None, url) and mint.circuit.state != "closed":
                raise MintUnreachable(retry_after_s=mint.circuit.retry_after_s)

    async def _get_ready(self, only: str | None) -> bool:
        """Make swaps possible where they are not yet; whether that helped anywhere."""
        before = sum(source.keyset is not None for source in self.sources(only))

        async def prepare(url: str) -> None:
            try:
                await self._keysets.prepare(url)
            except MintUnreachable as error:
                log.info("mint_not_ready", mint=url, reason=error.private)

        unready = {source.mint for source in self.sources(only) if source.keyset is None}
        await asyncio.gather(*map(prepare, unready))  # a slow one must not hold up another
        return sum(source.keyset is not None for source in self.sources(only)) > before

    async def _coins_come_back(self, deadline: float) -> bool:
        """Wait for a crossing under way, whose coins may be what is missing; False if none is."""
        left_s = deadline - asyncio.get_running_loop().time()
        if not self._driving or left_s <= 0:
            return False
        await asyncio.wait(
            set(self._driving.values()), timeout=left_s, return_when=asyncio.FIRST_COMPLETED
        )
        return True

    async def finish(self, operation: Operation, *, fresh: bool = False) -> Operation:
        """Drive an intent to its end, if it is one. Raises Pending.

        Args:
            fresh: nothing of it can have reached the mint yet.
        """
        return await self._finish(operation, fresh=fresh)

    # -- the crossing ----------------------------------------------------------------------

    async def recover(self) -> int:
        """Drive every intent that nothing drives, and look for late landings.

        Mints do not wait for each other. Returns how many intents are still open.
        """
        slots = {url: asyncio.Semaphore(MAX_RECOVERIES) for url in self._mints}

        async def drive(operation: Operation) -> bool:
            async with slots.get(operation.mint, asyncio.Semaphore()):
                try:
                    finished = await self._finish(operation, fresh=False)
                except Pending:
                    return False
            log.info("operation_recovered", operation=operation.id, state=finished.state)
            return True

        async def look(operation: Operation) -> None:
            async with slots.get(operation.mint, asyncio.Semaphore()):
                if operation.mint in self._mints:
                    await self._crossing.landed_late(operation)

        results = await asyncio.gather(*map(drive, await self._store.open_operations()))
        watched = await self._store.failed_unknown(WATCH_S)
        watched += await self._crossing.watched(WATCH_S)
        for outcome in await asyncio.gather(*map(look, watched), return_exceptions=True):
            if isinstance(outcome, Exception) and not isinstance(outcome, MintError):
                raise outcome
        return results.count(False)

    async def _finish(self, operation: Operation, *, fresh: bool) -> Operation:
        """Bring an intent to its end, in a task no caller can cancel. Raises Pending."""
        if operation.state != "intent":
            return operation
        task = self._driving.get(operation.id)
        if task is None:
            task = asyncio.create_task(self._crossing.attempt(operation, fresh))
            self._driving[operation.id] = task
            task.add_done_callback(lambda _: self._driving.pop(operation.id, None))
        await asyncio.wait({task}, timeout=self._wait_s)
        if not task.done() or task.result().state == "intent":
            raise Pending(retry_after_s=PENDING_RETRY_S)
        return task.result()

    async def close(self, timeout_s: float) -> None:
        """Wait for the crossings under way; what is not done by then is recovered later."""
        tasks = list(self._driving.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _refusal(operation: Operation) -> NodeError:
    """The error a failed operation is told with."""
    error = ERRORS[operation.error or MintUnreachable.code]
    if error is TokenMalformed:
        return TokenMalformed("the mint refuses this token")
    return error()
