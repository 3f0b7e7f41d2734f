"""``/v1/providers`` says what the directory knows, filters and pages it without loss, and names
the parameter that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.announcement import (
    Announcement,
    ModelOffer,
    build_provider_event,
    parse_provider_event,
)
from discovery.directory import DirectorySnapshot, Provider
from discovery.nostr.keys import Keys
from node.errors import InvalidValue, NotFound
from node.service.endpoints.providers import etag, get_provider, list_providers

NOW = 1_790_000_000
CHEAP = ModelOffer("cheap", "Cheap", 1_000_000, 2_000_000, 1_000, 8_192, 4_096)
DEAR = ModelOffer("dear", "", 50_000_000, 150_000_001, modalities=("text", "image"))


def make(name: str, **options: Any) -> Provider:
    keys = Keys.generate()
    said = {
        "d": f"d-{name}",
        "urls": (f"https://{name}.example",),
        "mints": ("https://mint.example",),
        "relays": ("wss://relay.example",),
        "wraps": (21059, 1059),
        "http": ("80", "81", "frames-v1"),
        "about": f"about {name}",
        "version": "1.2.3",
        **options.pop("said", {}),
    }
    event = build_provider_event(
        keys, Announcement(pubkey=keys.pubkey, name=name, created_at=NOW, **said)
    )
    known = {
        "models": (CHEAP,),
        "verified": True,
        "status": "online",
        "latency_ms": 12,
        "last_seen": NOW + 5,
        "reason": "",
        "verified_urls": said["urls"],
        **options,
    }
    return Provider(
        pubkey=keys.pubkey,
        npub=keys.npub,
        announcement=parse_provider_event(event, now=NOW),
        **known,
    )


A = make("a", info=b'{"name":"a"}')
B = make("b", models=(CHEAP, DEAR), said={"mints": ("https://other.example/Bitcoin",)})
ONION = make("onion", said={"urls": ("http://abc.onion",), "relays": ()}, models=(DEAR,))
RELAY = make(
    "relay",
    said={"urls": ()},
    verified=False,
    status="unknown",
    latency_ms=None,
    verified_urls=(),
    reason="only relays",
    models=(),
)
IMPOSTOR = make("a", verified=False, reason="names another key", verified_urls=())


def snapshot(*providers: Provider) -> DirectorySnapshot:
    return DirectorySnapshot(tuple(sorted(providers, key=lambda p: p.rank)), "v1", NOW)


ALL = snapshot(A, B, ONION, RELAY, IMPOSTOR)


def found(query: Mapping[str, str]) -> set[str]:
    return {item["pubkey"] for item in list_providers(ALL, query)["providers"]}


def test_an_item_has_every_field_of_the_contract() -> None:
    document = list_providers(snapshot(A), {})
    (item,) = document["providers"]
    said = A.announcement
    assert said.event is not None
    assert item == {
        "id": "d-a",
        "name": "a",
        "description": "about a",
        "status": "online",
        "verified": True,
        "reason": None,
        "pubkey": A.pubkey,
        "npub": A.npub,
        "created_at": NOW,
        "last_seen": NOW + 5,
        "latency_ms": 12,
        "usual_latency_ms": None,
        "uptime": None,
        "kind": 38421,
        "content": said.event.content,
        "version": "1.2.3",
        "endpoint_url": "https://a.example",
        "endpoint_urls": ["https://a.example"],
        "verified_urls": ["https://a.example"],
        "unverified_urls": [],
        "mint_urls": ["https://mint.example"],
        "relays": ["wss://relay.example"],
        "transports": ["http", "nostr"],
        "endpoints": ["chat/completions"],
        "models": ["cheap"],
        "models_source": "pages",
        "trust_distance": None,
        "vouched_distance": None,
        "reviews": {"recommendations": 0, "approvals": 0, "warnings": 0, "others": 0},
        "pricing": {
            "cheap": {
                "prompt": 1.0,
                "completion": 2.0,
                "request": 1.0,
                "unit": "1k tokens",
                "currency": "sat",
            }
        },
    }
    assert document["next_cursor"] is None
    assert orjson.dumps(document)


def test_detail_adds_models_and_features() -> None:
    detail = get_provider(ALL, B.npub)
    assert detail["display_name"] == "b"
    assert [m["id"] for m in detail["models"]] == ["cheap", "dear"]
    assert detail["models"][0]["context_window"] == 8_192
    assert detail["models"][1]["name"] == "dear"
    assert detail["models"][1]["context_window"] is None
    assert detail["models"][1]["pricing"]["completion"] == 150.000001
    assert {"transport:http", "transport:nostr", "wrap:21059", "modality:image"} <= set(
        detail["features"]
    )
    assert orjson.dumps(detail)


def test_a_provider_is_found_by_key_and_the_true_one_by_name() -> None:
    assert get_provider(ALL, A.pubkey)["pubkey"] == A.pubkey
    assert get_provider(ALL, A.pubkey.upper())["pubkey"] == A.pubkey
    assert get_provider(ALL, IMPOSTOR.npub)["pubkey"] == IMPOSTOR.pubkey
    assert get_provider(ALL, "a")["pubkey"] == A.pubkey
    for unknown in ("", "nobody", Keys.generate().npub, "../a", "npub1junk"):
        with pytest.raises(NotFound):
            get_provider(ALL, unknown)


def test_of_several_equally_trusted_the_first_seen_owns_the_name() -> None:
    late, early, later = sorted(
        (make("twin", said={"urls": (f"https://{n}.example",)}) for n in "xyz"),
        key=lambda p: p.rank,
    )
    first = replace(early, first_seen=5.0, status="offline")
    squatter = make("twin", verified=False, verified_urls=(), first_seen=1.0)
    rivals = (replace(late, first_seen=9.0), replace(later, first_seen=9.0))
    detail = get_provider(snapshot(first, squatter, *rivals), "twin")
    assert (detail["pubkey"], detail["ambiguous"]) == (first.pubkey, True)
    assert set(detail["others"]) == {late.npub, later.npub}
    # asked for by key, or alone in its trust, there is no doubt
    for key, known in ((late.npub, (first, *rivals)), ("twin", (first, squatter))):
        detail = get_provider(snapshot(*known), key)
        assert (detail["ambiguous"], detail["others"]) == (False, [])


def test_two_nodes_of_one_key_are_no_rivals() -> None:
    one = make("same", first_seen=1.0, status="offline")
    two = replace(
        one, first_seen=2.0, status="online", announcement=replace(one.announcement, d="e")
    )
    detail = get_provider(snapshot(one, two), "same")
    assert (detail["id"], detail["ambiguous"]) == ("e", False)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, {A, B, ONION, RELAY, IMPOSTOR}),
        ({"unknown": "x", "model": ""}, {A, B, ONION, RELAY, IMPOSTOR}),
        ({"model": "dear"}, {B, ONION}),
        ({"model": "none"}, set()),
        ({"mint": "https://other.example/Bitcoin/"}, {B}),
        ({"transport": "tor"}, {ONION}),
        ({"transport": "nostr"}, {A, B, RELAY, IMPOSTOR}),
        ({"transport": "http"}, {A, B, IMPOSTOR}),
        ({"status": "unknown"}, {RELAY}),
        ({"verified": "true"}, {A, B, ONION}),
        ({"verified": "0"}, {RELAY, IMPOSTOR}),
        ({"max_prompt_price": "1"}, {A, B, IMPOSTOR}),
        ({"max_prompt_price": "0.999999"}, set()),
        ({"max_completion_price": "150"}, {A, B, IMPOSTOR}),
        ({"max_completion_price": "150.000001"}, {A, B, ONION, IMPOSTOR}),
        ({"model": "dear", "max_completion_price": "150"}, set()),
        ({"model": "dear", "max_prompt_price": "50", "verified": "1"}, {B, ONION}),
    ],
)
def test_filters(query: dict[str, str], expected: set[Provider]) -> None:
    assert found(query) == {provider.pubkey for provider in expected}


def test_filter_by_key_in_both_spellings() -> None:
    assert found({"pubkey": A.npub}) == found({"pubkey": A.pubkey}) == {A.pubkey}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transport", "smoke"),
        ("status", "active?"),
        ("verified", "maybe"),
        ("include_json", "2"),
        ("max_prompt_price", "-1"),
        ("max_prompt_price", "1e3"),
        ("max_prompt_price", "NaN"),
        ("max_completion_price", "9" * 40),
        ("max_completion_price", "\u0661"),
        ("mint", "not a url"),
        ("pubkey", "npub1junk"),
        ("limit", "0"),
        ("limit", "201"),
        ("limit", "ten"),
        ("limit", "²"),
        ("cursor", "junk"),
        ("cursor", "bnVsbA"),
        ("cursor", "WzEsMl0"),
        ("cursor", "é"),
        ("model", "m" * 3_000),
    ],
)
def test_a_bad_value_names_its_parameter(name: str, value: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        list_providers(ALL, {name: value})
    assert caught.value.param == name
    assert name in caught.value.message


@given(
    st.dictionaries(
        st.sampled_from(
            ["cursor", "limit", "max_prompt_price", "mint", "pubkey", "verified", "model"]
        ),
        st.text(max_size=40),
    )
)
def test_any_query_is_answered_or_refused(query: dict[str, str]) -> None:
    wrong = None
    try:
        assert orjson.dumps(list_providers(ALL, query))
    except InvalidValue as error:
        wrong = error.param
    assert wrong is None or wrong in query
    assert etag(ALL, query)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_paging_gives_everything_once(limit: int) -> None:
    seen: list[str] = []
    query = {"limit": str(limit)}
    while True:
        document = list_providers(ALL, query)
        seen += [item["pubkey"] for item in document["providers"]]
        if document["next_cursor"] is None:
            break
        query["cursor"] = document["next_cursor"]
    assert seen == [provider.pubkey for provider in ALL.providers]


def test_include_json_shows_the_nodes_own_words() -> None:
    items = list_providers(ALL, {"include_json": "true"})["providers"]
    health = {item["provider"]["pubkey"]: item["health"] for item in items}
    assert health[A.pubkey] == {"status_code": 200, "endpoint": "info", "json": {"name": "a"}}
    assert health[RELAY.pubkey]["json"] == {"error": "only relays"}
    assert health[RELAY.pubkey]["status_code"] is None


def test_etag_follows_content_and_query() -> None:
    tag = etag(ALL, {"model": "a", "limit": "5"})
    assert tag == etag(ALL, {"limit": "5", "model": "a"})
    assert tag != etag(ALL, {"model": "b", "limit": "5"})
    assert tag != etag(DirectorySnapshot(ALL.providers, "v2", NOW), {"model": "a", "limit": "5"})
    assert tag.startswith('"')
    assert tag.endswith('"')


def test_an_empty_directory_is_an_empty_list() -> None:
    document = list_providers(DirectorySnapshot(), {})
    assert document == {"object": "list", "providers": [], "next_cursor": None}
