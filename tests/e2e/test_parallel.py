"""Promise: thirty withdrawals and thirty requests at once on one key overspend nothing, at a mint
with fees too, and no coin is handed out twice."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from node.demo.mint import EmbeddedMint
from node.ecash.token import parse_token
from tests.conftest import OpenPurse
from tests.e2e.conftest import BODY, OpenWorld
from tests.e2e.test_payments import call

AT_ONCE = 30
FUND_SAT = 120


@pytest.mark.parametrize("amount", [3, None])
async def test_thirty_of_each_at_once_on_one_key(
    amount: int | None, open_world: OpenWorld, fee_mint: EmbeddedMint, purse: OpenPurse
) -> None:
    world = await open_world(mint_url=fee_mint.url)
    client = await purse(fee_mint.url)
    token = await client.fund(FUND_SAT)
    made = await call(world, "POST", "/v1/wallet/create", json={"cashu_token": token})
    key, funded = made.json()["api_key"], made.json()["balance_msat"]
    body: dict[str, Any] = {} if amount is None else {"amount": amount}

    answers = await asyncio.gather(
        *(
            deed
            for _ in range(AT_ONCE)
            for deed in (
                call(world, "POST", "/v1/wallet/withdraw", key=key, json=body),
                call(world, "POST", "/v1/chat/completions", key=key, json=BODY),
            )
        )
    )
    assert {answer.status_code for answer in answers} <= {200, 402, 425}
    handed = [a.json()["cashu_token"] for a in answers if _gave_token(a)]
    await world.quiet_books()
    while True:  # what is left, and what a 425 kept back
        rest = await call(world, "POST", "/v1/balance/refund", key=key)
        if rest.status_code != 200 or rest.json()["token"] in handed:
            break
        handed.append(rest.json()["token"])

    page = await call(world, "GET", "/v1/wallet/transactions?limit=200", key=key)
    lines = page.json()["transactions"]
    shown = [line["token"] for line in lines if line.get("token")]
    tokens = set(handed)
    assert tokens == set(shown)
    assert len(shown) == len(set(shown))
    secrets = [proof.secret for text in tokens for proof in parse_token(text).proofs]
    assert len(secrets) == len(set(secrets))
    if amount is not None:
        assert sorted(handed) == sorted(tokens)  # asked for with an amount: each its own

    issued = sum(parse_token(text).amount for text in tokens) * 1000
    costs = sum(-line["amount_msat"] for line in lines if line["type"] == "charge")
    said = [int(a.headers["x-routstr-cost-msats"]) for a in answers if _served(a)]
    assert costs == sum(said)
    books = await world.quiet_books()
    surcharges = funded - costs - issued - books.open_msat
    assert 0 <= surcharges <= books.own_fees_msat  # what swaps for the withdrawals cost, at most
    assert 0 <= books.open_msat < 1000
    assert books.solvent
    for text in tokens:
        if parse_token(text).amount > 1:  # the fee leaves nothing of less
            assert await client.receive(text) > 0
        else:
            assert not await client.spent(text)


def _gave_token(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and "cashu_token" in answer.json()


def _served(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and "choices" in answer.json()
