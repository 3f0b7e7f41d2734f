"""Promise: the mint client gets quotes, swaps, states, restores and fees right at a real mint."""

from __future__ import annotations

import secrets
from dataclasses import replace

import aiohttp
import orjson
import pytest

from node.core.denominations import split
from node.core.ecash import BlindedMessage, Dleq, Keyset, Proof
from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse
from node.ecash.crypto import (
    blind,
    hash_to_curve_hex,
    is_point,
    unblind,
    verify_proof_dleq,
    verify_signature_dleq,
)
from node.ecash.mint import MintClient, MintRejected, mint_body, swap_body
from node.ecash.token import expand_keyset_ids, parse_token
from tests.conftest import OpenPurse


@pytest.fixture
async def client(mint: EmbeddedMint, http_session: aiohttp.ClientSession) -> MintClient:
    return MintClient(http_session, mint.url)


async def active_keyset(client: MintClient) -> Keyset:
    (listed,) = [keyset for keyset in await client.keysets() if keyset.active]
    return await client.keys(listed.id)


def outputs_for(
    keyset: Keyset, amounts: list[int]
) -> tuple[list[BlindedMessage], list[tuple[str, bytes]]]:
    coins = [(secrets.token_hex(32), b"\x01" + secrets.token_bytes(31)) for _ in amounts]
    messages = [
        BlindedMessage(amount, keyset.id, blind(secret, r))
        for amount, (secret, r) in zip(amounts, coins, strict=True)
    ]
    return messages, coins


async def funded(client: MintClient, purse: Purse, amount: int) -> tuple[Proof, ...]:
    token = parse_token(await purse.fund(amount))
    return expand_keyset_ids(token, [k.id for k in await client.keysets()]).proofs


async def test_keysets_and_keys(client: MintClient) -> None:
    listing = await client.keysets()
    assert [(k.unit, k.active, k.input_fee_ppk, k.keys) for k in listing] == [("sat", True, 0, {})]
    keyset = await client.keys(listing[0].id)
    assert replace(keyset, keys={}) == listing[0]
    assert list(keyset.keys)[:4] == [1, 2, 4, 8]
    assert all(is_point(key) for key in keyset.keys.values())
    with pytest.raises(MintRejected) as caught:
        await client.keys("00ffffffffffffff")
    assert caught.value.status == 404


async def test_info(client: MintClient) -> None:
    info = await client.info()
    assert info["nuts"]["9"] == {"supported": True}


async def test_quote_and_mint(client: MintClient) -> None:
    keyset = await active_keyset(client)
    quote = await client.mint_quote(21, "sat")
    assert quote.request.startswith("ln")
    assert quote.quote not in repr(quote)
    assert (await client.mint_quote_state(quote.quote)).state == "PAID"
    messages, coins = outputs_for(keyset, split(21))
    signatures = await client.mint(mint_body(quote.quote, messages))
    assert [signature.amount for signature in signatures] == [1, 4, 16]
    for message, signature in zip(messages, signatures, strict=True):
        assert verify_signature_dleq(message, signature, keyset.keys[message.amount])
    (secret, r), signature = coins[0], signatures[0]
    assert signature.dleq is not None
    proof = Proof(
        keyset.id,
        1,
        secret,
        unblind(signature.c_, r, keyset.keys[1]),
        dleq=replace(signature.dleq, r=r.hex()),
    )
    assert verify_proof_dleq(proof, keyset.keys[1])
    assert (await client.mint_quote_state(quote.quote)).state == "ISSUED"
    with pytest.raises(MintRejected):
        await client.mint(mint_body(quote.quote, outputs_for(keyset, [1, 4, 16])[0]))


async def test_swap_states_and_restore(client: MintClient, purse: OpenPurse) -> None:
    keyset = await active_keyset(client)
    proofs = await funded(client, await purse(), 21)
    ys = [hash_to_curve_hex(proof.secret) for proof in proofs]
    assert await client.check_state(ys) == ["UNSPENT"] * 3

    messages, _ = outputs_for(keyset, [1, 4])
    body = swap_body(proofs[:2], messages)
    signatures = await client.swap(body)
    assert [s.amount for s in signatures] == [1, 4]
    assert await client.check_state([ys[2], ys[0], ys[1]]) == ["UNSPENT", "SPENT", "SPENT"]

    with pytest.raises(MintRejected):
        await client.swap(body)
    with pytest.raises(MintRejected):
        await client.swap(swap_body(proofs[:2], outputs_for(keyset, [1, 4])[0]))
    with pytest.raises(MintRejected):
        await client.swap(swap_body(proofs[2:], outputs_for(keyset, [1, 16])[0]))

    never, _ = outputs_for(keyset, [1, 2, 8])
    asked = [never[0], messages[1], never[1], messages[0], never[2]]
    small = MintClient(client._session, client.url, batch=2)
    for found in (await client.restore(asked), await small.restore(asked)):
        restored = {message.b_: signature for message, signature in found}
        assert {b_: (s.amount, s.c_) for b_, s in restored.items()} == {
            message.b_: (s.amount, s.c_) for message, s in zip(messages, signatures, strict=True)
        }
    assert await small.check_state([*ys, *ys[:0:-1]]) == [
        "SPENT",
        "SPENT",
        "UNSPENT",
        "UNSPENT",
        "SPENT",
    ]
    assert await client.restore(never) == []
    assert await client.check_state([]) == []


async def test_restore_tells_the_amount_that_was_signed(
    client: MintClient, purse: OpenPurse
) -> None:
    keyset = await active_keyset(client)
    proofs = await funded(client, await purse(), 8)
    messages, _ = outputs_for(keyset, [8])
    await client.swap(swap_body(proofs, messages))
    asked = replace(messages[0], amount=1)
    ((message, signature),) = await client.restore([asked])
    assert message == asked
    assert signature.amount == 8


async def test_input_fees(fee_mint: EmbeddedMint, purse: OpenPurse) -> None:
    async with aiohttp.ClientSession() as session:
        client = MintClient(session, fee_mint.url)
        keyset = await active_keyset(client)
        assert keyset.input_fee_ppk == 100
        proofs = await funded(client, await purse(fee_mint.url), 21)
        with pytest.raises(MintRejected):
            await client.swap(swap_body(proofs, outputs_for(keyset, split(21))[0]))
        signatures = await client.swap(swap_body(proofs, outputs_for(keyset, split(20))[0]))
        assert sum(signature.amount for signature in signatures) == 20


async def test_a_forged_coin_is_refused(client: MintClient, purse: OpenPurse) -> None:
    keyset = await active_keyset(client)
    (proof,) = await funded(client, await purse(), 4)
    forged = replace(proof, secret=secrets.token_hex(32))
    with pytest.raises(MintRejected) as caught:
        await client.swap(swap_body([forged], outputs_for(keyset, [4])[0]))
    assert forged.secret not in str(caught.value) + caught.value.detail


# -- bodies --------------------------------------------------------------------------------

POINT = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
ID = "009a1f293253e41e"


def test_bodies_tell_the_mint_no_more_than_it_must_know() -> None:
    proof = Proof(ID, 1, "s", POINT, witness="w", dleq=Dleq("01" * 32, "02" * 32, "03" * 32))
    messages = [BlindedMessage(1, ID, POINT), BlindedMessage(1, ID, POINT[::-1])]
    assert orjson.loads(swap_body([proof, replace(proof, witness=None)], messages)) == {
        "inputs": [
            {"amount": 1, "id": ID, "secret": "s", "C": POINT, "witness": "w"},
            {"amount": 1, "id": ID, "secret": "s", "C": POINT},
        ],
        "outputs": [
            {"amount": 1, "id": ID, "B_": POINT},
            {"amount": 1, "id": ID, "B_": POINT[::-1]},
        ],
    }


def test_bodies_want_outputs_in_ascending_order() -> None:
    messages = [BlindedMessage(2, ID, POINT), BlindedMessage(1, ID, POINT)]
    with pytest.raises(ValueError, match="ascending"):
        swap_body([], messages)
    with pytest.raises(ValueError, match="ascending"):
        mint_body("quote", messages)
