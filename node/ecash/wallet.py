"""The node's wallet: every crossing to a mint, journalled (NUT-03, 07, 09, 13).

    store.begin_* (intent on disk) ──▶ POST /v1/swap ──▶ store.finish_*
                                          │
          refused ──▶ ask NUT-07 + NUT-09 ┤
          no answer ──▶ stays an intent; recovery drives it again, the client is told Pending

What the mint says, and what it means. The mint's error code is never believed on its own:

| answer to the swap        | our inputs | our outputs | outcome                                  |
|---------------------------|------------|-------------|------------------------------------------|
| signatures                | -          | -           | finish                                   |
| refused                   | SPENT      | all signed  | it was ours: finish from NUT-09          |
| refused                   | UNSPENT    | none signed | fail; receive: the client's error        |
| refused                   | UNSPENT    | signed      | counter collision: fail, fresh counters  |
| refused                   | SPENT      | none signed | receive: fail, token already spent       |
|                           |            |             | send: our coins are gone; alarm, stays   |
| refused                   | PENDING    | -           | stays an intent                          |
| connection refused, fresh | -          | -           | nothing was sent: fail, mint unreachable |
| timeout, 5xx, 429, dropped| -          | -           | stays an intent                          |

The body of a swap follows from the journal alone (inputs, amounts, counters), so replaying an
operation sends the same bytes.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from node.core.accounts import Closed, IssueRequest, NewAccount, Operation, Source
from node.core.ecash import BlindedMessage, BlindSignature, Dleq, Keyset, Proof, Token, input_fee
from node.core.money import Msat
from node.core.usage import Usage
from node.ecash.crypto import (
    blind,
    derive_secret,
    hash_to_curve_hex,
    unblind,
    verify_signature_dleq,
)
from node.ecash.mint import MintClient, MintError, MintOffline, MintRejected, MintUnknown, swap_body
from node.ecash.token import expand_keyset_ids, parse_token
from node.errors import (
    ERRORS,
    FeesExceedAmount,
    MintLiquidity,
    MintNotAccepted,
    MintUnreachable,
    NodeError,
    Pending,
    TokenMalformed,
)
from node.ports import WalletStore

log = structlog.get_logger()

PENDING_RETRY_S = 5
"""What a client is told to wait before it asks again for an unknown outcome."""
MAX_FRESH_STARTS = 4
"""How often a collision of counters is answered with fresh ones before giving up."""

_START_AGAIN = "start_again"
"""Error of an operation that failed for our own reasons and may be begun again at once."""


@dataclass(frozen=True, slots=True)
class AcceptedMint:
    """A mint of the allowlist, and the units taken from it."""

    client: MintClient
    units: tuple[str, ...] = ("sat",)


class Wallet:
    """Receives and issues tokens for accounts.

    Args:
        mints: the allowlist, by normalised URL, in order of preference for issuing.
        seed: NUT-13 seed of our secrets.
        wait_s: how long a client's call waits for a mint before it is told Pending.
    """

    def __init__(
        self,
        store: WalletStore,
        mints: Mapping[str, AcceptedMint],
        seed: bytes,
        *,
        wait_s: float = 30.0,
    ) -> None:
        self._store = store
        self._mints = mints
        self._seed = seed
        self._wait_s = wait_s
        self._keysets: dict[str, dict[str, Keyset]] = {url: {} for url in mints}
        self._driving: dict[str, asyncio.Task[Operation]] = {}

    # -- keysets ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Load what is known of the mints' keysets from the store; asks no mint."""
        for url in self._mints:
            self._keysets[url] = {k.id: k for k in await self._store.keysets(url)}

    async def refresh(self, mint: str) -> None:
        """Ask a mint for its keysets and store them. Raises MintUnreachable."""
        client = self._mints[mint].client
        known = self._keysets[mint]
        keysets = []
        try:
            for listed in await client.keysets():
                have = known.get(listed.id)
                if listed.active and (have is None or not have.keys):
                    have = await client.keys(listed.id)
                keysets.append(
                    Keyset(
                        listed.id,
                        listed.unit,
                        listed.active,
                        listed.input_fee_ppk,
                        have.keys if have else {},
                    )
                )
        except MintError as error:
            raise MintUnreachable(retry_after_s=PENDING_RETRY_S, private=str(error)) from error
        await self._store.save_keysets(mint, keysets)
        gone = {k.id: Keyset(k.id, k.unit, False, k.input_fee_ppk, k.keys) for k in known.values()}
        self._keysets[mint] = gone | {keyset.id: keyset for keyset in keysets}

    async def _active(self, mint: str, unit: str) -> Keyset:
        """The keyset for new coins: active, cheapest. Raises MintUnreachable."""
        for attempt in (1, 2):
            usable = [
                k for k in self._keysets[mint].values() if k.active and k.unit == unit and k.keys
            ]
            if usable:
                return min(usable, key=lambda k: (k.input_fee_ppk, k.id))
            if attempt == 1:
                await self.refresh(mint)
        raise MintUnreachable(private=f"{mint} has no active keyset for {unit}")

    def sources(self, prefer: str | None = None, only: str | None = None) -> list[Source]:
        """Where tokens may be issued from, ``prefer`` first; mints never reached are left out."""
        found = []
        for url, mint in self._mints.items():
            if only is not None and url != only:
                continue
            for unit in mint.units:
                known = self._keysets[url].values()
                active = [k for k in known if k.active and k.unit == unit and k.keys]
                if active:
                    keyset = min(active, key=lambda k: (k.input_fee_ppk, k.id))
                    fees = {k.id: k.input_fee_ppk for k in known}
                    found.append(Source(url, unit, keyset, fees))
        return sorted(found, key=lambda source: source.mint != prefer)

    # -- receive ---------------------------------------------------------------------------

    def accept(self, text: str) -> Token:
        """Parse a token and check its mint against the allowlist; no I/O.

        Raises TokenMalformed, MintNotAccepted.
        """
        token = parse_token(text)
        mint = self._mints.get(token.mint)
        if mint is None:
            raise MintNotAccepted
        if token.unit not in mint.units:
            raise MintNotAccepted(f"this node does not take {token.unit!r} tokens of that mint")
        return token

    async def receive(self, text: str, into: NewAccount | int) -> Operation:
        """Redeem a token into an account (id) or a new one; returns the finished operation.

        Asking again with the same token for the same purpose gives the same operation. Raises
        TokenMalformed, MintNotAccepted, FeesExceedAmount, TokenAlreadySpent, MintUnreachable,
        Pending.
        """
        token = self.accept(text)
        token = await self._expand(token)
        fees = {k.id: k.input_fee_ppk for k in self._keysets[token.mint].values()}
        fee = input_fee(token.proofs, fees)
        if token.amount <= fee:
            raise FeesExceedAmount
        ys = [hash_to_curve_hex(proof.secret) for proof in token.proofs]
        for _ in range(MAX_FRESH_STARTS):
            keyset = await self._active(token.mint, token.unit)
            operation_id = uuid.uuid4().hex
            operation = await self._store.begin_receive(operation_id, token, ys, fee, keyset, into)
            operation = await self._finish(operation, fresh=operation.id == operation_id)
            if operation.state == "done":
                return operation
            if operation.error != _START_AGAIN:
                raise _refusal(operation)
        raise MintUnreachable(retry_after_s=PENDING_RETRY_S)

    async def _expand(self, token: Token) -> Token:
        """Full keyset ids for short ones; asks the mint when one is not known."""
        known = self._keysets[token.mint]
        if not all(proof.keyset_id in known for proof in token.proofs):
            try:
                token = expand_keyset_ids(token, known)
            except TokenMalformed:
                await self.refresh(token.mint)
                known = self._keysets[token.mint]
                token = expand_keyset_ids(token, known)
        if any(known[proof.keyset_id].unit != token.unit for proof in token.proofs):
            raise TokenMalformed("the token's keysets are not of its unit")
        return token

    # -- issue -----------------------------------------------------------------------------

    async def issue(
        self,
        account_id: int,
        amount: Msat | None,
        *,
        prefer: str | None = None,
        only: str | None = None,
        request_key: str | None = None,
    ) -> Operation:
        """Issue a token from an account; returns the finished operation with its ``token``.

        Args:
            amount: msat; None for all that is free.
            prefer: mint to try first. only: the mint to use.
            request_key: asking again under it gives the same token.

        Raises InsufficientBalance, MintLiquidity, MintUnreachable, Pending,
        IdempotencyConflict.
        """
        sources = self.sources(prefer, only)
        deadline = asyncio.get_running_loop().time() + self._wait_s
        starts = 0
        while starts < MAX_FRESH_STARTS:
            operation_id = uuid.uuid4().hex
            try:
                operation = await self._store.begin_send(
                    IssueRequest(operation_id, account_id, amount, request_key), sources
                )
            except MintLiquidity:
                if not await self._coins_come_back(deadline):
                    raise
                continue
            starts += 1
            operation = await self._finish(operation, fresh=operation.id == operation_id)
            if operation.state == "done":
                return operation
            if operation.error != _START_AGAIN:
                raise _refusal(operation)
        raise MintUnreachable(retry_after_s=PENDING_RETRY_S)

    async def settle_and_close(
        self, account_id: int, hold_id: int, cost: Msat, usage: Usage | None, prefer: str
    ) -> Closed:
        """Charge a pay-per-request account (``usage`` None: nothing) and issue its change.

        The charge is on disk when this returns. A change that needs the mint and is not there
        yet comes back as an operation without ``token``; recovery finishes it and the client
        looks it up.
        """
        operation_id = uuid.uuid4().hex
        closed = await self._store.settle_and_close(
            operation_id, hold_id, cost, usage, self.sources(prefer)
        )
        if closed.open:
            later = await self.close_idle(account_id, prefer)
            return Closed(closed.cost, later.dust, later.change, later.open)
        return await self._finish_change(closed, operation_id)

    async def close_idle(self, account_id: int, prefer: str | None = None) -> Closed:
        """Issue what an unused pay-per-request account holds, as its change. Raises Pending."""
        deadline = asyncio.get_running_loop().time() + self._wait_s
        while True:
            operation_id = uuid.uuid4().hex
            closed = await self._store.close_idle(operation_id, account_id, self.sources(prefer))
            if not closed.open or not await self._coins_come_back(deadline):
                return await self._finish_change(closed, operation_id)

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

    async def _coins_come_back(self, deadline: float) -> bool:
        """Wait for a crossing under way, whose coins may be what is missing; False if none is."""
        left_s = deadline - asyncio.get_running_loop().time()
        if not self._driving or left_s <= 0:
            return False
        await asyncio.wait(
            set(self._driving.values()), timeout=left_s, return_when=asyncio.FIRST_COMPLETED
        )
        return True

    async def finish(self, operation: Operation) -> Operation:
        """Drive an intent to its end, if it is one. Raises Pending."""
        return await self._finish(operation, fresh=False)

    # -- the crossing ----------------------------------------------------------------------

    async def recover(self) -> int:
        """Drive every intent that nothing drives; returns how many are still open."""
        left = 0
        for operation in await self._store.open_operations():
            try:
                finished = await self._finish(operation, fresh=False)
                log.info("operation_recovered", operation=operation.id, state=finished.state)
            except Pending:
                left += 1
        return left

    async def _finish(self, operation: Operation, *, fresh: bool) -> Operation:
        """Bring an intent to its end, in a task no caller can cancel. Raises Pending."""
        if operation.state != "intent":
            return operation
        task = self._driving.get(operation.id)
        if task is None:
            task = asyncio.create_task(self._drive(operation, fresh))
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

    async def _drive(self, operation: Operation, fresh: bool) -> Operation:
        """One attempt; returns the operation as it stands afterwards."""
        try:
            mint = self._mints.get(operation.mint)
            if mint is None:
                raise MintUnknown("the mint is no longer configured")
            keyset = await self._keyset_of(operation)
            coins = self._derive(operation)
            messages = [message for message, _, _ in coins]
            try:
                signatures = await mint.client.swap(swap_body(operation.inputs, messages))
            except MintRejected as rejected:
                log.info(
                    "swap_refused",
                    operation=operation.id,
                    kind=operation.kind,
                    code=rejected.code,
                )
                return await self._judge(operation, mint.client, keyset, coins, rejected)
            return await self._complete(operation, keyset, coins, signatures)
        except MintOffline as error:
            if fresh:
                return await self._fail(operation, MintUnreachable.code)
            await self._unknown(operation, error)
        except (MintError, NodeError) as error:
            await self._unknown(operation, error)
        except Exception:
            log.exception("operation_crashed", operation=operation.id)
        return operation

    async def _unknown(self, operation: Operation, error: Exception) -> None:
        log.warning(
            "outcome_unknown",
            operation=operation.id,
            kind=operation.kind,
            mint=operation.mint,
            reason=str(error),
        )
        await self._store.note_attempt(operation.id)

    async def _keyset_of(self, operation: Operation) -> Keyset:
        keyset_id = operation.outputs[0].keyset_id
        keyset = self._keysets[operation.mint].get(keyset_id)
        if keyset is None or not keyset.keys:
            keyset = await self._mints[operation.mint].client.keys(keyset_id)
        return keyset

    def _derive(self, operation: Operation) -> list[tuple[BlindedMessage, str, bytes]]:
        """(message, secret, r) of every output, from the counters."""
        coins = []
        for output in operation.outputs:
            secret, r = derive_secret(self._seed, output.keyset_id, output.counter)
            message = BlindedMessage(output.amount, output.keyset_id, blind(secret, r))
            coins.append((message, secret, r))
        return coins

    async def _complete(
        self,
        operation: Operation,
        keyset: Keyset,
        coins: Sequence[tuple[BlindedMessage, str, bytes]],
        signatures: Sequence[BlindSignature],
    ) -> Operation:
        """Check the signatures and hand the coins to the store. Raises MintUnknown."""
        ours: list[tuple[str, Proof]] = []
        for (message, secret, r), signature in zip(coins, signatures, strict=True):
            key = keyset.keys.get(message.amount)
            if (
                key is None
                or signature.amount != message.amount
                or signature.keyset_id != message.keyset_id
                or (
                    signature.dleq is not None
                    and not verify_signature_dleq(message, signature, key)
                )
            ):
                raise MintUnknown("a signature of the mint is not valid for our output")
            dleq = signature.dleq and Dleq(signature.dleq.e, signature.dleq.s, r.hex())
            ours.append(
                (
                    hash_to_curve_hex(secret),
                    Proof(
                        message.keyset_id,
                        message.amount,
                        secret,
                        unblind(signature.c_, r, key),
                        dleq=dleq,
                    ),
                )
            )
        if operation.kind == "receive":
            await self._store.finish_receive(operation, ours)
            return await self._store.operation(operation.id)
        marked = list(zip(operation.outputs, ours, strict=True))
        kept = [coin for output, coin in marked if output.keep]
        issued = [coin for output, coin in marked if not output.keep]
        return await self._store.finish_send(operation, kept, issued)

    async def _judge(
        self,
        operation: Operation,
        client: MintClient,
        keyset: Keyset,
        coins: Sequence[tuple[BlindedMessage, str, bytes]],
        rejected: MintRejected,
    ) -> Operation:
        """The mint refused: find out what really happened (the table above)."""
        ys = [hash_to_curve_hex(proof.secret) for proof in operation.inputs]
        states = set(await client.check_state(ys))
        restored = {
            message.b_: signature
            for message, signature in await client.restore([message for message, _, _ in coins])
        }
        found = [restored[m.b_] for m, _, _ in coins if m.b_ in restored]
        if states == {"SPENT"} and len(found) == len(coins):
            return await self._complete(operation, keyset, coins, found)
        if states == {"UNSPENT"}:
            if found:
                log.warning("counter_collision", operation=operation.id, keyset=keyset.id)
                return await self._fail(operation, _START_AGAIN)
            await self.refresh(operation.mint)
            current = self._keysets[operation.mint].get(keyset.id)
            if current is None or not current.active:
                return await self._fail(operation, _START_AGAIN)
            code = TokenMalformed.code if operation.kind == "receive" else MintUnreachable.code
            return await self._fail(operation, code)
        if "PENDING" not in states and not found and operation.kind == "receive":
            return await self._fail(operation, "token_already_spent")
        if operation.kind == "send" and "PENDING" not in states:
            log.error("own_coins_spent_elsewhere", operation=operation.id, mint=operation.mint)
        await self._unknown(operation, rejected)
        return operation

    async def _fail(self, operation: Operation, code: str) -> Operation:
        await self._store.fail(operation, code)
        return await self._store.operation(operation.id)


def _refusal(operation: Operation) -> NodeError:
    """The error a failed operation is told with."""
    error = ERRORS[operation.error or MintUnreachable.code]
    if error is TokenMalformed:
        return TokenMalformed("the mint refuses this token")
    return error()
