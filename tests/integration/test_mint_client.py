"""Promise: the mint client gets everything right at a real mint, and from a broken one it brings
MintUnknown for any unusable answer and MintOffline only when nothing was sent."""

from __future__ import annotations

import copy
import gzip
import json
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from cashu.core.split import amount_split

from node.core.ecash import BlindedMessage, Dleq, Keyset, Proof
from node.demo.mint import EmbeddedMint
from node.demo.purse import Purse, PurseError
from node.ecash.crypto import (
    blind,
    hash_to_curve_hex,
    is_point,
    unblind,
    verify_proof_dleq,
    verify_signature_dleq,
)
from node.ecash.mint import (
    MintClient,
    MintOffline,
    MintQuote,
    MintRejected,
    MintUnknown,
    mint_body,
    swap_body,
)
from node.ecash.token import expand_keyset_ids, parse_token, serialize_token
from node.errors import TokenMalformed
from tests.conftest import OpenPurse
from tests.fakes.broken_mint import (
    Behaviour,
    BrokenMint,
    answer,
    cut_short,
    endless,
    hang_up,
    silence,
)

# -- at a real mint ------------------------------------------------------------------------


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
    messages, coins = outputs_for(keyset, amount_split(21))
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
            await client.swap(swap_body(proofs, outputs_for(keyset, amount_split(21))[0]))
        signatures = await client.swap(swap_body(proofs, outputs_for(keyset, amount_split(20))[0]))
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


# -- from a broken mint --------------------------------------------------------------------

Call = Callable[[MintClient], Awaitable[object]]
OUTPUT = BlindedMessage(8, ID, POINT)
SIGNED = {"amount": 8, "id": ID, "C_": POINT}


async def swap(client: MintClient) -> object:
    return await client.swap(swap_body([], [OUTPUT]))


async def listing(client: MintClient) -> object:
    return await client.keysets()


async def states(client: MintClient) -> object:
    return await client.check_state([POINT])


async def restore(client: MintClient) -> object:
    return await client.restore([OUTPUT])


async def quote(client: MintClient) -> object:
    return await client.mint_quote_state("q-1")


@pytest.fixture
async def broken() -> AsyncIterator[BrokenMint]:
    async with BrokenMint() as mint:
        yield mint


@pytest.fixture
async def victim(broken: BrokenMint, http_session: aiohttp.ClientSession) -> MintClient:
    return MintClient(http_session, broken.url, max_response_bytes=50_000)


VALID: list[tuple[Call, dict[str, Any], object]] = [
    (swap, {"signatures": [SIGNED]}, None),
    (states, {"states": [{"Y": POINT.upper(), "state": "PENDING", "witness": None}]}, ["PENDING"]),
    (restore, {"outputs": [{"B_": POINT}], "signatures": [SIGNED]}, None),
    (restore, {"outputs": [], "signatures": []}, []),
    (
        quote,
        {"quote": "q-1", "request": "lnbc1", "state": "UNPAID", "expiry": None},
        MintQuote("q-1", "lnbc1", "UNPAID"),
    ),
    (
        listing,
        {"keysets": [{"id": ID, "unit": "sat", "active": False}, {"id": "I2yN+iRYfkzT"}]},
        [Keyset(ID, "sat", False, 0, {})],
    ),
]


@pytest.mark.parametrize(("call", "document", "expected"), VALID)
async def test_valid_answers_are_taken(
    call: Call, document: dict[str, Any], expected: object, broken: BrokenMint, victim: MintClient
) -> None:
    broken.behaviour = answer(200, json.dumps(document))
    got = await call(victim)
    if expected is not None:
        assert got == expected


def changed(document: dict[str, Any], path: list[str | int], value: object) -> dict[str, Any]:
    document = copy.deepcopy(document)
    inner: Any = document
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return document


SWAP, STATES, RESTORE, QUOTE, LISTING = (VALID[n] for n in (0, 1, 2, 4, 5))
OFF_CURVE = "02" + "00" * 31 + "05"
WRONG: list[tuple[tuple[Call, dict[str, Any], object], list[str | int], list[object]]] = [
    (SWAP, ["signatures"], [None, {}, [], ["x"], [SIGNED, SIGNED]]),
    (SWAP, ["signatures", 0, "amount"], [True, 4, 8.0, "8", 0, -8, 2**60, None]),
    (SWAP, ["signatures", 0, "id"], ["00ffffffffffffff", "", None, 5, ID[:4]]),
    (SWAP, ["signatures", 0, "C_"], ["", None, OFF_CURVE, POINT[2:], "04" + POINT[2:] * 2]),
    (SWAP, ["signatures", 0, "dleq"], [5, [], {}, {"e": "00" * 32}, {"e": 1, "s": "00" * 32}]),
    (STATES, ["states"], [None, [], [None], {}]),
    (STATES, ["states", 0, "state"], ["LOST", "spent", None, ["SPENT"], {}, 1]),
    (STATES, ["states", 0, "Y"], [None, "", OFF_CURVE, 5]),
    (STATES, ["states"], [[STATES[1]["states"][0]] * 2]),
    (RESTORE, ["outputs"], [None, [], [{"B_": OFF_CURVE}], [{"B_": None}], [{"B_": POINT}] * 2]),
    (RESTORE, ["signatures"], [None, [], [SIGNED, SIGNED], [{**SIGNED, "id": "00" * 8}]]),
    (QUOTE, ["quote"], ["q-2", "", None, 5, "../info", "q" * 300]),
    (QUOTE, ["request"], ["", None, 5, "l" * 9000]),
    (QUOTE, ["state"], ["paid", None, [], {}, 1]),
    (LISTING, ["keysets"], [None, {}, ["x"], [LISTING[1]["keysets"][0]] * 2]),
    (LISTING, ["keysets", 0, "id"], [None, 5, [ID]]),
    (LISTING, ["keysets", 0, "unit"], [None, 5, "", "x" * 100]),
    (LISTING, ["keysets", 0, "active"], [None, 1, "true"]),
    (LISTING, ["keysets", 0, "input_fee_ppk"], [-1, 1.5, "100", True, 2**53]),
    (LISTING, ["keysets", 0, "final_expiry"], [-1, 1.5, "soon", True]),
]


@pytest.mark.parametrize(
    ("call", "document"),
    [
        (call, changed(document, path, value))
        for (call, document, _), path, values in WRONG
        for value in values
    ],
)
async def test_wrong_answers_are_unknown(
    call: Call, document: dict[str, Any], broken: BrokenMint, victim: MintClient
) -> None:
    broken.behaviour = answer(200, json.dumps(document))
    with pytest.raises(MintUnknown) as caught:
        await call(victim)
    assert not isinstance(caught.value, MintOffline)


@pytest.mark.parametrize(
    "keys",
    [
        None,
        [],
        {},
        {"1": OFF_CURVE},
        {"0": POINT},
        {"-1": POINT},
        {"01": POINT},
        {"1.0": POINT},
        {"1": 5},
        {"1": POINT},  # well-formed, but the id belongs to other keys
        {str(n): POINT for n in range(1, 300)},
    ],
)
async def test_keys_must_be_those_of_the_id(
    keys: object, broken: BrokenMint, victim: MintClient
) -> None:
    document = {"keysets": [{"id": ID, "unit": "sat", "active": True, "keys": keys}]}
    broken.behaviour = answer(200, json.dumps(document))
    with pytest.raises(MintUnknown):
        await victim.keys(ID)
    assert broken.requests == ["GET /v1/keysets", f"GET /v1/keys/{ID}"]


@pytest.mark.parametrize(
    "behaviour",
    [
        answer(200, ""),
        answer(200, "<html>"),
        answer(200, "[]"),
        answer(200, '{"signatures":'),
        answer(200, b"\xff\xfe"),
        answer(200, '{"signatures":[NaN]}'),
        answer(200, "[" * 9_000),
        answer(204, ""),
        answer(302, "", location="/elsewhere"),
        answer(307, "", location="http://127.0.0.1:1/"),
        answer(400, "<html>"),
        answer(400, '["detail"]'),
        answer(400, '{"error": "no"}'),
        answer(408, '{"detail": "slow"}'),
        answer(425, '{"detail": "early"}'),
        answer(429, '{"detail": "Rate limit exceeded", "code": 11001}'),
        answer(500, '{"detail": "oops", "code": 0}'),
        answer(500, json.dumps({"signatures": [SIGNED]})),
        answer(502, "<html>bad gateway</html>"),
        answer(503, '{"detail": "draining"}'),
        answer(200, "x" * 50_001),
        answer(200, gzip.compress(b"x" * 50_000_000), **{"content-encoding": "gzip"}),
        answer(200, b"not gzip", **{"content-encoding": "gzip"}),
        cut_short(b'{"signatures":', 100),
        endless(b"x" * 1000),
        hang_up,
    ],
)
async def test_no_usable_answer_is_unknown(
    behaviour: Behaviour, broken: BrokenMint, victim: MintClient
) -> None:
    broken.behaviour = behaviour
    with pytest.raises(MintUnknown) as caught:
        await swap(victim)
    assert not isinstance(caught.value, MintOffline)
    assert broken.requests == ["POST /v1/swap"]  # neither retried nor redirected


async def test_silence_is_unknown(broken: BrokenMint, http_session: aiohttp.ClientSession) -> None:
    broken.behaviour = silence
    impatient = MintClient(http_session, broken.url, timeout_s=0.3)
    with pytest.raises(MintUnknown) as caught:
        await swap(impatient)
    assert not isinstance(caught.value, MintOffline)
    assert broken.requests == ["POST /v1/swap"]


@pytest.mark.parametrize(
    ("body", "code", "detail"),
    [
        ({"detail": "Token already spent.", "code": 11001}, 11001, "Token already spent."),
        ({"detail": "no", "code": "11001"}, None, "no"),
        ({"detail": "no", "code": True}, None, "no"),
        ({"detail": "x" * 5000}, None, "x" * 300),
        ({"detail": [{"loc": [], "input": "s3cret"}]}, None, "the request is not valid"),
    ],
)
@pytest.mark.parametrize("status", [400, 403, 422])
async def test_a_json_error_is_a_refusal(
    status: int,
    body: dict[str, Any],
    code: int | None,
    detail: str,
    broken: BrokenMint,
    victim: MintClient,
) -> None:
    broken.behaviour = answer(status, json.dumps(body))
    with pytest.raises(MintRejected) as caught:
        await swap(victim)
    refusal = caught.value
    assert (refusal.status, refusal.code, refusal.detail) == (status, code, detail)
    assert detail not in str(refusal)


async def test_no_connection_is_offline(
    broken: BrokenMint, http_session: aiohttp.ClientSession
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}"
        not_tls = broken.url.replace("http:", "https:")
        for url in (refused, not_tls):
            with pytest.raises(MintOffline):
                await swap(MintClient(http_session, url))
    assert broken.requests == []


async def test_a_mint_url_is_checked_at_once(http_session: aiohttp.ClientSession) -> None:
    assert MintClient(http_session, "HTTP://Mint.example.com:80/").url == "http://mint.example.com"
    with pytest.raises(ValueError, match="http"):
        MintClient(http_session, "file:///etc/passwd")


# -- the demo's paying client, and its mint ------------------------------------------------


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
