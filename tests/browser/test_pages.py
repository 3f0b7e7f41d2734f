"""Promise: the pages show what the API says, to everybody, and load nothing from elsewhere."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio

from node.core.money import Msat
from node.core.pricing import Price
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.nodes import DemoNode, Offer, Surroundings
from node.demo.relay import EmbeddedRelay
from tests.browser.conftest import OpenVisit, Visit
from tests.browser.sellers import Seller, Sellers

pytestmark = pytest.mark.asyncio(loop_scope="session")

LLAMA = "meta/llama-3.3-70b"
MISTRAL = "mistral-small"
MARKUP = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
OTHER_MINT = "https://other.mint.example"
PRICE = Price(Msat(10_000_000), Msat(20_000_000), Msat(100))
ROWS = "#providers tbody tr"
PATHS = ("/", "/providers", "/docs")


@dataclass
class Market:
    """A node and those it knows."""

    node: DemoNode
    sellers: Sellers
    known: list[Seller] = field(default_factory=list)

    async def get(self, path: str) -> Any:
        """What the API says."""
        async with httpx.AsyncClient(base_url=self.node.url, timeout=20) as http:
            return (await http.get(path)).raise_for_status().json()

    async def settled(self, online: int) -> None:
        """Returns when so many are verified and online, and those without an answer are asked."""
        async with asyncio.timeout(60):
            while True:
                found = (await self.get("/v1/providers"))["providers"]
                proven = [p for p in found if p["verified"] and p["status"] == "online"]
                if len(proven) >= online and not any(p["status"] == "unknown" for p in found):
                    return
                await asyncio.sleep(0.1)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def market(
    browser: object, mint: EmbeddedMint, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Market]:
    """Four nodes that prove themselves, one that lies about its price, one that is hostile."""
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(EmbeddedRelay())
        sellers = await stack.enter_async_context(Sellers(relay.url))
        known = [
            Seller(
                "Alpine Inference",
                {LLAMA: (9_000_000, 27_000_000), "qwen-2.5-coder": (4_000_000, 9_000_000)},
                about="Hydro power and four old GPUs",
                mints=("https://mint.example.com", OTHER_MINT),
            ),
            Seller("Bodega", {LLAMA: (12_000_000, 30_000_000), MISTRAL: (2_000_000, 6_000_000)}),
            Seller("Cellar GPU", {LLAMA: (7_500_000, 36_000_000)}),
            Seller("Desert Sun", {LLAMA: (14_000_000, 42_000_000), "whisper-1": (0, 1)}),
            Seller("Nobody asked", {LLAMA: (1, 2 * 10**12)}, urls=("http://127.0.0.1:9",)),
            Seller(MARKUP, {MARKUP: (5, 5)}, about=MARKUP, urls=("http://127.0.0.1:9",)),
        ]
        for seller in known:
            await sellers.announce(seller)
        upstream = await stack.enter_async_context(ModelServer())
        node = await stack.enter_async_context(
            DemoNode(
                "home",
                Offer("demo", PRICE, max_output_tokens=64),
                Surroundings(mint.url, relay.url, upstream.url),
                tmp_path_factory.mktemp("pages"),
            )
        )
        market = Market(node, sellers, known)
        await market.settled(4)
        yield market


async def listed(opened: Visit, count: int) -> None:
    """Wait until the table has so many rows and the order book is there."""
    await opened.page.wait_for_function(
        "count => document.querySelectorAll('#providers tbody tr').length === count", arg=count
    )
    await opened.page.wait_for_selector("#book svg")


async def names(opened: Visit) -> list[str]:
    texts: list[str] = await opened.page.locator(f"{ROWS} th bdi").all_inner_texts()
    return texts


async def test_the_market_is_shown_as_it_is_and_text_stays_text(
    visit: OpenVisit, market: Market
) -> None:
    opened = await visit(market.node.url + "/providers")
    alarms: list[str] = []
    opened.page.on("dialog", lambda dialog: alarms.append(dialog.message))
    await listed(opened, len(market.known))
    assert set(await names(opened)) == {seller.name for seller in market.known}
    shown = await opened.page.locator(ROWS).evaluate_all("rows => rows.map((r) => r.dataset.npub)")
    told = (await market.get("/v1/providers"))["providers"]
    assert shown == [provider["npub"] for provider in told]
    assert await opened.page.locator("#stat-online").inner_text() == "4"
    assert await opened.page.locator("main img, main script").count() == 0

    await opened.page.locator(ROWS).get_by_role("button", name=MARKUP, exact=True).click()
    dialog = opened.page.get_by_role("dialog")
    await dialog.get_by_text("URLs, not proven").wait_for()
    assert await dialog.get_by_role("heading", level=2).inner_text() == MARKUP
    assert await dialog.locator("img, script").count() == 0
    link = dialog.get_by_role("link", name="http://127.0.0.1:9")
    assert await link.get_attribute("rel") == "noopener noreferrer nofollow"
    await opened.assert_accessible()
    await opened.page.keyboard.press("Escape")
    await dialog.wait_for(state="hidden")
    focused = await opened.page.evaluate("document.activeElement.textContent")
    assert focused == MARKUP
    assert alarms == []
    await opened.assert_quiet()


async def test_prices_are_plotted_as_the_order_book_has_them(
    visit: OpenVisit, market: Market
) -> None:
    opened = await visit(f"{market.node.url}/providers?model={LLAMA}")
    await listed(opened, len(market.known))
    book = await market.get(f"/v1/market/{LLAMA}")
    counted = [ask for ask in book["asks"] if ask["counted"]]
    assert len(counted) == 4
    for series, name in ((1, "input_per_mtok"), (2, "output_per_mtok")):
        dots = await opened.page.locator(
            f"#book svg .dot.series-{series}:not(.hollow)"
        ).evaluate_all(
            "dots => dots.map((dot) => [Number(dot.dataset.y), Number(dot.getAttribute('cy'))])"
        )
        assert [y for y, _ in dots] == [ask[name] for ask in counted]
        # what costs more stands higher
        by_price = sorted(dots)
        assert [place for _, place in by_price] == sorted((p for _, p in dots), reverse=True)
        median = opened.page.locator(f"#book .canvas .rule.series-{series}")
        assert await median.get_attribute("data-y") == str(book["prices"][name]["median"])
        assert await opened.page.locator(f"#book .canvas .bracket.series-{series}").count() == 1
    # who is not proven may say any price, and does not bend the scale
    assert "1 offer beyond the scale" in await opened.page.locator("#book figcaption").inner_text()
    await opened.page.locator("#book summary").click()
    table = await opened.page.locator("#book figure table tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in table] == [ask["name"] for ask in book["asks"]]
    offers = await opened.page.locator("#offers tbody tr").all_inner_texts()
    assert "9,000" in offers[0]
    await opened.page.locator("#popular").get_by_role("button", name=MISTRAL).click()
    await opened.page.locator("#book h3", has_text=MISTRAL).wait_for()
    assert opened.page.url.endswith(f"?model={MISTRAL}")
    await opened.page.get_by_label("Model", exact=True).fill("no-such-model")
    await opened.page.get_by_role("button", name="Show prices").click()
    await opened.page.get_by_text("No other node announces").wait_for()
    assert await opened.violations() == []


async def test_sorting_and_filtering(visit: OpenVisit, market: Market) -> None:
    opened = await visit(market.node.url + "/providers")
    page = opened.page
    await listed(opened, len(market.known))
    sort = page.get_by_role("button", name="Node", exact=True)
    await sort.focus()
    await page.keyboard.press("Enter")
    await page.wait_for_selector("th[aria-sort=ascending] button[data-key='sort name']")
    in_order = sorted((seller.name for seller in market.known), key=str.lower)
    assert await names(opened) == in_order
    await page.keyboard.press("Enter")  # the focus has stayed
    await page.wait_for_selector("th[aria-sort=descending] button[data-key='sort name']")
    assert await names(opened) == in_order[::-1]

    async def filtered(*wanted: str) -> None:
        await page.wait_for_function(
            f"""wanted => {{
              const shown = [...document.querySelectorAll("{ROWS} th bdi")];
              return shown.map((name) => name.textContent).sort().join() === wanted.sort().join();
            }}""",
            arg=list(wanted),
        )

    proven = ("Alpine Inference", "Bodega", "Cellar GPU", "Desert Sun")
    await page.get_by_label("Sells model").fill(MISTRAL)
    await filtered("Bodega")
    await page.get_by_label("Sells model").fill("")
    await page.get_by_label("Takes mint").fill(OTHER_MINT)
    await filtered("Alpine Inference")
    await page.get_by_label("Takes mint").fill("")
    await page.get_by_label("Verified only").check()
    await filtered(*proven)
    await page.get_by_label("Verified only").uncheck()
    await page.get_by_label("Status").select_option("offline")
    await filtered("Nobody asked", MARKUP)
    await page.get_by_label("Status").select_option("")
    await filtered(*proven, "Nobody asked", MARKUP)
    await page.get_by_label("Name, key or text").fill("HYDRO")
    await filtered("Alpine Inference")
    await page.get_by_label("Name, key or text").fill("nobody is called so")
    await page.get_by_text("No node fits.").wait_for()
    await page.get_by_label("Name, key or text").fill("")
    await page.get_by_label("Takes mint").fill("not a mint")
    await page.get_by_text("The list could not be loaded: mint must be a mint's URL").wait_for()
    assert await opened.violations() == []


async def test_changes_appear_by_themselves(visit: OpenVisit, market: Market) -> None:
    opened = await visit(f"{market.node.url}/providers?model={LLAMA}")
    page = opened.page
    await listed(opened, len(market.known))
    await page.get_by_text("Live", exact=True).wait_for()
    await page.locator("#offers").get_by_role("button", name="Bodega").focus()
    newcomer = Seller("Newcomer", {LLAMA: (8_000_000, 20_000_000)})
    await market.sellers.announce(newcomer)
    try:
        row = page.locator(f'{ROWS}[data-npub="{newcomer.keys.npub}"]')
        await row.locator("td").get_by_text("Verified", exact=True).wait_for()
        await page.locator("#offers").get_by_role("button", name="Newcomer").wait_for()
        newcomer.prices = {LLAMA: (8_000_000, 77_000_000)}
        await asyncio.sleep(1.1)  # events are told apart by the second
        await market.sellers.announce(newcomer)
        await page.locator("#offers").get_by_text("77,000").wait_for()
        news = page.locator("#news")
        await page.wait_for_function("() => document.getElementById('news').textContent !== ''")
        assert "Newcomer" in await news.inner_text()
    finally:
        await asyncio.sleep(1.1)
        await market.sellers.retract(newcomer)
    await row.wait_for(state="detached")
    # the tables were made anew under the keyboard's focus
    assert await page.evaluate("document.activeElement.textContent") == "Bodega"
    await opened.assert_quiet()


@pytest.mark.parametrize("path", PATHS)
async def test_every_page_is_for_everybody(visit: OpenVisit, market: Market, path: str) -> None:
    name = path.strip("/") or "home"
    ready = {"/": "#models table", "/providers": "#book svg", "/docs": "#codes"}[path]
    for dark, phone in ((False, False), (True, True)):
        opened = await visit(market.node.url + path, dark=dark, phone=phone)
        await opened.page.wait_for_selector(ready)
        await opened.assert_accessible()
        await opened.assert_fits()
        await opened.assert_quiet()
        await opened.screenshot(f"{name}-{'dark-phone' if phone else 'light-desktop'}")
        assert await opened.page.locator("h1").count() == 1
        await opened.context.close()


async def test_the_front_page_says_who_it_is_and_what_it_costs(
    visit: OpenVisit, market: Market
) -> None:
    opened = await visit(market.node.url + "/")
    await opened.page.get_by_role("heading", level=1, name="home").wait_for()
    row = opened.page.locator("#models tbody tr")
    assert re.findall(r"\S+", await row.inner_text()) == [
        "demo",
        "10,000",
        "20,000",
        "0.1",
        "8,192",
    ]
    await opened.page.get_by_text(market.node.keys.npub).wait_for()
    example = await opened.page.locator("#example").inner_text()
    assert f"curl {market.node.url}/v1/chat/completions" in example
    await opened.page.keyboard.press("Tab")
    assert await opened.page.evaluate("document.activeElement.textContent") == (
        "Skip to the content"
    )


async def test_the_docs_list_every_operation(visit: OpenVisit, market: Market) -> None:
    opened = await visit(market.node.url + "/docs#post-v1-wallet-withdraw")
    page = opened.page
    await page.wait_for_selector("#codes")
    document = await market.get("/openapi.json")
    paths = await page.locator(".operation .path").all_inner_texts()
    assert sorted(set(paths)) == sorted(document["paths"])
    operations = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    shown = await page.locator(".operation").evaluate_all(
        "list => list.flatMap((each) => [...each.querySelectorAll('.path')].map((path) =>"
        " [each.querySelector('.method').textContent, path.textContent]))"
    )
    assert {(method, path) for method, path in shown} == operations
    assert await page.locator("#post-v1-wallet-withdraw").is_visible()
    assert await page.evaluate("scrollY") > 0
    codes = document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]
    assert await page.locator("#codes tbody th").all_inner_texts() == codes["enum"]

    chat = page.locator("#post-v1-chat-completions")
    assert f"curl {market.node.url}/v1/chat/completions" in await chat.inner_text()
    assert '"model":"demo"' in await chat.inner_text()
    await page.get_by_role("radio", name="Python (openai)").check()
    python = await chat.locator("pre:visible").inner_text()
    compile(python, "example", "exec")
    assert "client.chat.completions.create(" in python
    wallet = page.locator("#post-v1-wallet-create")
    assert "curl" in await wallet.locator("pre:visible").inner_text()  # the SDK has no word for it

    await page.get_by_label("Search the operations").fill("withdraw")
    await page.wait_for_function("() => document.getElementById('found').textContent !== ''")
    visible = await page.locator(".operation:visible .path").all_inner_texts()
    assert "/v1/wallet/withdraw" in visible
    assert "/v1/embeddings" not in visible
    await opened.assert_quiet()


async def test_the_curl_examples_are_what_the_node_understands(
    visit: OpenVisit, market: Market
) -> None:
    """Each is sent as it stands, with no money: the node must not find the request itself wrong."""
    opened = await visit(market.node.url + "/docs")
    await opened.page.wait_for_selector("#codes")
    free = opened.page.locator(".operation", has_text="Neither key nor token").locator(
        "[data-language=curl] pre"
    )
    commands = [
        " ".join(text.replace("\\\n", " ").split()) for text in await free.all_inner_texts()
    ]
    asked = [
        c.removeprefix("curl ").strip("'") for c in commands if "-H" not in c and "-N" not in c
    ]
    assert len(asked) > 5
    async with httpx.AsyncClient(timeout=20) as http:
        for url in asked:
            if "npub1" in url or "{" in url or "token" in url or "/market/" in url:
                continue
            assert (await http.get(url)).status_code == 200, url
