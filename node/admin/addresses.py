"""Addresses to listen on that are set on the admin pages: tried before they are kept.

A start that fails for its address leaves no page on which to set another.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

from node.errors import InvalidValue
from node.settings import Settings


def check_addresses(fresh: Settings, standing: Collection[Settings]) -> None:
    """Raises InvalidValue for an address that is new and cannot be listened on. Looks up names.

    Args:
        standing: settings in which nothing is new: those in effect, those of the file.
    """
    _check(
        "http", (fresh.http.host, fresh.http.port), {(o.http.host, o.http.port) for o in standing}
    )
    if fresh.metrics.enabled:
        known = {(o.metrics.host, o.metrics.port) for o in standing if o.metrics.enabled}
        _check("metrics", (fresh.metrics.host, fresh.metrics.port), known)


def _check(section: str, wanted: tuple[str, int], known: Collection[tuple[str, int]]) -> None:
    if wanted in known:
        return
    host, port = wanted
    if any(port == other for _, other in known):
        port = 0  # which we hold ourselves
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(address)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        field = "port" if number in (errno.EADDRINUSE, errno.EACCES) else "host"
        reason = getattr(error, "strerror", None) or "no name of a host"
        param = f"{section}.{field}"
        raise InvalidValue(f"{param}: cannot be listened on here: {reason}", param=param) from None
