"""The load generator for the Nostr carriage: ``python -m bench.nostr_load``. See ``wire``.

Each client is a sender of its own. Sealing and opening messages costs a client as much as it costs
the node, so that here the generator is as busy as what it measures.
"""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import AsyncExitStack

import uvloop

from bench.load import ANSWER_TIMEOUT_S, WrongAnswerError
from bench.wire import Job, Outcome, answer, read_job, say
from node.client.nostr import NostrClient
from node.ops import logging

PATH = "/v1/chat/completions"


async def run(job: Job) -> Outcome:
    """Warm up, measure, let what is under way end. Raises WrongAnswerError."""
    body = job.body.encode()
    latency_us: list[int] = []
    measuring = False
    answered = asyncio.Event()

    async def ask(client: NostrClient, number: int) -> None:
        headers = {"content-type": "application/json", **job.headers[number % len(job.headers)]}
        began = time.monotonic()
        reply = await client.request(
            job.npub, "POST", PATH, headers=headers, body=body, timeout_s=ANSWER_TIMEOUT_S
        )
        if reply.status != 200 or any(t.encode() not in reply.body for t in job.expect.contains):
            raise WrongAnswerError(f"status {reply.status}: {reply.body[:300]!r}")
        if measuring:
            latency_us.append(int((time.monotonic() - began) * 1e6))
            answered.set()

    async def go_on(client: NostrClient, number: int) -> None:
        while measuring:
            await ask(client, number)

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(NostrClient([job.url], take_stored=False))
            for _ in range(job.clients)
        ]
        async with asyncio.TaskGroup() as warm_up:
            for number, client in enumerate(clients):
                warm_up.create_task(ask(client, number))
        measuring = True
        before = resource.getrusage(resource.RUSAGE_SELF)
        say("begin")
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(clients):
                group.create_task(go_on(client, number))
            await asyncio.sleep(job.seconds)
            await answered.wait()
            measuring = False
            seconds = time.monotonic() - began
            say("end")
        after = resource.getrusage(resource.RUSAGE_SELF)
    return Outcome(
        seconds=seconds,
        requests=len(latency_us),
        events=0,
        cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        latency_us=tuple(latency_us),
        first_us=(),
        transit_us=(),
    )


async def main() -> None:
    """Do the one job that standard input holds."""
    logging.configure("error")  # standard output is for the answer
    answer(await run(read_job()))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
