"""A real Nostr relay (rust-nostr's LocalRelay, strict and in memory) inside this process."""

from __future__ import annotations

import asyncio
import socket
import time
from types import TracebackType

from nostr_sdk import LocalRelay, LocalRelayBuilder, RateLimit


class EmbeddedRelay:
    """Serves on loopback. What it stored is gone when it stops; the port stays the same.

    Args:
        port: a free one when 0.
        notes_per_minute: how many events it takes from one connection.
        stop_timeout_s: how long closing the port may take.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        notes_per_minute: int = 1_000_000,
        stop_timeout_s: float = 5.0,
    ) -> None:
        self.port = port
        self._notes_per_minute = notes_per_minute
        self._stop_timeout_s = stop_timeout_s
        self._relay: LocalRelay | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start serving; returns when the port is open."""
        if self._relay is not None:
            raise RuntimeError("the relay runs already")
        limit = RateLimit(max_reqs=10_000, notes_per_minute=self._notes_per_minute)
        builder = LocalRelayBuilder().addr("127.0.0.1").rate_limit(limit)
        if self.port:
            builder = builder.port(self.port)
        relay = builder.build()
        await relay.run()
        self._relay = relay
        self.port = int(str(await relay.url()).rpartition(":")[2].rstrip("/"))

    async def stop(self) -> None:
        """Drop all connections and close the port. Idempotent.

        Raises RuntimeError when the port is still open after ``stop_timeout_s``.
        """
        relay, self._relay = self._relay, None
        if relay is None:
            return
        deadline = time.monotonic() + self._stop_timeout_s
        while True:
            relay.shutdown()  # lost on a relay that has only just started, hence again
            await asyncio.sleep(0.01)
            if not self._open():
                return
            if time.monotonic() > deadline:
                raise RuntimeError("the relay did not close its port")

    def _open(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    async def __aenter__(self) -> EmbeddedRelay:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
