"""Promise: our cryptography is Cashu's: the NUT vectors hold, nutshell derives the same, and no
tampered signature, proof or keyset passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cashu.core.crypto import b_dhke
from coincurve import PrivateKey, PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from node.core.ecash import BlindedMessage, BlindSignature, Dleq, Keyset, Proof
from node.ecash import crypto
from tests.unit.ecash import nutshell

V1_ID = "009a1f293253e41e"
V2_ID = "015ba18a8adcd02e715a58358eb618da4a4b3791151a4bee5e968bb88406ccf76a"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

# NUT-13 test vectors.
MNEMONIC = "half depart obvious quality work element tank gorilla view sugar picture humble"
NUT13 = {
    V1_ID: [
        (
            "485875df74771877439ac06339e284c3acfcd9be7abf3bc20b516faeadfe77ae",
            "ad00d431add9c673e843d4c2bf9a778a5f402b985b8da2d5550bf39cda41d679",
        ),
        (
            "8f2b39e8e594a4056eb1e6dbb4b0c38ef13b1b2c751f64f810ec04ee35b77270",
            "967d5232515e10b81ff226ecf5a9e2e2aff92d66ebc3edf0987eb56357fd6248",
        ),
        (
            "bc628c79accd2364fd31511216a0fab62afd4a18ff77a20deded7b858c9860c8",
            "b20f47bb6ae083659f3aa986bfa0435c55c6d93f687d51a01f26862d9b9a4899",
        ),
        (
            "59284fd1650ea9fa17db2b3acf59ecd0f2d52ec3261dd4152785813ff27a33bf",
            "fb5fca398eb0b1deb955a2988b5ac77d32956155f1c002a373535211a2dfdc29",
        ),
        (
            "576c23393a8b31cc8da6688d9c9a96394ec74b40fdaf1f693a6bb84284334ea0",
            "5f09bfbfe27c439a597719321e061e2e40aad4a36768bb2bcc3de547c9644bf9",
        ),
    ],
    V2_ID: [
        (
            "db5561a07a6e6490f8dadeef5be4e92f7cebaecf2f245356b5b2a4ec40687298",
            "6d26181a3695e32e9f88b80f039ba1ae2ab5a200ad4ce9dbc72c6d3769f2b035",
        ),
        (
            "b70e7b10683da3bf1cdf0411206f8180c463faa16014663f39f2529b2fda922e",
            "bde4354cee75545bea1a2eee035a34f2d524cee2bb01613823636e998386952e",
        ),
        (
            "78a7ac32ccecc6b83311c6081b89d84bb4128f5a0d0c5e1af081f301c7a513f5",
            "f40cc1218f085b395c8e1e5aaa25dccc851be3c6c7526a0f4e57108f12d6dac4",
        ),
        (
            "094a2b6c63bfa7970bc09cda0e1cfc9cd3d7c619b8e98fabcfc60aea9e4963e5",
            "099ed70fc2f7ac769bc20b2a75cb662e80779827b7cc358981318643030577d0",
        ),
        (
            "5e89fc5d30d0bf307ddf0a3ac34aa7a8ee3702169dafa3d3fe1d0cae70ecd5ef",
            "5550337312d223ba62e3f75cfe2ab70477b046d98e3e71804eade3956c7b98cf",
        ),
    ],
}

# NUT-12 test vectors; the mint's key is the generator.
KEY = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
MESSAGE = BlindedMessage(
    8, "00882760bfa2eb41", "02a9acc1e48c25eeeb9289b5031cc57da9fe72f3fe2861d264bdc074209b107ba2"
)
SIGNATURE = BlindSignature(
    8,
    "00882760bfa2eb41",
    "02a9acc1e48c25eeeb9289b5031cc57da9fe72f3fe2861d264bdc074209b107ba2",
    Dleq(
        "9818e061ee51d5c8edc3342369a554998ff7b4381c8652d724cdf46429be73d9",
        "9818e061ee51d5c8edc3342369a554998ff7b4381c8652d724cdf46429be73da",
    ),
)
PROOF_DLEQ = Dleq(
    "b31e58ac6527f34975ffab13e70a48b6d2b0d35abc4b03f0151f09ee1a9763d4",
    "8fbae004c59e754d71df67e392b6ae4e29293113ddc2ec86592a0431d16306d8",
    "a6d13fcd7a18442e6076f5e1e7c887ad5de40a019824bdfa9fe740d302e8d861",
)
PROOF = Proof(
    "00882760bfa2eb41",
    1,
    "daf4dd00a2b68a0858a80450f52c8a7d2ccf87d375e43e216e0c571f089f63e9",
    "024369d2d22a80ecf78f3937da9d5f30c1b9f74f0c32684d583cca0fa6a61cdcfc",
    dleq=PROOF_DLEQ,
)
NOT_ON_CURVE = "02" + "00" * 31 + "05"

KEYSETS: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("nut02.vectors.json").read_text()
)


def keyset_of(vector: dict[str, Any]) -> Keyset:
    keys = {int(amount): key for amount, key in vector["keys"].items()}
    return Keyset(vector["id"], vector["unit"], True, vector["input_fee_ppk"], keys)


@pytest.mark.parametrize(
    ("message", "point"),
    [
        ("\x00" * 32, "024cce997d3b518f739663b757deaec95bcd9473c30a14ac2fd04023a739d1a725"),
        (
            "\x00" * 31 + "\x01",
            "022e7158e11c9506f1aa4248bf531298daa7febd6194f003edcd9b93ade6253acf",
        ),
        (
            "\x00" * 31 + "\x02",
            "026cdbe15362df59cd1dd3c9c11de8aedac2106eca69236ecd9fbe117af897be4f",
        ),
    ],
)
def test_hash_to_curve_vectors(message: str, point: str) -> None:
    assert crypto.hash_to_curve_hex(message) == point


@given(st.text(st.characters(codec="utf-8")), st.integers(1, ORDER - 1), st.integers(1, ORDER - 1))
@settings(deadline=None)
def test_blinding_cancels_out(secret: str, r: int, k: int) -> None:
    """C = k·Y, computed here with coincurve alone."""
    key, factor = PrivateKey.from_int(k), r.to_bytes(32, "big")
    y = PublicKey(bytes.fromhex(crypto.hash_to_curve_hex(secret)))
    blinded = crypto.blind(secret, factor)
    assert blinded == PublicKey.combine_keys([y, PrivateKey(factor).public_key]).format().hex()
    signed = PublicKey(bytes.fromhex(blinded)).multiply(key.secret).format().hex()
    c = crypto.unblind(signed, factor, key.public_key.format().hex())
    assert c == y.multiply(key.secret).format().hex()


@given(st.text(st.characters(codec="utf-8")), st.integers(1, ORDER - 1), st.integers(1, ORDER - 1))
@settings(deadline=None, max_examples=50)
def test_nutshell_computes_the_same(secret: str, r: int, k: int) -> None:
    """A whole life of a coin, each step beside nutshell's own function for it."""
    key, factor = PrivateKey.from_int(k), r.to_bytes(32, "big")
    mint = key.public_key.format().hex()
    blinded, _ = b_dhke.step1_alice(secret, PrivateKey(factor))
    message = BlindedMessage(1, V1_ID, crypto.blind(secret, factor))
    assert message.b_ == blinded.format().hex()
    signed, e, s = b_dhke.step2_bob(blinded, key)
    dleq = Dleq(e.secret.hex(), s.secret.hex())
    signature = BlindSignature(1, V1_ID, signed.format().hex(), dleq)
    assert crypto.verify_signature_dleq(message, signature, mint)
    c = crypto.unblind(signature.c_, factor, mint)
    assert c == b_dhke.step3_alice(signed, PrivateKey(factor), key.public_key).format().hex()
    proof = Proof(V1_ID, 1, secret, c, dleq=replace(dleq, r=factor.hex()))
    assert crypto.verify_proof_dleq(proof, mint)
    wrong = replace(dleq, e=f"{int(dleq.e, 16) % (ORDER - 1) + 1:064x}", r=factor.hex())
    assert not crypto.verify_signature_dleq(message, replace(signature, dleq=wrong), mint)
    assert not crypto.verify_proof_dleq(replace(proof, dleq=wrong), mint)


def test_blinding_refuses_nonsense() -> None:
    for r in (bytes(32), ORDER.to_bytes(32, "big")):
        with pytest.raises(ValueError):  # noqa: PT011 — any ValueError will do
            crypto.blind("secret", r)
    for c_, key in ((NOT_ON_CURVE, KEY), (KEY, NOT_ON_CURVE), ("", KEY), (KEY, "zz")):
        with pytest.raises(ValueError):  # noqa: PT011
            crypto.unblind(c_, b"\x01" * 32, key)


@pytest.mark.parametrize("keyset_id", [V1_ID, V2_ID])
def test_secrets_are_those_of_nut13(keyset_id: str) -> None:
    seed = crypto.mnemonic_to_seed(MNEMONIC)
    derived = [crypto.derive_secret(seed, keyset_id, counter) for counter in range(5)]
    assert [(secret, r.hex()) for secret, r in derived] == NUT13[keyset_id]


def test_secrets_are_those_of_nutshell(tmp_path: Path) -> None:
    asked = [
        (bytes([n]) * 64, keyset_id, counter)
        for n in (0, 7, 255)
        for keyset_id in (V1_ID, V2_ID, "00ffffffffffffff", "00ad268c4d1f5826")
        for counter in (0, 1, 999, 2**31 - 1)
    ]
    theirs = nutshell.ask(
        tmp_path, secrets=[(seed.hex(), keyset_id, counter) for seed, keyset_id, counter in asked]
    )["secrets"]
    ours = [crypto.derive_secret(*entry) for entry in asked]
    assert [[secret, r.hex()] for secret, r in ours] == theirs


def test_derivation_refuses_what_has_no_secrets() -> None:
    seed = bytes(64)
    for keyset_id, counter in (
        (V1_ID, -1),
        (V1_ID, 2**31),
        (V2_ID, -1),
        (V2_ID, 2**64),
        (V2_ID[:16], 0),
        ("02" + V2_ID[2:], 0),
        ("I2yN+iRYfkzT", 0),
    ):
        with pytest.raises(ValueError, match=r"keyset id|counter"):
            crypto.derive_secret(seed, keyset_id, counter)


def test_mnemonics() -> None:
    one, two = crypto.new_mnemonic(), crypto.new_mnemonic()
    assert one != two
    assert len(one.split()) == 12
    assert len(crypto.mnemonic_to_seed(one)) == 64
    # BIP-39 reference vector without passphrase.
    assert (
        crypto.mnemonic_to_seed("  Abandon " + "abandon " * 10 + "about\n")
        .hex()
        .startswith("5eb00bbddcf069084889a8ab9155568165f5c453ccb85e70811aaed6f6da5fc1")
    )
    for wrong in ("", "abandon " * 12, "half depart", MNEMONIC + " humble"):
        with pytest.raises(ValueError, match="BIP-39"):
            crypto.mnemonic_to_seed(wrong)


@pytest.mark.parametrize("vector", KEYSETS, ids=lambda vector: vector["id"][:16])
def test_keyset_ids_are_those_of_nut02(vector: dict[str, Any]) -> None:
    keyset, expiry = keyset_of(vector), vector["final_expiry"]
    assert crypto.keyset_id_matches(keyset, expiry)
    assert crypto.keyset_id_matches(replace(keyset, active=False), expiry)
    shuffled = dict(sorted(keyset.keys.items(), reverse=True))
    assert crypto.keyset_id_matches(replace(keyset, keys=shuffled), expiry)
    swapped = {**keyset.keys, 1: keyset.keys[2]}
    assert not crypto.keyset_id_matches(replace(keyset, keys=swapped), expiry)
    broken = {**keyset.keys, 1: NOT_ON_CURVE}
    assert not crypto.keyset_id_matches(replace(keyset, keys=broken), expiry)
    if keyset.id.startswith("01"):
        fee = keyset.input_fee_ppk + 1
        assert not crypto.keyset_id_matches(replace(keyset, input_fee_ppk=fee), expiry)
        assert not crypto.keyset_id_matches(replace(keyset, unit="msat"), expiry)
        assert not crypto.keyset_id_matches(keyset, (expiry or 0) + 1)


def test_dleq_of_a_signature() -> None:
    assert crypto.verify_signature_dleq(MESSAGE, SIGNATURE, KEY)
    # NUT-12's vector of the deterministic nonce.
    key = "02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5"
    signature = replace(
        SIGNATURE,
        c_="0244eccfc7a348274458bb38044c7f3c389b3c2086c7ec18b5812d2877ab937787",
        dleq=Dleq(
            "2a16ffee280aff3c429045607f9b8e0bf8b35910c44c1b20b9dfaf01b263d7b3",
            "9df27731238334718d120d4f74611a7c668233f988e687ac3fb188f0a34a2dab",
        ),
    )
    assert crypto.verify_signature_dleq(MESSAGE, signature, key)
    assert not crypto.verify_signature_dleq(MESSAGE, signature, KEY)


BAD_SCALARS = ["", "00" * 32, "ff" * 32, f"{ORDER:064x}", "01" * 31, "01" * 32, "zz" * 32]
BAD_POINTS = ["", NOT_ON_CURVE, "04" + KEY[2:] * 2, "zz" * 33, KEY[:-2]]


@pytest.mark.parametrize("bad", BAD_SCALARS)
def test_dleq_with_another_scalar_fails(bad: str) -> None:
    assert SIGNATURE.dleq is not None
    for name in ("e", "s"):
        dleq = replace(SIGNATURE.dleq, **{name: bad})
        assert not crypto.verify_signature_dleq(MESSAGE, replace(SIGNATURE, dleq=dleq), KEY)
    for name in ("e", "s", "r"):
        dleq = replace(PROOF_DLEQ, **{name: bad})
        assert not crypto.verify_proof_dleq(replace(PROOF, dleq=dleq), KEY)


@pytest.mark.parametrize("bad", [*BAD_POINTS, "03" + KEY[2:]])
def test_dleq_with_another_point_fails(bad: str) -> None:
    assert not crypto.verify_signature_dleq(replace(MESSAGE, b_=bad), SIGNATURE, KEY)
    assert not crypto.verify_signature_dleq(MESSAGE, replace(SIGNATURE, c_=bad), KEY)
    assert not crypto.verify_signature_dleq(MESSAGE, SIGNATURE, bad)
    assert not crypto.verify_proof_dleq(replace(PROOF, c=bad), KEY)
    assert not crypto.verify_proof_dleq(PROOF, bad)


def test_dleq_of_a_proof() -> None:
    assert crypto.verify_proof_dleq(PROOF, KEY)
    assert not crypto.verify_proof_dleq(replace(PROOF, secret="another"), KEY)
    assert not crypto.verify_proof_dleq(replace(PROOF, dleq=None), KEY)
    assert not crypto.verify_signature_dleq(MESSAGE, replace(SIGNATURE, dleq=None), KEY)


@given(st.text(max_size=70), st.text(max_size=70), st.text(max_size=70), st.text(max_size=70))
def test_dleq_never_raises(e: str, s: str, r: str, point: str) -> None:
    assert not crypto.verify_proof_dleq(replace(PROOF, c=point, dleq=Dleq(e, s, r)), KEY)
    assert not crypto.verify_signature_dleq(MESSAGE, replace(SIGNATURE, dleq=Dleq(e, s)), point)


def test_points_scalars_and_ids_have_one_form() -> None:
    assert crypto.is_point(KEY)
    assert not any(crypto.is_point(bad) for bad in [*BAD_POINTS, KEY.upper(), f"{KEY[:-1]} ", "é"])
    assert crypto.is_scalar("0" * 64)
    assert not any(crypto.is_scalar(bad) for bad in ("", "0" * 63, "A" * 64, "0" * 64 + "\n"))
    assert crypto.is_keyset_id(V1_ID)
    assert crypto.is_keyset_id(V2_ID)
    assert not any(
        crypto.is_keyset_id(bad) for bad in ("", V2_ID[:16], V1_ID.upper(), V1_ID + "\n")
    )


def test_importing_ecash_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DEBUG=TRUE\nMINT_URL=https://evil.example.com\n")
    program = (
        "import os, sys; before = dict(os.environ)\n"
        "import node.ecash.crypto, node.ecash.token, node.ecash.mint\n"
        "assert dict(os.environ) == before\n"
        "assert not hasattr(sys, 'tracebacklimit')\n"
        "bad = [n for n in sys.modules if n.startswith(('cashu.core.base', 'cashu.core.settings',"
        " 'cashu.core.models', 'cashu.wallet'))]\n"
        "assert not bad, bad\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        timeout=60,
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": os.environ.get("PATH", os.defpath)},
    )
