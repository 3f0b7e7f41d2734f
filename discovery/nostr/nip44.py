"""NIP-44 version 2: encrypted payloads between two keys.

Plaintexts of 65,536 bytes and more (the extended length prefix) are read but not written:
common relays refuse events of that size and not every implementation knows the prefix.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from typing import Any, Final

from coincurve import PublicKey
from coincurve._libsecp256k1 import ffi, lib
from coincurve.context import GLOBAL_CONTEXT
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from discovery.errors import DecryptError, EncryptError, InvalidKey

MAX_PLAINTEXT_BYTES: Final = 65_535
"""Longest plaintext we write."""
MAX_PAYLOAD_BYTES: Final = 262_144
"""Longest payload we read, in base64 characters."""

_VERSION: Final = 2
_SALT: Final = b"nip44-v2"
_NONCE_BYTES: Final = 32
_MAC_BYTES: Final = 32
_MIN_PAYLOAD_CHARS: Final = 132
_MIN_DATA_BYTES: Final = 99
_EXTENDED_BYTES: Final = 65_536
_COUNTER_ZERO: Final = bytes(4)


def _copy_x(output: Any, x32: Any, _y32: Any, _data: Any) -> int:
    ffi.memmove(output, x32, 32)
    return 1


# libsecp256k1's own ECDH is constant time, which matters as strangers choose the point; it
# hashes unless told otherwise, and NIP-44 wants the bare x coordinate.
_X_ONLY: Final = ffi.callback(
    "int (unsigned char *, const unsigned char *, const unsigned char *, void *)", _copy_x
)


def conversation_key(secret: bytes, pubkey_hex: str) -> bytes:
    """The 32-byte key of a pair: the same from either side.

    Args:
        secret: our 32-byte secret key.
        pubkey_hex: the other's x-only public key, 64 hex digits.

    Raises InvalidKey when either is not a key.
    """
    try:
        point = PublicKey(b"\x02" + bytes.fromhex(pubkey_hex))
    except (ValueError, TypeError):
        raise InvalidKey("the public key is not a point of the curve") from None
    if len(secret) != 32:
        raise InvalidKey("a secret key has 32 bytes")
    shared_x = ffi.new("unsigned char [32]")
    if not lib.secp256k1_ecdh(
        GLOBAL_CONTEXT.ctx, shared_x, point.public_key, secret, _X_ONLY, ffi.NULL
    ):
        raise InvalidKey("the secret key is out of range")
    return hmac.digest(_SALT, bytes(ffi.buffer(shared_x)), "sha256")  # HKDF-extract


def message_keys(key: bytes, nonce: bytes) -> tuple[bytes, bytes, bytes]:
    """(ChaCha20 key, ChaCha20 nonce, HMAC key) of one message: HKDF-expand to 76 bytes.

    ``key`` is the conversation key; both are 32 bytes. Raises InvalidKey for other lengths.
    """
    if len(key) != 32 or len(nonce) != _NONCE_BYTES:
        raise InvalidKey("conversation key and nonce have 32 bytes each")
    first = hmac.digest(key, nonce + b"\x01", "sha256")
    second = hmac.digest(key, first + nonce + b"\x02", "sha256")
    third = hmac.digest(key, second + nonce + b"\x03", "sha256")
    return first, second[:12], second[12:] + third[:12]


def padded_length(length_bytes: int) -> int:
    """Bytes a plaintext of that many bytes (≥ 1) is padded to, without the length prefix."""
    if length_bytes <= 32:
        return 32
    next_power = 1 << (length_bytes - 1).bit_length()
    chunk = 32 if next_power <= 256 else next_power // 8
    return chunk * ((length_bytes - 1) // chunk + 1)


def encrypt(plaintext: str, conversation_key: bytes, nonce: bytes | None = None) -> str:
    """The base64 payload of ``plaintext``. ``nonce`` (32 bytes) is for test vectors only.

    Raises EncryptError for a plaintext that is empty, longer than 65,535 bytes or not UTF-8.
    """
    try:
        data = plaintext.encode()
    except UnicodeEncodeError:
        raise EncryptError("the plaintext has no UTF-8 form") from None
    if not 1 <= len(data) <= MAX_PLAINTEXT_BYTES:
        raise EncryptError(f"a plaintext has 1 to {MAX_PLAINTEXT_BYTES} bytes, not {len(data)}")
    if nonce is None:
        nonce = secrets.token_bytes(_NONCE_BYTES)
    chacha_key, chacha_nonce, mac_key = message_keys(conversation_key, nonce)
    padded = len(data).to_bytes(2, "big") + data.ljust(padded_length(len(data)), b"\0")
    ciphertext = _chacha20(chacha_key, chacha_nonce, padded)
    mac = hmac.digest(mac_key, nonce + ciphertext, "sha256")
    return base64.b64encode(bytes([_VERSION]) + nonce + ciphertext + mac).decode()


def decrypt(
    payload: str, conversation_key: bytes, *, max_payload_bytes: int = MAX_PAYLOAD_BYTES
) -> str:
    """The plaintext of a base64 payload.

    Raises DecryptError: unknown version, wrong length, wrong key, tampered with, bad padding.
    """
    if payload.startswith("#"):
        raise DecryptError("this encryption version is not supported")
    if not _MIN_PAYLOAD_CHARS <= len(payload) <= max_payload_bytes:
        raise DecryptError("the payload's length is not possible")
    try:
        data = base64.b64decode(payload, validate=True)
    except ValueError:
        raise DecryptError("the payload is not base64") from None
    if len(data) < _MIN_DATA_BYTES:
        raise DecryptError("the payload's length is not possible")
    if data[0] != _VERSION:
        raise DecryptError("this encryption version is not supported")
    nonce, ciphertext, mac = data[1:33], data[33:-_MAC_BYTES], data[-_MAC_BYTES:]
    chacha_key, chacha_nonce, mac_key = message_keys(conversation_key, nonce)
    if not hmac.compare_digest(hmac.digest(mac_key, nonce + ciphertext, "sha256"), mac):
        raise DecryptError("the payload is not for this key, or was tampered with")
    return _unpad(_chacha20(chacha_key, chacha_nonce, ciphertext))


def _unpad(padded: bytes) -> str:
    length, start = int.from_bytes(padded[:2], "big"), 2
    if length == 0:
        length, start = int.from_bytes(padded[2:6], "big"), 6
        if length < _EXTENDED_BYTES:
            raise DecryptError("the padding is wrong")
    if len(padded) != start + padded_length(length):
        raise DecryptError("the padding is wrong")
    try:
        return padded[start : start + length].decode()
    except UnicodeDecodeError:
        raise DecryptError("the plaintext is not UTF-8") from None


def _chacha20(key: bytes, nonce: bytes, data: bytes) -> bytes:
    return (
        Cipher(algorithms.ChaCha20(key, _COUNTER_ZERO + nonce), mode=None).encryptor().update(data)
    )
