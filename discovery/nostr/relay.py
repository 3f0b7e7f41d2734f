"""One relay: stays connected, asks its subscriptions again after each reconnect, publishes."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import structlog
from websockets.client import WebSocketClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatusCode, WebSocketException
from websockets.legacy.client import Connect

from discovery.errors import DiscoveryError, ForbiddenAddress, RelayError
from discovery.nostr.keys import Keys
from discovery.nostr.limits import Counters, PublishResult, RelayLimits
from discovery.nostr.pacing import Pacer, is_rate_limit
from discovery.nostr.session import Session
from discovery.nostr.subscription import Subscription

Guard = Callable[[str], Awaitable[Sequence[str] | None]]
"""Called with the URL before each connect; raises ForbiddenAddress to refuse it. It may return
the IP addresses it resolved and allows: then the connection goes to these and the name is not
resolved again, so that it cannot point elsewhere in between."""

_MAX_URL_CHARS: Final = 2_048
_MAX_DOUBLINGS: Final = 16
_KICK_AFTER_S: Final = 5.0
"""A publish cuts a reconnect pause short when the last attempt is this long ago."""

log = structlog.get_logger()

# At DEBUG websockets logs whole frames; ours may carry what must not be logged.
_quiet = logging.getLogger("discovery.nostr.websocket")
_quiet.setLevel(logging.WARNING)


def normalize_url(url: str) -> str:
    """A relay URL in one spelling: lower-case host, no default port or slash.

    Raises RelayError unless it is ws:// or wss:// with a host and without credentials.
    """
    if len(url) > _MAX_URL_CHARS or not url.isprintable() or " " in url:
        raise RelayError("this is not a relay URL")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RelayError("this is not a relay URL") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname or "@" in parts.netloc:
        raise RelayError("this is not a relay URL")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = 443 if parts.scheme == "wss" else 80
    netloc = host if port in (None, default) else f"{host}:{port}"
    path = "" if parts.path == "/" else parts.path
    return urlunsplit((parts.scheme, netloc, path, parts.query, ""))


@dataclass(frozen=True, slots=True)
class RelayHealth:
    """A snapshot of one relay; times in unix seconds, counts since the start."""

    url: str
    connected: bool
    authenticated: bool
    last_error: str
    last_notice: str
    connected_at: float | None
    last_alive_at: float | None
    """Now while connected, else when the connection was lost."""
    connects: int
    events: int
    duplicates: int
    unmatched: int
    """Events that our filters did not ask for."""
    invalid: int
    """Events and frames that were misshapen or forged."""
    published: int
    refused: int
    limited: int
    """How often it said that we send too fast."""
    resent: int
    """Events sent again because the OK did not come."""
    interval_s: float
    """Between two of our events, as it wants it; 0: it takes whatever comes."""

    @property
    def trouble(self) -> str | None:
        """What is wrong with it, in a few public words."""
        if not self.connected:
            return "not connected"
        return f"takes an event every {self.interval_s:.1f} s" if self.interval_s >= 1 else None


class _NoRedirect(Connect):
    """A redirect would lead past the guard."""

    def handle_redirect(self, uri: str) -> None:
        raise RelayError("the relay redirects elsewhere")


class Relay:
    """One relay URL and everything we want from it. ``start`` and ``close`` once each.

    Args:
        url: as ``normalize_url`` gives it.
        keys: answers AUTH challenges (NIP-42); without keys they are ignored.
        guard: which URLs may be connected to.
    """

    def __init__(
        self,
        url: str,
        *,
        keys: Keys | None = None,
        guard: Guard | None = None,
        limits: RelayLimits | None = None,
    ) -> None:
        self.url: Final = url
        self._keys = keys
        self._guard = guard
        self._limits = limits or RelayLimits()
        self._counters = Counters()
        self._pacer = Pacer(self._limits.pace_first_s, self._limits.pace_max_s)
        self._subscriptions: dict[str, Subscription] = {}
        self._session: Session | None = None
        self._settled = asyncio.Event()
        """Set while a publish need not wait: connected, refused by the guard, or closed."""
        self._refusal = ""
        self._kick = asyncio.Event()
        self._last_attempt = 0.0
        self._last_error = ""
        self._connected_at: float | None = None
        self._lost_at: float | None = None
        self._publishing = 0
        self._reachable = True
        self._task: asyncio.Task[None] | None = None

    @property
    def reachable(self) -> bool:
        """Connected, or on the first attempt: worth waiting for an answer."""
        return self._reachable

    @property
    def connected(self) -> bool:
        """Whether a connection is up."""
        return self._session is not None

    @property
    def busy(self) -> bool:
        """Whether anyone still wants something from this relay."""
        return self._publishing > 0 or bool(self._subscriptions)

    def health(self) -> RelayHealth:
        """How this relay does."""
        counters, session = self._counters, self._session
        return RelayHealth(
            url=self.url,
            connected=session is not None,
            authenticated=session is not None and session.authenticated,
            last_error=self._last_error,
            last_notice=counters.last_notice,
            connected_at=self._connected_at,
            last_alive_at=time.time() if session is not None else self._lost_at,
            connects=counters.connects,
            events=counters.events,
            duplicates=counters.duplicates,
            unmatched=counters.unmatched,
            invalid=counters.invalid,
            published=counters.published,
            refused=counters.refused,
            limited=counters.limited,
            resent=counters.resent,
            interval_s=self._pacer.interval_s,
        )

    def adopt(self, limits: RelayLimits) -> None:
        """It is one of ours now: from its next connection on these hold."""
        self._limits = limits

    def start(self) -> None:
        """Connect, and stay connected, in a task of its own."""
        if self._task is None:
            self._task = asyncio.create_task(self._stay_connected(), name=f"relay {self.url}")

    async def close(self) -> None:
        """Disconnect for good. Idempotent."""
        self._refusal = "closed: the pool is closed"
        self._settled.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def attach(self, subscription: Subscription) -> None:
        """Ask now if connected, and after every reconnect."""
        self._subscriptions[subscription.id] = subscription
        if self._session is not None:
            self._session.open(subscription)

    def detach(self, subscription: Subscription) -> None:
        """Ask no longer."""
        self._subscriptions.pop(subscription.id, None)
        if self._session is not None:
            self._session.close(subscription)

    async def publish(self, event_id: str, frame: str, timeout_s: float) -> PublishResult:
        """Send an EVENT frame; sent again if the connection is lost before the OK, and slower
        while the relay says ``rate-limited``.

        Never raises for what a relay does: no connection or no OK in time is a result.
        """
        self._publishing += 1
        refusals: list[PublishResult] = []
        try:
            async with asyncio.timeout(timeout_s):
                result = await self._publish(event_id, frame, refusals)
        except TimeoutError:
            reason = "no OK" if self.connected else self._last_error or "not connected"
            result = PublishResult(False, f"timeout: {reason} within {timeout_s:g} s")
            result = refusals[-1] if refusals else result
        finally:
            self._publishing -= 1
        if result.ok:
            self._counters.published += 1
        else:
            self._counters.refused += 1
        return result

    async def _publish(
        self, event_id: str, frame: str, refusals: list[PublishResult]
    ) -> PublishResult:
        """``refusals`` collects what the relay said instead of taking it in time."""
        while True:
            if not self._settled.is_set():
                if asyncio.get_running_loop().time() - self._last_attempt > _KICK_AFTER_S:
                    self._kick.set()
                await self._settled.wait()
            if self._pacer.waiting >= self._limits.max_paced_events:
                return PublishResult(False, "rate-limited: too many events wait", limited=True)
            await self._pacer.turn()
            session = self._session
            if session is None:
                if self._settled.is_set():
                    return PublishResult(False, self._refusal)
                continue
            result = await session.publish(event_id, frame)
            if result is None:
                await asyncio.sleep(0)  # the supervisor clears ``_settled`` first
            elif result.ok:
                self._pacer.accepted()
                return replace(result, limited=bool(refusals))
            elif is_rate_limit(result.message):
                self._counters.limited += 1
                self._pacer.refused()
                refusals.append(replace(result, limited=True))
            else:
                return replace(result, limited=bool(refusals))

    # staying connected

    async def _stay_connected(self) -> None:
        clock = asyncio.get_running_loop().time
        doublings = 0
        while True:
            self._last_attempt = clock()
            alive_from: float | None = None
            try:
                socket = await self._connect()
                alive_from = clock()
                await self._serve(socket)
            except ForbiddenAddress as exc:
                self._refusal = f"forbidden: {exc}"
                self._settled.set()
                self._down(str(exc))
            except (OSError, ValueError, EOFError, WebSocketException, DiscoveryError) as exc:
                self._down(_reason(exc))
            except Exception as exc:
                # a bug must not leave the node deaf to this relay
                log.exception("relay_failed", relay=self.url)
                self._down(type(exc).__name__)
            if alive_from is not None and clock() - alive_from >= self._limits.alive_s:
                doublings = 0
            await self._pause(doublings)
            doublings = min(doublings + 1, _MAX_DOUBLINGS)

    async def _pause(self, doublings: int) -> None:
        longest = min(self._limits.backoff_min_s * 2**doublings, self._limits.backoff_max_s)
        self._kick.clear()
        try:
            # jitter, so that a relay that restarts is not met by everyone at once
            async with asyncio.timeout(longest * random.uniform(0.5, 1)):  # noqa: S311
                await self._kick.wait()
        except TimeoutError:
            return

    async def _connect(self) -> WebSocketClientProtocol:
        async with asyncio.timeout(self._limits.connect_timeout_s):
            addresses = None if self._guard is None else await self._guard(self.url)
            if addresses is None:
                return await self._open({})
            parts = urlsplit(self.url)
            tls = {"server_hostname": parts.hostname} if parts.scheme == "wss" else {}
            failure: OSError = OSError("the name has no address")
            for address in addresses:
                try:
                    return await self._open({"host": address, **tls})
                except OSError as exc:
                    failure = exc
            raise failure

    async def _open(self, destination: dict[str, Any]) -> WebSocketClientProtocol:
        limits = self._limits
        return await _NoRedirect(
            self.url,
            logger=_quiet,
            compression=None,
            user_agent_header="nodestr",
            open_timeout=None,
            ping_interval=limits.ping_interval_s,
            ping_timeout=limits.ping_interval_s,
            close_timeout=limits.close_timeout_s,
            max_size=limits.max_message_bytes,
            max_queue=limits.max_received_frames,
            **destination,
        )

    async def _serve(self, socket: WebSocketClientProtocol) -> None:
        session = Session(
            socket, self.url, keys=self._keys, limits=self._limits, counters=self._counters
        )
        self._session = session
        self._counters.connects += 1
        self._connected_at = time.time()
        self._reachable = True
        self._last_error = self._refusal = ""
        self._settled.set()
        log.info("relay_connected", relay=self.url)
        try:
            await session.run(self._subscriptions.values())
        finally:
            self._session = None
            self._lost_at = time.time()
            if not self._refusal:
                self._settled.clear()
            await socket.close()

    def _down(self, reason: str) -> None:
        if reason != self._last_error:
            log.info("relay_unreachable", relay=self.url, reason=reason)
        self._last_error = reason
        self._reachable = False
        for subscription in list(self._subscriptions.values()):
            subscription.unreachable(self.url)


def _reason(exc: Exception) -> str:
    """Foreign exceptions in one short line for operators."""
    if isinstance(exc, TimeoutError):
        return "timed out"
    if isinstance(exc, ConnectionClosed):
        return f"connection lost: {exc}"
    if isinstance(exc, InvalidStatusCode):
        return f"refused with HTTP {exc.status_code}"
    return str(exc) or type(exc).__name__
