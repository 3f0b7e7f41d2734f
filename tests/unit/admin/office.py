"""The desk of a node that has no carriages: its endpoints, called by method and path."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import orjson

from discovery.nostr.keys import Keys
from node.admin.desk import DeskParts, sections
from node.admin.exchange import AdminRequest, AdminRoute
from node.admin.feed import Feed
from node.admin.log_tail import LogTail
from node.core.catalog import Catalog
from node.ecash.keysets import AcceptedMint
from node.ecash.lightning import Lightning
from node.ecash.mint import MintClient
from node.ecash.token import serialize_token
from node.ecash.wallet import Wallet
from node.ledger.database import Database
from node.ledger.lightning import SqliteLightningStore
from node.ledger.reports import Reader
from node.ledger.wallet import SqliteWalletStore
from node.market import Market
from node.ops.health import Health
from node.settings import Settings

MINT = "https://mint.example.com"
SEED = b"s" * 64
SETTINGS: dict[str, Any] = {
    "mints": [{"url": MINT}],
    "upstreams": [
        {"name": "gpu", "base_url": "http://127.0.0.1:9/v1"},
    ],
    "models": [
        {
            "id": "org/small",
            "upstream": "gpu",
            "context_length": 4096,
            "max_output_tokens": 512,
            "input_per_mtok_msat": 1_000_000,
            "output_per_mtok_msat": 2_000_000,
            "aliases": ["small"],
        },
        {
            "id": "dollars",
            "upstream": "gpu",
            "context_length": 4096,
            "max_output_tokens": 512,
            "input_per_mtok_usd": "0.5",
            "output_per_mtok_usd": "1",
        },
    ],
    "nostr": {"requests": False},
}


def settings_of(folder: Path, **changes: Any) -> Settings:
    """Settings of a node whose key is in a file of ``folder``."""
    key = folder / "nostr.key"
    if not key.exists():
        key.touch(0o600)
        key.write_text(Keys.generate().nsec() + "\n")
    node = {
        "secret_key": f"file:{key}",
        "name": "Test node",
        "data_dir": str(folder),
        "announce": False,
    }
    return Settings(**{**SETTINGS, "node": {**node, **changes.pop("node", {})}, **changes})


@dataclass
class Office:
    """The endpoints, and what they look at."""

    database: Database
    parts: DeskParts
    wallet: Wallet
    lightning: Lightning
    changes: list[Mapping[str, Any]] = field(default_factory=list)
    """What was given to ``change_settings``."""

    @property
    def routes(self) -> list[AdminRoute]:
        return sections(self.parts)

    def find(self, method: str, path: str) -> tuple[AdminRoute, dict[str, str]]:
        """The route that answers, and the parameters in the path."""
        for route in self.routes:
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(route.path))
            match = re.fullmatch(pattern, path)
            if match and route.method == method:
                found = {name: unquote(value) for name, value in match.groupdict().items()}
                return route, found
        raise AssertionError(f"no route for {method} {path}")

    async def get(self, path: str, **query: object) -> Any:
        """The document of a GET, as it arrives."""
        route, parameters = self.find("GET", path)
        assert route.answer is not None
        texts = {name.rstrip("_"): str(value) for name, value in query.items()}
        answer = await route.answer(AdminRequest(parameters, texts))
        return orjson.loads(orjson.dumps(answer))

    async def send(self, method: str, path: str, **document: Any) -> Any:
        """The document of an unsafe method."""
        route, parameters = self.find(method, path)
        assert route.answer is not None
        answer = await route.answer(AdminRequest(parameters, {}, document))
        return orjson.loads(orjson.dumps(answer))

    def follow(self, path: str, **query: str) -> AsyncIterator[Any]:
        """The documents of a stream."""
        route, parameters = self.find("GET", path)
        assert route.stream is not None
        return route.stream(AdminRequest(parameters, query))


@asynccontextmanager
async def open_office(
    folder: Path, *, solvency: Callable[[], str | None] = lambda: None, **changes: Any
) -> AsyncIterator[Office]:
    """An office over an empty database. ``changes``: sections of the settings."""
    settings = settings_of(folder, **changes)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        database = await Database.open(settings.node.database)
        stack.push_async_callback(database.close)
        store = SqliteWalletStore(database, serialize_token)
        mints = {
            mint.url: AcceptedMint(MintClient(session, mint.url, timeout_s=10))
            for mint in settings.mints
        }
        wallet = Wallet(store, mints, SEED)
        stack.push_async_callback(wallet.close, 0.1)
        invoices = SqliteLightningStore(database, store)
        lightning = Lightning(wallet, store, invoices, mints, SEED)
        await wallet.start()
        catalog = Catalog()
        market = Market(settings, session, catalog)
        asked: list[Mapping[str, Any]] = []

        async def change(document: Mapping[str, Any]) -> Mapping[str, Any]:
            asked.append(document)
            return {"applied": sorted(document), "needs_restart": []}

        parts = DeskParts(
            settings=lambda: settings,
            npub=settings.keys().npub,
            reader=Reader(settings.node.database),
            health=Health(),
            solvency=solvency,
            active=lambda: 3,
            draining=lambda: False,
            catalog=catalog,
            stock=market.shelf,
            upstreams=market.router.states,
            providers=lambda: 7,
            circuits=wallet.circuits(),
            wallet=wallet,
            payouts=None,
            pool=None,
            announcer=lambda: None,
            feed=Feed(),
            log=LogTail(),
            change_settings=change,
        )
        yield Office(database, parts, wallet, lightning, asked)
