"""Cashu's cryptography on plain values: blinding (NUT-00), keyset ids (NUT-02), DLEQ proofs
(NUT-12), deterministic secrets (NUT-13). Points and scalars are lower-case hex.

All of it is CPU work of 5 to 300 µs a call, synchronous, and safe to call anywhere.

What happens for every coin of every payment is done here with libsecp256k1 (coincurve) rather than
with cashu's functions, which make a key pair of each scalar only to multiply by it: two curve
multiplications more for each. Tests compare both.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from functools import lru_cache

from cashu.core.crypto.b_dhke import hash_to_curve
from cashu.core.crypto.keys import derive_keyset_id, derive_keyset_id_v2
from coincurve import PublicKey
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
    try:
        _point(text)
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
    public = PublicKey.from_secret(node[0]).format()
    return _child(*node, 0, public)[0].hex(), _child(*node, 1, public)[0]


@lru_cache(maxsize=64)
def _keyset_node(seed: bytes, keyset_id: str) -> tuple[bytes, bytes]:
    """BIP-32 key and chain code of ``m/129372'/0'/<keyset>'``, which all its counters share."""
    root = hmac.digest(b"Bitcoin seed", seed, "sha512")
    node = root[:32], root[32:]
    for index in (_PURPOSE, 0, int(keyset_id, 16) % (_HARDENED - 1)):
        node = _child(*node, index + _HARDENED)
    return node


def _child(key: bytes, chain: bytes, index: int, public: bytes = b"") -> tuple[bytes, bytes]:
    """BIP-32 private child derivation; ``public`` key of ``key`` for an index not hardened."""
    data = b"\x00" + key if index >= _HARDENED else public
    digest = hmac.digest(chain, data + index.to_bytes(4, "big"), "sha512")
    tweak = int.from_bytes(digest[:32], "big")
    child = (tweak + int.from_bytes(key, "big")) % _ORDER
    if tweak >= _ORDER or child == 0:
        raise ValueError("this index has no child key")
    return child.to_bytes(32, "big"), digest[32:]


def hash_to_curve_hex(secret: str) -> str:
    """``Y``, by which the mint knows the secret (NUT-00, NUT-07)."""
    return _hex(_y(secret))


def blind(secret: str, r: bytes) -> str:
    """``B_`` = Y + r·G. Raises ValueError when ``r`` is not a scalar."""
    return _hex(_y(secret).add(_in_range(r)))


def unblind(c_: str, r: bytes, mint_pubkey: str) -> str:
    """``C`` = C_ - r·K. Raises ValueError for a bad point or scalar."""
    return _hex(_point(c_).combine([_point(mint_pubkey).multiply(_negative(_in_range(r)))]))


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
        b_ = _y(proof.secret).add(r)
        c_ = _point(proof.c).combine([key.multiply(r)])
        return _verify(b_, c_, proof.dleq, key)
    except ValueError:
        return False


def _verify(b_: PublicKey, c_: PublicKey, dleq: Dleq, key: PublicKey) -> bool:
    """e == hash(s·G - e·K, s·B_ - e·C_, K, C_). Raises ValueError for sums at infinity."""
    e, s = _scalar(dleq.e), _scalar(dleq.s)
    minus_e = _negative(e)
    r1 = key.multiply(minus_e).add(s)
    r2 = b_.multiply(s).combine([c_.multiply(minus_e)])
    points = "".join(point.format(compressed=False).hex() for point in (r1, r2, key, c_))
    return hashlib.sha256(points.encode()).digest() == e


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


@lru_cache(maxsize=1024)
def _point(text: str) -> PublicKey:
    """Cached: a mint's keys come with every coin, a signature is checked before it is used."""
    if not _POINT.fullmatch(text):
        raise ValueError("not a compressed point")
    return PublicKey(bytes.fromhex(text))


@lru_cache(maxsize=256)
def _y(secret: str) -> PublicKey:
    """Cached: a coin's Y is needed to check it, to claim it and to store it, all at once."""
    return hash_to_curve(secret.encode())


def _scalar(text: str) -> bytes:
    if not _SCALAR.fullmatch(text):
        raise ValueError("not a scalar")
    return _in_range(bytes.fromhex(text))


def _in_range(scalar: bytes) -> bytes:
    if len(scalar) != 32 or not 0 < int.from_bytes(scalar, "big") < _ORDER:
        raise ValueError("not a scalar")
    return scalar


def _negative(scalar: bytes) -> bytes:
    return (_ORDER - int.from_bytes(scalar, "big")).to_bytes(32, "big")


def _hex(point: PublicKey) -> str:
    return str(point.format().hex())
