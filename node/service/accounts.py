"""Accounts as clients know them: opened by a token, found by a key, topped up, paid out."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from node.core.accounts import Account, Balance, NewAccount, Operation, Role, key_hash
from node.core.ecash import Token
from node.core.exchange import Request
from node.core.keys import Terms
from node.core.money import Msat, whole_units
from node.errors import (
    IdempotencyConflict,
    InsufficientBalance,
    InvalidApiKey,
    InvalidValue,
    KeyExpired,
    MintLiquidity,
    MissingKey,
    NotFound,
    Pending,
)
from node.ports import Ledger, Refunder, Wallet, WalletStore
from node.service.limits import Limiter, of_account, stranger
from node.service.terms import account_terms

MIN_ADMIN_KEY_CHARS = 16
MAX_ADMIN_KEY_CHARS = 200


@dataclass(frozen=True, slots=True)
class Opened:
    """A new account, or the one the same token opened before."""

    api_key: str = field(repr=False)
    account_id: int
    mint: str
    unit: str


@dataclass(frozen=True, slots=True)
class Unopened:
    """A token used as a key that has no account yet."""

    text: str = field(repr=False)
    token: Token = field(repr=False)
    terms: Terms | None = None
    """What the request asks for, if anything."""


def is_token(text: str) -> bool:
    """Whether a key is a Cashu token."""
    return text.startswith(("cashuA", "cashuB"))


def bearer(request: Request) -> str:
    """The key of ``Authorization: Bearer …``, without that header of ``X-API-Key: …``.

    Raises MissingKey.
    """
    authorization = request.headers.get("authorization")
    if authorization is None:
        scheme, key = "bearer", request.headers.get("x-api-key", "")
    else:
        scheme, _, key = authorization.partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise MissingKey
    return key


def check_date(account: Account) -> None:
    """Raise KeyExpired when this key may no longer spend."""
    if account.expired(time.time()):
        raise KeyExpired


def request_account(token: Token) -> NewAccount:
    """The account that ``token`` opens when it pays for one request."""
    return NewAccount("request", {key_hash(coins_digest(token), "request"): "request"})


def coins_digest(token: Token) -> str:
    """Names a token by its coins, however they were serialised.

    All that makes a coin spendable goes in, the witness of a locked one too: knowing a locked
    coin without being able to spend it names nothing.
    """
    digest = hashlib.sha256()
    coins = sorted(
        (p.secret, p.c, p.amount, p.keyset_id[:_SHORT_ID_CHARS], p.witness or "")
        for p in token.proofs
    )
    for part in (token.mint, token.unit, *(str(value) for coin in coins for value in coin)):
        data = part.encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.hexdigest()


_SHORT_ID_CHARS = 16
"""Tokens may carry short keyset ids (NUT-02), so that much of an id has to do."""


class Accounts:
    """Opens, finds, tops up and pays out accounts.

    Args:
        key_secret: API keys are an HMAC of the coins that paid for them under this secret, so
            a client whose answer was lost asks again and gets the same key.
        refunder: refunds expired keys over Lightning, if anything does.
        limiter: counts the requests of each account.
    """

    def __init__(
        self,
        ledger: Ledger,
        wallet: Wallet,
        store: WalletStore,
        key_secret: bytes,
        refunder: Refunder | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self._ledger = ledger
        self._wallet = wallet
        self._store = store
        self._key_secret = key_secret
        self._refunder = refunder
        self._limiter = limiter or Limiter()
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._in_hand: set[str] = set()

    async def identify(self, request: Request) -> Account | Unopened:
        """Whose request this is, counted against its limits; asks no mint.

        Raises MissingKey, InvalidApiKey, Pending, TokenMalformed, MintNotAccepted,
        RateLimitExceeded.
        """
        key = bearer(request)
        try:
            account = await self._ledger.account(key)
        except InvalidApiKey:
            if is_token(key):
                return self._unopened(key, request)
            account = await self._ledger.account(key, "admin")
        if account.funded:
            self._limiter.take(of_account(account), request.answer_headers)
            return account
        if is_token(key):
            return self._unopened(key, request)
        raise Pending("the token behind this key is still being redeemed", retry_after_s=5)

    async def authenticate(self, request: Request) -> Account:
        """Whose request this is; redeems a token that is used as a key for the first time.

        Raises what ``identify`` and ``Wallet.receive`` raise.
        """
        found = await self.identify(request)
        if isinstance(found, Account):
            return found
        account = Account((await self.open_unopened(found)).account_id, "spend", funded=True)
        self._limiter.take(of_account(account), request.answer_headers)
        return account

    def count_stranger(self, request: Request) -> None:
        """Count a request for which no account is asked for, whatever credentials it has.

        Raises RateLimitExceeded.
        """
        if not request.answer_headers:
            self._limiter.take(stranger(request), request.answer_headers)

    def _unopened(self, key: str, request: Request) -> Unopened:
        token = self._wallet.accept(key)
        return Unopened(key, token, account_terms({}, request.headers, self._refunder))

    def api_key(self, request: Request) -> str:
        """The ``sk-…`` key of the request's account, when it authenticated with a token."""
        key = bearer(request)
        return self._derive(self._wallet.parse(key)) if is_token(key) else key

    async def open(
        self, text: str, admin_key: str | None = None, terms: Terms | None = None
    ) -> Opened:
        """Redeem a token into an account with an API key of its own.

        Args:
            admin_key: chosen by the client; once there is one, only it may withdraw.
            terms: None for no particular ones.

        Raises what ``Wallet.receive`` raises, InvalidValue, and IdempotencyConflict when the
        token has opened an account on other terms.
        """
        text = text.strip()
        opened = await self._open(text, self._wallet.accept(text), admin_key, terms)
        if terms is not None and await self._ledger.terms(opened.account_id) != terms:
            raise IdempotencyConflict("this token has opened an account on other terms")
        return opened

    async def open_unopened(self, who: Unopened) -> Opened:
        """Redeem the token that somebody used as a key.

        Its terms are those of the request that opens the account; what others ask for, that race
        it or follow, changes nothing. Raises what ``Wallet.receive`` raises.
        """
        return await self._open(who.text, who.token, None, who.terms)

    async def _open(
        self, text: str, token: Token, admin_key: str | None, terms: Terms | None
    ) -> Opened:
        api_key = self._derive(token)
        keys: dict[str, Role] = {key_hash(api_key, "spend"): "spend"}
        if admin_key is not None:
            if not MIN_ADMIN_KEY_CHARS <= len(admin_key) <= MAX_ADMIN_KEY_CHARS:
                raise InvalidValue(
                    f"admin_key must have {MIN_ADMIN_KEY_CHARS} to {MAX_ADMIN_KEY_CHARS}"
                    " characters",
                    param="admin_key",
                )
            keys[key_hash(admin_key, "admin")] = "admin"
        aliases = frozenset({key_hash(text, "spend")})
        new = NewAccount("key", keys, aliases=aliases, terms=terms or Terms())
        operation = await self._wallet.receive(token, new)
        return Opened(api_key, operation.account_id, operation.mint, operation.unit)

    async def terms_of(self, account_id: int) -> Terms:
        """What the account was opened with."""
        return await self._ledger.terms(account_id)

    async def balance_of(self, account_id: int) -> Balance:
        """What the account owns."""
        return await self._ledger.balance(account_id)

    async def topup(self, account: Account, text: str) -> Msat:
        """Redeem a token into the account; returns what was added. Idempotent by token.

        Raises KeyExpired and what ``Wallet.receive`` raises.
        """
        check_date(account)
        operation = await self._wallet.receive(self._wallet.accept(text.strip()), account.id)
        return operation.credit

    async def may_withdraw(self, account: Account) -> bool:
        """Whether this key may take money out: the admin key; the account's own if it has none."""
        if account.role == "child":
            return False
        return account.role == "admin" or not await self._ledger.has_admin_key(account.id)

    async def withdraw(
        self,
        account: Account,
        amount: Msat | None = None,
        *,
        mint: str | None = None,
        request_key: str | None = None,
    ) -> Operation:
        """Issue a token from the account; tell ``handed_over`` what became of the answer.

        Args:
            amount: None for all that is free.
            mint: the mint to issue from; by default the one that opened the account is preferred.
            request_key: asking again under it gives the same token. Without one, a token that
                no answer carried yet is given first, and asking for everything again gives the
                token that emptied the account.

        Raises InvalidApiKey when this key may not withdraw, and what ``Wallet.issue`` raises.
        """
        if account.role == "child":
            raise InvalidApiKey("a child key may not withdraw; use its parent")
        if not await self.may_withdraw(account):
            raise InvalidApiKey("only the admin key of this account may withdraw")
        if request_key is not None:
            return await self._issue(account, amount, mint, request_key)
        # One at a time: whether a token was delivered is only clear when its answer has gone.
        async with self._locks.setdefault(account.id, asyncio.Lock()):
            operation = await self._owed(account, amount, mint)
            if operation is None:
                operation = await self._issue(account, amount, mint, None)
            self._in_hand.add(operation.id)
        return operation

    def handed_over(self, operation: Operation, delivered: bool) -> None:
        """The answer with this token went to the client, or did not."""
        if not delivered:
            self._in_hand.discard(operation.id)
            return
        marked = self._store.mark_delivered(operation.id)
        marked.add_done_callback(lambda _: self._in_hand.discard(operation.id))

    def shown(self, operation_ids: Iterable[str], delivered: bool) -> None:
        """A statement with the tokens of these operations went to the client, or did not."""
        if delivered:
            for operation_id in operation_ids:
                self._store.mark_delivered(operation_id)

    async def _issue(
        self, account: Account, amount: Msat | None, mint: str | None, request_key: str | None
    ) -> Operation:
        return await self._wallet.issue(account.id, amount, only=mint, request_key=request_key)

    async def _owed(
        self, account: Account, amount: Msat | None, mint: str | None
    ) -> Operation | None:
        """The token of an answer that got lost, if this looks like its client asking again."""
        in_hand = frozenset(self._in_hand)  # one may be delivered while the database is read
        for operation in await self._store.undelivered(account.id):
            if operation.id in in_hand or mint not in (None, operation.mint):
                continue
            if amount not in (None, operation.value):
                continue
            try:
                operation = await self._wallet.finish(operation)
            except Pending:
                balance = await self._ledger.balance(account.id)
                if amount is None and whole_units(balance.free, operation.unit):
                    continue  # what is free need not wait for that mint
                raise
            if operation.state == "done":
                return operation
        last = await self._store.last_send(account.id)
        if amount is not None or last is None or last.state != "done":
            return None
        if mint not in (None, last.mint):
            return None
        emptied = await self._store.last_reference(account.id) == f"op:{last.id}"
        balance = await self._ledger.balance(account.id)
        return last if emptied and not whole_units(balance.balance, last.unit) else None

    async def paid_with(self, text: str) -> int:
        """The account that the token ``text`` opened to pay for one request.

        Raises TokenMalformed, NotFound, Pending.
        """
        token = self._wallet.parse(text.strip())
        try:
            account = await self._ledger.account(coins_digest(token), "request")
        except InvalidApiKey:
            raise NotFound("no request was paid with this token") from None
        if not account.funded:
            raise Pending("the token is still being redeemed", retry_after_s=5)
        return account.id

    async def change_of(self, account_id: int) -> Operation:
        """The change of the request that this account (``paid_with``) paid for.

        Whoever could have spent the token may have its change. Raises Pending, MintLiquidity,
        InsufficientBalance when the request used it up.
        """
        change = await self.close_request(account_id)
        if change is None:
            raise InsufficientBalance("the request left no change")
        return change

    async def close_request(self, account_id: int) -> Operation | None:
        """The change of a pay-per-request account, issued now if nothing uses it any more.

        None when there is none. Raises Pending while the request runs or the mint is awaited,
        MintLiquidity when no mint has the coins.
        """
        state, held = await self._store.account_state(account_id)
        if held:
            raise Pending("the request is still running", retry_after_s=2)
        if state == "open":
            closed = await self._wallet.close_idle(account_id)
            if closed.open:
                raise MintLiquidity(retry_after_s=60)
            change = closed.change
        else:
            change = await self._store.last_send(account_id)
        if change is not None and change.state != "done":
            change = await self._wallet.finish(change)
            if change.state != "done":  # refused: its money is back, the next call issues it
                raise Pending(retry_after_s=1)
        return change

    def _derive(self, token: Token) -> str:
        digest = hmac.new(self._key_secret, coins_digest(token).encode(), hashlib.sha256)
        return f"sk-{digest.hexdigest()}"
