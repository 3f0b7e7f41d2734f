"""Telling a relay at once that its frame has come (Linux).

A relay that leaves Nagle's algorithm on holds its next small frame back until the last one is
acknowledged, which a kernel does after 40 ms unless it has something to send. An OK and the answer
behind it are two such frames.
"""

from __future__ import annotations

import socket
from asyncio import BaseTransport
from collections.abc import Callable

_QUICK = getattr(socket, "TCP_QUICKACK", None)


def quick_ack(transport: BaseTransport) -> Callable[[], None]:
    """What to call after each frame read from ``transport``; it never raises.

    Does nothing where the system has no such switch or the transport no TCP socket.
    """
    connection: socket.socket | None = transport.get_extra_info("socket")
    if _QUICK is None or connection is None:
        return _nothing
    option, take = _QUICK, connection.setsockopt

    def acknowledge() -> None:
        # The kernel forgets it as soon as we have answered something quickly, hence each time.
        try:
            take(socket.IPPROTO_TCP, option, 1)
        except OSError:  # closed meanwhile, or no TCP
            return

    return acknowledge


def _nothing() -> None:
    """For other systems."""
