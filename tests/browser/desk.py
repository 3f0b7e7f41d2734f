"""A node with an operator's password that has earned something, and its dashboard in a browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web

from node.admin.password import hash_password
from node.core.money import Msat
from node.core.pricing import Price
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.nodes import DemoNode, Offer, Surroundings
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay
from tests.browser.conftest import OpenVisit, Visit
from tests.e2e.conftest import World
from tests.e2e.test_lightning import Payee

if TYPE_CHECKING:
    from playwright.async_api import Page

PASSWORD = "correct horse battery"
DEMO = Offer("demo", Price(Msat(10_000_000), Msat(20_000_000), Msat(100_000)), max_output_tokens=64)
"""100 sat a request on top of its tokens."""
HOSTILE = Offer(
    "<img/src=x/onerror=document.title='hit'>", Price(per_request=Msat(70_000)), max_output_tokens=8
)
LISTED = "listed"
"""A model that nothing but the model server's list tells of."""
ROUTES = (
    "overview", "requests", "log", "earnings", "balance", "accounts", "accounts/all", "pay",
    "operations", "models", "upstreams", "relays", "settings", "keys",
)  # fmt: skip
"""All views."""


@dataclass
class Desk(World):
    """``key`` is that of an account with some money."""

    key: str = ""
    cookies: list[Any] | None = None
    """Of a browser that has signed in."""

    async def chat(self, model: str = DEMO.model) -> None:
        """A request that is paid for."""
        body = {"model": model, "messages": [{"role": "user", "content": "what do you sell"}]}
        headers = {"authorization": f"Bearer {self.key}"}
        async with httpx.AsyncClient(base_url=self.node.url, timeout=60) as http:
            answer = await http.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text

    async def get(self, path: str) -> Any:
        """What the public API says."""
        async with httpx.AsyncClient(base_url=self.node.url, timeout=30) as http:
            return (await http.get(path)).raise_for_status().json()

    async def open(self, visit: OpenVisit, route: str = "overview", **options: Any) -> Visit:
        """A view in a browser that is signed in."""
        if self.cookies is None:
            async with httpx.AsyncClient(
                base_url=self.node.url, headers={"origin": self.node.url}, timeout=60
            ) as http:
                answer = await http.post("/admin/api/login", json={"password": PASSWORD})
            name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
            cookie = {"name": name, "value": value, "domain": "127.0.0.1", "path": "/"}
            self.cookies = [
                cookie | {"secure": True, "httpOnly": True, "sameSite": "Strict", "expires": -1}
            ]
        state = {"cookies": self.cookies, "origins": []}
        seen = await visit(f"{self.node.url}/admin#/{route}", storage_state=state, **options)
        await shown(seen)
        return seen


async def shown(seen: Visit) -> None:
    """Returns when the view is there."""
    await seen.page.wait_for_selector("main:not([aria-busy]) h1")


async def go(seen: Visit, route: str) -> None:
    """To another view."""
    await seen.page.evaluate(
        "route => { document.querySelector('main h1').dataset.old = '';"
        " location.hash = '#/' + route; }",
        route,
    )
    await seen.page.wait_for_selector("main h1:not([data-old])")
    await shown(seen)


@asynccontextmanager
async def open_desk(mint: EmbeddedMint, payee: Payee, home: Path) -> AsyncIterator[Desk]:
    """The node, after some requests."""
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(EmbeddedRelay())
        upstream = await stack.enter_async_context(ModelServer(models=(DEMO.model, LISTED)))
        terms = {
            "name": "upstream", "base_url": upstream.url, "discover": True,
            "default_per_request_msat": 5000, "default_context_length": 4096,
        }  # fmt: skip
        around = Surroundings(mint.url, relay.url, upstream.url)
        environment = {
            "NODESTR_UPSTREAMS": json.dumps([terms]),
            "NODESTR_PAYOUT__ADDRESS": payee.url.replace("http://", "me@"),
            "NODESTR_PAYOUT__FLOOR_SAT": "1000000",
            "NODESTR_PAYOUT__RESERVE_SAT": "10",
            "NODESTR_ADMIN__FREE_TRIES": "10",
        }
        node = DemoNode("node", DEMO, around, home, environment=environment, more=[HOSTILE])
        hashed = node.database.parent / "admin.hash"
        hashed.parent.mkdir(parents=True, mode=0o700)
        hashed.touch(mode=0o600)
        hashed.write_text(hash_password(PASSWORD))
        await stack.enter_async_context(node)
        purse = await stack.enter_async_context(Purse(mint.url))
        desk = Desk(node, mint, relay, upstream, purse)
        async with httpx.AsyncClient(base_url=node.url, timeout=60) as http:
            token = await purse.fund(4000)
            answer = await http.post("/v1/wallet/create", json={"cashu_token": token})
        desk.key = answer.json()["api_key"]
        await asyncio.gather(*(desk.chat() for _ in range(8)), desk.chat(HOSTILE.model))
        yield desk
        await desk.quiet_books()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def desk(
    browser: object,
    mint: EmbeddedMint,
    fee_mint: EmbeddedMint,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Desk]:
    async with Purse(fee_mint.url) as purse:
        payee = Payee(purse)
        app = web.Application()
        app.router.add_get("/.well-known/lnurlp/me", payee.offer)
        app.router.add_get("/pay", payee.pay)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        payee.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        home: Path = tmp_path_factory.mktemp("dashboard")
        async with open_desk(mint, payee, home / "node") as opened:
            yield opened
        await runner.cleanup()


async def focused(page: Page) -> str:
    """The text of what has the focus."""
    return str(await page.evaluate("document.activeElement.textContent.trim()"))


async def token_of(page: Page) -> str:
    """What the dialog shows; then the operator has kept it."""
    shown_token = await page.get_by_label("The token", exact=True).input_value()
    await page.keyboard.press("Escape")  # does not lose it
    await page.get_by_role("button", name="I have kept it").click()
    await page.get_by_role("dialog").wait_for(state="detached")
    return shown_token
