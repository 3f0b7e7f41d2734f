"""Keeps a mint that is down or slow from holding anything else up.

    closed ── THRESHOLD failures in a row ──▶ open ── cooldown ──▶ half-open ─ one call goes through
      ▲                                        ▲                        │
      │                                        └──── it fails: longer ──┤
      └──────────────────────────────────────────────── it is answered ─┘

Failures are MintUnknown: no connection, no answer in time, 5xx, 429, garbage. A refusal is an
answer. While the circuit is open every call fails at once with CircuitOpen, which is a
MintOffline: nothing was sent. So operations of the journal fail or stay exactly as they would with
the cable cut, and recovery, which comes by every few seconds, is what tries again.

A GET that is answered closes the circuit but does not clear it: a mint may list its keysets and
hang on every swap. Then one more failure opens it again, for longer. A POST clears it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import structlog

from node.core.circuit import Breaker
from node.ecash.errors import MintOffline, MintRejected, MintUnknown
from node.ecash.mint import MintClient

log = structlog.get_logger()

THRESHOLD = 3
"""Failures in a row that open the circuit."""
COOLDOWN_S = 5.0
"""How long it stays open the first time; twice as long each time after."""
MAX_COOLDOWN_S = 60.0

_MELT = "/v1/melt/bolt11"
"""Answered when a Lightning payment is through, which may take minutes."""


class CircuitOpen(MintOffline):
    """The mint is not asked now, because it did not answer a moment ago: nothing was sent."""


class Circuit(Breaker):
    """The state of one mint.

    Args:
        name: the mint, for the log.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        name: str = "",
        *,
        threshold: int = THRESHOLD,
        cooldown_s: float = COOLDOWN_S,
        max_cooldown_s: float = MAX_COOLDOWN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            threshold=threshold, cooldown_s=cooldown_s, max_cooldown_s=max_cooldown_s, clock=clock
        )
        self._name = name

    def check(self) -> None:
        """Raises CircuitOpen when a call would fail at once."""
        if not self.admits:
            raise CircuitOpen("the mint did not answer a moment ago and is not asked now")

    @contextmanager
    def call(self, *, clears: bool, patient: bool = False) -> Iterator[None]:
        """Around one exchange with the mint.

        Args:
            clears: whether an answer proves that the mint works again.
            patient: whether no answer in time is nothing unusual.

        Raises CircuitOpen.
        """
        self.check()
        probe = self.begin()
        try:
            yield
        except MintUnknown as error:
            if not patient or isinstance(error, MintOffline):
                self._note_failure(probe)
            raise
        except MintRejected:
            self._note_answer(clears)
            raise
        else:
            self._note_answer(clears)
        finally:
            self.end(probe)

    def _note_failure(self, probe: bool) -> None:
        pause_s = self.failed(probe)
        if pause_s is not None:
            log.warning("mint_circuit_open", mint=self._name, for_s=pause_s)

    def _note_answer(self, clears: bool) -> None:
        if self.answered(clears=clears):
            log.info("mint_circuit_closed", mint=self._name)


class GuardedMint(MintClient):
    """A MintClient behind a circuit.

    Args:
        circuit: shared with whoever wants to know the mint's state.
        options: of MintClient.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        circuit: Circuit | None = None,
        **options: Any,
    ) -> None:
        super().__init__(session, url, **options)
        self.circuit = circuit or Circuit(self.url)

    async def _exchange(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        with self.circuit.call(clears=method == "POST", patient=path == _MELT):
            return await super()._exchange(method, path, body)
