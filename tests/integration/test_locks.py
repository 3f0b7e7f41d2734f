"""Promise: a token locked to the node is redeemed, one locked to another moves nothing anywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from discovery.nostr.keys import Keys
from node.core.ecash import Dleq, Token
from node.core.money import Msat
from node.demo.mint import EmbeddedMint
from node.ecash.gate import PaymentTerms
from node.ecash.locks import lock_key, unlock
from node.ecash.payment_request import LockOption, PaymentRequest
from node.ecash.token import parse_token, serialize_token
from node.errors import NodeError, TokenAlreadySpent, TokenMalformed
from tests.conftest import OpenPurse
from tests.fakes.mint_proxy import Fault, MintProxy
from tests.integration.bench import OpenBench, new_account

KEYS = Keys(bytes(31) + b"\x07")
OTHER = Keys(bytes(31) + b"\x08")
OURS, THEIRS = lock_key(KEYS.pubkey), lock_key(OTHER.pubkey)
TERMS = PaymentTerms(KEYS)


def at(url: str, token: str) -> str:
    return serialize_token(url, "sat", parse_token(token).proofs)


async def test_a_token_locked_to_the_node_is_redeemed_once(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    token = await client.fund(21, lock_to=OURS)
    bench = await open_bench(mint.url, timeout_s=10, terms=TERMS)
    operation = await bench.receive(token, new_account("a"))
    assert operation.credit == 21_000
    again = await bench.receive(token, new_account("a"))
    assert again.id == operation.id
    with pytest.raises(TokenAlreadySpent):
        await bench.receive(token, new_account("b"))
    issued = await bench.wallet.issue(operation.account_id, None)
    assert await client.receive(issued.token or "") == 21
    await bench.books()


@pytest.mark.parametrize("fault", ["lose_answer", "lose_request", "hang"])
async def test_the_signature_is_journalled_and_a_replay_sends_the_same_bytes(
    fault: Fault, mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        token = at(proxy.url, await client.fund(21, lock_to=OURS))
        bench = await open_bench(proxy.url, terms=TERMS)
        await bench.wallet.refresh(proxy.url)
        proxy.faults.append(fault)
        with pytest.raises(NodeError):
            await bench.receive(token, new_account("a"))
        (journalled,) = await bench.store.open_operations()
        assert all(json.loads(proof.witness or "")["signatures"] for proof in journalled.inputs)
        # the next process does not even have the key
        bench = await open_bench(proxy.url, timeout_s=10)
        assert await bench.wallet.recover() == 0
        assert (await bench.books()).open_msat == 21_000


async def test_a_token_locked_to_another_is_refused_before_anything_is_asked_or_stored(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    locked = await client.fund(5, lock_to=THEIRS)
    for url in (mint.url, "http://127.0.0.1:1"):  # nobody listens there
        bench = await open_bench(url, terms=TERMS)
        with pytest.raises(TokenMalformed, match="another key"):
            await bench.receive(at(url, locked), new_account("a"))
        with pytest.raises(TokenMalformed, match="another key"):
            bench.wallet.accept(at(url, locked))
        assert await bench.store.open_operations() == []
    assert not await client.spent(locked)


async def test_a_lock_to_another_with_its_witness_goes_to_the_mint(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    bench = await open_bench(mint.url, timeout_s=10, terms=TERMS)
    bare = parse_token(await client.fund(5, lock_to=THEIRS))
    bad = replace(
        bare, proofs=tuple(replace(p, witness='{"signatures":["00"]}') for p in bare.proofs)
    )
    with pytest.raises(TokenMalformed, match="the mint refuses"):
        await bench.receive(text(bad), new_account("a"))
    signed = unlocked_by(OTHER, bare)
    assert (await bench.receive(text(signed), new_account("a"))).credit == 5_000


def text(token: Token) -> str:
    return serialize_token(token.mint, token.unit, token.proofs)


def unlocked_by(keys: Keys, token: Token) -> Token:
    return unlock(token, keys, 0)


async def test_a_false_dleq_is_refused_before_the_swap(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    good = parse_token(await client.fund(5))
    assert all(proof.dleq for proof in good.proofs)
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10, terms=TERMS)
        good = replace(good, mint=proxy.url)
        false = [
            replace(p, dleq=Dleq("11" * 32, p.dleq.s, p.dleq.r)) for p in good.proofs if p.dleq
        ]
        mixed = replace(good, proofs=(good.proofs[0], *false[1:]))
        with pytest.raises(TokenMalformed, match="not signed by its mint"):
            await bench.receive(text(mixed), new_account("a"))
        assert proxy.swaps == 0
        bare = replace(good, proofs=tuple(replace(p, dleq=None) for p in good.proofs))
        strict = await open_bench(proxy.url, timeout_s=10, require_dleq=True)
        with pytest.raises(TokenMalformed, match="DLEQ"):
            await strict.receive(text(bare), new_account("a"))
        assert proxy.swaps == 0
        assert (await strict.receive(text(good), new_account("a"))).credit == 5_000


async def test_a_dead_token_costs_the_mint_nothing_the_second_time(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10, terms=TERMS)
        spent = await client.fund(8)
        await client.receive(spent)
        good = parse_token(at(proxy.url, await client.fund(8)))
        forged = replace(
            good, proofs=tuple(replace(p, secret=p.secret + "x", dleq=None) for p in good.proofs)
        )
        foreign = replace(
            good, proofs=tuple(replace(p, keyset_id="00" + "7" * 14) for p in good.proofs)
        )
        for dead, error in (
            (at(proxy.url, spent), TokenAlreadySpent),
            (text(forged), TokenMalformed),
            (text(foreign), TokenMalformed),
        ):
            with pytest.raises(error):
                await bench.receive(dead, new_account("a"))
            seen = proxy.requests
            for name in ("a", "b"):
                with pytest.raises(error):
                    await bench.receive(dead, new_account(name))
            assert proxy.requests == seen
        # the coins that were forged are as good as they were
        assert (await bench.receive(text(good), new_account("a"))).credit == 8_000


async def test_a_refusal_that_means_nothing_is_not_remembered(
    mint: EmbeddedMint, purse: OpenPurse, open_bench: OpenBench
) -> None:
    client = await purse()
    async with MintProxy(mint.url) as proxy:
        bench = await open_bench(proxy.url, timeout_s=10)
        token = at(proxy.url, await client.fund(8))
        proxy.faults.append("refuse")
        with pytest.raises(TokenMalformed):
            await bench.receive(token, new_account("a"))
        assert (await bench.receive(token, new_account("a"))).credit == 8_000


async def test_what_a_402_asks_for(tmp_path: Path, open_bench: OpenBench) -> None:
    url = "http://127.0.0.1:1"
    lock = LockOption("P2PK", OURS, (("sigflag", "SIG_INPUTS"),))
    for terms, prefix, expected in (
        (TERMS, "creqA", None),
        (PaymentTerms(KEYS, True), "creqA", lock),
        (PaymentTerms(KEYS, True, "creqB"), "CREQB1", lock),
    ):
        bench = await open_bench(url, terms=terms)
        asked = bench.wallet.payment_request(Msat(1_001)) or ""
        assert asked.startswith(prefix)
        assert PaymentRequest.decode(asked) == PaymentRequest(2, "sat", (url,), expected)
