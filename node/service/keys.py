"""Child keys: made by the owner of an account, spending its balance within limits."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from node.core.accounts import Account, key_hash
from node.core.keys import ChildKey, ChildTerms, NewChildren, Spending
from node.core.money import Msat
from node.errors import InvalidApiKey
from node.ports import KeyStore
from node.service.accounts import check_date

PREVIEW_CHARS = 8
"""How much of its parent's key a child key's owner is shown."""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What there is to know about a key beside the balance.

    ``own``: the child key that this is, None when it is the account's own. ``children``: API
    key → child key, for the account's own keys only.
    """

    own: ChildKey | None
    spent: Spending
    expires_at: int | None
    children: Mapping[str, tuple[ChildKey, Spending]] = field(repr=False)


class ChildKeys:
    """Makes, shows, resets and revokes child keys.

    Args:
        key_secret: child keys are an HMAC of their random names under this secret, so that
            their parent can be shown them again.
        cost: of making one, in msat.
    """

    def __init__(self, store: KeyStore, key_secret: bytes, cost: Msat) -> None:
        self._store = store
        self._key_secret = key_secret
        self._cost = cost

    async def create(
        self,
        account: Account,
        parent_key: str,
        count: int,
        terms: ChildTerms,
        request_key: str | None,
    ) -> tuple[list[str], Msat]:
        """New child keys, and what they cost together.

        Args:
            request_key: asking again under it gives the same keys and charges nothing.

        Raises InvalidApiKey for a child key, KeyExpired, InsufficientBalance, InvalidValue,
        IdempotencyConflict.
        """
        _own(account)
        check_date(account)
        is_key = account.role == "spend" and parent_key.startswith("sk-")
        new = NewChildren(
            names=tuple(secrets.token_hex(16) for _ in range(count)),
            hash_of=lambda name: key_hash(self._key_of(name)),
            parent=parent_key[3:][:PREVIEW_CHARS] if is_key else "",
            terms=terms,
            cost=Msat(count * self._cost),
            request_key=request_key,
        )
        made = await self._store.create(account.id, new)
        return [self._key_of(child.name) for child in made], new.cost

    async def reset(self, account: Account, child_key: str) -> None:
        """Let a child key's limit begin anew. Raises InvalidApiKey, NotFound."""
        _own(account)
        await self._store.reset(account.id, key_hash(child_key))

    async def revoke(self, account: Account, child_key: str) -> None:
        """Take a child key back. Raises InvalidApiKey, NotFound."""
        _own(account)
        await self._store.revoke(account.id, key_hash(child_key))

    async def info(self, account: Account) -> KeyInfo:
        """What was spent with a key and what it may spend."""
        spending = await self._store.spending(account.id)
        if account.child_id is not None:
            own = await self._store.child(account.child_id)
            spent = spending.get(own.id, Spending())
            return KeyInfo(own, spent, own.terms.expires_at, {})
        total = Spending(
            sum(part.requests for part in spending.values()),
            Msat(sum(part.spent for part in spending.values())),
        )
        children = {
            self._key_of(child.name): (child, spending.get(child.id, Spending()))
            for child in await self._store.children(account.id)
        }
        return KeyInfo(None, total, account.expires_at, children)

    async def left(self, account: Account) -> Msat | None:
        """What a child key's limit leaves it to spend; None when there is no limit."""
        if account.child_id is None:
            return None
        return (await self._store.child(account.child_id)).left

    def _key_of(self, name: str) -> str:
        digest = hmac.new(self._key_secret, f"child:{name}".encode(), hashlib.sha256)
        return f"sk-{digest.hexdigest()}"


def _own(account: Account) -> None:
    if account.role == "child":
        raise InvalidApiKey("a child key may not do this; use its parent")
