"""What a node announces is what a reader gets, within the limits of relays, and hostile events
never raise anything but InvalidAnnouncement."""

from __future__ import annotations

import time
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.announcement import (
    KIND_MODEL_PAGE,
    KIND_PROVIDER,
    MAX_EVENT_BYTES,
    Announcement,
    ModelOffer,
    announceable,
    build_deletion,
    build_model_pages,
    build_profile,
    build_provider_event,
    build_relay_lists,
    default_identifier,
    normalise,
    order_urls,
    page_ref,
    parse_model_pages,
    parse_provider_event,
)
from discovery.errors import InvalidAnnouncement
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.wire import endpoint_url, mint_url, relay_url

KEYS = Keys.generate()
NOW = 1_790_000_000
ADDRESS = f"{KIND_PROVIDER}:{KEYS.pubkey}:d"

texts = st.text(max_size=60)
hosts = st.sampled_from(["api.example.com", "a.example:8443", "abcdefgh.onion", "[2606:4700::1]"])
urls = st.builds(
    lambda scheme, host, path: f"{scheme}://{host}{path}",
    st.sampled_from(["http", "https", "HTTPS", "ftp"]),
    hosts,
    st.sampled_from(["", "/", "/v1", "/v1/", "/sub/v1//", "/Sub", "/v1/v1", "?q=1", "/\x7f"]),
)
relays = st.builds(
    lambda scheme, host, path: f"{scheme}://{host}{path}",
    st.sampled_from(["ws", "wss", "http"]),
    hosts,
    st.sampled_from(["", "/", "/relay", "?token=x"]),
)
prices = st.integers(min_value=0, max_value=2**53 - 1)
offers = st.builds(
    ModelOffer,
    id=st.text(min_size=1, max_size=200),
    name=texts,
    input_per_mtok=prices,
    output_per_mtok=prices,
    per_request=prices,
    context=prices,
    max_output=prices,
    modalities=st.lists(texts, max_size=4).map(tuple),
    endpoints=st.lists(texts, max_size=4).map(tuple),
)


@st.composite
def announcements(draw: st.DrawFn) -> Announcement:
    return Announcement(
        pubkey=KEYS.pubkey,
        d=draw(st.text(min_size=1, max_size=30)),
        name=draw(texts),
        about=draw(st.text(max_size=200)),
        urls=tuple(draw(st.lists(urls, max_size=4))),
        mints=tuple(draw(st.lists(urls, max_size=4))),
        version=draw(texts),
        relays=tuple(draw(st.lists(relays, max_size=4))),
        wraps=tuple(draw(st.lists(st.integers(0, 65_535), max_size=3))),
        http=tuple(draw(st.lists(texts, max_size=3))),
        pubkey_lock=draw(texts),
        created_at=NOW,
        expires_at=draw(st.one_of(st.none(), st.just(NOW + 1), st.just(NOW + 604_800))),
    )


@given(announcements())
def test_what_is_built_is_what_is_parsed(said: Announcement) -> None:
    try:
        expected = normalise(said)
    except InvalidAnnouncement:
        with pytest.raises(InvalidAnnouncement):
            build_provider_event(KEYS, said)
        return
    event = build_provider_event(KEYS, said)
    heard = parse_provider_event(event, now=NOW)
    assert heard == replace(expected, urls=order_urls(expected.urls))
    assert heard.event is event
    wire = orjson.dumps(event.to_dict())
    assert len(wire) < MAX_EVENT_BYTES
    assert b"\x7f" not in wire
    assert not any(ord(c) < 0x20 for tag in event.tags for value in tag for c in value)
    content = orjson.loads(event.content)
    assert isinstance(content["name"], str)
    assert isinstance(content["about"], str)
    assert Event.parse(orjson.loads(wire)) == event


def test_the_tags_are_those_of_the_network() -> None:
    said = Announcement(
        pubkey=KEYS.pubkey,
        d=default_identifier(KEYS.pubkey),
        name="Node, [one]",
        about="line\nline",
        urls=("http://x.onion", "http://plain.example/", "https://api.example.com/v1/"),
        mints=("https://mint.example.com/",),
        version="1.2.3",
        relays=("wss://relay.example/",),
        wraps=(21059, 1059),
        http=("80", "81", "frames-v1"),
        created_at=NOW,
        expires_at=NOW + 10,
    )
    event = build_provider_event(KEYS, said)
    assert event.kind == 38421
    assert event.first("d") == KEYS.pubkey[:12]
    assert event.values("u") == [
        "https://api.example.com",
        "http://plain.example",
        "http://x.onion",
    ]
    assert event.values("mint") == ["https://mint.example.com"]
    assert event.values("relay") == ["wss://relay.example"]
    assert event.values("wrap") == ["21059", "1059"]
    assert ("http", "80", "81", "frames-v1") in event.tags
    assert event.first("encryption") == "nip44_v2"
    assert event.first("name") == "Node one"  # a reader splits tags at commas and brackets
    assert event.first("expiration") == str(NOW + 10)
    assert orjson.loads(event.content) == {"name": "Node, [one]", "about": "line\nline"}
    assert parse_provider_event(event, now=NOW).transports == ("http", "tor", "nostr")


@pytest.mark.parametrize(
    ("tags", "usable"),
    [
        ([("d", "x"), ("u", "https://a.example")], True),
        ([("d", "x"), ("u", "abcdef.onion")], True),
        ([("d", "x"), ("relay", "wss://r.example"), ("http", "80", "81")], True),
        ([("u", "https://a.example")], False),
        ([("d", ""), ("u", "https://a.example")], False),
        ([("d", "x\ny"), ("u", "https://a.example")], False),
        ([("d", "x" * 201), ("u", "https://a.example")], False),
        ([("d", "x"), ("u", "lnproxy.example")], False),
        ([("d", "x"), ("u", "https://user:pw@a.example")], False),
        ([("d", "x"), ("relay", "wss://r.example")], False),
        ([("d", "x"), ("http", "80", "81")], False),
        ([("d",), ("u",)], False),
        ([], False),
    ],
)
def test_only_events_with_d_and_a_way_in_are_ours(
    tags: list[tuple[str, ...]], usable: bool
) -> None:
    event = KEYS.sign(KIND_PROVIDER, "", tags, NOW)
    if usable:
        assert parse_provider_event(event, now=NOW).d == "x"
    else:
        with pytest.raises(InvalidAnnouncement):
            parse_provider_event(event, now=NOW)


@pytest.mark.parametrize(
    ("created_at", "expires_at", "usable"),
    [
        (NOW, None, True),
        (NOW + 900, None, True),
        (NOW + 901, None, False),
        (NOW, NOW + 1, True),
        (NOW, NOW, False),
        (NOW - 10, NOW - 5, False),
    ],
)
def test_the_future_and_the_past_are_refused(
    created_at: int, expires_at: int | None, usable: bool
) -> None:
    tags = [("d", "x"), ("u", "https://a.example")]
    if expires_at is not None:
        tags.append(("expiration", str(expires_at)))
    event = KEYS.sign(KIND_PROVIDER, "", tags, created_at)
    if usable:
        parse_provider_event(event, now=NOW)
    else:
        with pytest.raises(InvalidAnnouncement):
            parse_provider_event(event, now=NOW)


@given(
    st.lists(
        st.lists(st.one_of(texts, st.sampled_from(["d", "u", "page", "a", "http"])), min_size=1),
        max_size=8,
    ),
    st.one_of(texts, st.sampled_from(["[" * 5_000, '{"name":1}', '{"v":1,"unit":"msat"}'])),
    st.sampled_from([KIND_PROVIDER, KIND_MODEL_PAGE]),
)
def test_hostile_events_are_refused_quietly(tags: list[list[str]], content: str, kind: int) -> None:
    event = Event("0" * 64, KEYS.pubkey, NOW, kind, tuple(map(tuple, tags)), content, "0" * 128)
    for parse in (parse_provider_event, page_ref):
        try:
            parse(event)
        except InvalidAnnouncement:
            continue
    parse_model_pages([event])


@given(st.lists(offers, max_size=12), st.integers(1, 5))
def test_model_pages_keep_every_offer(models: list[ModelOffer], per_page: int) -> None:
    sold = [offer for offer in models if announceable(offer)]
    pages = build_model_pages(
        KEYS, "d", sold, created_at=NOW, expires_at=NOW + 9, max_models=per_page
    )
    heard = parse_model_pages(reversed(pages))
    assert heard is not None
    first = {offer.id: offer for offer in reversed(sold)}
    assert {o.id: (o.input_per_mtok, o.output_per_mtok, o.per_request) for o in heard} == {
        o.id: (o.input_per_mtok, o.output_per_mtok, o.per_request) for o in first.values()
    }
    for index, page in enumerate(pages):
        assert page_ref(page).index == index
        assert page_ref(page).total == len(pages)
        assert page_ref(page).provider == page.first("a") == ADDRESS
        assert page.expiration == NOW + 9
        assert len(page.values("m")) <= per_page


def test_pages_split_by_count_and_by_bytes() -> None:
    small = [ModelOffer(f"model-{n}", context=8_192) for n in range(250)]
    assert [len(p.values("m")) for p in build_model_pages(KEYS, "d", small, created_at=NOW)] == [
        100,
        100,
        50,
    ]
    # Quotes weigh most: they are escaped twice on their way into the event.
    large = [ModelOffer('"' * 196 + f"{n:04}", name="ü" * 200) for n in range(200)]
    pages = build_model_pages(KEYS, "d", large, created_at=NOW)
    assert len(pages) > 2
    assert all(len(orjson.dumps(page.to_dict())) < MAX_EVENT_BYTES for page in pages)
    heard = parse_model_pages(pages)
    assert heard is not None
    assert [offer.id for offer in heard] == [offer.id for offer in large]


def test_the_newest_complete_set_of_pages_wins() -> None:
    old = build_model_pages(
        KEYS, "d", [ModelOffer("old-1"), ModelOffer("old-2")], created_at=NOW, max_models=1
    )
    new = build_model_pages(
        KEYS, "d", [ModelOffer("new-1"), ModelOffer("new-2")], created_at=NOW + 1, max_models=1
    )
    assert _ids([*old, new[0]]) == ["old-1", "old-2"]
    assert _ids([*old, *new]) == ["new-1", "new-2"]
    assert _ids([old[1], new[0]]) is None
    emptied = build_model_pages(KEYS, "d", [], created_at=NOW + 2)
    assert _ids([*new, *emptied]) == []


def _ids(events: list[Event]) -> list[str] | None:
    found = parse_model_pages(events)
    return None if found is None else [offer.id for offer in found]


@pytest.mark.parametrize(
    "row",
    [
        ["m", "m", "1", 2, 0, 0, 0, [], []],
        ["m", "m", -1, 2, 0, 0, 0, [], []],
        ["m", "m", True, 2, 0, 0, 0, [], []],
        ["m", "m", 1.5, 2, 0, 0, 0, [], []],
        ["m", "m", 2**53, 2, 0, 0, 0, [], []],
        ["m\x00", "m", 1, 2, 0, 0, 0, [], []],
        ["", "m", 1, 2, 0, 0, 0, [], []],
        [None, "m", 1, 2, 0, 0, 0, [], []],
        ["m"],  # no price is not a price of zero
        "m",
        {},
    ],
)
def test_a_bad_row_is_passed_over(row: object) -> None:
    good = ["good", "Good", 1, 2, 0, 0, 0, "text", [1, "chat"]]
    columns = ["id", "name", "input_per_mtok", "output_per_mtok"]
    columns += ["per_request", "context", "max_output", "modalities", "endpoints"]
    content = {"v": 1, "unit": "msat", "columns": columns, "rows": [row, good]}
    page = KEYS.sign(
        KIND_MODEL_PAGE,
        orjson.dumps(content).decode(),
        [("d", "inference-models:d:0"), ("a", ADDRESS), ("page", "0", "1")],
        NOW,
    )
    assert parse_model_pages([page]) == [
        ModelOffer("good", "Good", 1, 2, modalities=(), endpoints=("chat",))
    ]


@pytest.mark.parametrize(
    "tags",
    [
        [("d", "inference-models:d:1"), ("a", ADDRESS), ("page", "0", "2")],
        [("d", "inference-models:d:0"), ("a", ADDRESS[:-1] + "e"), ("page", "0", "1")],
        [("d", "inference-models:d:1"), ("a", ADDRESS), ("page", "1", "1")],
        [("d", "inference-models:d:0"), ("a", ADDRESS), ("page", "0", "9999")],
        [("d", "inference-models:d:0"), ("a", ADDRESS), ("page", "0")],
        [("d", "inference-models::0"), ("a", ADDRESS[:-1]), ("page", "0", "1")],
        [("d", "inference-models:d:0"), ("page", "0", "1")],
    ],
)
def test_a_page_must_say_one_thing_only(tags: list[tuple[str, ...]]) -> None:
    with pytest.raises(InvalidAnnouncement):
        page_ref(KEYS.sign(KIND_MODEL_PAGE, "{}", tags, NOW))


def test_what_cannot_be_an_event_is_not_built() -> None:
    with pytest.raises(ValueError, match="cannot be announced"):
        build_model_pages(KEYS, "d", [ModelOffer("a\nb")], created_at=NOW)
    stranger = Announcement(pubkey="0" * 64, d="d", urls=("https://a.example",))
    with pytest.raises(ValueError, match="signed by the key"):
        build_provider_event(KEYS, stranger)


def test_profile_keeps_what_it_does_not_know() -> None:
    event = build_profile(
        KEYS, name="n\x7f", about="a", created_at=NOW, known='{"picture":"p","name":"old"}'
    )
    assert event.kind == 0
    assert orjson.loads(event.content) == {"picture": "p", "name": "n", "about": "a"}


def test_relay_lists_and_deletion() -> None:
    general, inbox = build_relay_lists(
        KEYS, relays=["wss://a.example/", "junk"], inbox=["wss://b.example"], created_at=NOW
    )
    assert (general.kind, general.tags) == (10002, (("r", "wss://a.example"),))
    assert (inbox.kind, inbox.tags) == (10050, (("relay", "wss://b.example"),))
    deletion = build_deletion(KEYS, [ADDRESS], created_at=NOW)
    assert (deletion.kind, deletion.tags) == (5, (("a", ADDRESS), ("k", "38421")))


@given(st.one_of(urls, relays, st.text(max_size=80)))
def test_normal_urls_stay_as_they_are(text: str) -> None:
    for normal in (endpoint_url, mint_url, relay_url):
        url = normal(text)
        if url is not None:
            assert normal(url) == url
            assert not url.endswith("/")


def test_an_announcement_of_now_is_accepted_by_default_clock() -> None:
    said = Announcement(
        pubkey=KEYS.pubkey, d="d", urls=("https://a.example",), created_at=int(time.time())
    )
    assert parse_provider_event(build_provider_event(KEYS, said)).d == "d"
