"""One upstream as the router sees it: what it can take now, and how it has fared.

A failure is what happens before an answer has begun, and not what happens in its middle: a client
that reads slowly can make a server give up. Nor does it count that a server refuses a request: any
client can bring that about. See ``Lane.open``.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog

from node.core.catalog import Backend
from node.core.circuit import Breaker, State
from node.errors import NodeError, RateLimitExceeded, UpstreamFailed, UpstreamTimeout
from node.ports import UpstreamCall, UpstreamReply
from node.upstream.errors import Refused
from node.upstream.server import UpstreamServer
from node.upstream.slots import Slots

log = structlog.get_logger()

THRESHOLD = 5
"""Failures in a row that open the circuit."""
COOLDOWN_S = 5.0
"""How long it stays open the first time; twice as long each time after."""
MAX_COOLDOWN_S = 300.0
MAX_PAUSE_S = 600.0
"""Longest ``Retry-After`` that is kept to."""
_MANY = 256
"""Paused models from which on those are looked for that no longer are."""


@dataclass(frozen=True, slots=True)
class LaneState:
    """One upstream at one moment."""

    name: str
    dialect: str
    circuit: State
    running: int
    waiting: int
    max_concurrency: int
    """0: no limit."""
    paused: int
    """Models of it that are not asked for until a time it named."""
    answered: int
    """Calls whose answer began, since the start."""
    failed: int
    last_error: str
    """For the operator."""
    note: str
    """Something else that the operator should look after."""
    balance_msat: int | None = None
    """What is left of its prepaid key, when that is known."""

    @property
    def trouble(self) -> str | None:
        """What is wrong, in a few words anybody may read."""
        if self.circuit == "open":
            return "does not answer"
        if self.note:
            return self.note
        return "busy" if self.max_concurrency and self.running >= self.max_concurrency else None


class Lane:
    """The way to one upstream.

    Args:
        max_concurrency: calls at a time; 0 for any number.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        server: UpstreamServer,
        *,
        max_concurrency: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server = server
        self.slots = Slots(max_concurrency)
        self.note = ""
        """Shown to the operator, such as a low balance."""
        self.balance_msat: int | None = None
        """What is left of the prepaid key, if anybody asks for it."""
        self.breaker = Breaker(
            threshold=THRESHOLD,
            cooldown_s=COOLDOWN_S,
            max_cooldown_s=MAX_COOLDOWN_S,
            clock=clock,
        )
        self._clock = clock
        self._paused: dict[str, float] = {}
        self._answered = self._failed = 0
        self._last_error = ""

    @property
    def name(self) -> str:
        return self.server.name

    def paused_s(self, upstream_id: str) -> int:
        """Whole seconds for which it wants not to be asked for that model."""
        until = self._paused.get(upstream_id)
        if until is None:
            return 0
        left_s = until - self._clock()
        if left_s <= 0:
            del self._paused[upstream_id]
            return 0
        return math.ceil(left_s)

    def state(self) -> LaneState:
        """How it is, for the operator."""
        return LaneState(
            name=self.name,
            dialect=self.server.dialect,
            circuit=self.breaker.state,
            running=self.slots.running,
            waiting=self.slots.waiting,
            max_concurrency=self.slots.limit,
            paused=sum(self.paused_s(model) > 0 for model in list(self._paused)),
            answered=self._answered,
            failed=self._failed,
            last_error=self._last_error,
            note=self.note,
            balance_msat=self.balance_msat,
        )

    def trouble(self) -> str | None:
        """What is wrong, in a few words anybody may read."""
        return self.state().trouble

    async def open(self, call: UpstreamCall, backend: Backend) -> UpstreamReply:
        """Send the call. The slot for it was taken, and is given back when this raises or when
        the reply is closed.

        Counted as failures: no connection, no answer in time, 401, 402, 5xx, garbage. A
        ``Retry-After`` pauses the model at this upstream. Errors as ``UpstreamServer.open``.
        """
        probe = self.breaker.begin()
        try:
            reply = await self.server.open(call, backend)
        except NodeError as error:
            self.slots.release()
            self._judge(error, backend.upstream_id, probe)
            raise
        except BaseException:
            self.slots.release()
            raise
        finally:
            self.breaker.end(probe)
        self._answered += 1
        self._note_answer()
        return _Held(reply, self.slots)

    def _judge(self, error: NodeError, upstream_id: str, probe: bool) -> None:
        if error.retry_after_s:
            pause_s = min(float(error.retry_after_s), MAX_PAUSE_S)
            if len(self._paused) >= _MANY:
                self._paused = {m: at for m, at in self._paused.items() if at > self._clock()}
            self._paused[upstream_id] = self._clock() + pause_s
            log.info("upstream_paused", upstream=self.name, model=upstream_id, for_s=pause_s)
        failed = isinstance(error, UpstreamFailed | UpstreamTimeout)
        if failed or isinstance(error, RateLimitExceeded):
            self._failed += 1
            self._last_error = error.private
        if not failed or isinstance(error, Refused):
            self._note_answer()
            return
        open_s = self.breaker.failed(probe)
        if open_s is not None:
            log.warning("upstream_circuit_open", upstream=self.name, for_s=open_s)

    def _note_answer(self) -> None:
        if self.breaker.answered():
            log.info("upstream_circuit_closed", upstream=self.name)


class _Held:
    """An answer that occupies a slot until it is closed."""

    __slots__ = (
        "_released",
        "_reply",
        "_slots",
        "backend",
        "content_type",
        "resumable",
        "status",
    )

    def __init__(self, reply: UpstreamReply, slots: Slots) -> None:
        self.backend = reply.backend
        self.status = reply.status
        self.content_type = reply.content_type
        self.resumable = reply.resumable
        self._reply = reply
        self._slots = slots
        self._released = False

    def chunks(self) -> AsyncIterator[bytes]:
        return self._reply.chunks()

    async def close(self) -> None:
        if not self._released:
            self._released = True
            self._slots.release()
        await self._reply.close()
