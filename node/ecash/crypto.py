"""Cashu's cryptography on plain values: blinding (NUT-00), keyset ids (NUT-02), DLEQ proofs
(NUT-12), deterministic secrets (NUT-13). Points and scalars are lower-case hex.

All of it is CPU work of 5 to 200 µs a call, synchronous, and safe to call anywhere.
"""

from __future__ import annotations

import hmac
import re
from functools import lru_cache

from cashu.core.crypto.b_dhke import (
    alice_verify_dleq,
    hash_to_curve,
    step1_alice,
    step3_alice,
)
from cashu.core.crypto.keys import derive_keyset_id, derive_keyset_id_v2
from cashu.core.crypto.secp import PrivateKey, PublicKey
from mnemonic import Mnemonic

from node.core.ecash import BlindedMessage, BlindSignature, Dleq, Keyset, Proof

_POINT = re.compile(r"0[23][0-9a-f]{64}")
_SCALAR = re.compile(r"[0-9a-f]{64}")
_KEYSET_ID = re.compile(r"00[0-9a-f]{14}|01[0-9a-f]{64}")

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Order of the secp256k1 group."""
_HARDENED = 1 << 31
_PURPOSE = 129372
_KDF_DOMAIN = b"Cashu_KDF_HMAC_SHA256"


def is_point(text: str) -> bool:
    """Whether ``text`` is a compressed secp256k1 point on the curve, lower-case hex."""
    if not _POINT.fullmatch(text):
        return False
    try:
        PublicKey(bytes.fromhex(text))
    except ValueError:
        return False
    return True


def is_scalar(text: str) -> bool:
    """Whether ``text`` has the shape of a scalar: 32 bytes, lower-case hex."""
    return _SCALAR.fullmatch(text) is not None


def is_keyset_id(text: str) -> bool:
    """Whether ``text`` is a full keyset id of version 00 or 01 (NUT-02)."""
    return _KEYSET_ID.fullmatch(text) is not None


def new_mnemonic() -> str:
    """A fresh BIP-39 mnemonic: twelve English words."""
    return str(Mnemonic("english").generate(128))


def mnemonic_to_seed(mnemonic: str) -> bytes:
    """The 64-byte BIP-39 seed (no passphrase). Raises ValueError for an invalid mnemonic."""
    words = Mnemonic("english")
    normal = " ".join(mnemonic.lower().split())
    if not words.check(normal):
        raise ValueError("not a valid BIP-39 mnemonic")
    return bytes(words.to_seed(normal))


def derive_secret(seed: bytes, keyset_id: str, counter: int) -> tuple[str, bytes]:
    """The secret (hex string) and blinding factor (32 bytes) number ``counter`` (NUT-13).

    Raises ValueError for a keyset id that is not 00 or 01 and full, or a counter out of range.
    """
    if not is_keyset_id(keyset_id):
        raise ValueError("not a full keyset id of version 00 or 01")
    if keyset_id.startswith("01"):
        return _derive_hmac(seed, keyset_id, counter)
    return _derive_bip32(seed, keyset_id, counter)


def _derive_hmac(seed: bytes, keyset_id: str, counter: int) -> tuple[str, bytes]:
    if not 0 <= counter < 1 << 64:
        raise ValueError("counter out of range")
    message = _KDF_DOMAIN + bytes.fromhex(keyset_id) + counter.to_bytes(8, "big")
    secret = hmac.digest(seed, message + b"\x00", "sha256")
    digest = hmac.digest(seed, message + b"\x01", "sha256")
    r = int.from_bytes(digest, "big") % _ORDER
    if r == 0:
        raise ValueError("this counter has no blinding factor")
    return secret.hex(), r.to_bytes(32, "big")


def _derive_bip32(seed: bytes, keyset_id: str, counter: int) -> tuple[str, bytes]:
    if not 0 <= counter < _HARDENED:
        raise ValueError("counter out of range")
    node = _child(*_keyset_node(seed, keyset_id), counter + _HARDENED)
    return _child(*node, 0)[0].hex(), _child(*node, 1)[0]


@lru_cache(maxsize=64)
def _keyset_node(seed: bytes, keyset_id: str) -> tuple[bytes, bytes]:
    """BIP-32 key and chain code of ``m/129372'/0'/<keyset>'``, which all its counters share."""
    root = hmac.digest(b"Bitcoin seed", seed, "sha512")
    node = root[:32], root[32:]
    for index in (_PURPOSE, 0, int(keyset_id, 16) % (_HARDENED - 1)):
        node = _child(*node, index + _HARDENED)
    return node


def _child(key: bytes, chain: bytes, index: int) -> tuple[bytes, bytes]:
    """BIP-32 private child derivation."""
    data = b"\x00" + key if index >= _HARDENED else PrivateKey(key).public_key.format()
    digest = hmac.digest(chain, data + index.to_bytes(4, "big"), "sha512")
    tweak = int.from_bytes(digest[:32], "big")
    child = (tweak + int.from_bytes(key, "big")) % _ORDER
    if tweak >= _ORDER or child == 0:
        raise ValueError("this index has no child key")
    return child.to_bytes(32, "big"), digest[32:]


def hash_to_curve_hex(secret: str) -> str:
    """``Y``, by which the mint knows the secret (NUT-00, NUT-07)."""
    return _hex(hash_to_curve(secret.encode()))


def blind(secret: str, r: bytes) -> str:
    """``B_`` = Y + r·G. Raises ValueError when ``r`` is not a scalar."""
    blinded, _ = step1_alice(secret, PrivateKey(r))
    return _hex(blinded)


def unblind(c_: str, r: bytes, mint_pubkey: str) -> str:
    """``C`` = C_ - r·K. Raises ValueError for a bad point or scalar."""
    return _hex(step3_alice(_point(c_), PrivateKey(r), _point(mint_pubkey)))


def verify_signature_dleq(
    message: BlindedMessage, signature: BlindSignature, mint_pubkey: str
) -> bool:
    """Whether the mint proves that it signed ``message`` with ``mint_pubkey`` (NUT-12).

    False as well where there is no proof, or one of nonsense: see ``signature.dleq``.
    """
    if signature.dleq is None:
        return False
    try:
        return _verify(
            _point(message.b_), _point(signature.c_), signature.dleq, _point(mint_pubkey)
        )
    except ValueError:
        return False


def verify_proof_dleq(proof: Proof, mint_pubkey: str) -> bool:
    """Whether ``proof`` carries a proof that the mint signed it with ``mint_pubkey`` (NUT-12).

    False as well where there is no proof, or one of nonsense. Secrets hashed to the curve the
    way mints did before 2024 do not verify: not every mint would take them.
    """
    if proof.dleq is None:
        return False
    try:
        key, r = _point(mint_pubkey), _scalar(proof.dleq.r)
        b_ = hash_to_curve(proof.secret.encode()) + r.public_key
        return _verify(b_, _point(proof.c) + key * r, proof.dleq, key)
    except ValueError:
        return False


def _verify(b_: PublicKey, c_: PublicKey, dleq: Dleq, key: PublicKey) -> bool:
    return bool(alice_verify_dleq(b_, c_, _scalar(dleq.e), _scalar(dleq.s), key))


def keyset_id_matches(keyset: Keyset, final_expiry: int | None) -> bool:
    """Whether ``keyset.id`` is what its keys, unit and fee amount to (NUT-02, both versions).

    Args:
        final_expiry: Unix time after which the mint drops the keyset, part of a version 01 id.
    """
    try:
        keys = {amount: _point(key) for amount, key in keyset.keys.items()}
    except ValueError:
        return False
    if keyset.id.startswith("00"):
        return bool(derive_keyset_id(keys) == keyset.id)
    expected = derive_keyset_id_v2(keys, keyset.unit, final_expiry or None, keyset.input_fee_ppk)
    return bool(expected == keyset.id)


def _point(text: str) -> PublicKey:
    if not _POINT.fullmatch(text):
        raise ValueError("not a compressed point")
    return PublicKey(bytes.fromhex(text))


def _scalar(text: str) -> PrivateKey:
    if not _SCALAR.fullmatch(text):
        raise ValueError("not a scalar")
    return PrivateKey(bytes.fromhex(text))


def _hex(point: PublicKey) -> str:
    return str(point.format().hex())
