"""Promise: a mint's unusable answer is MintUnknown, its refusal MintRejected, and only what was
never sent is MintOffline."""

from __future__ import annotations

import copy
import gzip
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from node.core.ecash import BlindedMessage, Keyset
from node.ecash.mint import (
    MintClient,
    MintOffline,
    MintQuote,
    MintRejected,
    MintUnknown,
    swap_body,
)
from tests.fakes.broken_mint import (
    Behaviour,
    BrokenMint,
    answer,
    cut_short,
    endless,
    hang_up,
    silence,
)

POINT = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
ID = "009a1f293253e41e"

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
