"""Relays to test against: a strict one, a sloppy one, and one that misbehaves on demand.

``strict_relay`` is rust-nostr's LocalRelay, ``sloppy_relay`` is PyPI's nostr-relay in a process
of its own; both share no code with us. ``fault_relay`` is a small server with switches.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from termios import TIOCOUTQ
from typing import Any

import nostr_sdk
from websockets.exceptions import ConnectionClosed
from websockets.server import WebSocketServer, WebSocketServerProtocol, serve


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def listening(port: int, *, timeout_s: float = 30) -> None:
    """Wait until someone listens on ``port``."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                await writer.wait_closed()
                return


# the strict one


@dataclass(frozen=True, slots=True)
class StrictRelay:
    """A LocalRelay in this process."""

    url: str


def _local_relay(port: int, *, auth_dm: bool, auth: bool) -> nostr_sdk.LocalRelay:
    limit = nostr_sdk.RateLimit(max_reqs=10_000, notes_per_minute=1_000_000)
    builder = nostr_sdk.LocalRelayBuilder().addr("127.0.0.1").port(port)
    builder = builder.rate_limit(limit).auth_dm(auth_dm)
    if auth:
        mode = nostr_sdk.LocalRelayBuilderNip42Mode.BOTH
        builder = builder.nip42(nostr_sdk.LocalRelayBuilderNip42(mode=mode))
    return builder.build()


@contextlib.asynccontextmanager
async def strict_relay(*, auth_dm: bool = False, auth: bool = False) -> AsyncIterator[StrictRelay]:
    """A relay that checks everything. ``auth_dm``: gift wraps only after AUTH; ``auth``: all."""
    port = free_port()
    relay = _local_relay(port, auth_dm=auth_dm, auth=auth)
    await relay.run()
    try:
        yield StrictRelay(f"ws://127.0.0.1:{port}")
    finally:
        relay.shutdown()


class MortalRelay:
    """A strict relay in a process of its own, to be killed and started again, empty.

    ``LocalRelay.shutdown`` does not always end the connections it has; a kill does.
    """

    def __init__(self) -> None:
        self._port = free_port()
        self._process: asyncio.subprocess.Process | None = None
        self.url = f"ws://127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, str(self._port)), cwd=Path(__file__).parents[2]
        )
        await listening(self._port)

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


@contextlib.asynccontextmanager
async def mortal_relay() -> AsyncIterator[MortalRelay]:
    """A strict relay with ``kill`` and ``start``."""
    relay = MortalRelay()
    await relay.start()
    try:
        yield relay
    finally:
        await relay.kill()


# the sloppy one


@dataclass(frozen=True, slots=True)
class SloppyRelay:
    """A relay in a process of its own."""

    url: str


@contextlib.asynccontextmanager
async def sloppy_relay(directory: Path) -> AsyncIterator[SloppyRelay]:
    """nostr-relay 1.14 with its database in ``directory``; takes seconds to start.

    It accepts wrong ids, keeps superseded events, refuses with an empty id in OK.
    """
    port = free_port()
    config = {
        "storage": {
            "sqlalchemy.url": f"sqlite+aiosqlite:///{directory}/nostr.sqlite3",
            "validators": [
                "nostr_relay.validators.is_not_too_large",
                "nostr_relay.validators.is_signed",
            ],
        },
        "gunicorn": {"bind": f"127.0.0.1:{port}", "loglevel": "warning"},
        "verification": {"nip05_verification": "disabled"},
        "authentication": {"enabled": False},
        "max_event_size": 65_536,
    }
    path = directory / "relay.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    with (directory / "relay.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("nostr-relay")), "-c", str(path)),
            *("serve", "--use-uvicorn"),
            cwd=directory,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
            stdout=output,
            stderr=output,
        )
    try:
        await listening(port)
        yield SloppyRelay(f"ws://127.0.0.1:{port}")
    finally:
        process.terminate()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


# the faulty one


@dataclass
class Faults:
    """What a FaultRelay does wrong; all off at first. Text switches hold the message to send."""

    no_eose: bool = False
    no_ok: bool = False
    ok_false: str = ""
    ok_empty_id: bool = False
    notice_only: str = ""
    """Answer EVENT and REQ with NOTICE and nothing else."""
    closed: str = ""
    closed_times: int = 1_000
    """How many REQs are closed before one is served."""
    auth_required: str = ""
    """Refuse EVENT and REQ with this message until a client has answered AUTH."""
    auth_no_ok: bool = False
    auth_refused: str = ""
    drop_on_event: int = 0
    """So many EVENTs end the connection instead of being answered."""
    leak: bool = False
    """Ignore filters."""
    twice: bool = False
    """Deliver every event twice."""
    forged_first: bool = False
    """Before every event a copy with the same id and another content."""
    garbage: list[str | bytes] = field(default_factory=list)
    """Frames sent after each REQ, before its events."""


@dataclass(eq=False)
class _Client:
    socket: WebSocketServerProtocol
    filters: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    authenticated: bool = False


class FaultRelay:
    """Keeps every event it is sent and shows what it was asked; ``faults`` are its switches."""

    def __init__(self) -> None:
        self._port = free_port()
        self._server: WebSocketServer | None = None
        self._clients: set[_Client] = set()
        self.url = f"ws://127.0.0.1:{self._port}"
        self.faults = Faults()
        self.events: list[dict[str, Any]] = []
        self.received: list[list[Any]] = []
        self.connections = 0
        self._arrived = asyncio.Condition()

    async def start(self) -> None:
        self._server = await serve(self._serve, "127.0.0.1", self._port, max_size=2**22)

    async def stop(self) -> None:
        """Stop listening and drop everyone; what was stored stays."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    def drop_everyone(self) -> None:
        """End every connection without a goodbye."""
        for client in self._clients:
            client.socket.transport.abort()

    def frames(self, verb: str) -> list[list[Any]]:
        """The frames of that verb received so far."""
        return [frame for frame in self.received if frame[0] == verb]

    async def has_received(self, verb: str, count: int = 1, *, timeout_s: float = 10) -> None:
        """Wait until ``count`` frames of that verb have come."""
        async with asyncio.timeout(timeout_s), self._arrived:
            await self._arrived.wait_for(lambda: len(self.frames(verb)) >= count)

    async def broadcast(self, *events: dict[str, Any]) -> None:
        """Deliver events live, stored or not, valid or not."""
        for client in list(self._clients):
            for subscription_id, filters in list(client.filters.items()):
                await self._deliver(client, subscription_id, filters, events)

    def unacknowledged_bytes(self) -> int:
        """What was sent to the clients and their kernels have not acknowledged (Linux)."""
        count = 0
        for client in self._clients:
            raw = fcntl.ioctl(client.socket.transport.get_extra_info("socket"), TIOCOUTQ, bytes(4))
            count += int.from_bytes(raw, sys.byteorder)
        return count

    async def say(self, frame: str | bytes) -> None:
        """Send one raw frame to everyone."""
        for client in list(self._clients):
            await client.socket.send(frame)

    async def _serve(self, socket: WebSocketServerProtocol) -> None:
        client = _Client(socket)
        self._clients.add(client)
        self.connections += 1
        try:
            if self.faults.auth_required:
                await _send(client, ["AUTH", f"challenge-{self.connections}"])
            async for text in socket:
                frame = json.loads(text)
                await self._answer(client, frame)
                async with self._arrived:
                    self.received.append(frame)
                    self._arrived.notify_all()
        except ConnectionClosed:
            pass
        finally:
            self._clients.discard(client)

    async def _answer(self, client: _Client, frame: list[Any]) -> None:
        match frame:
            case ["EVENT", event]:
                await self._on_event(client, event)
            case ["REQ", subscription_id, *filters]:
                await self._on_req(client, subscription_id, filters)
            case ["CLOSE", subscription_id]:
                client.filters.pop(subscription_id, None)
            case ["AUTH", event]:
                await self._on_auth(client, event)

    async def _on_event(self, client: _Client, event: dict[str, Any]) -> None:
        faults = self.faults
        ok_id = "" if faults.ok_empty_id else event["id"]
        if faults.drop_on_event:
            faults.drop_on_event -= 1
            client.socket.transport.abort()
        elif faults.notice_only:
            await _send(client, ["NOTICE", faults.notice_only])
        elif faults.auth_required and not client.authenticated:
            await _send(client, ["OK", ok_id, False, faults.auth_required])
        elif faults.ok_false:
            await _send(client, ["OK", ok_id, False, faults.ok_false])
        else:
            self.events.append(event)
            if not faults.no_ok:
                await _send(client, ["OK", ok_id, True, ""])
            await self.broadcast(event)

    async def _on_req(
        self, client: _Client, subscription_id: str, filters: list[dict[str, Any]]
    ) -> None:
        faults = self.faults
        if faults.notice_only:
            await _send(client, ["NOTICE", faults.notice_only])
        elif faults.auth_required and not client.authenticated:
            await _send(client, ["CLOSED", subscription_id, faults.auth_required])
        elif faults.closed and faults.closed_times:
            faults.closed_times -= 1
            await _send(client, ["CLOSED", subscription_id, faults.closed])
        else:
            client.filters[subscription_id] = filters
            for garbage in faults.garbage:
                await client.socket.send(garbage)
            await self._deliver(client, subscription_id, filters, self.events)
            if not faults.no_eose:
                await _send(client, ["EOSE", subscription_id])

    async def _on_auth(self, client: _Client, event: dict[str, Any]) -> None:
        signed = nostr_sdk.Event.from_json(json.dumps(event))
        tags = {tag[0]: tag[1] for tag in event["tags"]}
        good = (
            signed.verify()
            and event["kind"] == 22242
            and tags == {"relay": self.url, "challenge": f"challenge-{self.connections}"}
            and not self.faults.auth_refused
        )
        client.authenticated = good
        if not self.faults.auth_no_ok:
            await _send(client, ["OK", event["id"], good, self.faults.auth_refused])

    async def _deliver(
        self,
        client: _Client,
        subscription_id: str,
        filters: list[dict[str, Any]],
        events: Iterable[dict[str, Any]],
    ) -> None:
        for event in events:
            if not self.faults.leak and not any(_matches(f, event) for f in filters):
                continue
            if self.faults.forged_first:
                await _send(client, ["EVENT", subscription_id, event | {"content": "forged"}])
            for _ in range(2 if self.faults.twice else 1):
                await _send(client, ["EVENT", subscription_id, event])


@contextlib.asynccontextmanager
async def fault_relay(**faults: Any) -> AsyncIterator[FaultRelay]:
    """A relay that does wrong what ``faults`` (fields of Faults) say."""
    relay = FaultRelay()
    relay.faults = Faults(**faults)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


async def _send(client: _Client, frame: list[Any]) -> None:
    with contextlib.suppress(ConnectionClosed):
        await client.socket.send(json.dumps(frame))


def _matches(conditions: dict[str, Any], event: dict[str, Any]) -> bool:
    for key, wanted in conditions.items():
        if key.startswith("#"):
            if not any(tag[0] == key[1:] and tag[1] in wanted for tag in event["tags"]):
                return False
        elif key in ("kinds", "authors", "ids"):
            if event[{"kinds": "kind", "authors": "pubkey", "ids": "id"}[key]] not in wanted:
                return False
        elif (key == "since" and event["created_at"] < wanted) or (
            key == "until" and event["created_at"] > wanted
        ):
            return False
    return True


async def _run_forever(port: int) -> None:
    relay = _local_relay(port, auth_dm=False, auth=False)
    await relay.run()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_run_forever(int(sys.argv[1])))
