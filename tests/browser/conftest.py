"""A real Chromium for the node's pages: what it loads, says and shows. Skipped where there is none.

The browser and all that is awaited with it live in the session's event loop, so a file of tests
begins with ``pytestmark = pytest.mark.asyncio(loop_scope="session")``, and its own async fixtures
are ``@pytest_asyncio.fixture(loop_scope="session")``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page

CHROMIUM = os.environ.get("NODESTR_CHROMIUM") or "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DEADLINE_MS = 30_000
"""Of everything that is waited for in the browser; the machine may be busy."""
DESKTOP = (1280, 900)
PHONE = (360, 740)
_TELL_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
  (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
_GRAVE = ("serious", "critical")


@dataclass
class Visit:
    """One page in a browser context of its own, and what it did."""

    page: Page
    context: BrowserContext
    origin: str
    artifacts: Path
    console_errors: list[str] = field(default_factory=list)
    """Errors on the console and exceptions nobody caught."""
    requests: list[str] = field(default_factory=list)
    """All URLs that were asked for."""

    @property
    def outside(self) -> list[str]:
        """Requests that left the origin."""
        return [
            url
            for url in self.requests
            if not url.startswith((self.origin + "/", "about:", "data:", "blob:"))
        ]

    async def violations(self) -> list[str]:
        """What the content security policy has refused since the page was loaded."""
        return list(await self.page.evaluate("window.violations"))

    async def assert_quiet(self) -> None:
        """No error, nothing refused by the policy, nothing from outside."""
        assert self.console_errors == []
        assert await self.violations() == []
        assert self.outside == []

    async def assert_accessible(self) -> None:
        """axe finds nothing serious or critical."""
        from axe_playwright_python.async_playwright import (  # type: ignore[import-untyped]
            Axe,
        )

        results = (await Axe().run(self.page)).response
        grave = [
            f"{found['id']} ({found['impact']}): {node['target']} {node['html'][:300]}"
            for found in results["violations"]
            if found["impact"] in _GRAVE
            for node in found["nodes"]
        ]
        assert grave == [], "\n".join(grave)

    async def assert_fits(self) -> None:
        """Nothing makes the page wider than the window."""
        wide = await self.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide[0] <= wide[1], wide

    async def screenshot(self, name: str) -> Path:
        """The whole page as ``<name>.png`` among the artifacts."""
        path = self.artifacts / f"{name}.png"
        await self.page.screenshot(path=path, full_page=True)
        return path


class OpenVisit(Protocol):
    """Opens a page; see the fixture ``visit``."""

    def __call__(
        self, url: str, *, dark: bool = ..., phone: bool = ..., **options: Any
    ) -> Awaitable[Visit]: ...


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: ``$NODESTR_ARTIFACTS``, else a temporary directory."""
    chosen = os.environ.get("NODESTR_ARTIFACTS")
    path = Path(chosen) if chosen else tmp_path_factory.mktemp("artifacts")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium without a window, shared by the run."""
    api = pytest.importorskip("playwright.async_api")
    executable = shutil.which(CHROMIUM)
    if executable is None:
        pytest.skip(f"there is no Chromium at {CHROMIUM} (set NODESTR_CHROMIUM)")
    async with api.async_playwright() as playwright:
        running = await playwright.chromium.launch(
            executable_path=executable, args=list(FLAGS), timeout=2 * DEADLINE_MS
        )
        yield running
        await running.close()


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser: Browser, artifacts: Path) -> AsyncIterator[OpenVisit]:
    """Opens pages: ``await visit(url, dark=True, phone=True)``; further options are those of
    playwright's ``new_context``. They are closed when the test is over."""
    contexts: list[BrowserContext] = []

    async def open_page(
        url: str, *, dark: bool = False, phone: bool = False, **options: Any
    ) -> Visit:
        width, height = PHONE if phone else DESKTOP
        context = await browser.new_context(
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": height},
            reduced_motion="reduce",
            **options,
        )
        contexts.append(context)
        context.set_default_timeout(DEADLINE_MS)
        page = await context.new_page()
        parts = urlsplit(url)
        opened = Visit(page, context, f"{parts.scheme}://{parts.netloc}", artifacts)
        page.on("request", lambda request: opened.requests.append(request.url))
        page.on("pageerror", lambda error: opened.console_errors.append(str(error)))
        page.on("console", _keep_errors(opened))
        await page.add_init_script(_TELL_VIOLATIONS)
        await page.goto(url)
        return opened

    yield open_page
    for context in contexts:
        await context.close()


def _keep_errors(opened: Visit) -> Callable[[Any], None]:
    def keep(message: Any) -> None:
        if message.type == "error":
            opened.console_errors.append(message.text)

    return keep
