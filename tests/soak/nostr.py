"""Requests over two bad lines to two relays: ``python -m tests.soak.nostr``, see docs/testing.md.

Each request must run once, be charged once at the published price, be answered to the last byte,
and bring its change. At the end what the mint issued is held by the clients and the node. With
``--kills`` node and relays are killed meanwhile; then a request may run again, but costs once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from node.client.nostr import ClientReply, NostrClient, Patience, ReplyError
from node.core.money import MSAT_PER_SAT, Msat
from node.core.pricing import Price
from node.demo.mint import EmbeddedMint
from node.demo.nodes import DemoNode, Offer, Surroundings
from node.demo.purse import Purse
from node.ledger.books import Books, read_books
from tests.fakes.relay_proxy import Line, RelayProxy, relay_proxy
from tests.fakes.relays import mortal_relay, sloppy_relay
from tests.soak.mortality import Mortality
from tests.soak.node import SOURCE
from tests.soak.sized import SizedServer, expected_answer, usage_of

OFFER = Offer(
    "sized",
    Price(Msat(1_000), Msat(1_000), Msat(1_500)),
    context_length=2_000_000,
    max_output_tokens=300_000,
    endpoints=("chat",),
)
TOKEN_SAT = 5
"""Pays for the dearest request and leaves change."""
_ASK_AGAIN = (425, 429, 503)
_MAX_PAUSE_S = 5.0
PATIENCE = Patience(gap_s=0.5, max_gap_s=4.0, idle_s=4.0, max_idle_s=16.0)


@dataclass(frozen=True, slots=True)
class NostrPlan:
    """How much of it, over which lines."""

    seed: int
    requests: int = 1000
    loss: float = 0.15
    """Share of frames lost per relay and direction."""
    clients: int = 4
    parallel: int = 2
    """Requests of one client at the same time."""
    max_bytes: int = 1_000_000
    """Of a prompt and of an answer; sizes are spread evenly over their logarithm."""
    timeout_s: float = 240.0
    """For one request."""
    kills: int = 0
    """Of node and relays, about one a second."""


@dataclass
class NostrOutcome:
    """``problems`` is empty when all went as promised."""

    plan: NostrPlan
    answered: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    lines: dict[str, dict[str, int]] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)
    waits_s: list[float] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        """For people."""
        waits = sorted(self.waits_s) or [0.0]
        at = {share: waits[min(len(waits) - 1, int(share * len(waits)))] for share in (0.5, 0.95)}
        lines = [
            f"seed {self.plan.seed}: {self.answered} of {self.plan.requests} requests answered"
            f" in {self.seconds:.0f} s at {self.plan.loss:.0%} loss per relay",
            f"waits       median {at[0.5]:.1f} s, 95 % {at[0.95]:.1f} s, most {waits[-1]:.1f} s",
            f"ways        {dict(self.ways)}",
            *(f"line        {name}: {met}" for name, met in self.lines.items()),
            f"kills       {dict(self.kills)}",
            f"money       {self.sums}",
            *(f"PROBLEM     {problem}" for problem in self.problems),
            f"{len(self.problems)} problems" if self.problems else "each ran once, paid once",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Job:
    """One request."""

    name: str
    prompt: str
    length: int
    stream: bool
    by_token: bool

    @property
    def body(self) -> bytes:
        document: dict[str, Any] = {
            "model": OFFER.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "stream": self.stream,
            "user": f"{self.name}:{self.length}",
        }
        return json.dumps(document).encode()

    @property
    def cost(self) -> int:
        """Msat, by docs/protocol.md."""
        usage, price = usage_of(self.prompt, self.length), OFFER.price
        tokens = usage["prompt_tokens"] * price.input_per_mtok
        tokens += usage["completion_tokens"] * price.output_per_mtok
        return -(-(tokens + 1_000_000 * price.per_request) // 1_000_000)


class TwoRelayNode(DemoNode):
    """A node on two relays."""

    def __init__(self, relays: list[str], mint: str, upstream: str, directory: Path) -> None:
        self._relays = relays
        super().__init__("node", OFFER, Surroundings(mint, relays[0], upstream), directory)

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"PYTHONPATH": str(SOURCE)}

    def _config(self, key_file: Path) -> str:
        text = super()._config(key_file)
        one = f"relays = {json.dumps([self._relays[0]])}"
        assert text.count(one) == 1
        return text.replace(one, f"relays = {json.dumps(self._relays)}")


@dataclass
class _Run:
    plan: NostrPlan
    outcome: NostrOutcome
    node: TwoRelayNode
    upstream: SizedServer
    purse: Purse
    jobs: list[Job]
    costs: Counter[str] = field(default_factory=Counter)
    """Msat that each account was charged, as the answers said."""


async def soak_nostr(
    plan: NostrPlan, directory: Path, mint: EmbeddedMint | None = None
) -> NostrOutcome:
    """Run it in ``directory``, at a mint of its own unless given one."""
    outcome = NostrOutcome(plan)
    async with AsyncExitStack() as stack:
        mint = mint or stack.enter_context(EmbeddedMint(directory / "mint"))
        strict = await stack.enter_async_context(mortal_relay())
        mortal = [strict]
        if plan.kills:
            mortal.append(await stack.enter_async_context(mortal_relay()))
            second = mortal[-1].url
        else:
            (directory / "relay").mkdir(parents=True)
            second = (await stack.enter_async_context(sloppy_relay(directory / "relay"))).url
        lines: list[RelayProxy] = []
        for number, target in enumerate((strict.url, second)):
            proxy = relay_proxy(target, seed=plan.seed + number)
            lines.append(await stack.enter_async_context(proxy))
        upstream = await stack.enter_async_context(SizedServer())
        urls = [line.url for line in lines]
        node = TwoRelayNode(urls, mint.url, upstream.url, directory / "node")
        await stack.enter_async_context(node)
        purse = await stack.enter_async_context(Purse(mint.url))
        for line in lines:
            line.line = Line(lose=plan.loss)
        run = _Run(plan, outcome, node, upstream, purse, _jobs(plan))
        started = time.monotonic()
        mortality = Mortality(node, mortal, random.Random(plan.seed), count=plan.kills)
        outcome.kills = mortality.kills
        async with asyncio.TaskGroup() as group:
            group.create_task(mortality.run())
            for number in range(plan.clients):
                group.create_task(_act(run, urls, number))
        outcome.seconds = time.monotonic() - started
        names = ("one", "other") if plan.kills else ("strict", "sloppy")
        outcome.lines = {name: dict(line.met) for name, line in zip(names, lines, strict=True)}
        await _settle(run)
    return outcome


def _jobs(plan: NostrPlan) -> list[Job]:
    dice = random.Random(plan.seed)

    def size() -> int:
        return round(math.exp(dice.uniform(0, math.log(plan.max_bytes))))

    sizes = [(size(), size()) for _ in range(plan.requests)]
    # The ends of the scale, by each way of answering and paying, before anything is left to dice.
    corners = [(1, 1), (plan.max_bytes, 1), (1, plan.max_bytes), (plan.max_bytes, plan.max_bytes)]
    sizes[: len(corners)] = corners[: len(sizes)]
    jobs = []
    for number, (asked, answered) in enumerate(sizes):
        letters = "".join(dice.choices("abcdefgh ijklmnop", k=min(asked, 997)))
        prompt = (letters * (1 + asked // len(letters)))[:asked]
        stream, by_token = dice.random() < 0.5, dice.random() < 0.5
        jobs.append(Job(f"n{number}", prompt, answered, stream, by_token))
    return jobs


async def _act(run: _Run, urls: list[str], number: int) -> None:
    """One client: its share of the jobs, some at a time, then its account."""
    mine = run.jobs[number :: run.plan.clients]
    async with NostrClient(urls, patience=PATIENCE) as client:
        funded = TOKEN_SAT * (1 + sum(not job.by_token for job in mine))
        made = await _answered(
            run,
            client,
            "POST",
            "/v1/wallet/create",
            {"content-type": "application/json"},
            json.dumps({"cashu_token": await run.purse.fund(funded)}).encode(),
        )
        if made.status != 200:
            run.outcome.problems.append(f"account {number}: {made.status} {made.body!r}")
            return
        key = str(made.json()["api_key"])
        queue = iter(mine)

        async def work() -> None:
            for job in queue:
                await _ask(run, client, key, job)

        await asyncio.gather(*(work() for _ in range(run.plan.parallel)))
        bearer = {"authorization": f"Bearer {key}"}
        answer = await _answered(run, client, "GET", "/v1/balance/info", bearer)
        left = int(answer.json()["balance"])
        if left != funded * MSAT_PER_SAT - run.costs[key]:
            run.outcome.problems.append(f"account {number} has {left}, charged {run.costs[key]}")
        answer = await _answered(run, client, "POST", "/v1/balance/refund", bearer)
        got = await run.purse.receive(answer.json()["token"])
        if got != left // MSAT_PER_SAT:
            run.outcome.problems.append(f"account {number} was refunded {got} sat of {left} msat")


async def _ask(run: _Run, client: NostrClient, key: str, job: Job) -> None:
    outcome = run.outcome
    headers = {"content-type": "application/json"}
    if job.by_token:
        headers["x-cashu"] = await run.purse.fund(TOKEN_SAT)
        if job.stream:
            headers["accept"] = "text/event-stream"
    else:
        headers["authorization"] = f"Bearer {key}"
    started = time.monotonic()
    try:
        reply = await _answered(run, client, "POST", "/v1/chat/completions", headers, job.body)
    except ReplyError as error:
        outcome.problems.append(f"{job.name}: {type(error).__name__} {error}")
        return
    outcome.waits_s.append(time.monotonic() - started)
    outcome.ways["streamed" if job.stream else "whole"] += 1
    outcome.ways["by token" if job.by_token else "by key"] += 1
    problems = [f"{job.name}: {text}" for text in _faults_of(reply, job)]
    if job.by_token and reply.status == 200:
        change = (TOKEN_SAT * MSAT_PER_SAT - job.cost) // MSAT_PER_SAT
        got = await run.purse.receive(reply.change) if reply.change else 0
        if got != change:
            problems.append(f"{job.name}: {got} sat of change instead of {change}")
    elif reply.status == 200:
        run.costs[key] += int(reply.trailers["x-cost-msat"])
    outcome.problems += problems
    outcome.answered += not problems


async def _answered(
    run: _Run,
    client: NostrClient,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes = b"",
) -> ClientReply:
    """Ask, and again under the same id for as long as the node says so."""
    message_id = secrets.token_hex(16)
    deadline = time.monotonic() + run.plan.timeout_s
    while True:
        reply = await client.request(
            run.node.keys.npub,
            method,
            path,
            headers=headers,
            body=body,
            timeout_s=run.plan.timeout_s,
            message_id=message_id,
        )
        if reply.status not in _ASK_AGAIN or time.monotonic() > deadline:
            return reply
        run.outcome.ways[f"asked again after {reply.status}"] += 1
        await asyncio.sleep(min(float(reply.headers.get("retry-after", "1")), _MAX_PAUSE_S))


def _faults_of(reply: ClientReply, job: Job) -> list[str]:
    """What is wrong with the answer itself."""
    if reply.status != 200:
        return [f"{reply.status} {reply.body[:200]!r}"]
    if job.stream:
        events = [line[6:] for line in reply.body.decode().splitlines() if line]
        if not events or events[-1] != "[DONE]":
            return ["the stream has no end"]
        choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
    else:
        text = reply.json()["choices"][0]["message"]["content"]
    faults = []
    if text != expected_answer(job.name, job.prompt, job.length):
        faults.append("another answer")
    if reply.trailers.get("x-cost-msat") != str(job.cost):
        faults.append(f"cost {reply.trailers.get('x-cost-msat')} instead of {job.cost}")
    return faults


async def _settle(run: _Run) -> None:
    """The equation, once nothing is under way."""
    outcome, problems = run.outcome, run.outcome.problems
    problems += [
        f"{job.name} ran {times} times"
        for job in run.jobs
        if (times := run.upstream.executed[job.name]) != 1
        and not (run.plan.kills and times)  # who is killed while it runs runs it again
    ]
    books = await _quiet_books(run.node)
    problems += books.problems()
    by_token = sum(job.by_token for job in run.jobs)
    by_key = len(run.jobs) - by_token
    funded = TOKEN_SAT * (by_token + by_key + run.plan.clients)
    node_sat, rest = divmod(books.proofs_msat, MSAT_PER_SAT)
    costs = sum(job.cost for job in run.jobs)
    outcome.sums = {
        "put in (sat)": funded,
        "clients (sat)": run.purse.balance,
        "node (sat)": node_sat,
        "earned (msat)": books.revenue_msat,
        "prices (msat)": costs,
    }
    if rest or funded != run.purse.balance + node_sat:
        problems.append("clients and node do not hold what was put in")
    if books.revenue_msat < costs or books.revenue_msat > costs + MSAT_PER_SAT * len(run.jobs):
        problems.append("the node did not earn the prices and the dust of the change")
    url = f"{run.node.url}/health/ready"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        if response.status != 200:
            problems.append("the node is not well")


async def _quiet_books(node: DemoNode, timeout_s: float = 60.0) -> Books:
    async with asyncio.timeout(timeout_s):
        while (books := read_books(node.database)).operations_open or books.holds_open:
            await asyncio.sleep(0.1)
    return books


def main() -> int:
    """0 when every request was answered once, charged once, and no sat is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.nostr", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of all dice; random by default")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--loss", type=float, default=0.15, help="of frames, per relay")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--max-bytes", type=int, default=1_000_000, help="of prompt and answer")
    parser.add_argument(
        "--kills", type=int, default=0, help="of node and relays, about one a second"
    )
    parser.add_argument("--keep", type=Path, default=None, help="directory to run in and keep")
    asked = parser.parse_args()
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    plan = NostrPlan(
        seed,
        asked.requests,
        asked.loss,
        clients=asked.clients,
        max_bytes=asked.max_bytes,
        kills=asked.kills,
    )
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="nodestr-soak-") as directory:
        outcome = asyncio.run(soak_nostr(plan, asked.keep or Path(directory)))
    print(outcome.text())
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
