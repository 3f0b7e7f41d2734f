"""Promise: mixed operations with faults and kills, and requests over bad lines, lose no sat.

Small ones, with other dice each day. ``make soak`` runs thousands of operations (docs/testing.md).
"""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from node.demo.mint import EmbeddedMint
from tests.soak.nostr import NostrPlan, soak_nostr
from tests.soak.run import Plan, soak


@pytest.mark.timeout(300)  # for a machine that is very busy; it takes about ten seconds
async def test_a_short_soak_ends_with_the_equation(
    mint: EmbeddedMint, fee_mint: EmbeddedMint, tmp_path: Path
) -> None:
    seed = datetime.datetime.now(tz=datetime.UTC).toordinal()
    plan = Plan(seed, operations=60, seconds=4.0, actors=4, alive_s=2.0)
    outcome = await soak(plan, tmp_path, (mint, fee_mint))
    print(outcome.text())
    assert outcome.problems == []
    assert outcome.operations
    assert outcome.sums["put in"]


@pytest.mark.timeout(300)
async def test_requests_over_two_lossy_relays_run_once_and_bring_their_change(
    mint: EmbeddedMint, tmp_path: Path
) -> None:
    seed = datetime.datetime.now(tz=datetime.UTC).toordinal()
    plan = NostrPlan(seed, requests=12, clients=2, max_bytes=60_000)
    outcome = await soak_nostr(plan, tmp_path, mint)
    print(outcome.text())
    assert outcome.problems == []
    assert outcome.answered == 12
    assert all(line["lost"] for line in outcome.lines.values())


@pytest.mark.timeout(300)
async def test_requests_while_node_and_relays_are_killed_cost_once_and_bring_their_change(
    mint: EmbeddedMint, tmp_path: Path
) -> None:
    seed = datetime.datetime.now(tz=datetime.UTC).toordinal()
    plan = NostrPlan(seed, requests=24, loss=0.0, clients=3, max_bytes=60_000, kills=3)
    outcome = await soak_nostr(plan, tmp_path, mint)
    print(outcome.text())
    assert outcome.problems == []
    assert outcome.answered == 24
    assert set(outcome.kills) == {"node", "relay 0", "relay 1"}
