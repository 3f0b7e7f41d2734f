"""Promise: the token reader takes every payment wallets make and refuses what is none."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.core.ecash import Dleq, Proof, Token
from node.core.money import Msat
from node.ecash.token import expand_keyset_ids, parse_token, serialize_token
from node.errors import TokenMalformed
from tests.unit.ecash import nutshell
from tests.unit.ecash.strategies import POINTS, memos, purses

V1_ID = "009a1f293253e41e"
V2_ID = "015ba18a8adcd02e715a58358eb618da4a4b3791151a4bee5e968bb88406ccf76a"

# NUT-00 test vectors.
V3_VECTOR = (
    "cashuAeyJ0b2tlbiI6W3sibWludCI6Imh0dHBzOi8vODMzMy5zcGFjZTozMzM4IiwicHJvb2ZzIjpbeyJhbW91bnQi"
    "OjIsImlkIjoiMDA5YTFmMjkzMjUzZTQxZSIsInNlY3JldCI6IjQwNzkxNWJjMjEyYmU2MWE3N2UzZTZkMmFlYjRjNzI"
    "3OTgwYmRhNTFjZDA2YTZhZmMyOWUyODYxNzY4YTc4MzciLCJDIjoiMDJiYzkwOTc5OTdkODFhZmIyY2M3MzQ2YjVlND"
    "M0NWE5MzQ2YmQyYTUwNmViNzk1ODU5OGE3MmYwY2Y4NTE2M2VhIn0seyJhbW91bnQiOjgsImlkIjoiMDA5YTFmMjkzM"
    "jUzZTQxZSIsInNlY3JldCI6ImZlMTUxMDkzMTRlNjFkNzc1NmIwZjhlZTBmMjNhNjI0YWNhYTNmNGUwNDJmNjE0MzNj"
    "NzI4YzcwNTdiOTMxYmUiLCJDIjoiMDI5ZThlNTA1MGI4OTBhN2Q2YzA5NjhkYjE2YmMxZDVkNWZhMDQwZWExZGUyODR"
    "mNmVjNjlkNjEyOTlmNjcxMDU5In1dfV0sInVuaXQiOiJzYXQiLCJtZW1vIjoiVGhhbmsgeW91LiJ9"
)
V4_VECTOR = (
    "cashuBpGF0gaJhaUgArSaMTR9YJmFwgaNhYQFhc3hAOWE2ZGJiODQ3YmQyMzJiYTc2ZGIwZGYxOTcyMTZiMjlkM2I4Y"
    "2MxNDU1M2NkMjc4MjdmYzFjYzk0MmZlZGI0ZWFjWCEDhhhUP_trhpXfStS6vN6So0qWvc2X3O4NfM-Y1HISZ5JhZGlU"
    "aGFuayB5b3VhbXVodHRwOi8vbG9jYWxob3N0OjMzMzhhdWNzYXQ="
)
V4_TWO_KEYSETS = (
    "cashuBo2F0gqJhaUgA_9SLj17PgGFwgaNhYQFhc3hAYWNjMTI0MzVlN2I4NDg0YzNjZjE4NTAxNDkyMThhZjkwZjcxN"
    "mE1MmJmNGE1ZWQzNDdlNDhlY2MxM2Y3NzM4OGFjWCECRFODGd5IXVW-07KaZCvuWHk3WrnnpiDhHki6SCQh88-iYWlI"
    "AK0mjE0fWCZhcIKjYWECYXN4QDEzMjNkM2Q0NzA3YTU4YWQyZTIzYWRhNGU5ZjFmNDlmNWE1YjRhYzdiNzA4ZWIwZDY"
    "xZjczOGY0ODMwN2U4ZWVhY1ghAjRWqhENhLSsdHrr2Cw7AFrKUL9Ffr1XN6RBT6w659lNo2FhAWFzeEA1NmJjYmNiYj"
    "djYzY0MDZiM2ZhNWQ1N2QyMTc0ZjRlZmY4YjQ0MDJiMTc2OTI2ZDNhNTdkM2MzZGNiYjU5ZDU3YWNYIQJzEpxXGeWZN"
    "5qXSmJjY8MzxWyvwObQGr5G1YCCgHicY2FtdWh0dHA6Ly9sb2NhbGhvc3Q6MzMzOGF1Y3NhdA"
)

Edit = Callable[[dict[str, Any]], object]


def v3_document() -> dict[str, Any]:
    return {
        "token": [
            {
                "mint": "https://mint.example.com",
                "proofs": [
                    {"amount": 2, "id": V1_ID, "secret": "one", "C": POINTS[0]},
                    {"amount": 8, "id": V2_ID, "secret": "two", "C": POINTS[1]},
                ],
            }
        ],
        "unit": "sat",
        "memo": "hello",
    }


def v4_document() -> dict[str, Any]:
    return {
        "m": "https://mint.example.com",
        "u": "sat",
        "d": "hello",
        "t": [
            {
                "i": bytes.fromhex(V1_ID),
                "p": [{"a": 2, "s": "one", "c": bytes.fromhex(POINTS[0])}],
            },
            {
                "i": bytes.fromhex(V2_ID),
                "p": [{"a": 8, "s": "two", "c": bytes.fromhex(POINTS[1])}],
            },
        ],
    }


def encode(version: str, raw: bytes) -> str:
    return f"cashu{version}{base64.urlsafe_b64encode(raw).decode()}"


def v3(document: object) -> str:
    return encode("A", json.dumps(document).encode())


def v4(document: object) -> str:
    return encode("B", cbor2.dumps(document))


def edited(document: dict[str, Any], edit: Edit) -> dict[str, Any]:
    document = copy.deepcopy(document)
    edit(document)
    return document


def proof3(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["token"][0]["proofs"][0]
    return found


def proof4(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["t"][0]["p"][0]
    return found


EXPECTED = Token(
    "https://mint.example.com",
    "sat",
    (Proof(V1_ID, 2, "one", POINTS[0]), Proof(V2_ID, 8, "two", POINTS[1])),
    "hello",
)


def test_reads_the_nut00_vectors() -> None:
    token = parse_token(V3_VECTOR)
    assert (token.mint, token.unit, token.memo) == ("https://8333.space:3338", "sat", "Thank you.")
    assert [proof.amount for proof in token.proofs] == [2, 8]
    assert token.proofs[0] == Proof(
        V1_ID,
        2,
        "407915bc212be61a77e3e6d2aeb4c727980bda51cd06a6afc29e2861768a7837",
        "02bc9097997d81afb2cc7346b5e4345a9346bd2a506eb7958598a72f0cf85163ea",
    )
    assert token.value == Msat(10_000)

    token = parse_token(V4_VECTOR)
    assert (token.mint, token.unit, token.memo) == ("http://localhost:3338", "sat", "Thank you")
    assert token.proofs == (
        Proof(
            "00ad268c4d1f5826",
            1,
            "9a6dbb847bd232ba76db0df197216b29d3b8cc14553cd27827fc1cc942fedb4e",
            "038618543ffb6b8695df4ad4babcde92a34a96bdcd97dcee0d7ccf98d472126792",
        ),
    )

    token = parse_token(V4_TWO_KEYSETS)
    assert [(proof.keyset_id, proof.amount) for proof in token.proofs] == [
        ("00ffd48b8f5ecf80", 1),
        ("00ad268c4d1f5826", 2),
        ("00ad268c4d1f5826", 1),
    ]


def test_writes_the_nut00_vectors() -> None:
    for vector in (V4_VECTOR, V4_TWO_KEYSETS):
        token = parse_token(vector)
        written = serialize_token(token.mint, token.unit, token.proofs, token.memo)
        assert written == vector.rstrip("=")


@pytest.mark.parametrize("vector", [V3_VECTOR, V4_VECTOR, V4_TWO_KEYSETS])
def test_padding_space_and_uri_prefix_do_not_matter(vector: str) -> None:
    token = parse_token(vector)
    bare = vector.rstrip("=")
    padded = bare + "=" * (-(len(bare) - len("cashuA")) % 4)
    for variant in (bare, padded, f" \r\n{bare}\n", f"cashu:{bare}"):
        assert parse_token(variant) == token


def test_both_versions_read_the_same() -> None:
    assert parse_token(v3(v3_document())) == EXPECTED
    assert parse_token(v4(v4_document())) == EXPECTED


def test_v3_without_unit_is_sat_and_may_list_one_mint_twice() -> None:
    document = v3_document()
    first = document["token"][0]
    second = {"mint": "https://MINT.example.com:443/", "proofs": [first["proofs"].pop()]}
    del document["unit"]
    document["token"].append(second)
    assert parse_token(v3(document)) == EXPECTED


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(extra={"a": [1]}),
        lambda d: proof3(d).update(reserved=True, send_id="x", mint_id=5, time_created=None),
        lambda d: proof3(d).update(witness=None, dleq=None),
        lambda d: proof3(d).update(C=POINTS[0].upper(), id=V1_ID.upper()),
        lambda d: proof3(d).update(dleq={"e": "ab", "s": "cd"}),  # no r: proves nothing
    ],
)
def test_v3_ignores_what_it_does_not_need(edit: Edit) -> None:
    assert parse_token(v3(edited(v3_document(), edit))) == EXPECTED


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(x=1.5, y=cbor2.CBORTag(35, "(a+)+$"), z=cbor2.CBORTag(2, b"\xff" * 99)),
        lambda d: d.update({5: None, b"k": True, "f": float("nan")}),
        lambda d: proof4(d).update(z=[1, {"deep": [2]}]),
        lambda d: proof4(d).update(w=None, d=None),
    ],
)
def test_v4_ignores_unknown_fields(edit: Edit) -> None:
    assert parse_token(v4(edited(v4_document(), edit))) == EXPECTED


BAD_AMOUNTS = [True, 0, -1, 2**53, 2**200, 1.0, "2", None, [2]]
BAD_SECRETS = ["", "x" * 1025, None, 5, ["secret", {}]]
BAD_UNITS = ["usd", "SAT", "", 1, ["sat"]]
BAD_MINTS = [None, "", "mint.example.com", "ftp://mint.example.com", "https://a@b.com", 7]
NOT_ON_CURVE = "02" + "00" * 31 + "05"
BAD_POINTS = [POINTS[0][:-2], "04" + POINTS[0][2:] * 2, "05" + POINTS[0][2:], NOT_ON_CURVE, ""]
BAD_IDS = ["", "00", V1_ID[:-2], "02" + V1_ID[2:], V2_ID[:-2], "02" + V2_ID[2:], "I2yN+iRYfkzT"]


def _setters(bad: list[Any], field: str, into: Callable[[Any], Any]) -> list[Edit]:
    def setter(value: Any) -> Edit:
        return lambda document: into(document).update({field: value})

    return [setter(value) for value in bad]


V3_BREAKS: list[Edit] = [
    *_setters(BAD_AMOUNTS, "amount", proof3),
    *_setters(BAD_SECRETS, "secret", proof3),
    *_setters([*BAD_POINTS, None, 3], "C", proof3),
    *_setters([*BAD_IDS, V2_ID[:16], None, 9], "id", proof3),
    *_setters(BAD_UNITS, "unit", lambda d: d),
    *_setters(BAD_MINTS, "mint", lambda d: d["token"][0]),
    *_setters([5, {}, "x" * 1025], "witness", proof3),
    *_setters([5, [], {"e": "00", "s": "00", "r": "00"}], "dleq", proof3),
    *_setters([5, {}], "memo", lambda d: d),
    *_setters([None, {}, [], ["x"], [{}], [None], "x"], "token", lambda d: d),
    *_setters([None, {}, [], ["x"], [None], "x"], "proofs", lambda d: d["token"][0]),
    lambda d: proof3(d).update(secret="two"),
    lambda d: d["token"].append({"mint": "https://other.example.com", "proofs": []}),
    lambda d: d["token"].append({"proofs": []}),
]
V4_BREAKS: list[Edit] = [
    *_setters(BAD_AMOUNTS, "a", proof4),
    *_setters(BAD_SECRETS, "s", proof4),
    *_setters([*map(bytes.fromhex, BAD_POINTS), POINTS[0], None], "c", proof4),
    *_setters([*map(bytes.fromhex, BAD_IDS[:-1]), V1_ID, None], "i", lambda d: d["t"][0]),
    *_setters([*BAD_UNITS, None], "u", lambda d: d),
    *_setters(BAD_MINTS, "m", lambda d: d),
    *_setters([5, {}, b"x", "x" * 1025], "w", proof4),
    *_setters([5, [], {"e": b"", "s": b"", "r": b""}], "d", proof4),
    *_setters([5, {}], "d", lambda d: d),
    *_setters([None, {}, [], ["x"], [{}], [None], "x"], "t", lambda d: d),
    *_setters([None, {}, ["x"], [None], "x"], "p", lambda d: d["t"][0]),
    lambda d: proof4(d).update(s="two"),
]


@pytest.mark.parametrize("edit", V3_BREAKS)
def test_v3_refuses_what_is_not_a_payment(edit: Edit) -> None:
    with pytest.raises(TokenMalformed):
        parse_token(v3(edited(v3_document(), edit)))


@pytest.mark.parametrize("edit", V4_BREAKS)
def test_v4_refuses_what_is_not_a_payment(edit: Edit) -> None:
    with pytest.raises(TokenMalformed):
        parse_token(v4(edited(v4_document(), edit)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cashu",
        "cashuB",
        "casshuA" + V3_VECTOR[6:],
        V3_VECTOR[6:],
        "cashuC" + V4_VECTOR[6:],
        "cashuA" + V4_VECTOR[6:],
        "cashuB" + V3_VECTOR[6:],
        V4_VECTOR[:40] + "\n" + V4_VECTOR[40:],
        V4_VECTOR[:40] + "+" + V4_VECTOR[41:],
        V4_VECTOR[:-2],
        V4_VECTOR + "==",
        encode("B", cbor2.dumps(v4_document()) + b"\x00"),
        encode("A", b"[" * 50_000),
        encode("A", b'{"token":' * 5_000),
        encode("B", b"\x81" * 70_000),
        encode("B", b"\xc1" * 70_000),
        encode("B", b"\x9b" + b"\xff" * 8),
        encode("B", b"\x5b" + b"\x7f" * 8),
        encode("A", json.dumps(v3_document()).replace('"one"', '"\\ud800"').encode()),
        encode("A", json.dumps(v3_document()).replace(": 2,", ": NaN,").encode()),
        "cashuA" + "é" * 10,
    ],
)
def test_refuses_broken_text(text: str) -> None:
    with pytest.raises(TokenMalformed):
        parse_token(text)


def test_refuses_what_is_not_text() -> None:
    for value in (None, b"cashuA", 5):
        with pytest.raises(TokenMalformed):
            parse_token(value)  # type: ignore[arg-type]


def test_limits_hold_at_their_edge() -> None:
    def token(count: int) -> str:
        proofs = [Proof(V1_ID, 1, f"secret {n}", POINTS[0]) for n in range(count)]
        return serialize_token("https://mint.example.com", "sat", proofs)

    assert len(parse_token(token(100)).proofs) == 100
    assert len(parse_token(token(101), max_proofs=101).proofs) == 101
    with pytest.raises(TokenMalformed, match="at most 100 proofs"):
        parse_token(token(101))
    text = token(3)
    assert parse_token(text, max_bytes=len(text)).amount == 3
    with pytest.raises(TokenMalformed, match="at most"):
        parse_token(text, max_bytes=len(text) - 1)

    def proof(secret: str, amount: int) -> Proof:
        return Proof(V1_ID, amount, secret, POINTS[0])

    most = [proof("a", 2**53 - 2), proof("b", 1)]
    mint = "https://mint.example.com"
    assert parse_token(serialize_token(mint, "sat", most)).amount == 2**53 - 1
    with pytest.raises(TokenMalformed, match="too large"):
        parse_token(serialize_token(mint, "sat", [*most, proof("c", 1)]))


def test_errors_do_not_repeat_the_token() -> None:
    broken = edited(v3_document(), lambda d: proof3(d).update(secret="s3cret" * 400))
    with pytest.raises(TokenMalformed) as caught:
        parse_token(v3(broken))
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@given(purses, memos, st.sampled_from(["sat", "msat"]))
@settings(deadline=None)
def test_written_tokens_read_back(proofs: list[Proof], memo: str, unit: str) -> None:
    written = serialize_token("https://Mint.example.com/Path/", unit, proofs, memo)
    token = parse_token(written)
    grouped = list(dict.fromkeys(proof.keyset_id for proof in proofs))
    ordered = sorted(proofs, key=lambda proof: grouped.index(proof.keyset_id))
    assert token.proofs == tuple(replace(p, keyset_id=p.keyset_id[:16]) for p in ordered)
    assert (token.mint, token.unit, token.memo) == ("https://mint.example.com/Path", unit, memo)
    shorts = {keyset_id[:16] for keyset_id in grouped}
    if len(shorts) == len(grouped):
        assert expand_keyset_ids(token, grouped).proofs == tuple(ordered)


def test_a_dleq_without_its_blinding_factor_is_not_sent() -> None:
    proof = Proof(V1_ID, 1, "s", POINTS[0], dleq=Dleq("aa" * 32, "bb" * 32))
    written = serialize_token("https://mint.example.com", "sat", [proof])
    assert parse_token(written).proofs == (replace(proof, dleq=None),)


def test_serialize_refuses_nothing_and_bad_mints() -> None:
    with pytest.raises(ValueError, match="proofs"):
        serialize_token("https://mint.example.com", "sat", [])
    with pytest.raises(ValueError, match="http"):
        serialize_token("mint.example.com", "sat", EXPECTED.proofs)


def test_short_ids_expand_to_exactly_one_keyset() -> None:
    short = replace(EXPECTED, proofs=(replace(EXPECTED.proofs[1], keyset_id=V2_ID[:16]),))
    other = "01" + "ab" * 32
    assert expand_keyset_ids(short, [V1_ID, other, V2_ID, V2_ID]).proofs == EXPECTED.proofs[1:]
    assert expand_keyset_ids(EXPECTED, [V1_ID, V2_ID]) is EXPECTED
    twin = V2_ID[:-2] + "00"
    for known in ([], [other], [V2_ID, twin], [V1_ID[:2] + V2_ID[2:16]]):
        with pytest.raises(TokenMalformed):
            expand_keyset_ids(short, known)
    with pytest.raises(TokenMalformed):
        expand_keyset_ids(EXPECTED, [V2_ID])


def test_nutshell_reads_what_we_write_and_we_read_what_it_writes(tmp_path: Path) -> None:
    dleq = Dleq("01" * 32, "02" * 32, "03" * 32)
    samples = [
        EXPECTED,
        replace(EXPECTED, unit="msat", memo="", mint="http://localhost:3338/Path"),
        replace(
            EXPECTED,
            proofs=(
                Proof(V2_ID, 2**50, '["P2PK",{"nonce":"é"}]', POINTS[2], '{"signatures":[]}', dleq),
                Proof(V1_ID, 1, "plain", POINTS[3], None, dleq),
            ),
        ),
    ]
    written = [serialize_token(t.mint, t.unit, t.proofs, t.memo) for t in samples]
    answers = nutshell.ask(tmp_path, tokens=written)["tokens"]
    for token, text, answer in zip(samples, written, answers, strict=True):
        read = answer["read"]
        assert (read["mint"], read["unit"], read["memo"] or "") == (
            token.mint,
            token.unit,
            token.memo,
        )
        ours = parse_token(text)
        assert read["proofs"] == [
            [
                p.keyset_id,
                p.amount,
                p.secret,
                p.c,
                p.witness,
                [p.dleq.e, p.dleq.s, p.dleq.r] if p.dleq else None,
            ]
            for p in ours.proofs
        ]
        assert expand_keyset_ids(ours, [V1_ID, V2_ID]) == token
        assert parse_token(answer["v4"]) == ours


def test_reads_nutshells_v3(tmp_path: Path) -> None:
    proofs = [Proof(V1_ID, 2, "a", POINTS[0], dleq=Dleq("01" * 32, "02" * 32, "03" * 32))]
    written = serialize_token("https://mint.example.com", "sat", proofs, "memo")
    (answer,) = nutshell.ask(tmp_path, tokens=[written])["tokens"]
    assert answer["v3"].startswith("cashuA")
    assert parse_token(answer["v3"]) == parse_token(written)
