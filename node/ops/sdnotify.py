"""Telling systemd how we are (sd_notify(3)), and taking the sockets it opened for us
(sd_listen_fds(3)); does nothing where systemd did not start us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

import structlog

log = structlog.get_logger()

SEND_TIMEOUT_S = 1.0
"""How long a change of state may wait for room in the queue; signs of life do not wait."""
FIRST_FD = 3
"""Where the sockets of socket activation begin."""


def notify(*states: str, timeout_s: float = SEND_TIMEOUT_S) -> bool:
    """Send states such as ``READY=1`` to ``$NOTIFY_SOCKET``.

    Args:
        timeout_s: how long the event loop may stand still when the manager does not read.

    Returns whether they were sent; never raises, as the node runs just as well unobserved.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    # "@" stands for the zero byte that begins an abstract address.
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(timeout_s)
            sock.connect(target)
            sock.sendall("\n".join(states).encode())
    except OSError as error:
        log.warning("sd_notify_failed", reason=error.strerror or "nobody reads")
        return False
    return True


def ready(status: str = "") -> bool:
    """The node serves."""
    return notify("READY=1", *([f"STATUS={status}"] if status else []))


def stopping(status: str = "") -> bool:
    """The node drains and stops."""
    return notify("STOPPING=1", *([f"STATUS={status}"] if status else []))


def reloading() -> bool:
    """The node re-reads its settings; :func:`ready` ends it."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def listen_socket(name: str = "http") -> socket.socket | None:
    """The listening socket that systemd opened for us; None when it did not.

    Of several the one called ``name`` (FileDescriptorName=), else the first. It is ours from now
    on: asked again, this gives None, and children do not inherit it.
    """
    given = {key: os.environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES")}
    if given["PID"] != str(os.getpid()) or not given["FDS"].isdecimal():
        return None
    count = int(given["FDS"])
    if not count:
        return None
    names = given["FDNAMES"].split(":")
    chosen = names.index(name) if name in names[:count] else 0
    for number in range(FIRST_FD, FIRST_FD + count):
        os.set_inheritable(number, False)
        if number != FIRST_FD + chosen:
            os.close(number)
    sock = socket.socket(fileno=FIRST_FD + chosen)
    sock.setblocking(False)
    return sock


def watchdog_interval_s() -> float | None:
    """How often systemd wants a sign of life, halved to be safe; None when it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    with contextlib.suppress(ValueError):
        microseconds = int(os.environ.get("WATCHDOG_USEC", ""))
        if microseconds > 0:
            return microseconds / 2_000_000
    return None


async def watchdog() -> None:
    """Give the sign of life for as long as the event loop turns; returns if none is wanted."""
    interval_s = watchdog_interval_s()
    if interval_s is None:
        return
    while True:
        notify("WATCHDOG=1", timeout_s=0.0)
        await asyncio.sleep(interval_s)
