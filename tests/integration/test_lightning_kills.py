"""Promise: killed at any await of an invoice, payout or refund, a node loses nothing, pays once.

``make test`` samples the moments, a different sample each day; ``make soak`` takes all of them.
"""

from __future__ import annotations

import datetime
import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
from tests.integration.kill_scenarios import KILLED
from tests.integration.zygote import Zygote, zygote_of

ALL = os.environ.get("NODESTR_SOAK") == "1"
SAMPLES = 12
REFUND = 80
"""Sat of the refund's invoice: what the client has left, less what Lightning may cost."""


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    async with zygote_of("tests.integration.lightning_kills") as running:
        yield running


@pytest.mark.timeout(3600 if ALL else 240)
@pytest.mark.parametrize("fees", [False, True])
async def test_killed_anywhere_an_invoice_is_credited_and_a_payout_and_a_refund_are_paid_once(
    fees: bool, mint: EmbeddedMint, fee_mint: EmbeddedMint, zygote: Zygote, tmp_path: Path
) -> None:
    own, other = (fee_mint, mint) if fees else (mint, fee_mint)
    outcomes = set()
    async with Purse(own.url) as purse, Purse(other.url) as payee:

        async def task(step: int, name: str) -> dict[str, Any]:
            directory = tmp_path / name
            directory.mkdir()
            bolt11s = [(await payee.mint.mint_quote(n, "sat")).request for n in (100, REFUND)]
            return {"step": step, "directory": str(directory), "mint": own.url, "tokens": bolt11s}

        low, high = 1, 2048  # about how many resumptions the whole journey takes
        while high - low > 8:
            middle = (low + high) // 2
            code, _ = await zygote.run(await task(middle, f"length-{middle}"))
            assert code in (0, KILLED)
            low, high = (middle, high) if code == KILLED else (low, middle)
        whole = await task(1 << 30, "whole")
        assert (await zygote.run(whole))[0] == 0
        after = json.loads((await zygote.run({**whole, "step": 0}))[1])
        assert (after["payouts_msat"], after["issued_msat"]) == (100_000, REFUND * 1000)
        steps = list(range(1, low + 1))
        if not ALL:
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            steps = sorted(random.Random(f"{today} lightning {fees}").sample(steps, SAMPLES))
        for step in steps:
            killed = await task(step, str(step))
            code, _ = await zygote.run(killed)
            assert code in (0, KILLED), step
            code, output = await zygote.run({**killed, "step": 0})
            assert code == 0, step
            after = json.loads(output)
            assert (after["problems"], after["left_open"]) == ([], 0), step
            assert after["transit_msat"] == 0, step
            if after["status"]:
                assert (after["status"], after["received_msat"]) == ("paid", 300_000), step
            assert after["payouts_msat"] in (0, 100_000), step
            assert after["issued_msat"] in (0, REFUND * 1000), step
            assert after["lost_msat"] == 0, step
            if after["status"]:  # the rest of the client's money is on the account
                kept = 100_000 if after["payouts_msat"] or after["issued_msat"] else 300_000
                assert after["open_msat"] + after["issued_msat"] <= kept, step
            outcomes.add((after["payouts_msat"], after["issued_msat"]))
            if after["coins"]:
                assert set(await purse.mint.check_state(after["coins"])) == {"UNSPENT"}, step
    assert not ALL or outcomes == {(0, 0), (100_000, 0), (100_000, REFUND * 1000)}
