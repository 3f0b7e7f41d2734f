"""NIP-44 payloads agree with the official vectors and with an independent implementation."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import nostr_sdk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.errors import DecryptError, EncryptError, InvalidKey
from discovery.nostr import nip44
from discovery.nostr.keys import Keys

_FILE = Path(__file__).parents[1] / "vectors" / "nip44.vectors.json"
VECTORS: dict[str, Any] = json.loads(_FILE.read_text())["v2"]
VALID, INVALID = VECTORS["valid"], VECTORS["invalid"]

ALICE = Keys.parse("0beebd062ec8735f4243466049d7747ef5d6594ee838de147f8aab842b15e273")
BOB = Keys.parse("e108399bd8424357a710b606ae0c13166d853d327e47a6e5e038197346bdbf45")
KEY = ALICE.conversation_key(BOB.pubkey)
EXTENDED_KEY = bytes.fromhex("c41c775356fd92eadc63ff5a0dc1da211b268cbea22316767095b2871ea1412d")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_vectors_are_the_official_ones() -> None:
    assert hashlib.sha256(_FILE.read_bytes()).hexdigest() == (
        "269ed0f69e4c192512cc779e78c555090cebc7c785b609e338a62afc3ce25040"
    )


@pytest.mark.parametrize("v", VALID["get_conversation_key"])
def test_conversation_keys(v: dict[str, str]) -> None:
    key = nip44.conversation_key(bytes.fromhex(v["sec1"]), v["pub2"])
    assert key.hex() == v["conversation_key"]


@pytest.mark.parametrize("v", VALID["get_message_keys"]["keys"])
def test_message_keys(v: dict[str, str]) -> None:
    key = bytes.fromhex(VALID["get_message_keys"]["conversation_key"])
    keys = nip44.message_keys(key, bytes.fromhex(v["nonce"]))
    assert [k.hex() for k in keys] == [v["chacha_key"], v["chacha_nonce"], v["hmac_key"]]


@pytest.mark.parametrize(("length", "padded"), VALID["calc_padded_len"])
def test_padded_lengths(length: int, padded: int) -> None:
    assert nip44.padded_length(length) == padded


@pytest.mark.parametrize("v", VALID["encrypt_decrypt"])
def test_encrypt_and_decrypt(v: dict[str, str]) -> None:
    one, two = Keys.parse(v["sec1"]), Keys.parse(v["sec2"])
    key = one.conversation_key(two.pubkey)
    assert key == two.conversation_key(one.pubkey) == bytes.fromhex(v["conversation_key"])
    payload = nip44.encrypt(v["plaintext"], key, bytes.fromhex(v["nonce"]))
    assert payload == v["payload"]
    assert nip44.decrypt(payload, key) == v["plaintext"]


@pytest.mark.parametrize("v", VALID["encrypt_decrypt_long_msg"])
def test_encrypt_and_decrypt_long_messages(v: dict[str, Any]) -> None:
    key = bytes.fromhex(v["conversation_key"])
    plaintext = v["pattern"] * v["repeat"]
    assert sha256(plaintext) == v["plaintext_sha256"]
    payload = nip44.encrypt(plaintext, key, bytes.fromhex(v["nonce"]))
    assert sha256(payload) == v["payload_sha256"]
    assert nip44.decrypt(payload, key) == plaintext


@pytest.mark.parametrize("length", INVALID["encrypt_msg_lengths"])
def test_lengths_that_are_never_written(length: int) -> None:
    with pytest.raises(EncryptError):
        nip44.encrypt("x" * length, KEY)


@pytest.mark.parametrize("v", INVALID["get_conversation_key"])
def test_invalid_keys_give_no_conversation_key(v: dict[str, str]) -> None:
    with pytest.raises(InvalidKey):
        nip44.conversation_key(bytes.fromhex(v["sec1"]), v["pub2"])


@pytest.mark.parametrize("v", INVALID["decrypt"], ids=lambda v: v["note"])
def test_invalid_payloads_do_not_decrypt(v: dict[str, str]) -> None:
    with pytest.raises(DecryptError):
        nip44.decrypt(v["payload"], bytes.fromhex(v["conversation_key"]))


def extended_payload(plaintext: bytes, prefix: bytes, padded_bytes: int) -> str:
    """A payload with a chosen length prefix, which ``encrypt`` does not write."""
    nonce = (1).to_bytes(32, "big")
    chacha_key, chacha_nonce, mac_key = nip44.message_keys(EXTENDED_KEY, nonce)
    padded = prefix + plaintext + bytes(padded_bytes - len(plaintext))
    ciphertext = nip44._chacha20(chacha_key, chacha_nonce, padded)
    mac = nip44.hmac.digest(mac_key, nonce + ciphertext, "sha256")
    return base64.b64encode(b"\x02" + nonce + ciphertext + mac).decode()


@pytest.mark.parametrize(
    ("length", "padded", "checksum"),
    [
        (65_536, 65_536, "b7b4edb36ba92e267d322d56d9aebc22e7fa96ff52e3c12adc07f07a43cbc616"),
        (65_537, 81_920, "eeb7c7c5373894ea2c1547cfd3ccb15d5a0b2d619da852e5c79df792dcc9e435"),
    ],
)
def test_the_extended_length_prefix_is_read(length: int, padded: int, checksum: str) -> None:
    payload = extended_payload(b"a" * length, b"\0\0" + length.to_bytes(4, "big"), padded)
    assert sha256(payload) == checksum
    assert nip44.decrypt(payload, EXTENDED_KEY) == "a" * length


def test_the_largest_short_prefix_is_written_as_the_specification_says() -> None:
    payload = nip44.encrypt("a" * 65_535, EXTENDED_KEY, (1).to_bytes(32, "big"))
    assert sha256(payload) == "6d8c2810d1e870fbaa1f0a0937126cca837a15f9260e27060c331d70a3c0bc84"


@pytest.mark.parametrize("length", [0, 1, 65_535, 65_537, 2**32 - 1])
def test_an_extended_prefix_that_does_not_fit_is_refused(length: int) -> None:
    payload = extended_payload(b"a" * 65_536, b"\0\0" + length.to_bytes(4, "big"), 65_536)
    with pytest.raises(DecryptError):
        nip44.decrypt(payload, EXTENDED_KEY)


def test_a_plaintext_that_is_not_utf8_is_refused() -> None:
    payload = extended_payload(b"\xff", b"\0\1", 32)
    with pytest.raises(DecryptError):
        nip44.decrypt(payload, EXTENDED_KEY)


def test_oversize_payloads_are_refused_before_any_work() -> None:
    with pytest.raises(DecryptError):
        nip44.decrypt("A" * 200, KEY, max_payload_bytes=199)


def test_text_without_utf8_is_not_encrypted() -> None:
    with pytest.raises(EncryptError):
        nip44.encrypt("\ud800", KEY)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@settings(deadline=None)
def test_both_directions_with_an_independent_implementation(plaintext: str) -> None:
    alice, bob = nostr_sdk.Keys.parse(ALICE.nsec()), nostr_sdk.Keys.parse(BOB.nsec())
    ours = nip44.encrypt(plaintext, KEY)
    theirs = nostr_sdk.nip44_encrypt(
        alice.secret_key(), bob.public_key(), plaintext, nostr_sdk.Nip44Version.V2
    )
    assert nostr_sdk.nip44_decrypt(bob.secret_key(), alice.public_key(), ours) == plaintext
    assert nip44.decrypt(theirs, KEY) == plaintext


@given(st.text() | st.binary(min_size=99, max_size=300).map(lambda b: base64.b64encode(b).decode()))
def test_no_payload_raises_anything_but_decrypt_error(payload: str) -> None:
    with pytest.raises(DecryptError):
        nip44.decrypt(payload, KEY)


@given(position=st.integers(0, 98), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(position: int, bit: int) -> None:
    data = bytearray(base64.b64decode(nip44.encrypt("x", KEY)))
    data[position] ^= 1 << bit
    with pytest.raises(DecryptError):
        nip44.decrypt(base64.b64encode(data).decode(), KEY)


def test_a_nonce_is_never_used_twice() -> None:
    assert len({nip44.encrypt("same", KEY) for _ in range(50)}) == 50
