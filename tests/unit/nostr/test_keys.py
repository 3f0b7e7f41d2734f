"""Keys read what NIP-19 writes, refuse everything else and never show the secret."""

from __future__ import annotations

import copy
import pickle

import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.errors import InvalidKey
from discovery.nostr.keys import Keys, hex_to_npub, npub_to_hex, parse_pubkey

# The NIP-19 examples.
NSEC = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5"
SECRET = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa"
NPUB = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg"
NPUB_HEX = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e"
ORDER = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"


def test_nsec_and_hex_give_the_same_keys() -> None:
    keys = Keys.parse(f" {NSEC}\n")
    assert keys == Keys.parse(SECRET) == Keys.parse(SECRET.upper()) == Keys.parse(NSEC.upper())
    assert keys.nsec() == NSEC


def test_npub_and_hex_are_the_same_key() -> None:
    assert npub_to_hex(NPUB) == NPUB_HEX
    assert hex_to_npub(NPUB_HEX) == NPUB
    assert parse_pubkey(NPUB) == parse_pubkey(NPUB_HEX.upper()) == NPUB_HEX


def test_what_is_shared_with_someone_is_the_same_remembered_or_not() -> None:
    keys, others = Keys.generate(), [Keys.generate() for _ in range(1_100)]
    fresh = [other.conversation_key(keys.pubkey) for other in others]
    kept = [keys.conversation_key(other.pubkey, keep=True) for other in others]
    again = [keys.conversation_key(other.pubkey, keep=True) for other in reversed(others)]
    assert fresh == kept == again[::-1]


def test_generated_keys_agree_with_an_independent_implementation() -> None:
    keys = Keys.generate()
    theirs = nostr_sdk.Keys.parse(keys.nsec())
    assert theirs.public_key().to_hex() == keys.pubkey
    assert theirs.public_key().to_bech32() == keys.npub
    assert keys != Keys.generate()


@pytest.mark.parametrize(
    "text",
    [
        NPUB,
        "",
        "nsec1",
        NSEC[:-1],
        NSEC[:-1] + "q",
        "nsec" + "1" * 200,
        SECRET[:-2],
        SECRET + "00",
        "0" * 64,
        ORDER,
        "f" * 64,
        "nsec1é",
        "x" * 100_000,
    ],
)
def test_anything_but_a_secret_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InvalidKey) as refusal:
        Keys.parse(text)
    assert len(text) < 6 or text not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize("text", [NSEC, "", "npub1", NPUB[:-1], "zz", "0" * 64, "f" * 64])
def test_anything_but_a_public_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidKey):
        parse_pubkey(text)


@given(st.text())
def test_no_text_raises_anything_but_invalid_key(text: str) -> None:
    for read in (Keys.parse, parse_pubkey, npub_to_hex, hex_to_npub):
        with pytest.raises(InvalidKey):
            read(text)


@pytest.mark.parametrize("prefix", ["npub1", "nsec1", "note1"])
@given(words=st.text("qpzry9x8gf2tvdw0s3jn54khce6mua7l", max_size=80))
def test_no_bech32_text_raises_anything_but_invalid_key(prefix: str, words: str) -> None:
    for read in (Keys.parse, parse_pubkey):
        with pytest.raises(InvalidKey):
            read(prefix + words)


def test_the_secret_is_in_no_text_form_and_is_not_pickled() -> None:
    keys = Keys.parse(NSEC)
    for text in (repr(keys), str(keys), f"{keys}", repr([keys]), repr({"k": keys})):
        assert keys.npub in text
        assert SECRET not in text
        assert NSEC not in text
    with pytest.raises(TypeError):
        pickle.dumps(keys)
    with pytest.raises(TypeError):
        copy.copy(keys)
