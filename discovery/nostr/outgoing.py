"""What is sent to one relay: a bounded queue, so that a relay that does not read stops nobody."""

from __future__ import annotations

import asyncio

import structlog
from websockets.client import WebSocketClientProtocol

from discovery.errors import RelayError
from discovery.nostr.limits import RelayLimits

_log = structlog.get_logger()


class Outgoing:
    """Frames on their way out of one connection, in order.

    Args:
        url: for the log.
    """

    def __init__(self, socket: WebSocketClientProtocol, url: str, limits: RelayLimits) -> None:
        self._socket = socket
        self._url = url
        self._limits = limits
        self._queue: asyncio.Queue[str] = asyncio.Queue(limits.max_queued_frames)
        self._drained = asyncio.Event()
        self.lost = False
        """The connection has ended: nothing is sent any more."""

    def send(self, text: str) -> None:
        """Queue one frame. A full queue ends the connection."""
        if self.lost:
            return
        try:
            self._queue.put_nowait(text)
        except asyncio.QueueFull:
            _log.warning("relay_does_not_read", relay=self._url)
            self._socket.fail_connection()

    async def room(self) -> None:
        """Wait until an event may be queued, or the connection has ended.

        Events fill at most half of the queue, so that what must not wait finds room.
        """
        while not self.lost and self._queue.qsize() >= self._limits.max_queued_frames // 2:
            self._drained.clear()
            await self._drained.wait()

    async def write(self) -> None:
        """Send what is queued until the connection ends.

        Raises RelayError when the relay does not read, or what the websocket raises.
        """
        while True:
            text = await self._queue.get()
            self._drained.set()
            try:
                async with asyncio.timeout(self._limits.send_timeout_s):
                    await self._socket.send(text)
            except TimeoutError:
                raise RelayError("the relay does not read what we send") from None

    def end(self) -> None:
        """The connection has ended."""
        self.lost = True
        self._drained.set()
