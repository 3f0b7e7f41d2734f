"""Tokens that the mint has refused for good, remembered for a while.

A dead token that comes again is answered from here and costs no mint round trip. Only what no
time, no other witness and no second try can change is remembered:

| what the mint said of the coins                       | answer                | kept for    |
|-------------------------------------------------------|-----------------------|-------------|
| SPENT (NUT-07), and by nothing of ours                | `token_already_spent` | TTL_S       |
| refused as unverifiable (NUT-00 code 10001), UNSPENT, | `token_malformed`     | TTL_S       |
|   and none of them states a spending condition        |                       |             |
| has no such keyset, asked just now                    | `token_malformed`     | FOREIGN_S   |
| anything else: no answer, 429, 5xx, pending, a limit, | as it is              | never       |
|   another refusal, a lock, our own reasons            |                       |             |

The key is a digest over all that makes the coins spendable, their witnesses too, so that the same
coins with the right witness are another token. When a swap that was given up turns out to have
landed, its coins are forgotten here.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from node.core.ecash import Proof
from node.ecash.locks import read_condition
from node.errors import NodeError, TokenAlreadySpent, TokenMalformed

TTL_S = 600.0
"""How long a refusal is remembered."""
FOREIGN_S = 30.0
"""How long a keyset that the mint does not list stays unknown: it may be about to list it."""
MAX_FAILURES = 10_000
"""Refusals remembered; the oldest go first."""
UNVERIFIABLE = 10001
"""The mint's code for a proof that is not its signature (NUT-00)."""


class FailureMemory:
    """Bounded, in memory only.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(
        self, *, limit: int = MAX_FAILURES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, type[NodeError], str | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def check(self, proofs: Sequence[Proof]) -> None:
        """Raises the refusal of these very coins, if one is remembered."""
        key = _digest(proofs)
        known = self._known.get(key)
        if known is None:
            return
        ends_at, error, message = known
        if self._clock() < ends_at:
            raise error(message)
        del self._known[key]

    def spent(self, proofs: Sequence[Proof]) -> None:
        """The mint says they are spent, and nothing of ours spent them."""
        self._note(proofs, TTL_S, TokenAlreadySpent, None)

    def refused(self, proofs: Sequence[Proof], code: int | None) -> None:
        """The mint refused them with ``code`` and says that they are unspent."""
        if code == UNVERIFIABLE and not any(read_condition(proof.secret) for proof in proofs):
            self._note(proofs, TTL_S, TokenMalformed, "the mint refuses this token")

    def foreign(self, proofs: Sequence[Proof], error: TokenMalformed) -> None:
        """The mint, asked just now, has no such keyset."""
        self._note(proofs, FOREIGN_S, TokenMalformed, error.message)

    def forget(self, proofs: Sequence[Proof]) -> None:
        """They turned out to be ours."""
        self._known.pop(_digest(proofs), None)

    def _note(
        self, proofs: Sequence[Proof], ttl_s: float, error: type[NodeError], message: str | None
    ) -> None:
        key = _digest(proofs)
        self._known[key] = self._clock() + ttl_s, error, message
        self._known.move_to_end(key)
        while len(self._known) > self._limit:
            self._known.popitem(last=False)


def _digest(proofs: Sequence[Proof]) -> bytes:
    coins = sorted((p.keyset_id, p.amount, p.secret, p.c, p.witness or "") for p in proofs)
    return hashlib.sha256(repr(coins).encode()).digest()
