"""Where the node's time goes: a load, the node under cProfile, the dearest functions."""

from __future__ import annotations

import asyncio
import os
import pstats
import signal
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from bench.plan import Case, Scenario
from bench.profiled import THREADS_SUFFIX
from bench.rounds import Extent, run_round
from bench.world import ROOT, Wanted, World

SCENARIOS: tuple[Scenario, ...] = ("chat", "stream", "pace", "token", "nostr")
TOP = 45
_CLIENTS = 16
_WAIT_S = 0.5
"""For a signal to take effect."""

_Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Cost:
    """One function; times are those of the profiled run, which is two or three times slower."""

    where: str
    calls: float
    own_us: float
    total_us: float


async def profile(folder: Path, seconds: float, out: TextIO) -> None:
    """Profile the node under each scenario.

    The profiles stay in ``folder`` (absolute, exists), ``out`` gets text.
    """
    for scenario in SCENARIOS:
        file = folder / f"{scenario}.prof"
        measured, started = await _run(scenario, file, seconds)
        for path, what, requests in (
            (file, "the event loop", measured),
            (_threads(file), "the database's threads", started),
        ):
            costs = _read(path, requests)
            out.write(f"\n== {scenario}: {what}, {requests} requests; µs per request\n\n")
            _write_packages(out, costs)
            _write_functions(out, costs)


async def _run(scenario: Scenario, file: Path, seconds: float) -> tuple[int, int]:
    """Profile one scenario; returns how many requests each of the two profiles covers."""
    case = Case(scenario, scenario, "node", "token" if scenario == "token" else "account")
    extent = Extent(1, seconds, (_CLIENTS,), tokens_per_client=12, min_tokens=1)
    with tempfile.TemporaryDirectory(prefix="nodestr-bench-") as directory:
        wanted = Wanted((scenario,), _CLIENTS, profile=file)
        async with World(wanted, Path(directory)) as world:
            pid = world.servers["node"].pid
            warm = await run_round(world, case, _CLIENTS, Extent(1, 0.5, (_CLIENTS,), 1, 1))
            os.kill(pid, signal.SIGUSR1)
            await asyncio.sleep(_WAIT_S)
            sample = await run_round(world, case, _CLIENTS, extent)
            os.kill(pid, signal.SIGUSR2)
            await asyncio.sleep(_WAIT_S)
    # what a round does to warm up, and what ends after its window, is in the profile too
    unseen = 0 if scenario == "token" else 2 * _CLIENTS
    measured = sample.outcome.requests + unseen
    return measured, measured + warm.outcome.requests + unseen


def _threads(file: Path) -> Path:
    return file.with_name(file.name + THREADS_SUFFIX)


def _read(file: Path, requests: int) -> list[Cost]:
    stats = cast("Any", pstats.Stats(str(file))).stats
    costs = []
    for key, (_, calls, own_s, total_s, _) in stats.items():
        scale = 1e6 / requests
        costs.append(Cost(_name(key), calls / requests, own_s * scale, total_s * scale))
    return costs


def _name(key: _Key) -> str:
    file, line, function = key
    if file == "~":
        return function
    for base, name in ((str(ROOT) + "/", ""), ("site-packages/", ""), ("python3.11/", "")):
        if base in file:
            file = name + file.split(base, 1)[1]
    return f"{file}:{line} {function}"


def _package(cost: Cost) -> str:
    where = cost.where
    if where.startswith(("{", "<")):
        for name in ("sqlite3", "aiohttp", "_asyncio", "posix", "re.Pattern", "SimpleQueue"):
            if name in where:
                return f"built in: {name}"
        return "built in: others"
    parts = where.split(":")[0].split("/")
    return "/".join(parts[:2]) if parts[0] == "node" else parts[0].removesuffix(".py")


def _write_packages(out: TextIO, costs: Iterable[Cost]) -> None:
    sums: dict[str, float] = defaultdict(float)
    for cost in costs:
        sums[_package(cost)] += cost.own_us
    ranked = sorted(sums.items(), key=lambda item: -item[1])[:20]
    out.write(f"{'own µs':>10}  package\n")
    out.writelines(f"{own:10.1f}  {name}\n" for name, own in ranked)


def _write_functions(out: TextIO, costs: list[Cost]) -> None:
    for title, ranked in (
        ("own time", sorted(costs, key=lambda cost: -cost.own_us)),
        ("with callees", sorted(costs, key=lambda cost: -cost.total_us)),
    ):
        out.write(f"\n{'own µs':>10}{'total µs':>10}{'calls':>8}  by {title}\n")
        out.writelines(
            f"{cost.own_us:10.1f}{cost.total_us:10.1f}{cost.calls:8.1f}  {cost.where}\n"
            for cost in ranked[:TOP]
        )
