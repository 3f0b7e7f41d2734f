"""A gift wrap opens only for its recipient, and only when its author really sealed it."""

from __future__ import annotations

import dataclasses
import json

import nostr_sdk
import pytest

from discovery.errors import DecryptError, EncryptError, InvalidEvent, InvalidKey
from discovery.nostr import nip44
from discovery.nostr.event import Event, Rumor
from discovery.nostr.giftwrap import EPHEMERAL_GIFT_WRAP, GIFT_WRAP, MAX_BACKDATE_S, unwrap, wrap
from discovery.nostr.keys import Keys

ALICE, BOB, EVE = Keys.generate(), Keys.generate(), Keys.generate()
NOW = 1_790_000_000
RUMOR = Rumor.new(ALICE.pubkey, 80, '{"id":"1"}', [["p", BOB.pubkey]], NOW)


def seal_of(event: Event, keys: Keys) -> Event:
    text = nip44.decrypt(event.content, keys.conversation_key(event.pubkey))
    return Event.parse(json.loads(text))


def hand_wrapped(
    inner: str, *, outer: Keys | None = None, kind: int = EPHEMERAL_GIFT_WRAP
) -> Event:
    """Any text as the content of a wrap for Bob."""
    once = outer or Keys.generate()
    content = nip44.encrypt(inner, once.conversation_key(BOB.pubkey))
    return once.sign(kind, content, [["p", BOB.pubkey]])


def hand_sealed(inner: str, author: Keys, kind: int = 13) -> str:
    """Any text as the content of a seal for Bob."""
    return author.sign(kind, nip44.encrypt(inner, author.conversation_key(BOB.pubkey))).to_json()


def test_an_ephemeral_wrap_is_dated_now_and_names_only_the_recipient() -> None:
    event = wrap(RUMOR, ALICE, BOB.pubkey, now=NOW)
    assert (event.kind, event.created_at) == (21059, NOW)
    assert event.tags == (("p", BOB.pubkey),)
    assert event.pubkey not in {ALICE.pubkey, BOB.pubkey}
    assert seal_of(event, BOB).tags == ()
    assert unwrap(Event.parse(event.to_dict()), BOB) == RUMOR


def test_every_wrap_has_its_own_key() -> None:
    assert len({wrap(RUMOR, ALICE, BOB.pubkey).pubkey for _ in range(5)}) == 5


def test_a_stored_wrap_and_its_seal_are_backdated_apart_and_expire() -> None:
    gaps = set()
    for _ in range(8):
        event = wrap(RUMOR, ALICE, BOB.pubkey, kind=GIFT_WRAP, expiration=NOW + 60, now=NOW)
        seal = seal_of(event, BOB)
        for layer in (event, seal):
            assert NOW - MAX_BACKDATE_S <= layer.created_at <= NOW
            assert layer.expiration == NOW + 60
        gaps.add(event.created_at - seal.created_at)
        assert event.values("p") == [BOB.pubkey]
        assert unwrap(event, BOB).created_at == NOW
    assert len(gaps) > 1


def test_a_stored_wrap_always_expires_some_day() -> None:
    event = wrap(RUMOR, ALICE, BOB.pubkey, kind=GIFT_WRAP, now=NOW)
    assert event.expiration == NOW + 7 * 86_400


def test_backdating_can_be_asked_for_and_declined() -> None:
    stored = wrap(RUMOR, ALICE, BOB.pubkey, kind=GIFT_WRAP, backdate=False, now=NOW)
    assert stored.created_at == NOW
    dates = {wrap(RUMOR, ALICE, BOB.pubkey, backdate=True, now=NOW).created_at for _ in range(8)}
    assert len(dates) > 1


@pytest.mark.parametrize("kind", [GIFT_WRAP, EPHEMERAL_GIFT_WRAP])
def test_an_independent_implementation_opens_our_wraps(kind: int) -> None:
    event = wrap(RUMOR, ALICE, BOB.pubkey, kind=kind)
    # rust-nostr opens kind 1059 only, so an ephemeral one is shown to it layer by layer.
    bob = nostr_sdk.Keys.parse(BOB.nsec())
    if kind == GIFT_WRAP:
        signer = bob
        gift = nostr_sdk.UnwrappedGift.from_gift_wrap(
            signer, nostr_sdk.Event.from_json(event.to_json())
        )
        rumor, sender = gift.rumor().as_json(), gift.sender().to_hex()
    else:
        outer = nostr_sdk.PublicKey.parse(event.pubkey)
        seal = nostr_sdk.Event.from_json(
            nostr_sdk.nip44_decrypt(bob.secret_key(), outer, event.content)
        )
        assert seal.verify()
        rumor = nostr_sdk.nip44_decrypt(bob.secret_key(), seal.author(), seal.content())
        sender = seal.author().to_hex()
    assert sender == ALICE.pubkey
    assert Rumor.parse(json.loads(rumor)) == RUMOR


def test_we_open_the_wraps_of_an_independent_implementation() -> None:
    alice = nostr_sdk.Keys.parse(ALICE.nsec())
    theirs = nostr_sdk.nip59_make_gift_wrap(
        alice,
        nostr_sdk.PublicKey.parse(BOB.pubkey),
        nostr_sdk.UnsignedEvent.from_json(RUMOR.to_json()),
    )
    event = Event.parse(json.loads(theirs.as_json()))
    assert event.kind == GIFT_WRAP
    assert unwrap(event, BOB) == RUMOR


def test_nobody_else_opens_it() -> None:
    with pytest.raises(DecryptError):
        unwrap(wrap(RUMOR, ALICE, BOB.pubkey), EVE)


def test_a_tampered_wrap_is_refused_before_it_is_decrypted() -> None:
    event = wrap(RUMOR, ALICE, BOB.pubkey)
    other = wrap(RUMOR, ALICE, BOB.pubkey)
    with pytest.raises(InvalidEvent):
        unwrap(dataclasses.replace(event, content=other.content), BOB)


def test_an_author_cannot_be_borrowed() -> None:
    sealed_by_eve = hand_sealed(RUMOR.to_json(), EVE)
    with pytest.raises(InvalidEvent, match="author"):
        unwrap(hand_wrapped(sealed_by_eve), BOB)
    forged = json.loads(sealed_by_eve) | {"pubkey": ALICE.pubkey}
    with pytest.raises(InvalidEvent):
        unwrap(hand_wrapped(json.dumps(forged)), BOB)


def test_a_rumor_cannot_lie_about_its_id() -> None:
    lie = json.dumps(RUMOR.to_dict() | {"id": "0" * 64})
    with pytest.raises(InvalidEvent, match="id"):
        unwrap(hand_wrapped(hand_sealed(lie, ALICE)), BOB)


@pytest.mark.parametrize("inner", ["no json", "[]", "{}", "null", "[" * 5_000])
def test_layers_that_are_no_events_are_refused(inner: str) -> None:
    with pytest.raises(InvalidEvent):
        unwrap(hand_wrapped(inner), BOB)
    with pytest.raises(InvalidEvent):
        unwrap(hand_wrapped(hand_sealed(inner, ALICE)), BOB)


def test_a_seal_that_is_not_encrypted_for_us_is_refused() -> None:
    seal = ALICE.sign(13, RUMOR.to_json())
    with pytest.raises(DecryptError):
        unwrap(hand_wrapped(seal.to_json()), BOB)


def test_only_kind_13_seals_and_gift_wrap_kinds_wrap() -> None:
    with pytest.raises(InvalidEvent, match="seal"):
        unwrap(hand_wrapped(hand_sealed(RUMOR.to_json(), ALICE, kind=14)), BOB)
    with pytest.raises(InvalidEvent, match="gift wrap"):
        unwrap(hand_wrapped(hand_sealed(RUMOR.to_json(), ALICE), kind=1060), BOB)
    with pytest.raises(ValueError, match="1060"):
        wrap(RUMOR, ALICE, BOB.pubkey, kind=1060)


def test_wrapping_for_someone_else_or_for_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="author"):
        wrap(RUMOR, EVE, BOB.pubkey)
    with pytest.raises(InvalidKey):
        wrap(RUMOR, ALICE, "f" * 64)


def test_the_largest_rumor_is_forty_kibibytes() -> None:
    overhead = len(Rumor.new(ALICE.pubkey, 80, "", created_at=NOW).to_json())
    fits = Rumor.new(ALICE.pubkey, 80, "a" * (40_960 - overhead), created_at=NOW)
    assert unwrap(wrap(fits, ALICE, BOB.pubkey), BOB) == fits
    too_long = Rumor.new(ALICE.pubkey, 80, "a" * (40_961 - overhead), created_at=NOW)
    with pytest.raises(EncryptError):
        wrap(too_long, ALICE, BOB.pubkey)
