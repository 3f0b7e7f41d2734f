"""The order book lists every ask, the proven first and by price, and only they make the figures;
lists sort by price, latency and uptime without losing anyone; what has no price is never free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from discovery.announcement import ModelOffer
from discovery.snapshot import DirectorySnapshot, Provider
from node.errors import InvalidValue, ModelNotFound
from node.service.endpoints.market import market
from node.service.endpoints.providers import Pages, get_provider, list_providers
from tests.unit.discovery.test_providers_endpoint import make, snapshot


def sells(name: str, prompt: int, completion: int, request: int = 0, **options: Any) -> Provider:
    return make(name, models=(ModelOffer("m", "M", prompt, completion, request),), **options)


CHEAP = sells("cheap", 1_000_000, 3_000_000, uptime=0.5, latency_ms=90)
MIDDLE = sells("middle", 2_000_000, 4_000_001, uptime=1.0, latency_ms=50)
DEAR = sells("dear", 5_000_000, 9_000_000, 7, uptime=None, latency_ms=10)
LURE = sells("lure", 0, 0, verified=False, verified_urls=())
AWAY = sells("away", 1, 1, status="offline", latency_ms=None)
VAGUE = make("vague", models=(), unpriced=(ModelOffer("m", priced=False),))
ALL = snapshot(DEAR, LURE, MIDDLE, AWAY, CHEAP, VAGUE)


def names(document: dict[str, Any], key: str = "asks") -> list[str]:
    return [item["name"] for item in document[key]]


def test_the_book_is_by_price_and_the_unproven_do_not_make_it() -> None:
    book = market(ALL, "m", {})
    assert names(book) == ["cheap", "middle", "dear", "lure", "away"]
    assert [ask["counted"] for ask in book["asks"]] == [True, True, True, False, False]
    assert (book["providers"], book["counted"], book["unpriced"]) == (5, 3, 1)
    assert book["prices"]["input_per_mtok"] == {
        "min": 1_000_000,
        "median": 2_000_000,
        "max": 5_000_000,
        "spread": 4_000_000,
        "spread_percent": 200.0,
    }
    assert book["prices"]["per_request"]["spread_percent"] is None
    first = book["asks"][0]
    assert first["transports"] == ["http", "nostr"]
    assert (first["input_per_mtok"], first["pricing"]["prompt"]) == (1_000_000, 1.0)
    assert orjson.dumps(book)


def test_the_median_of_an_even_number_is_rounded_up() -> None:
    book = market(snapshot(CHEAP, MIDDLE), "m", {})
    assert book["prices"]["output_per_mtok"]["median"] == 3_500_001


def test_a_book_without_anyone_proven_has_no_figures() -> None:
    book = market(snapshot(LURE), "m", {})
    assert book["prices"] == dict.fromkeys(("input_per_mtok", "output_per_mtok", "per_request"))
    assert book["counted"] == 0


def test_the_book_is_filtered_and_cut() -> None:
    assert names(market(ALL, "m", {"verified": "true", "status": "online", "limit": "2"})) == [
        "cheap",
        "middle",
    ]
    assert market(ALL, "m", {"limit": "1"})["prices"] == market(ALL, "m", {})["prices"]
    assert names(market(ALL, "m", {"max_prompt_price": "1"})) == ["cheap", "lure", "away"]
    with pytest.raises(ModelNotFound):
        market(ALL, "unheard-of", {})
    with pytest.raises(InvalidValue) as caught:
        market(ALL, "m", {"limit": "0"})
    assert caught.value.param == "limit"


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("price", ["lure", "away", "cheap", "middle", "dear", "vague"]),
        ("latency", ["dear", "vague", "lure", "middle", "cheap", "away"]),
        ("uptime", ["middle", "cheap"]),
    ],
)
@pytest.mark.parametrize("limit", [1, 4, 10])
def test_lists_sort_and_page(sort: str, expected: list[str], limit: int) -> None:
    seen: list[str] = []
    query = {"sort": sort, "model": "m", "limit": str(limit)}
    while True:
        document = list_providers(ALL, query)
        seen += names(document, "providers")
        if document["next_cursor"] is None:
            break
        query["cursor"] = document["next_cursor"]
    assert sorted(seen) == sorted(names(list_providers(ALL, {}), "providers"))
    if sort == "latency":
        # vague and lure share one latency: the verified comes first
        assert seen == expected
    else:
        assert seen[: len(expected)] == expected


def test_sort_by_price_needs_a_model() -> None:
    with pytest.raises(InvalidValue) as caught:
        list_providers(ALL, {"sort": "price"})
    assert caught.value.param == "sort"


def test_what_has_no_price_is_named_and_never_free() -> None:
    (item,) = list_providers(snapshot(VAGUE), {"model": "m"})["providers"]
    assert (item["models"], item["pricing"]) == (["m"], {})
    assert get_provider(snapshot(VAGUE), "vague")["models"][0]["pricing"] is None
    assert (
        list_providers(snapshot(VAGUE), {"model": "m", "max_prompt_price": "9"})["providers"] == []
    )


def test_an_answer_is_made_once_and_never_of_an_older_snapshot() -> None:
    made: list[int] = []

    def make_it() -> dict[str, int]:
        made.append(1)
        return {"n": len(made)}

    pages = Pages(max_bytes=20)
    later = replace(ALL, etag="v2")
    answers = [orjson.dumps(pages.get(s, "k", make_it)) for s in (ALL, ALL, later)]
    assert answers == [b'{"n":1}', b'{"n":1}', b'{"n":2}']
    pages.get(ALL, "another", make_it)
    assert orjson.dumps(pages.get(ALL, "k", make_it)) == b'{"n":4}'
    assert isinstance(later, DirectorySnapshot)
