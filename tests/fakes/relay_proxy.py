"""A bad line to a real relay: a websocket proxy that loses, delays, repeats and spoils frames.

``Line`` says how bad, each way by itself; the dice are seeded. What the line does to a frame is
drawn per frame, so the same seed and the same traffic meet the same faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from websockets.client import WebSocketClientProtocol, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.server import WebSocketServer, WebSocketServerProtocol, serve

from tests.fakes.relays import free_port

_MAX_FRAME_BYTES = 2**22
_MAX_LATER = 4_096
# Connections end without a goodbye here, which websockets reports at length.
_quiet = logging.getLogger("tests.fakes.relay_proxy.websocket")
_quiet.setLevel(logging.CRITICAL)

Send = Callable[[str], Any]


@dataclass
class Line:
    """What goes wrong on the way; shares are of frames, 0 to 1, in both directions."""

    lose: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    """Kept back until the frames after it have passed, up to ``hold_s``."""
    hold_s: float = 0.2
    truncate: float = 0.0
    close: float = 0.0
    """The connection ends instead of passing the frame on."""
    delay_s: tuple[float, float] = (0.0, 0.0)
    refuse: float = 0.0
    """Of the client's events: answered with OK false, ``refusal``, and not passed on."""
    refusal: str = "error: could not save"
    refuse_kinds: frozenset[int] = frozenset()
    max_event_bytes: int | None = None
    events_per_s: float | None = None
    """More is answered with OK false, rate-limited."""
    burst: int = 10
    no_eose: bool = False
    no_ok: bool = False
    flood: int = 0
    """Forged copies sent to the client ahead of each event."""
    down: bool = False
    """New connections are refused; ``RelayProxy.cut`` ends those that are."""


@dataclass
class _Bucket:
    left: float
    when: float = field(default_factory=time.monotonic)

    def take(self, per_s: float, burst: int) -> bool:
        now = time.monotonic()
        self.left, self.when = min(burst, self.left + (now - self.when) * per_s), now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class RelayProxy:
    """Listens on ``url`` and passes on to ``target``, as ``line`` says at that moment."""

    def __init__(self, target: str, *, seed: int = 0, line: Line | None = None) -> None:
        self._target = target
        self._port = free_port()
        self._dice = random.Random(f"{seed} {target.rpartition(':')[0]}")
        self._server: WebSocketServer | None = None
        self._sockets: set[WebSocketServerProtocol] = set()
        self._later: set[asyncio.Task[None]] = set()
        self.url = f"ws://127.0.0.1:{self._port}"
        self.line = line or Line()
        self.met: Counter[str] = Counter()
        """What happened to frames, by name."""

    async def start(self) -> None:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            self._port,
            max_size=_MAX_FRAME_BYTES,
            compression=None,
            ping_interval=None,
            logger=_quiet,
        )

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        for task in self._later:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)

    def cut(self) -> None:
        """End every connection without a goodbye."""
        for socket in self._sockets:
            socket.transport.abort()

    async def _serve(self, client: WebSocketServerProtocol) -> None:
        if self.line.down:
            client.transport.abort()
            return
        self._sockets.add(client)
        try:
            async with connect(
                self._target, max_size=_MAX_FRAME_BYTES, compression=None, ping_interval=None
            ) as relay:
                await self._pass_on(client, relay)
        except (OSError, WebSocketException):
            pass
        finally:
            self._sockets.discard(client)
            client.transport.abort()

    async def _pass_on(
        self, client: WebSocketServerProtocol, relay: WebSocketClientProtocol
    ) -> None:
        bucket = _Bucket(self.line.burst)
        ways = {
            asyncio.create_task(self._upward(client, relay, bucket)),
            asyncio.create_task(self._downward(client, relay)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _upward(
        self, client: WebSocketServerProtocol, relay: WebSocketClientProtocol, bucket: _Bucket
    ) -> None:
        async for text in client:
            message = json.loads(text)
            if message[0] == "EVENT" and (reason := self._refused(message[1], text, bucket)):
                self.met["refused"] += 1
                await self._convey(json.dumps(["OK", message[1]["id"], False, reason]), client)
                continue
            await self._convey(str(text), relay)

    async def _downward(
        self, client: WebSocketServerProtocol, relay: WebSocketClientProtocol
    ) -> None:
        async for text in relay:
            message = json.loads(text)
            if (message[0] == "EOSE" and self.line.no_eose) or (
                message[0] == "OK" and self.line.no_ok
            ):
                continue
            if message[0] == "EVENT":
                forged = {**message[2], "content": "forged"}
                for _ in range(self.line.flood):
                    self.met["forged"] += 1
                    await client.send(json.dumps(["EVENT", message[1], forged]))
            await self._convey(str(text), client)

    def _refused(self, event: dict[str, Any], text: str | bytes, bucket: _Bucket) -> str:
        """What the line says to an event instead of passing it on; empty: it passes."""
        line = self.line
        if event["kind"] in line.refuse_kinds:
            return f"blocked: kind {event['kind']} is not allowed"
        if line.max_event_bytes is not None and len(text) > line.max_event_bytes:
            return "invalid: event too large"
        if line.events_per_s is not None and not bucket.take(line.events_per_s, line.burst):
            return "rate-limited: slow down"
        return line.refusal if self._dice.random() < line.refuse else ""

    async def _convey(
        self, text: str, to: WebSocketServerProtocol | WebSocketClientProtocol
    ) -> None:
        line, dice = self.line, self._dice
        if dice.random() < line.close:
            self.met["closed"] += 1
            to.transport.abort()
            return
        if dice.random() < line.lose:
            self.met["lost"] += 1
            return
        delay_s = dice.uniform(*line.delay_s)
        if dice.random() < line.truncate:
            self.met["truncated"] += 1
            text = text[: dice.randrange(len(text))]
        if dice.random() < line.repeat:
            self.met["repeated"] += 1
            self._send_later(text, to, delay_s + dice.uniform(0, line.hold_s))
        if dice.random() < line.reorder:
            self.met["reordered"] += 1
            delay_s += dice.uniform(0, line.hold_s)
        self.met["passed"] += 1
        if delay_s:
            self._send_later(text, to, delay_s)
        else:
            await to.send(text)

    def _send_later(
        self, text: str, to: WebSocketServerProtocol | WebSocketClientProtocol, delay_s: float
    ) -> None:
        async def send() -> None:
            await asyncio.sleep(delay_s)
            with contextlib.suppress(ConnectionClosed, OSError):
                await to.send(text)

        if len(self._later) < _MAX_LATER:
            task = asyncio.create_task(send())
            self._later.add(task)
            task.add_done_callback(self._later.discard)


@contextlib.asynccontextmanager
async def relay_proxy(
    target: str, *, seed: int = 0, line: Line | None = None
) -> AsyncIterator[RelayProxy]:
    """A bad line to the relay at ``target``."""
    proxy = RelayProxy(target, seed=seed, line=line)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
