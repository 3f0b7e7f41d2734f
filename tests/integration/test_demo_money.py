"""Promise: the demo's purses pay exactly, and its mint keeps its coins and ends when it should."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node.demo.mint import EmbeddedMint
from node.demo.purse import PurseError
from node.ecash.mint import MintClient, MintOffline, MintRejected
from node.ecash.token import parse_token, serialize_token
from node.errors import TokenMalformed
from tests.conftest import OpenPurse
from tests.fakes.broken_mint import BrokenMint, answer


@pytest.fixture
async def broken() -> AsyncIterator[BrokenMint]:
    async with BrokenMint() as mint:
        yield mint


async def test_purses_pay_each_other(purse: OpenPurse) -> None:
    alice, bob = await purse(), await purse()
    token = await alice.fund(100)
    assert alice.balance == 0
    assert await alice.receive(token) == 100
    paid = await alice.send(33)
    assert (parse_token(paid).amount, alice.balance) == (33, 67)
    assert not await bob.spent(paid)
    assert await bob.receive(paid) == 33
    assert await bob.spent(paid)
    with pytest.raises(MintRejected):
        await alice.receive(paid)
    assert (alice.balance, bob.balance) == (67, 33)
    assert parse_token(await bob.send(33)).amount == 33
    assert bob.balance == 0
    for amount in (68, 0, -1):
        with pytest.raises(PurseError):
            await alice.send(amount)


async def test_purses_pay_the_fees(fee_mint: EmbeddedMint, purse: OpenPurse) -> None:
    alice = await purse(fee_mint.url)
    assert await alice.receive(await alice.fund(64)) == 63
    assert parse_token(await alice.send(33)).amount == 33
    assert alice.balance == 63 - 33
    with pytest.raises(PurseError, match="fees"):
        await alice.receive(await alice.fund(1))


async def test_purses_refuse_what_is_not_money(
    purse: OpenPurse, fee_mint: EmbeddedMint, mint: EmbeddedMint
) -> None:
    alice, foreign = await purse(), await purse(fee_mint.url)
    with pytest.raises(PurseError, match="another mint"):
        await alice.receive(await foreign.fund(8))
    with pytest.raises(TokenMalformed):
        await alice.receive("cashuBgarbage")
    token = parse_token(await alice.fund(8))
    assert token.proofs[0].dleq is not None
    false = replace(token.proofs[0], dleq=replace(token.proofs[0].dleq, r="01" * 32))
    with pytest.raises(PurseError, match="not signed"):
        await alice.receive(serialize_token(mint.url, "sat", [false]))
    assert alice.balance == 0


async def test_a_purse_has_its_invoice_paid(
    mint: EmbeddedMint, broken: BrokenMint, purse: OpenPurse
) -> None:
    invoices: list[str] = []

    async def pay(invoice: str) -> None:
        invoices.append(invoice)

    async with aiohttp.ClientSession() as session:
        real = MintClient(session, mint.url)
        listing = json.dumps(
            {"keysets": [{"id": k.id, "unit": "sat", "active": True} for k in await real.keysets()]}
        )
        (keyset,) = [await real.keys(k.id) for k in await real.keysets()]
    keys = json.dumps(
        {
            "keysets": [
                {"id": keyset.id, "keys": {str(amount): key for amount, key in keyset.keys.items()}}
            ]
        }
    )

    async def behave(request: Any) -> Any:
        if request.path == "/v1/keysets":
            return await answer(200, listing)(request)
        if request.path.startswith("/v1/keys/"):
            return await answer(200, keys)(request)
        unpaid = {"quote": "q-1", "request": "lnbc1", "state": "UNPAID"}
        return await answer(200, json.dumps(unpaid))(request)

    broken.behaviour = behave
    alice = await purse(broken.url, on_invoice=pay, pay_timeout_s=0.1)
    with pytest.raises(PurseError, match="paid in time"):
        await alice.fund(5)
    assert invoices == ["lnbc1"]


async def test_a_mint_keeps_port_and_coins_over_a_restart(tmp_path: Path, purse: OpenPurse) -> None:
    async with EmbeddedMint(tmp_path / "mint", units=("sat", "msat")) as mint:
        alice, thousandths = await purse(mint.url), await purse(mint.url, unit="msat")
        spent, kept = await alice.fund(8), await alice.fund(16)
        in_msat = await thousandths.fund(5000)
        assert await alice.receive(spent) == 8
        url = mint.url
        await mint.stop()
        with pytest.raises(MintOffline):
            await alice.receive(kept)
        await mint.start()
        assert mint.url == url
        assert await alice.receive(kept) == 16
        assert await thousandths.receive(in_msat) == 5000
        with pytest.raises(MintRejected):
            await alice.receive(spent)
    assert mint.pid is None
    with pytest.raises(MintOffline):
        await alice.mint.keysets()


def test_a_mint_that_cannot_start_says_why(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        mint = EmbeddedMint(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(RuntimeError, match="address already in use"):
            mint.start_sync()
    assert mint.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_a_mint_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from node.demo.mint import EmbeddedMint\n"
        "mint = EmbeddedMint(Path(sys.argv[1])); mint.start_sync()\n"
        "print(mint.port, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert listens(port)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    deadline = time.monotonic() + 20
    while listens(port):
        assert time.monotonic() < deadline, "the mint lives on"
        time.sleep(0.05)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
