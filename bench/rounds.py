"""Runs the rounds: short ones, again and again over all cases, so that noise hits all alike."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench import plan
from bench.plan import Case
from bench.process import CpuTime, cpu_time
from bench.wire import Job, Outcome, read_outcome
from bench.world import ROOT, World
from node.demo.client import bearer

ROUND_TIMEOUT_S = 300.0
_PATH = "/v1/chat/completions"
_MAX_LINE_BYTES = 1 << 26
_SPREAD_S = plan.PACED_INTERVAL_MS / 1000
_STREAM_CHANGE = {"x-cashu-change": "event"}


class RoundError(Exception):
    """A generator ended without an outcome: an answer was wrong, or none came."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one case."""

    case: Case
    clients: int
    outcome: Outcome
    cpu: CpuTime
    """Of the server, within the window."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How long and how often."""

    rounds: int
    seconds: float
    clients: tuple[int, ...]
    tokens_per_client: int
    min_tokens: int
    """Of a round with few clients."""


async def run_rounds(
    world: World, cases: Sequence[Case], extent: Extent, progress: Callable[[str], None]
) -> list[Sample]:
    """All rounds of all cases. Raises RoundError.

    ``progress`` is told what runs now.
    """
    samples = []
    for number in range(extent.rounds):
        for scenario in dict.fromkeys(case.scenario for case in cases):
            for clients in extent.clients:
                for case in cases:
                    if case.scenario != scenario or clients > (case.max_clients or clients):
                        continue
                    progress(
                        f"round {number + 1} of {extent.rounds}: {scenario}, {clients} clients,"
                        f" {case.title}"
                    )
                    samples.append(await run_round(world, case, clients, extent))
    return samples


async def run_round(world: World, case: Case, clients: int, extent: Extent) -> Sample:
    """One round. Raises RoundError."""
    headers = await _headers(world, case, clients, extent)
    server = world.servers[case.server]
    over_nostr = case.scenario == "nostr"
    job = Job(
        url=world.relay_url if over_nostr else server.url + _PATH,
        clients=clients,
        seconds=extent.seconds,
        body=plan.body(case.scenario),
        headers=tuple(headers),
        expect=plan.expectation(case),
        once=case.payment == "token",
        spread_s=_SPREAD_S if case.scenario in ("pace", "inference") else 0.0,
        npub=world.npub,
    )
    outcome, cpu = await _generate("nostr_load" if over_nostr else "load", job, server.pid)
    return Sample(case, clients, outcome, cpu)


async def _headers(
    world: World, case: Case, clients: int, extent: Extent
) -> Iterable[Mapping[str, str]]:
    match case.payment:
        case "none":
            return [{}]
        case "account":
            return [bearer(key) for key in world.keys]
        case "token":
            count = max(clients * extent.tokens_per_client, extent.min_tokens)
            more = _STREAM_CHANGE if case.scenario == "inference" else {}
            tokens = await world.tokens(case.server, count)
            return [{"x-cashu": token, **more} for token in tokens]


async def _generate(module: str, job: Job, pid: int) -> tuple[Outcome, CpuTime]:
    """Run a generator; its outcome and the CPU time that process ``pid`` used meanwhile."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"bench.{module}",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_MAX_LINE_BYTES,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(ROUND_TIMEOUT_S):
            process.stdin.write(job.encode())
            began = await process.stdout.readline()
            before = cpu_time(pid)
            ended = await process.stdout.readline()
            after = cpu_time(pid)
            last, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if (began, ended) != (b"begin\n", b"end\n") or process.returncode != 0:
        said = errors.decode(errors="replace")[-2000:] or f"{began!r} {ended!r}"
        raise RoundError(f"{module} ended with {process.returncode}: {said}")
    return read_outcome(last), after - before
