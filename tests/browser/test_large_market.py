"""Promise: the market page holds with ten thousand nodes, with none, and when asking fails."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from discovery.announcement import Announcement, ModelOffer
from discovery.offers import OtherPrices
from discovery.snapshot import DirectorySnapshot, Provider
from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Request, Started
from node.errors import NodeError, NotFound, RateLimitExceeded
from node.service.endpoints.market import market
from node.service.endpoints.provider_stream import ProviderStream
from node.service.endpoints.providers import list_providers
from node.transport.http.site import Site
from tests.browser.conftest import OpenVisit
from tests.fakes.http_node import Node, running

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOW = 1_790_000_000
MANY = 10_000
ROWS = "#providers tbody tr"


def provider(number: int) -> Provider:
    key = f"{number:064x}"
    return Provider(
        pubkey=key,
        npub=f"npub1{number:058d}",
        announcement=Announcement(pubkey=key, d="d", name=f"node {number:05d}", created_at=NOW),
        models=(ModelOffer("common", "", 1_000_000 + number, 2_000_000),),
        verified=True,
        status="online",
        latency_ms=MANY - number,
        last_seen=NOW,
        reason="",
        uptime=0.5,
    )


class Directory:
    """Never changes. Its stream is only there to be followed."""

    closed = False

    def __init__(self, snapshot: DirectorySnapshot) -> None:
        self._snapshot = snapshot

    def snapshot(self) -> DirectorySnapshot:
        return self._snapshot

    async def changed(self) -> DirectorySnapshot:
        raise TimeoutError  # the stream is over at once, and is followed again later


class Answers:
    """Answers the page's questions about one snapshot with the node's own functions."""

    def __init__(self, snapshot: DirectorySnapshot, *, directory: bool = True) -> None:
        self.snapshot = snapshot
        self.stream = ProviderStream(Directory(snapshot) if directory else None)
        self.failure: NodeError | None = None

    async def __call__(self, request: Request) -> AsyncGenerator[ReplyEvent, None]:
        try:
            if request.path == "/v1/providers/stream":
                async for event in self.stream.stream(request):
                    yield event
                return
            document = self._document(request)
        except NodeError as error:
            yield Failed(error, Receipt())
            return
        yield Started(200, {"content-type": "application/json"})
        yield Chunk(json.dumps(document).encode())
        yield Receipt()

    def _document(self, request: Request) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        if request.path == "/v1/providers":
            return list_providers(self.snapshot, request.query)
        if request.path.startswith("/v1/market/"):
            return market(self.snapshot, request.path.removeprefix("/v1/market/"), request.query)
        raise NotFound


@pytest_asyncio.fixture(loop_scope="session")
async def node() -> AsyncIterator[Node]:
    async with running(site=Site()) as node:
        yield node


async def test_ten_thousand_nodes_are_paged_and_sorted_by_the_node(
    visit: OpenVisit, node: Node
) -> None:
    snapshot = DirectorySnapshot(tuple(provider(n) for n in range(MANY)), etag="many")
    node.dispatcher.script = Answers(snapshot)
    opened = await visit(node.url + "/providers")
    page = opened.page
    names = page.locator(f"{ROWS} th bdi")
    where = page.locator("#where")
    await page.wait_for_selector("#book svg .dot")
    assert await names.count() == 50
    assert await where.inner_text() == "1 to 50 of 100 loaded"
    await page.wait_for_function(
        "() => document.getElementById('stat-nodes').textContent === '10,000'"
    )
    for first in (51, 101):  # the second is not loaded yet
        await page.get_by_role("button", name="Next").click()
        await where.get_by_text(f"{first} to {first + 49} of").wait_for()
        assert await names.first.inner_text() == f"node {first - 1:05d}"
    await page.get_by_role("button", name="Latency").click()
    await names.get_by_text("node 09999").wait_for()
    assert await names.first.inner_text() == "node 09999"
    assert await where.inner_text() == "1 to 50 of 100 loaded"
    await page.get_by_role("button", name="Models").click()
    await where.get_by_text("sorted among these").wait_for()
    # the book shows the best of all, not of those that were loaded
    assert "10,000 offers" in await page.locator("#book").inner_text()
    assert "The best 200." in await page.locator("#book figcaption").inner_text()
    assert await page.locator("#book svg .dot.series-1").count() == 200
    assert await page.locator("#offers tbody tr").count() == 25
    await page.get_by_role("button", name="Show 25 more").click()
    assert await page.locator("#offers tbody tr").count() == 50
    await opened.assert_accessible()


async def test_an_empty_market_and_a_node_without_a_directory_say_so(
    visit: OpenVisit, node: Node
) -> None:
    node.dispatcher.script = Answers(DirectorySnapshot())
    opened = await visit(node.url + "/providers")
    await opened.page.get_by_text("No other node is known yet").wait_for()
    await opened.assert_accessible()
    await opened.assert_quiet()
    node.dispatcher.script = Answers(DirectorySnapshot(), directory=False)
    opened = await visit(node.url + "/providers")
    await opened.page.get_by_text("This node keeps no directory").wait_for()
    await opened.page.get_by_text("Not live").wait_for()


async def test_a_fifth_page_of_one_address_is_shown_without_the_stream(
    visit: OpenVisit, node: Node
) -> None:
    answers = Answers(DirectorySnapshot((provider(1),), etag="one"))
    answers.stream = ProviderStream(Directory(answers.snapshot), max_per_peer=0)
    node.dispatcher.script = answers
    opened = await visit(node.url + "/providers")
    await opened.page.get_by_text("Not live: too many of these pages are open").wait_for()
    await opened.page.wait_for_selector("#book svg .dot")
    assert await opened.page.locator(ROWS).count() == 1


async def test_what_is_paid_by_the_image_has_its_own_plot(visit: OpenVisit, node: Node) -> None:
    painters = tuple(
        replace(
            provider(n),
            models=(ModelOffer("paints", other=OtherPrices(per_image=1_000 * n)),),
        )
        for n in (1, 2, 6)
    )
    node.dispatcher.script = Answers(DirectorySnapshot(painters, etag="painters"))
    opened = await visit(node.url + "/providers?model=paints")
    page = opened.page
    dots = page.locator("#book svg .dot.series-3")
    await dots.first.wait_for()
    prices = await dots.evaluate_all("dots => dots.map((dot) => dot.dataset.y)")
    assert prices == ["1000", "2000", "6000"]
    assert await page.locator("#book .canvas .rule").get_attribute("data-y") == "2000"
    assert "sat for an image" in await page.locator("#book").inner_text()
    assert await page.locator("#offers thead th").all_inner_texts() == [
        *("Node", "State", "Image", "Context", "Latency", "Carriages")
    ]


async def test_a_failure_is_told_and_mended(visit: OpenVisit, node: Node) -> None:
    answers = Answers(DirectorySnapshot((provider(1),), etag="one"))
    answers.failure = RateLimitExceeded("slowly", retry_after_s=90)
    node.dispatcher.script = answers
    opened = await visit(node.url + "/providers")
    page = opened.page
    note = page.get_by_role("alert").get_by_text("slowly. It is asked again in 90 seconds.")
    await note.wait_for()
    await opened.assert_accessible()
    answers.failure = None
    await page.get_by_role("button", name="Try again").click()
    await page.wait_for_selector("#book svg .dot")
    assert await page.locator(ROWS).count() == 1
    assert await note.count() == 0


async def test_schemas_with_circles_end(visit: OpenVisit, node: Node) -> None:
    opened = await visit(node.url + "/static/icon.svg")
    await opened.page.goto(node.url + "/docs")
    shown = await opened.page.evaluate(
        """async () => {
          const { schemaView, exampleOf, typeOf, resolve } = await import("/static/docs/schema.js");
          const leaf = { type: "object", required: ["next", "name"], properties: {
            name: { type: "string" }, next: { $ref: "#/components/schemas/Leaf" } } };
          const schemas = { Leaf: leaf, A: { $ref: "#/components/schemas/B" },
            B: { $ref: "#/components/schemas/A" }, "a/b": { type: "integer" } };
          const document = { components: { schemas } };
          const to = (name) => ({ $ref: "#/components/schemas/" + name });
          return [
            schemaView(document, to("Leaf")).textContent,
            JSON.stringify(exampleOf(document, to("Leaf"), {})),
            typeOf(document, to("A")),
            JSON.stringify(exampleOf(document, to("A"), {})),
            typeOf(document, { type: "array", items: to("a~1b") }),
            JSON.stringify(resolve(document, to("Missing")).schema),
            typeOf(document, { oneOf: [{ type: "string" }, { type: ["integer", "null"] }] }),
          ];
        }"""
    )
    assert shown == [
        "name string requirednext object requiredthe same again: Leaf",
        '{"name":"…","next":null}',
        "any",
        '"…"',
        "list of integer",
        "{}",
        "string or integer or null",
    ]
