"""A SOCKS5 proxy that leads names to ports of this machine, as Tor leads to onion services."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

_CONNECT = 1
_NAME = 3
_NO_HOST = 4


class SocksServer:
    """Knows the hosts it was given and no other; ``asked`` are those it was asked for."""

    def __init__(self, hosts: Mapping[str, int]) -> None:
        self.hosts = dict(hosts)
        self.asked: list[tuple[str, int]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            _, methods = await reader.readexactly(2)
            await reader.readexactly(methods)
            writer.write(b"\x05\x00")
            _, command, _, kind = await reader.readexactly(4)
            assert (command, kind) == (_CONNECT, _NAME), "the name is the proxy's to resolve"
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
            port = int.from_bytes(await reader.readexactly(2), "big")
            self.asked.append((host, port))
            if host not in self.hosts:
                writer.write(bytes((5, _NO_HOST, 0, 1)) + bytes(6))
                return
            there, back = await asyncio.open_connection("127.0.0.1", self.hosts[host])
            with contextlib.closing(back):
                writer.write(bytes((5, 0, 0, 1)) + bytes(6))
                ways = [
                    asyncio.create_task(_pipe(reader, back)),
                    asyncio.create_task(_pipe(there, writer)),
                ]
                _, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in rest:
                    way.cancel()
                await asyncio.gather(*rest, return_exceptions=True)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def socks_server(hosts: Mapping[str, int]) -> AsyncIterator[SocksServer]:
    """A proxy on a free port; ``hosts`` leads from names to ports of this machine."""
    server = SocksServer(hosts)
    running: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(server.serve(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    server.url = f"socks5://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
