"""Promise: systemd hears READY, STOPPING, RELOADING and WATCHDOG over either kind of socket, and a
node without systemd, or with a dead socket, does not care."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.ops import sdnotify


@pytest.fixture(params=["path", "abstract"])
def listener(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"\0nodestr-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(name)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        yield sock


def test_states_arrive(listener: socket.socket) -> None:
    assert sdnotify.ready()
    assert listener.recv(999) == b"READY=1"
    assert sdnotify.ready("serving 2 models")
    assert listener.recv(999) == b"READY=1\nSTATUS=serving 2 models"
    assert sdnotify.stopping()
    assert listener.recv(999) == b"STOPPING=1"
    assert sdnotify.reloading()
    assert listener.recv(999).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


async def test_the_watchdog_is_fed(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    task = asyncio.create_task(sdnotify.watchdog())
    for _ in range(3):
        assert await asyncio.to_thread(listener.recv, 999) == b"WATCHDOG=1"
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("60000000", None, 30.0),
        ("60000000", "1", None),
        ("60000000", "own", 30.0),
        ("0", None, None),
        ("x", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_interval(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, interval_s: float | None
) -> None:
    pid = str(os.getpid()) if pid == "own" else pid
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert sdnotify.watchdog_interval_s() == interval_s


async def test_without_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)
    assert not sdnotify.ready()
    await sdnotify.watchdog()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not sdnotify.ready()
    monkeypatch.setenv("NOTIFY_SOCKET", "relative")
    assert not sdnotify.ready()


def test_a_manager_that_does_not_read_is_not_waited_for(listener: socket.socket) -> None:
    for _ in range(100_000):
        if not sdnotify.notify("WATCHDOG=1", timeout_s=0.0):
            break
    else:
        pytest.fail("the queue is never full")
    assert listener.recv(999) == b"WATCHDOG=1"
    assert sdnotify.stopping()
