"""What we publish is read rightly by the rules of the network's other programs: the other node
software, its SDK, and a desktop client; each rule set is written down here by itself."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.announcement import Announcement, build_provider_event, default_identifier
from discovery.nostr.keys import Keys
from node.core.catalog import Backend, Catalog, Model
from node.core.money import Msat
from node.core.pricing import Price
from node.service.endpoints.catalogue import models_document

NOW = 1_790_000_000
KEYS = Keys.generate()
URL = "https://api.example.com"
ONION = "http://" + "a" * 56 + ".onion"

texts = st.text(max_size=60)
said = st.builds(
    Announcement,
    pubkey=st.just(KEYS.pubkey),
    d=st.sampled_from([default_identifier(KEYS.pubkey), "my-node"]),
    name=texts,
    about=texts,
    urls=st.permutations([URL + "/v1/", ONION]).map(tuple),
    mints=st.just(("https://mint.example.com/", "https://other.example.com/Bitcoin")),
    version=st.sampled_from(["1.2.3", ""]),
    relays=st.just(("wss://relay.example.com",)),
    wraps=st.just((21059, 1059)),
    http=st.just(("80", "81", "frames-v1")),
    created_at=st.just(NOW),
    expires_at=st.just(NOW + 7 * 86_400),
)


def published(announcement: Announcement) -> dict[str, Any]:
    """The event as a relay gives it out."""
    document: dict[str, Any] = json.loads(build_provider_event(KEYS, announcement).to_json())
    return document


def first(event: dict[str, Any], name: str) -> str | None:
    return next((tag[1] for tag in event["tags"] if len(tag) > 1 and tag[0] == name), None)


def as_other_nodes(event: dict[str, Any]) -> dict[str, Any] | None:
    """``d`` and a ``u`` are required, the first ``u`` is the endpoint; the name and the
    description are read from the JSON content, and mints and version from tags."""
    urls = [tag[1] for tag in event["tags"] if len(tag) >= 2 and tag[0] == "u"]
    if event["kind"] != 38421 or not urls or not first(event, "d"):
        return None
    content = json.loads(event["content"])
    return {
        "endpoint": urls[0],
        "name": content.get("name"),
        "about": content.get("about"),
        "mints": [tag[1] for tag in event["tags"] if len(tag) >= 2 and tag[0] == "mint"],
        "version": first(event, "version"),
    }


def as_the_sdk(event: dict[str, Any], now: int) -> str | None:
    """The URL of the list of models: ``v1/models`` below every ``u``; none for events from the
    future."""
    url = first(event, "u")
    if event["kind"] != 38421 or event["created_at"] > now + 900 or not url:
        return None
    return urljoin(url.rstrip("/") + "/", "v1/models")


def as_the_desktop_client(event: dict[str, Any]) -> dict[str, Any] | None:
    """Tags are written out with commas between brackets and taken apart there; the content must
    hold the strings ``name`` and ``about``."""
    tags = []
    for tag in event["tags"]:
        written = "[" + ",".join(tag) + "]"
        parts = written[1 : written.index("]")].split(",")
        if written.count("]") != 1 or parts != tag:
            return None
        tags.append(parts)
    content = json.loads(event["content"])
    if not all(isinstance(content.get(field), str) for field in ("name", "about")):
        return None
    urls = [tag[1] for tag in tags if tag[0] == "u"]
    return {"id": first(event, "d"), "urls": urls, "mints": [t[1] for t in tags if t[0] == "mint"]}


@given(said)
def test_other_nodes_read_it(announcement: Announcement) -> None:
    found = as_other_nodes(published(announcement))
    assert found is not None
    assert found["endpoint"] == URL
    assert isinstance(found["name"], str)
    assert found["name"]
    assert isinstance(found["about"], str)
    assert found["mints"] == ["https://mint.example.com", "https://other.example.com/Bitcoin"]


@given(said)
def test_the_sdk_reads_it(announcement: Announcement) -> None:
    event = published(announcement)
    assert as_the_sdk(event, NOW) == f"{URL}/v1/models"
    assert as_the_sdk(event, NOW - 901) is None


@given(said)
def test_a_desktop_client_reads_it(announcement: Announcement) -> None:
    found = as_the_desktop_client(published(announcement))
    assert found is not None
    assert found["id"] == announcement.d
    assert found["urls"] == [URL, ONION]
    assert len(found["mints"]) == 2


@pytest.mark.parametrize("price", [Price(Msat(1)), Price(Msat(0)), Price(per_image=Msat(7))])
def test_no_model_of_ours_is_skipped_by_the_sdk(price: Price) -> None:
    """A model without ``sats_pricing`` is left out there, and so is one whose numbers are none."""
    model = Model("m", (Backend("u", price, "m"),), context_length=8_192, max_output_tokens=1_024)
    (listed,) = models_document(Catalog([model]))["data"]
    priced = listed["sats_pricing"]
    for field in (
        "prompt",
        "completion",
        "request",
        "image",
        "max_prompt_cost",
        "max_completion_cost",
        "max_cost",
    ):
        assert isinstance(priced[field], int | float)
        assert priced[field] >= 0
