"""A node of the demo: ``nodestr serve`` in a process of its own, with its own key, database,
prices and port."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from discovery.nostr.keys import Keys
from node.core.money import Msat
from node.core.pricing import Price
from node.demo.process import Child, free_port


@dataclass(frozen=True, slots=True)
class Offer:
    """The model a demo node sells."""

    model: str
    price: Price
    context_length: int = 8192
    max_output_tokens: int = 512
    endpoints: tuple[str, ...] = ("chat", "messages")

    def to_dict(self) -> dict[str, Any]:
        """Its prices in msat, as the settings name them."""
        price = self.price
        media = {
            "per_image_msat": price.per_image,
            "per_audio_minute_msat": price.per_audio_minute,
            "per_mchar_msat": price.per_mchar,
        }
        return {
            "id": self.model,
            "input_per_mtok_msat": price.input_per_mtok,
            "output_per_mtok_msat": price.output_per_mtok,
            "per_request_msat": price.per_request,
            **{name: amount for name, amount in media.items() if amount},
        }

    def to_table(self) -> dict[str, Any]:
        """Its entry in the configuration."""
        return self.to_dict() | {
            "upstream": "upstream",
            "context_length": self.context_length,
            "max_output_tokens": self.max_output_tokens,
            "endpoints": self.endpoints,
            "free": self.price.free,
        }


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a node needs of the world."""

    mint: str
    relay: str
    upstream: str
    """Base URL with /v1."""
    upstream_key: tuple[str, str] | None = field(default=None, repr=False)
    """(name of the environment variable, its value)"""


class DemoNode:
    """Use with ``async with``: entering starts it and waits until it is ready.

    Args:
        directory: its home; holds key, configuration, database and log.
        start_timeout_s: how long it may take until /health/ready says so.
        stop_timeout_s: how long it may take to drain.
        environment: ``NODESTR_…`` variables that override its configuration.
        more: what it sells besides ``offer``.
    """

    def __init__(
        self,
        name: str,
        offer: Offer,
        surroundings: Surroundings,
        directory: Path,
        *,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 20.0,
        environment: Mapping[str, str] | None = None,
        more: Sequence[Offer] = (),
    ) -> None:
        self.name = name
        self._more = tuple(more)
        self.offer = offer
        self.keys = Keys.generate()
        self.port = free_port()
        self.directory = directory
        self.exit_code: int | None = None
        """How it ended; None before."""
        self._surroundings = surroundings
        self._start_timeout_s = start_timeout_s
        self._settings = dict(environment or {})
        self._child = Child(
            ["-m", "node", "serve", "--config", str(self.config_file)],
            directory=directory,
            environment=self._environment(),
            log_file=directory / "node.log",
            stop_timeout_s=stop_timeout_s,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def config_file(self) -> Path:
        return self.directory / "node.toml"

    @property
    def database(self) -> Path:
        return self.directory / "data" / "node.db"

    @property
    def log_file(self) -> Path:
        return self._child.log_file

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._child.pid

    def to_dict(self) -> dict[str, Any]:
        """All an outside program needs to know of it."""
        return {
            "name": self.name,
            "url": self.url,
            "base_url": f"{self.url}/v1",
            "npub": self.keys.npub,
            "pubkey": self.keys.pubkey,
            "database": str(self.database),
            "config": str(self.config_file),
            "log": str(self.log_file),
            "pid": self.pid,
            "models": [self.offer.to_dict()],
        }

    async def start(self) -> None:
        """Start it and wait until it is ready. Raises RuntimeError; see ``log_end``."""
        self.write_files()
        self._child.start()
        deadline = time.monotonic() + self._start_timeout_s
        timeout = aiohttp.ClientTimeout(total=2)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                while not await self._ready(session):
                    if not self._child.running():
                        raise RuntimeError(f"{self.name} ended while starting")
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"{self.name} was not ready in time")
                    await asyncio.sleep(0.05)
        except BaseException:
            self._child.kill()
            raise

    async def stop(self) -> None:
        """Let it drain and end. Idempotent."""
        code = await self._child.stop()
        if code is not None:
            self.exit_code = code

    def log_end(self) -> str:
        """The last it said."""
        return self._child.log_end()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._child.kill()

    async def _ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.url}/health/ready") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _environment(self) -> dict[str, str]:
        """All it may know: nothing of our environment but the path and the upstream's key."""
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.directory)}
        environment |= self._settings
        if self._surroundings.upstream_key:
            name, value = self._surroundings.upstream_key
            environment[name] = value
        return environment

    def write_files(self) -> None:
        """Write its key and its configuration; ``start`` does."""
        self.directory.mkdir(parents=True, exist_ok=True)
        key_file = self.directory / "node.key"
        key_file.touch(mode=0o600)
        key_file.write_text(self.keys.nsec() + "\n")
        self.config_file.write_text(self._config(key_file))

    def _config(self, key_file: Path) -> str:
        world = self._surroundings
        upstream = {"name": "upstream", "base_url": world.upstream}
        if world.upstream_key:
            upstream["api_key"] = f"env:{world.upstream_key[0]}"
        return "\n".join([
            _table("[node]", {
                "name": self.name,
                "about": "a node of the nodestr demo",
                "secret_key": f"file:{key_file}",
                "data_dir": str(self.database.parent),
                "retract_on_stop": True,
                "drain_timeout_s": 5,
            }),
            _table("[http]", {"host": "127.0.0.1", "port": self.port, "public_urls": [self.url]}),
            _table("[nostr]", {"relays": [world.relay]}),
            _table("[[mints]]", {"url": world.mint}),
            _table("[[upstreams]]", upstream),
            *(_table("[[models]]", offer.to_table()) for offer in (self.offer, *self._more)),
            # The other node is on loopback too, and impatient eyes are watching.
            _table("[discovery]", {"allow_private_addresses": True, "poll_interval_s": 10}),
            # Everybody here has one address.
            _table("[limits]", {
                "requests_per_minute": 0, "requests_per_hour": 0, "requests_per_day": 0,
            }),
            _table("[log]", {"level": "info", "format": "json"}),
        ])  # fmt: skip

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


def _table(header: str, values: Mapping[str, Any]) -> str:
    """A TOML table; JSON writes texts, numbers and lists of them the same way."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join([header, *lines, ""])


def two_offers(model: str) -> tuple[Offer, Offer]:
    """The same model at the prices of node A and node B; about 2 sat for a short chat."""
    a = Price(Msat(12_000_000), Msat(36_000_000), Msat(250))
    b = Price(Msat(10_000_000), Msat(45_000_000))
    return Offer(model, a), Offer(model, b)
