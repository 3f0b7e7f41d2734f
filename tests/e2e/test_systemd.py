"""Promise: run as systemd runs it, the node says when it is ready, alive, reloading and stopping,
serves on the socket it was given, and a stop or restart under load fails no request; the units
confine it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.nodes import DemoNode, Surroundings
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay
from node.ledger.books import read_books
from node.ops import sdnotify
from tests.e2e.conftest import BODY, OFFER

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"

START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "node", "serve", "--config", sys.argv[2]])
"""
"""What systemd does between fork and exec."""


@dataclass
class Manager:
    """Stands where systemd does: owns the listening and the notify socket."""

    listener: socket.socket
    notified: socket.socket
    config: Path
    directory: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    @asynccontextmanager
    async def started(self) -> AsyncIterator[asyncio.subprocess.Process]:
        fd = self.listener.fileno()
        with (self.directory / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                START,
                str(fd),
                str(self.config),
                stderr=log,
                pass_fds=[fd],
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "NOTIFY_SOCKET": str(self.directory / "notify"),
                    "WATCHDOG_USEC": "200000",
                    "LISTEN_FDS": "1",
                    "LISTEN_FDNAMES": "http",
                },
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def hears(self, state: str) -> str:
        """The next message that begins with ``state``; signs of life are passed over."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            while True:
                message = (await loop.sock_recv(self.notified, 4096)).decode()
                if message.startswith(state):
                    return message
                assert message == "WATCHDOG=1", message

    async def listens(self) -> None:
        """Take every message, for ever."""
        while True:
            await asyncio.get_running_loop().sock_recv(self.notified, 4096)

    def log(self) -> str:
        return (self.directory / "log").read_text()


@pytest.fixture
async def upstream() -> AsyncIterator[ModelServer]:
    async with ModelServer(words=40, delay_s=0.02) as server:
        yield server


@pytest.fixture
def manager(
    tmp_path: Path, mint: EmbeddedMint, relay: EmbeddedRelay, upstream: ModelServer
) -> Iterator[Manager]:
    world = Surroundings(mint.url, relay.url, upstream.url)
    node = DemoNode("node", OFFER, world, tmp_path / "node")
    node.write_files()
    with (
        socket.socket() as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        notified.bind(str(tmp_path / "notify"))
        notified.setblocking(False)
        yield Manager(listener, notified, node.config_file, tmp_path)


async def test_start_alive_reload_and_an_orderly_stop(manager: Manager) -> None:
    config = manager.config.read_text()
    async with manager.started() as process, httpx.AsyncClient() as http:
        assert await manager.hears("READY=1") == "READY=1"
        await manager.hears("WATCHDOG=1")
        assert (await http.get(f"{manager.url}/health/ready")).status_code == 200
        assert (await http.get(f"{manager.url}/v1/info")).headers.get("x-ratelimit-limit") is None

        manager.config.write_text(
            config.replace("requests_per_minute = 0", "requests_per_minute = 7").replace(
                'level = "info"', 'level = "debug"'
            )
            + "[payments]\nlock = true\n"
        )
        process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in await manager.hears("RELOADING=1")
        await manager.hears("READY=1")
        answer = await http.get(f"{manager.url}/v1/info")
        assert answer.headers["x-ratelimit-limit"] == "7"
        (line,) = [line for line in manager.log().splitlines() if '"reloaded"' in line]
        told = json.loads(line)
        assert told["applied"] == ["limits.requests_per_minute", "log.level"]
        assert told["needs_restart"] == ["payments.lock"]

        manager.config.write_text("[http]\nprot = 1\n")
        process.send_signal(signal.SIGHUP)
        await manager.hears("RELOADING=1")
        await manager.hears("READY=1")
        assert "reload_refused" in manager.log()
        assert (await http.get(f"{manager.url}/health/ready")).status_code == 200

        process.terminate()
        await manager.hears("STOPPING=1")
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_a_stop_lets_streams_finish_and_who_comes_then_waits(
    manager: Manager, mint: EmbeddedMint, upstream: ModelServer
) -> None:
    async with Purse(mint.url) as purse, httpx.AsyncClient(timeout=60) as http:
        async with manager.started() as process, httpx.AsyncClient(timeout=60) as prober:
            await manager.hears("READY=1")
            assert (await prober.get(f"{manager.url}/health/ready")).status_code == 200
            token = await purse.fund(200)
            streaming = asyncio.create_task(
                http.post(
                    f"{manager.url}/v1/chat/completions",
                    headers={"X-Cashu": token},
                    json={**BODY, "stream": True},
                )
            )
            await asyncio.wait_for(upstream.called.wait(), 60)
            process.terminate()
            await manager.hears("STOPPING=1")
            # on the connection that it has
            told = await prober.get(f"{manager.url}/health/ready")
            assert (told.status_code, told.json()["checks"]["draining"]) == (503, "draining")
            assert told.headers["connection"] == "close"
            answer = await streaming
            assert answer.status_code == 200
            assert answer.text.rstrip().endswith("data: [DONE]")
            assert await asyncio.wait_for(process.wait(), 60) == 0
        # nobody is there to answer, and the socket is: who comes now waits
        early = asyncio.create_task(http.get(f"{manager.url}/v1/info"))
        async with manager.started() as process:
            await manager.hears("READY=1")
            assert (await asyncio.wait_for(early, 60)).status_code == 200
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 60) == 0


REQUESTS = 200
RESTART_EVERY = 70


async def test_restarts_under_load_fail_no_request(
    manager: Manager, mint: EmbeddedMint, upstream: ModelServer
) -> None:
    upstream.delay_s = 0.001
    url = manager.url
    statuses: list[int] = []
    costs: list[int] = []
    loaded = asyncio.Event()

    async def ask(http: httpx.AsyncClient, headers: dict[str, str], *, stream: bool) -> None:
        answer = await http.post(
            f"{url}/v1/chat/completions", headers=headers, json={**BODY, "stream": stream}
        )
        statuses.append(answer.status_code)
        assert answer.status_code == 200, answer.text
        if stream:
            assert answer.text.rstrip().endswith("data: [DONE]")
        else:
            assert answer.json()["choices"][0]["finish_reason"] == "stop"
            costs.append(int(answer.headers["x-routstr-cost-msats"]))
        if len(statuses) % RESTART_EVERY == 0:
            loaded.set()

    async def comes_anew(headers: dict[str, str], *, stream: bool) -> None:
        while len(statuses) < REQUESTS:
            async with httpx.AsyncClient(timeout=90) as http:
                await ask(http, headers, stream=stream)

    async def stays(headers: dict[str, str], *, stream: bool) -> None:
        async with httpx.AsyncClient(timeout=90) as http:
            while len(statuses) < REQUESTS:
                try:
                    await ask(http, headers, stream=stream)
                except httpx.RemoteProtocolError as error:
                    # an idle connection may close at any time (RFC 9112, 9.3.1)
                    assert "without sending a response" in str(error)  # noqa: PT017

    async def pays_with_tokens(purse: Purse) -> None:
        while len(statuses) < REQUESTS:
            token = await purse.fund(20)
            async with httpx.AsyncClient(timeout=90) as http:
                await ask(http, {"X-Cashu": token}, stream=False)

    async with Purse(mint.url) as purse:
        async with manager.started() as process:
            await manager.hears("READY=1")
            token = await purse.fund(1000)
            async with httpx.AsyncClient(timeout=60) as http:
                opened = await http.get(
                    f"{url}/v1/balance/create", params={"initial_balance_token": token}
                )
            key = {"Authorization": f"Bearer {opened.json()['api_key']}"}
            load = asyncio.gather(
                *(comes_anew(key, stream=stream) for stream in (True, False) * 2),
                *(stays(key, stream=stream) for stream in (True, False) * 2),
                pays_with_tokens(purse),
            )
            listening = asyncio.create_task(manager.listens())
            await _while(load, loaded.wait())
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 60) == 0
        restarts = 0
        while True:
            loaded.clear()
            async with manager.started() as process:
                restarts += 1
                await _while(load, loaded.wait())
                if len(statuses) >= REQUESTS:
                    await load
                process.terminate()
                assert await asyncio.wait_for(process.wait(), 60) == 0
            if load.done():
                break
    listening.cancel()
    load.result()
    assert restarts >= 2
    assert set(statuses) == {200}
    books = read_books(manager.directory / "node" / "data" / "node.db")
    assert books.problems() == []
    assert (books.operations_open, books.holds_open) == (0, 0)
    assert books.revenue_msat >= sum(costs)


async def _while(load: asyncio.Future[object], event: Coroutine[object, object, object]) -> None:
    """Wait for ``event``, or for the load to fail or end."""
    waiting = asyncio.ensure_future(event)
    await asyncio.wait({load, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=90)
    if load.done():
        waiting.cancel()
        load.result()
    else:
        assert waiting.done(), "nobody is served"


def test_sockets_of_somebody_else_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, fds in (("1", "1"), (str(os.getpid()), "0"), (str(os.getpid()), "x"), ("", "")):
        monkeypatch.setenv("LISTEN_PID", pid)
        monkeypatch.setenv("LISTEN_FDS", fds)
        assert sdnotify.listen_socket() is None
        assert "LISTEN_FDS" not in os.environ


# the units


def directives(unit: str) -> dict[str, list[str]]:
    """Every directive of a unit with its values."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_service_is_confined() -> None:
    unit = directives("nodestr.service")
    on = {
        "DynamicUser", "LockPersonality", "NoNewPrivileges", "PrivateDevices", "PrivateTmp",
        "PrivateUsers", "ProtectClock", "ProtectControlGroups", "ProtectHome", "ProtectHostname",
        "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "RemoveIPC",
        "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID",
    }  # fmt: skip
    assert {key for key in on if unit.get(key) != ["yes"]} == set()
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == [""]
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["UMask"] == ["0077"]
    assert unit["StateDirectoryMode"] == ["0700"]
    assert unit["SystemCallFilter"] == ["@system-service", "~@privileged @resources"]
    assert unit["RestrictAddressFamilies"] == ["AF_INET AF_INET6 AF_UNIX"]
    assert unit["Type"] == ["notify"]
    assert int(unit["WatchdogSec"][0]) > 0
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_scores_the_service_at_most_2() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNITS / "nodestr.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Overall exposure level" not in done.stdout:
        pytest.skip("this systemd-analyze cannot judge offline")
    (score,) = re.findall(r"Overall exposure level for nodestr.service: ([\d.]+)", done.stdout)
    assert float(score) <= 2.0


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_socket(tmp_path: Path) -> None:
    for name in ("nodestr.service", "nodestr.socket"):
        text = (UNITS / name).read_text().replace("/opt/nodestr/bin/nodestr", sys.executable)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "nodestr.socket"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert [line for line in done.stderr.splitlines() if "nodestr." in line] == []
