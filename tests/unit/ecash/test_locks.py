"""Promise: a lock is ours only when nobody else can spend the coin, and our signature is good."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from coincurve import PublicKeyXOnly
from hypothesis import given
from hypothesis import strategies as st

from discovery.nostr.keys import Keys
from node.core.ecash import Proof, Token
from node.ecash.locks import MIN_LOCK_S, check_locks, read_condition, unlock
from node.errors import TokenMalformed
from tests.unit.ecash.strategies import POINTS

KEYS = Keys(bytes(31) + b"\x07")
OTHER = POINTS[3]
OURS = "02" + KEYS.pubkey
NOW = 1_790_000_000.0


def locked(data: str = OURS, *tags: list[str], kind: str = "P2PK", **extra: Any) -> str:
    return json.dumps([kind, {"nonce": "ab" * 16, "data": data, "tags": list(tags), **extra}])


def token(*secrets: str, witness: str | None = None) -> Token:
    return Token(
        "https://mint.example.com",
        "sat",
        tuple(Proof("00" + "0" * 14, 1, secret, POINTS[0], witness) for secret in secrets),
    )


TRUSTED = {
    "plain": locked(),
    "without tags": json.dumps(["P2PK", {"nonce": "n", "data": OURS}]),
    "null tags": json.dumps(["P2PK", {"nonce": "n", "data": OURS, "tags": None}]),
    "odd key": locked("03" + KEYS.pubkey),
    "upper case": locked(OURS.upper()),
    "sigflag": locked(OURS, ["sigflag", "SIG_INPUTS"]),
    "one signature": locked(OURS, ["n_sigs", "1"]),
    "far locktime": locked(OURS, ["locktime", str(int(NOW) + MIN_LOCK_S)]),
    "far locktime with refund": locked(
        OURS, ["locktime", str(int(NOW) + MIN_LOCK_S)], ["refund", OTHER], ["n_sigs_refund", "1"]
    ),
}

REFUSED = {
    "another key": locked(OTHER),
    "another kind": locked(kind="HTLC"),
    "unknown kind": locked(kind="p2pk"),
    "another may sign": locked(OURS, ["pubkeys", OTHER]),
    "we may sign for another": locked(OTHER, ["pubkeys", OURS]),
    "two signatures": locked(OURS, ["n_sigs", "2"]),
    "odd number of signatures": locked(OURS, ["n_sigs", "01"]),
    "signs outputs": locked(OURS, ["sigflag", "SIG_ALL"]),
    "unknown sigflag": locked(OURS, ["sigflag", "SIG_NONE"]),
    "sigflag twice": locked(OURS, ["sigflag", "SIG_INPUTS"], ["sigflag", "SIG_INPUTS"]),
    "sigflag of two": locked(OURS, ["sigflag", "SIG_INPUTS", "SIG_ALL"]),
    "near locktime": locked(OURS, ["locktime", str(int(NOW) + MIN_LOCK_S - 1)]),
    "past locktime with refund": locked(OURS, ["locktime", "1"], ["refund", OTHER]),
    "locktime that is no number": locked(OURS, ["locktime", "1e12"]),
    "locktime twice": locked(OURS, ["locktime", "1999999999"], ["locktime", "1"]),
    "refund without locktime": locked(OURS, ["refund", OTHER]),
    "unknown tag": locked(OURS, ["future", "x"]),
    "empty tag": locked(OURS, []),
    "tag without value": locked(OURS, ["note"]),
    "tag of numbers": locked(OURS, ["n_sigs", 1]),  # type: ignore[list-item]
    "unknown field": locked(OURS, note="x"),
    "data twice": f'["P2PK",{{"nonce":"n","data":"{OTHER}","data":"{OURS}"}}]',
    "x-only key": locked(KEYS.pubkey),
    "uncompressed": locked("04" + KEYS.pubkey),
}


@pytest.mark.parametrize("name", TRUSTED)
def test_a_coin_locked_to_us_alone_gets_our_signature(name: str) -> None:
    secret = TRUSTED[name]
    proof = unlock(token(secret), KEYS, NOW).proofs[0]
    assert proof.witness is not None
    (signature,) = json.loads(proof.witness)["signatures"]
    digest = hashlib.sha256(secret.encode()).digest()
    assert PublicKeyXOnly(bytes.fromhex(KEYS.pubkey)).verify(bytes.fromhex(signature), digest)


@pytest.mark.parametrize("name", REFUSED)
def test_any_other_lock_is_refused_without_a_witness_and_passed_on_with_one(name: str) -> None:
    secret = REFUSED[name]
    for check in (unlock, check_locks):
        with pytest.raises(TokenMalformed, match="locked"):
            check(token("free", secret), KEYS, NOW)
    brought = token(secret, witness='{"signatures":["00"]}')
    assert unlock(brought, KEYS, NOW) is brought


def test_the_refusal_says_whose_lock_it_is() -> None:
    with pytest.raises(TokenMalformed, match="another key"):
        check_locks(token(locked(OTHER)), KEYS, NOW)
    with pytest.raises(TokenMalformed, match="conditions"):
        check_locks(token(locked(OURS, ["pubkeys", OTHER])), KEYS, NOW)


def test_the_same_coin_gets_the_same_witness() -> None:
    assert unlock(token(locked()), KEYS, NOW) == unlock(token(locked()), KEYS, NOW + 9)


def test_a_witness_that_came_along_does_not_replace_ours() -> None:
    ours = unlock(token(locked()), KEYS, NOW)
    assert unlock(token(locked(), witness="junk"), KEYS, NOW) == ours


@pytest.mark.parametrize(
    "secret",
    [
        "ab" * 32,
        '{"P2PK": 1}',
        "[]",
        "[1, {}]",
        '["P2PK", {}]',
        '["P2PK", {"nonce": 1, "data": "x"}]',
        "[" * 1024,
        '["P2PK"',
        "[NaN, 1]",
    ],
)
def test_a_secret_that_states_no_condition_is_no_lock(secret: str) -> None:
    plain = token(secret)
    assert unlock(plain, KEYS, NOW) is plain


def test_a_lock_that_is_over_is_none() -> None:
    over = token(locked(OTHER, ["locktime", str(int(NOW) - 1)]))
    assert unlock(over, KEYS, NOW) is over


def test_without_a_signer_no_lock_is_ours() -> None:
    with pytest.raises(TokenMalformed, match="another key"):
        unlock(token(locked()), None, NOW)


@given(
    st.text(max_size=200)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["nonce", "data", "tags"]), inner, max_size=3)
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(["P2PK", value]))
)
def test_no_secret_makes_the_reader_fail(secret: str) -> None:
    condition = read_condition(secret)
    assert condition is None or not condition.trusted(KEYS.pubkey, NOW)


def test_keys_sign_a_digest_and_show_no_secret() -> None:
    with pytest.raises(ValueError, match="32"):
        KEYS.sign_digest(b"short")
    assert KEYS.sign_digest(bytes(32)) == KEYS.sign_digest(bytes(32))
