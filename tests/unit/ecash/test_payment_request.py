"""Promise: our payment requests say to other wallets what they say to us, in both forms."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.ecash.payment_request import BadRequest, LockOption, PaymentRequest

_NUTSHELL = """
import json, sys
from cashu.core.base import PaymentRequest
from cashu.core.nuts import nut18, nut26
asked = json.load(sys.stdin)
print(json.dumps({
    "read": [nut18.deserialize(text).model_dump(exclude_none=True) for text in asked["texts"]],
    "written": [
        [nut18.serialize(PaymentRequest(**d)), nut26.serialize(PaymentRequest(**d))]
        for d in asked["documents"]
    ],
}))
"""

KEY = "02" + "ab" * 32
CASES = [
    PaymentRequest(21, "sat", ("https://mint.example.com",)),
    PaymentRequest(0, "sat", ()),
    PaymentRequest(
        2**53,
        "msat",
        ("https://a.example", "http://b.example:3338/Bitcoin"),
        LockOption("P2PK", KEY),
    ),
    PaymentRequest(
        5,
        "sat",
        ("https://mint.example.com",),
        LockOption("P2PK", KEY, (("sigflag", "SIG_INPUTS"), ("locktime", "1999999999"))),
    ),
    PaymentRequest(None, None, ()),
]

# (text, what it says), from the test vectors of NUT-18 and NUT-26
VECTORS = [
    (
        "CREQB1QYQQWER9D4HNZV3NQGQQSQQQQQQQQQQRAQPSQQGQQSQQZQG9QQVXSAR5WPEN5TE0D45KUAPWV4UXZMTSD3J"
        "JUCM0D5RQQRJRDANXVET9YPCXZ7TDV4H8GXHR3TQ",
        PaymentRequest(1000, "sat", ("https://mint.example.com",)),
    ),
    (
        "CREQB1QYQQSCEEV56R2EPJVYPQQZQQQQQQQQQQQ86QXQQPQQZSQXRGW368QUE69UHK66TWWSHX27RPD4CXCEFWVDH"
        "K6ZQQTYQSQQGQQGQYYVPJVVEKYDTZVGERWEFNXCCNGDFHVVUNYEPEXDJRWWRYVSMNXEPNVS6NXDENXGCNZVRZXF3KV"
        "EFCVG6NQENZVVCXZCNRXCCN2EFEVVENXVGRQQXSWARFD4JK7AT5QSENVVPS2N5FAS",
        PaymentRequest(
            500,
            "sat",
            ("https://mint.example.com",),
            LockOption(
                "P2PK",
                "02c3b5bb27e361457c92d93d78dd73d3d53732110b2cfe8b50fbc0abc615e9c331",
                (("timeout", "3600"),),
            ),
        ),
    ),
    (
        "CREQB1QYQQJATWD9697MTNV96QYQQGQQQQQQQQQQP7SQCQQ3KHXCT5Q5QPS6R5W3C8XW309AKKJMN59EJHSCTDWPK"
        "X2TNRDAKSYYMU95",
        PaymentRequest(1000, "msat", ("https://mint.example.com",)),
    ),
    (
        "creqApWF0gaNhdGRwb3N0YWF4H2h0dHBzOi8vYXBpLmV4YW1wbGUuY29tL3JlY2VpdmVhZ/dhaWhhMmMxMmY0NWFh"
        "GDJhdWNzYXRhbYF4GWh0dHBzOi8vY2FzaHUuZXhhbXBsZS5jb20=",
        PaymentRequest(50, "sat", ("https://cashu.example.com",)),
    ),
    (
        "creqAo2FpaDdmNGEyYjM5YXVjc2F0YW2BeBhodHRwczovL21pbnQuZXhhbXBsZS5jb20=",
        PaymentRequest(None, "sat", ("https://mint.example.com",)),
    ),
]


@pytest.fixture(scope="module")
def nutshell(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What nutshell reads in our requests, and writes for the same ones."""
    home = tmp_path_factory.mktemp("nutshell")
    asked = {
        "texts": [c.encode(f) for c in CASES for f in ("creqA", "creqB")],
        "documents": [document(case) for case in CASES],
    }
    done = subprocess.run(
        [sys.executable, "-c", _NUTSHELL],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=100,
        cwd=home,
        env={"HOME": str(home), "PATH": os.environ.get("PATH", os.defpath)},
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def document(request: PaymentRequest) -> dict[str, Any]:
    found: dict[str, Any] = {"a": request.amount, "u": request.unit}
    if request.mints:
        found["m"] = list(request.mints)
    if request.lock:
        found["nut10"] = {"k": request.lock.kind, "d": request.lock.data}
        if request.lock.tags:
            found["nut10"]["t"] = [list(tag) for tag in request.lock.tags]
    return {name: value for name, value in found.items() if value is not None}


def test_nutshell_reads_what_we_write(nutshell: dict[str, Any]) -> None:
    assert nutshell["read"] == [document(case) for case in CASES for _ in range(2)]


def test_we_read_what_nutshell_writes(nutshell: dict[str, Any]) -> None:
    for case, texts in zip(CASES, nutshell["written"], strict=True):
        assert [PaymentRequest.decode(text) for text in texts] == [case, case]


@pytest.mark.parametrize(("text", "meaning"), VECTORS)
def test_the_vectors(text: str, meaning: PaymentRequest) -> None:
    assert PaymentRequest.decode(text) == meaning
    if text.startswith("C"):
        assert PaymentRequest.decode(text.lower()) == meaning


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
requests = st.builds(
    PaymentRequest,
    st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.sampled_from(["sat", "msat", "usd"]),
    st.lists(words, max_size=3).map(tuple),
    st.none()
    | st.builds(
        LockOption,
        st.sampled_from(["P2PK", "HTLC"]),
        words,
        st.lists(st.lists(words, min_size=1, max_size=3).map(tuple), max_size=2).map(tuple),
    ),
)


@given(requests, st.sampled_from(["creqA", "creqB"]))
def test_both_forms_keep_everything(request: PaymentRequest, form: Any) -> None:
    assert PaymentRequest.decode(request.encode(form)) == request


@given(st.data())
def test_a_changed_character_is_noticed_in_creqb(data: st.DataObject) -> None:
    text = CASES[3].encode("creqB")
    index = data.draw(st.integers(6, len(text) - 1))
    other = data.draw(
        st.sampled_from("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L").filter(lambda c: c != text[index])
    )
    with pytest.raises(BadRequest):
        PaymentRequest.decode(text[:index] + other + text[index + 1 :])


@given(
    st.text(max_size=60)
    | st.text("qpzry9x8gf2tvdw0s3jn54khce6mua7l", max_size=80).map(lambda t: "creqb1" + t)
    | st.binary(max_size=60).map(lambda b: "creqA" + base64.urlsafe_b64encode(b).decode())
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=4) | st.binary(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["a", "u", "m", "nut10", "k", "d", "t"]), inner)
        ),
        max_leaves=10,
    ).map(lambda value: "creqA" + base64.urlsafe_b64encode(cbor2.dumps(value)).decode())
)
def test_only_badrequest_comes_out_of_the_reader(text: str) -> None:
    with suppress(BadRequest):
        PaymentRequest.decode(text)


@pytest.mark.parametrize(
    "text", ["", "creqC", "cashuBabc", "creqA!", "CREQB1", "creqb1QQQ", "x" * 20_000]
)
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        PaymentRequest.decode(text)


@pytest.mark.parametrize(
    "request_",
    [
        PaymentRequest(2**64, "sat", ()),
        PaymentRequest(1, "sat", ("x" * 70_000,)),
        PaymentRequest(1, "sat", (), LockOption("NEW", KEY)),
        PaymentRequest(1, "sat", (), LockOption("P2PK", KEY, (("t" * 256,),))),
    ],
)
def test_what_creqb_cannot_carry_is_refused(request_: PaymentRequest) -> None:
    with pytest.raises(BadRequest):
        request_.encode("creqB")
