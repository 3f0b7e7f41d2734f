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

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import aiohttp
import structlog

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

State: TypeAlias = Literal["closed", "open", "half-open"]


class CircuitOpen(MintOffline):
    """The mint is not asked now, because it did not answer a moment ago: nothing was sent."""


class Circuit:
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
        self._name = name
        self._threshold = threshold
        self._first_cooldown_s = self._cooldown_s = cooldown_s
        self._max_cooldown_s = max_cooldown_s
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    @property
    def retry_after_s(self) -> int:
        """What to tell a client to wait; at least a second."""
        if self._open_until is None:
            return 1
        return max(1, math.ceil(self._open_until - self._clock()))

    def check(self) -> None:
        """Raises CircuitOpen when a call would fail at once."""
        state = self.state
        if state == "open" or (state == "half-open" and self._probing):
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
        probe = self.state == "half-open"
        self._probing = self._probing or probe
        try:
            yield
        except MintUnknown as error:
            if not patient or isinstance(error, MintOffline):
                self._failed(probe)
            raise
        except MintRejected:
            self._answered(clears)
            raise
        else:
            self._answered(clears)
        finally:
            if probe:
                self._probing = False

    def _failed(self, probe: bool) -> None:
        self._failures += 1
        if self._open_until is None:
            if self._failures < self._threshold:
                return
        elif not probe:
            return
        self._open_until = self._clock() + self._cooldown_s
        log.warning("mint_circuit_open", mint=self._name, for_s=self._cooldown_s)
        self._cooldown_s = min(2 * self._cooldown_s, self._max_cooldown_s)

    def _answered(self, clears: bool) -> None:
        if self._open_until is not None:
            self._open_until = None
            self._failures = self._threshold - 1
            log.info("mint_circuit_closed", mint=self._name)
        if clears:
            self._failures = 0
            self._cooldown_s = self._first_cooldown_s


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
