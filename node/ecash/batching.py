"""Swaps of one mint, few at a time; those that wait meanwhile go together in one request.

A mint swaps eight tokens at once in less than half the time of eight requests. A batch is only a
way to send: every operation keeps its own inputs, outputs and journal entry, and an unknown outcome
is resolved for each by itself.

| answer to a batch | outcome                                                             |
|-------------------|---------------------------------------------------------------------|
| signatures        | each operation gets those over its outputs                          |
| refused           | halved and sent again, until the refusal is of one operation alone  |
| unknown, offline  | unknown, offline for each                                           |
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from node.core.ecash import BlindedMessage, BlindSignature, Proof
from node.core.money import ceil_div
from node.ecash.mint import MintClient, MintError, MintOffline, MintRejected, swap_body

MAX_IN_FLIGHT = 2
"""Requests to a mint at a time; it does them one after the other anyway."""
MAX_BATCH_INPUTS = 100
"""Coins in one request; mints bound it."""
MAX_WAIT_S = 15.0
"""How long a swap waits for its turn; then it is given up, and was never sent."""


@dataclass(slots=True, eq=False)
class _Job:
    inputs: Sequence[Proof]
    outputs: Sequence[BlindedMessage]
    fee_ppk: int
    alone: bool
    done: asyncio.Future[list[BlindSignature]]


class SwapQueue:
    """The way of swaps to one mint."""

    def __init__(self, client: MintClient, *, max_wait_s: float = MAX_WAIT_S) -> None:
        self._client = client
        self._max_wait_s = max_wait_s
        self._waiting: deque[_Job] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def swap(
        self,
        inputs: Sequence[Proof],
        outputs: Sequence[BlindedMessage],
        *,
        fee_ppk: int,
        alone: bool,
    ) -> list[BlindSignature]:
        """``POST /v1/swap``; signatures in the order of ``outputs``.

        Args:
            fee_ppk: sum of the inputs' ``input_fee_ppk``.
            alone: never together with others, so that a replay sends the same bytes.

        Raises what ``MintClient.swap`` raises, MintOffline when its turn does not come.
        """
        loop = asyncio.get_running_loop()
        job = _Job(inputs, outputs, fee_ppk, alone, loop.create_future())
        self._waiting.append(job)
        self._pump()
        timer = loop.call_later(self._max_wait_s, self._give_up, job)
        try:
            return await job.done
        finally:
            timer.cancel()

    def _give_up(self, job: _Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
            _fail([job], MintOffline("too many swaps wait for this mint"))

    def _pump(self) -> None:
        while self._waiting and len(self._running) < MAX_IN_FLIGHT:
            task = asyncio.create_task(self._send(self._next_batch()))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._pump()

    def _next_batch(self) -> list[_Job]:
        batch = [self._waiting.popleft()]
        size, ppk = len(batch[0].inputs), batch[0].fee_ppk
        while self._waiting and not batch[0].alone:
            job = self._waiting[0]
            # The mint wants the fee of the whole to the sat; rounding must not lower it.
            exact = ceil_div(ppk + job.fee_ppk, 1000) == ceil_div(ppk, 1000) + ceil_div(
                job.fee_ppk, 1000
            )
            if job.alone or size + len(job.inputs) > MAX_BATCH_INPUTS or not exact:
                break
            batch.append(self._waiting.popleft())
            size, ppk = size + len(job.inputs), ppk + job.fee_ppk
        return batch

    async def _send(self, batch: Sequence[_Job]) -> None:
        order = sorted(
            ((job, index) for job in batch for index in range(len(job.outputs))),
            key=lambda place: place[0].outputs[place[1]].amount,
        )
        body = swap_body(
            [proof for job in batch for proof in job.inputs],
            [job.outputs[index] for job, index in order],
        )
        try:
            signatures = await self._client.swap(body)
        except MintRejected as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._send(batch[:middle])
                await self._send(batch[middle:])
                return
            _fail(batch, error)
            return
        except MintError as error:
            _fail(batch, error)
            return
        except BaseException as error:
            _fail(batch, error)
            raise
        by_job: dict[int, list[tuple[int, BlindSignature]]] = {id(job): [] for job in batch}
        for (job, index), signature in zip(order, signatures, strict=True):
            by_job[id(job)].append((index, signature))
        for job in batch:
            if not job.done.done():
                found = sorted(by_job[id(job)], key=lambda pair: pair[0])
                job.done.set_result([signature for _, signature in found])


def _fail(batch: Sequence[_Job], error: BaseException) -> None:
    for job in batch:
        if not job.done.done():
            job.done.set_exception(error)
