"""Promise: by the admin pages earnings leave only when that is right, to where the settings say,
and the answer says what became of them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.core.lightning import OPERATOR, PayoutError, PayRequest
from node.core.money import Msat
from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
from node.ecash.token import parse_token, serialize_token
from node.errors import (
    IdempotencyConflict,
    InvalidValue,
    NotConfigured,
    PaymentRefused,
    Pending,
)
from node.ledger.books import sum_books
from node.service.payout import Payouts, PayoutTerms
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import MintProxy
from tests.unit.admin.office import Office, open_office

PAYOUT = {"address": "me@example.com", "reserve_sat": 10}


async def fund(office: Office, client: Purse, sat: int, url: str) -> None:
    """Coins that are the node's own."""
    token = serialize_token(url, "sat", parse_token(await client.fund(sat)).proofs)
    await office.wallet.receive(office.wallet.accept(token), OPERATOR)


class Payee:
    """Asks a mint for invoices over what it is told; ``refuse``: gives none."""

    def __init__(self, office: Office, purse: Purse) -> None:
        self._office, self._purse = office, purse
        self.refuse = False

    def check(self, destination: str) -> None:
        raise NotImplementedError

    async def invoice(self, destination: str, amount: Msat, *, or_less: bool = False) -> PayRequest:
        assert destination == PAYOUT["address"]
        if self.refuse:
            raise PayoutError("the address gives no invoice")
        quote = await self._purse.mint.mint_quote(amount // 1000, "sat")
        return self._office.lightning.read(quote.request)


@pytest.fixture
async def barred() -> list[str]:
    return []


@pytest.fixture
async def office(
    tmp_path: Path, mint: EmbeddedMint, purse: OpenPurse, barred: list[str]
) -> AsyncIterator[Office]:
    """A node that has 210 sat of its own, of which 10 stay."""
    async with open_office(
        tmp_path,
        solvency=lambda: barred[0] if barred else None,
        mints=[{"url": mint.url}],
        payout=PAYOUT,
    ) as opened:
        await fund(opened, await purse(), 210, mint.url)
        yield opened
        assert (await opened.database.read(sum_books)).problems() == []


def wish(sat: Any = 20, **others: Any) -> dict[str, Any]:
    return {"amount_sat": sat, "idempotency_key": "the-first-one", **others}


async def test_a_withdrawal(office: Office, purse: OpenPurse, mint: EmbeddedMint) -> None:
    answer = await office.send("POST", "/withdraw", **wish(mint=mint.url + "/"))
    assert (answer["amount_sat"], answer["mint"]) == (20, mint.url)
    assert await (await purse()).receive(answer["token"]) == 20
    assert await office.send("POST", "/withdraw", **wish()) == answer
    (listed,) = (await office.get("/withdrawals"))["withdrawals"]
    assert (listed["id"], listed["state"], listed["amount_msat"]) == (answer["id"], "done", 20_000)
    assert "cashu" not in str(listed)
    assert (await office.get("/balances"))["books"]["paid_out_msat"] == 20_000


async def test_while_the_watchdog_objects_only_what_was_made_is_shown_again(
    office: Office, barred: list[str]
) -> None:
    answer = await office.send("POST", "/withdraw", **wish())
    barred.append("insolvent")
    assert await office.send("POST", "/withdraw", **wish()) == answer
    with pytest.raises(PaymentRefused, match="insolvent"):
        await office.send("POST", "/withdraw", **wish(idempotency_key="another-one"))


async def test_the_reserve_stays(office: Office) -> None:
    with pytest.raises(PaymentRefused, match="200000 msat"):
        await office.send("POST", "/withdraw", **wish(201))
    await office.send("POST", "/withdraw", **wish(200))
    with pytest.raises(PaymentRefused):
        await office.send("POST", "/withdraw", **wish(1, idempotency_key="another-one"))


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"amount_sat": 5},
        wish(0),
        wish(-5),
        wish(True),
        wish(1.5),
        wish("5"),
        wish(10**18),
        wish(idempotency_key=""),
        wish(idempotency_key="short"),
        wish(idempotency_key="with spaces in it"),
        wish(idempotency_key="x" * 101),
        wish(idempotency_key=5),
        wish(mint="https://other.example.com"),
        wish(mint=5),
    ],
)
async def test_nonsense_moves_nothing(office: Office, document: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        await office.send("POST", "/withdraw", **document)
    assert (await office.database.read(sum_books)).payouts_msat == 0


async def test_a_key_is_for_one_amount(office: Office) -> None:
    await office.send("POST", "/withdraw", **wish(20))
    with pytest.raises(IdempotencyConflict):
        await office.send("POST", "/withdraw", **wish(21))


async def test_without_an_address_there_is_no_payout(office: Office) -> None:
    with pytest.raises(NotConfigured, match=r"payout\.address"):
        await office.send("POST", "/payout")


async def test_a_payout(
    office: Office, purse: OpenPurse, fee_mint: EmbeddedMint, barred: list[str]
) -> None:
    payee = Payee(office, await purse(fee_mint.url))
    terms = PayoutTerms(address=PAYOUT["address"], reserve=Msat(10_000))  # type: ignore[arg-type]
    payouts = Payouts(office.lightning, payee, terms, lambda: barred[0] if barred else None)
    office.parts = replace(office.parts, payouts=payouts)
    for wrong in (0, -1, "5", True):
        with pytest.raises(InvalidValue):
            await office.send("POST", "/payout", amount_sat=wrong)
    with pytest.raises(PaymentRefused, match="can be paid out"):
        await office.send("POST", "/payout", amount_sat=5_000)
    payee.refuse = True
    with pytest.raises(PaymentRefused, match="no invoice"):
        await office.send("POST", "/payout", amount_sat=50)
    payee.refuse = False
    answer = await office.send("POST", "/payout", amount_sat=50)
    assert (answer["state"], answer["amount_sat"]) == ("done", 50)
    assert 0 <= answer["fee_sat"] <= 5
    (listed,) = (await office.get("/payouts"))["payouts"]
    assert (listed["id"], listed["destination"]) == (answer["id"], "me@example.com")
    assert listed["amount_msat"] == 50_000
    rest = await office.send("POST", "/payout")
    assert rest["amount_sat"] > 100
    barred.append("books wrong")
    await fund(office, await purse(), 100, office.parts.settings().mints[0].url)
    with pytest.raises(PaymentRefused, match="books wrong"):
        await office.send("POST", "/payout")


async def test_a_payout_without_an_outcome_is_pending_and_another_has_to_wait(
    tmp_path: Path, mint: EmbeddedMint, fee_mint: EmbeddedMint, purse: OpenPurse
) -> None:
    async with (
        MintProxy(mint.url) as proxy,
        open_office(tmp_path, mints=[{"url": proxy.url}], payout=PAYOUT) as office,
    ):
        await fund(office, await purse(), 210, proxy.url)
        payee = Payee(office, await purse(fee_mint.url))
        terms = PayoutTerms(address="me@example.com", reserve=Msat(10_000))
        office.parts = replace(office.parts, payouts=Payouts(office.lightning, payee, terms))
        proxy.melt_faults.append("lose_answer")
        answer = await office.send("POST", "/payout", amount_sat=50)
        assert (answer["state"], answer["fee_sat"]) == ("pending", None)
        with pytest.raises(Pending):
            await office.send("POST", "/payout", amount_sat=20)
        async with asyncio.timeout(30):
            while await office.wallet.recover():
                await asyncio.sleep(0.05)
        (listed,) = (await office.get("/payouts"))["payouts"]
        assert (listed["id"], listed["state"]) == (answer["id"], "done")
        assert (await office.database.read(sum_books)).problems() == []


async def test_random_keys_are_all_different_withdrawals(office: Office) -> None:
    tokens = {
        (await office.send("POST", "/withdraw", **wish(3, idempotency_key=secrets.token_hex(16))))[
            "token"
        ]
        for _ in range(5)
    }
    assert len(tokens) == 5
    assert (await office.database.read(sum_books)).payouts_msat == 15_000
