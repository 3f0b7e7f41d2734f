"""Promise: killed at any await of any operation and restarted, the node loses and makes no sat.

``make test`` samples the moments, a different sample each day; ``make soak`` takes all of them.
"""

from __future__ import annotations

import datetime
import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
from node.ecash.token import parse_token
from tests.integration.kill_scenarios import KILLED
from tests.integration.zygote import Zygote, zygote_of

ALL = os.environ.get("NODESTR_SOAK") == "1"
SAMPLES = 10


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    async with zygote_of("tests.integration.kill_scenarios") as running:
        yield running


async def one_kill(
    zygote: Zygote, purse: Purse, mint_url: str, scenario: str, step: int, directory: Path
) -> None:
    """Kill at ``step``, start again, and prove that nothing is missing."""
    directory.mkdir()
    tokens = [await purse.fund(20), await purse.fund(33)]
    task = {
        "scenario": scenario,
        "step": step,
        "directory": str(directory),
        "mint": mint_url,
        "tokens": tokens,
    }
    code, _ = await zygote.run(task)
    assert code in (0, KILLED), f"step {step}"
    code, output = await zygote.run({**task, "step": 0})
    assert code == 0, f"step {step}"
    after = json.loads(output)
    assert after["problems"] == [], f"step {step}"
    assert (after["left_open"], after["open_msat"] < 1000) == (0, True), f"step {step}"
    seen = [token for token in tokens if token not in after["unseen"]]
    assert after["received_msat"] == 1000 * sum(parse_token(token).amount for token in seen)
    got = (directory / "got").read_text().split() if (directory / "got").exists() else []
    unique = set(got)
    issued = sum(parse_token(token).amount for token in unique)
    assert issued * 1000 == after["issued_msat"], f"step {step}: a token reached nobody"
    for token in [*unique, *after["unseen"]]:
        await purse.receive(token)
    if after["coins"]:
        assert set(await purse.mint.check_state(after["coins"])) == {"UNSPENT"}, f"step {step}"


@pytest.mark.timeout(3600 if ALL else 240)
@pytest.mark.parametrize("scenario", ["pay", "live", "refill"])
@pytest.mark.parametrize("fees", [False, True])
async def test_killed_anywhere_nothing_is_lost(
    scenario: str,
    fees: bool,
    mint: EmbeddedMint,
    fee_mint: EmbeddedMint,
    zygote: Zygote,
    tmp_path: Path,
) -> None:
    url = (fee_mint if fees else mint).url
    async with Purse(url) as purse:
        last = await _length(zygote, purse, url, scenario, tmp_path / "length")
        steps = list(range(1, last + 1))
        if not ALL:
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            steps = sorted(random.Random(f"{today} {scenario} {fees}").sample(steps, SAMPLES))
        for step in steps:
            await one_kill(zygote, purse, url, scenario, step, tmp_path / str(step))


async def _length(zygote: Zygote, purse: Purse, url: str, scenario: str, directory: Path) -> int:
    """About how many resumptions the whole journey takes."""
    low, high = 1, 4096
    while high - low > 16:
        middle = (low + high) // 2
        folder = directory / str(middle)
        folder.mkdir(parents=True)
        task = {
            "scenario": scenario,
            "step": middle,
            "directory": str(folder),
            "mint": url,
            "tokens": [await purse.fund(20), await purse.fund(33)],
        }
        code, _ = await zygote.run(task)
        if code == KILLED:
            low = middle
        else:
            assert code == 0
            high = middle
    return low
