"""Promise: the benchmark measures all it names, believes no wrong answer, and writes JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench import plan
from bench.wire import Expectation, Job, Outcome, read_outcome
from bench.world import ROOT, Program
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.process import free_port


async def bench(*arguments: str) -> tuple[int, str]:
    """Exit code and everything it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_smallest_run_measures_and_judges(mint: EmbeddedMint, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    groups = ("chat", "token", "nostr")
    code, said = await bench(
        *("--quick", "--seconds", "0.1", "--clients", "1", "--mint", mint.url),
        *(word for group in groups for word in ("--only", group)),
        *("--json", str(file), "--directory", str(tmp_path)),
    )
    assert code == 0, said
    assert "bare aiohttp proxy" in said
    run = json.loads(file.read_text())
    measured = {(result["scenario"], result["server"]) for result in run["results"]}
    assert measured == {
        *(("chat", server) for server in ("stub", "proxy", "node")),
        *(("inference", server) for server in ("stub", "node-fast")),
        ("token", "node-fast"),
        ("nostr", "node"),
    }
    assert all(result["per_s"] > 0 and result["p50_ms"] > 0 for result in run["results"])
    assert run["rss_after_load_bytes"] > 0
    judged = {verdict["name"]: verdict["met"] for verdict in run["targets"]}
    assert judged["memory (RSS) after load"] is not None
    assert judged["paid chat, 64 clients, of the bare proxy's requests/s"] is None
    assert run["machine"]["cores"] > 0


async def test_a_run_that_cannot_begin_says_why(tmp_path: Path) -> None:
    code, said = await bench("--directory", str(tmp_path / "nowhere"))
    assert code == 1
    assert "the benchmark failed: [Errno 2]" in said
    assert "Traceback" not in said


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[str]:
    """Where the benchmark's model server takes chats."""
    port = free_port()
    program = Program("stub", ["-m", "bench.stub", str(port)], tmp_path, port)
    await program.start()
    try:
        yield program.url + "/v1/chat/completions"
    finally:
        await program.stop()


async def load(job: Job) -> tuple[Outcome | None, str]:
    """The generator's outcome, and what it complained of."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(job.encode()), 60)
    done = process.returncode == 0
    return read_outcome(output.splitlines()[-1]) if done else None, errors.decode()


@pytest.mark.parametrize("scenario", ["chat", "stream", "pace", "inference"])
async def test_every_right_answer_is_counted(stub: str, scenario: plan.Scenario) -> None:
    expect = plan.expectation(plan.Case("chat", scenario, "stub"))
    outcome, complaint = await load(Job(stub, 2, 0.05, plan.body(scenario), ({},), expect))
    assert outcome is not None, complaint
    assert outcome.requests == len(outcome.latency_us) > 0
    assert outcome.events >= expect.events
    assert bool(outcome.transit_us) is expect.stamped


@pytest.mark.parametrize(
    ("scenario", "expect", "problem"),
    [
        ("chat", Expectation(("no model says this",)), "a wrong body"),
        ("chat", Expectation(events=5), "a stream without an end"),
        ("stream", Expectation(events=5), "events instead of 5"),
    ],
)
async def test_a_wrong_answer_ends_the_round(
    stub: str, scenario: plan.Scenario, expect: Expectation, problem: str
) -> None:
    outcome, complaint = await load(Job(stub, 2, 0.05, plan.body(scenario), ({},), expect))
    assert outcome is None
    assert problem in complaint


async def test_a_status_other_than_200_ends_the_round() -> None:
    async with ModelServer() as server:
        job = Job(server.url + "/nowhere", 1, 0.05, plan.body("chat"), ({},))
        outcome, complaint = await load(job)
    assert outcome is None
    assert "status b'404'" in complaint


async def test_parts_are_measured_without_starting_anything() -> None:
    code, said = await bench("--parts", "--seconds", "0.05")
    assert code == 0, said
    costs = [float(line.split()[0]) for line in said.splitlines()]
    assert len(costs) >= 5
    assert min(costs) > 0


async def test_an_unknown_group_is_refused() -> None:
    code, said = await bench("--only", "everything")
    assert code == 2
    assert "invalid choice" in said
