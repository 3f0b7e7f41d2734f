"""The way from a command to the wallet: its file, or the gateway that has the file open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from node.commands.common import Failure

if TYPE_CHECKING:
    import aiohttp

    from node.gateway.settings import GatewaySettings

GATEWAY_TIMEOUT_S = 120.0
"""How long a gateway that has the wallet open may take to answer."""


@asynccontextmanager
async def open_desk(
    settings: GatewaySettings, accept: Collection[str]
) -> AsyncIterator[Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]]:
    """The wallet's own desk, or that of the gateway that has the wallet open.

    Args:
        accept: mints whose coins to take from now on.
    """
    import aiohttp

    from discovery.netguard import NetGuard
    from node.ecash.token import normalize_mint_url
    from node.gateway.app import open_carriages
    from node.gateway.desk import Desk, note_file, read_note
    from node.gateway.purse import open_purse
    from node.gateway.till import Till
    from node.ledger.database import StorageError

    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        )
        try:
            purse = await stack.enter_async_context(
                open_purse(settings.database, session, accept=accept)
            )
        except StorageError as error:
            note = read_note(settings.database) if "in use" in str(error) else None
            if note is None:
                raise error from None
            ask = _at_gateway(session, note)
            known = (await ask("balance", {}))["mints"] if accept else {}
            if not set(map(normalize_mint_url, accept)) <= set(known):
                raise Failure(
                    "the gateway that has this wallet open does not use that mint yet: stop it,"
                    " do this, start it again"
                ) from None
            yield ask
            return
        note_file(settings.database).unlink(missing_ok=True)  # of a gateway that was killed
        guard = NetGuard(allow_private=settings.allow_private_addresses)
        stack.callback(guard.close)
        carriages = await open_carriages(settings, guard, stack)
        yield Desk(purse, Till(purse, carriages, settings.lost_after_s)).ask


def _at_gateway(
    session: aiohttp.ClientSession, note: Mapping[str, str]
) -> Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]:
    import aiohttp

    async def ask(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {note['key']}"} if note["key"] else {}
        body = {"secret": note["secret"], "arguments": dict(arguments)}
        try:
            async with session.post(
                f"{note['url']}/gateway/{name}",
                json=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=GATEWAY_TIMEOUT_S),
            ) as answer:
                document: dict[str, Any] = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise Failure("the gateway that has this wallet open does not answer") from None
        if answer.status != 200:
            raise Failure(str(document.get("error", {}).get("message", answer.status)))
        return document

    return ask
