"""An event is accepted exactly when its shape, id and signature are right, as others see it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import nostr_sdk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.errors import InvalidEvent
from discovery.nostr.event import Event, Rumor, compute_id, serialize
from discovery.nostr.keys import Keys

KEYS = Keys.parse("0beebd062ec8735f4243466049d7747ef5d6594ee838de147f8aab842b15e273")
SDK_KEYS = nostr_sdk.Keys.parse(KEYS.nsec())

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def signed(**changes: Any) -> dict[str, Any]:
    event = KEYS.sign(1, "hello", [["t", "a"], ["expiration", "1700000000"]], 1_690_000_000)
    return event.to_dict() | changes


def test_a_signed_event_survives_the_wire() -> None:
    event = KEYS.sign(1, "hé\n\u2028\x7f😀", [["d", "x", "y"], ["p", KEYS.pubkey]], 1_700_000_000)
    read = Event.parse(json.loads(event.to_json()))
    assert read == event
    assert read.first("d") == "x"
    assert read.values("p") == [KEYS.pubkey]
    assert read.first("nothing") is None


def test_unknown_fields_are_ignored() -> None:
    assert Event.parse(signed(seen_on=["wss://relay"])).content == "hello"


@given(content=texts, value=texts, kind=st.integers(0, 65_535), when=st.integers(0, 2**32))
@settings(deadline=None)
def test_ids_and_signatures_satisfy_an_independent_implementation(
    content: str, value: str, kind: int, when: int
) -> None:
    event = KEYS.sign(kind, content, [["t", value]], when)
    theirs = nostr_sdk.Event.from_json(event.to_json())
    assert theirs.verify_id()
    assert theirs.verify_signature()


@given(content=texts, value=texts, kind=st.integers(0, 65_535), when=st.integers(0, 2**32))
@settings(deadline=None)
def test_events_of_an_independent_implementation_are_accepted(
    content: str, value: str, kind: int, when: int
) -> None:
    builder = nostr_sdk.EventBuilder(nostr_sdk.Kind(kind), content)
    builder = builder.tags([nostr_sdk.Tag.parse(["t", value])])
    builder = builder.custom_created_at(nostr_sdk.Timestamp.from_secs(when))
    theirs = builder.finalize(SDK_KEYS)
    ours = Event.parse(json.loads(theirs.as_json()))
    assert (ours.id, ours.content, ours.first("t")) == (theirs.id().to_hex(), content, value)


def test_the_canonical_form_escapes_as_json_stringify_does() -> None:
    text = "".join(map(chr, range(0x20))) + '"\\/\x7f\u2028é'
    canonical = serialize("ab", 1, 2, [["t", text]], text)
    escaped = (
        r"\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007\b\t\n\u000b\f\r\u000e\u000f"
        r"\u0010\u0011\u0012\u0013\u0014\u0015\u0016\u0017\u0018\u0019\u001a\u001b\u001c\u001d"
        r"\u001e\u001f" + r"\"\\/" + "\x7f\u2028é"
    )
    assert canonical.decode() == f'[0,"ab",1,2,[["t","{escaped}"]],"{escaped}"]'


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "0" * 64},
        {"id": "g" * 64},
        {"id": "A" * 64},
        {"id": None},
        {"sig": "0" * 128},
        {"sig": "f" * 128},
        {"sig": "ab"},
        {"sig": 5},
        {"pubkey": "f" * 64},
        {"pubkey": "0" * 64},
        {"pubkey": KEYS.pubkey.upper()},
        {"pubkey": KEYS.pubkey + "\n"},
        {"content": "hello "},
        {"content": None},
        {"content": "\ud800"},
        {"created_at": 1_690_000_001},
        {"created_at": 1_690_000_000.0},
        {"created_at": "1690000000"},
        {"created_at": -1},
        {"created_at": 2**63},
        {"created_at": True},
        {"kind": 2},
        {"kind": True},
        {"kind": 65_536},
        {"kind": -1},
        {"tags": {}},
        {"tags": [["t", "b"]]},
        {"tags": [[]]},
        {"tags": [["t", 1]]},
        {"tags": ["t"]},
        {"tags": [["\udfff"]]},
    ],
)
def test_anything_changed_or_misshapen_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        Event.parse(signed(**changes))


def test_a_recomputed_id_does_not_make_a_forged_event_valid() -> None:
    fields = signed(content="forged")
    fields["id"] = compute_id(
        fields["pubkey"], fields["created_at"], fields["kind"], fields["tags"], "forged"
    )
    with pytest.raises(InvalidEvent, match="signature"):
        Event.parse(fields)


@pytest.mark.parametrize(
    "missing", ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"]
)
def test_every_field_is_required(missing: str) -> None:
    fields = signed()
    del fields[missing]
    with pytest.raises(InvalidEvent):
        Event.parse(fields)


@given(json_values)
def test_any_json_value_gives_invalid_event_and_nothing_else(value: object) -> None:
    for parse in (Event.parse, Event.shape, Rumor.parse):
        with pytest.raises(InvalidEvent):
            parse(value)


@given(field=st.sampled_from(sorted(signed())), value=json_values)
def test_any_field_of_any_type_gives_invalid_event_or_the_same_event(
    field: str, value: object
) -> None:
    original = signed()
    try:
        event = Event.parse(original | {field: value})
    except InvalidEvent:
        return
    assert event == Event.parse(original)


def test_size_is_bounded_by_content_and_by_the_canonical_form() -> None:
    big = KEYS.sign(1, "a" * 2_000).to_dict()
    with pytest.raises(InvalidEvent):
        Event.shape(big, max_bytes=1_999)
    tags = KEYS.sign(1, "", [["t", "a" * 500]] * 4).to_dict()
    with pytest.raises(InvalidEvent):
        Event.parse(tags, max_bytes=2_000)
    assert Event.parse(tags, max_bytes=3_000).kind == 1


def test_a_verified_event_that_is_changed_is_verified_again() -> None:
    event = Event.parse(signed())
    event.verify()
    with pytest.raises(InvalidEvent):
        dataclasses.replace(event, content="other").verify()


def test_address_has_a_d_only_for_addressable_kinds() -> None:
    tags = [["d", "x"]]
    assert KEYS.sign(38_421, "", tags).address == f"38421:{KEYS.pubkey}:x"
    assert KEYS.sign(30_078, "").address == f"30078:{KEYS.pubkey}:"
    assert KEYS.sign(10_002, "", tags).address == f"10002:{KEYS.pubkey}:"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1700000000", 1_700_000_000), ("", None), ("-1", None), ("٣", None), ("9" * 17, None)],
)
def test_expiration_is_a_plain_number_or_none(text: str, expected: int | None) -> None:
    assert KEYS.sign(1, "", [["expiration", text]]).expiration == expected
    assert KEYS.sign(1, "", [["expiration"]]).expiration is None


@given(content=texts, value=texts)
@settings(deadline=None)
def test_rumor_ids_match_an_independent_implementation(content: str, value: str) -> None:
    rumor = Rumor.new(KEYS.pubkey, 80, content, [["t", value]], 1_700_000_000)
    unsigned = nostr_sdk.UnsignedEvent.from_json(rumor.to_json())
    unsigned.ensure_id()
    theirs = unsigned.id()
    assert theirs is not None
    assert theirs.to_hex() == rumor.id
    assert Rumor.parse(json.loads(unsigned.as_json())) == rumor


def test_a_rumor_may_omit_its_id_but_not_lie_about_it() -> None:
    rumor = Rumor.new(KEYS.pubkey, 80, "x")
    fields = rumor.to_dict()
    assert Rumor.parse({k: v for k, v in fields.items() if k != "id"}) == rumor
    for lie in ("0" * 64, 7, []):
        with pytest.raises(InvalidEvent):
            Rumor.parse(fields | {"id": lie})
