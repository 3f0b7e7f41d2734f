"""The customer of the demo: pays out of a purse and counts every msat that leaves or returns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from node.core.ecash import input_fee
from node.core.money import Msat, to_msat
from node.demo.purse import Purse
from node.demo.report import DemoFailure
from node.ecash.token import expand_keyset_ids, parse_token

T = TypeVar("T")

TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclass(slots=True)
class Tally:
    """Money between the client and the nodes, in msat, as the client sees it."""

    paid: int = 0
    change: int = 0
    withdrawn: int = 0


class Customer:
    """Plain HTTP and tokens.

    Args:
        purse: open.
        session: shared; the caller closes it.
    """

    def __init__(self, purse: Purse, session: aiohttp.ClientSession) -> None:
        self.purse = purse
        self.session = session
        self.tally = Tally()

    async def token(self, amount_sat: int) -> str:
        """A fresh token that is counted as paid: hand it to a node."""
        token = await self.purse.fund(amount_sat)
        self.tally.paid += parse_token(token).value
        return token

    async def take_change(self, token: str) -> Msat:
        """Receive change at the mint; returns its face value."""
        value = await self._take(token)
        self.tally.change += value
        return value

    async def take_withdrawal(self, token: str) -> Msat:
        """Receive a withdrawal at the mint; returns its face value."""
        value = await self._take(token)
        self.tally.withdrawn += value
        return value

    async def input_fee(self, token: str) -> Msat:
        """What the mint keeps when a node receives ``token`` (NUT-02)."""
        fees = {keyset.id: keyset.input_fee_ppk for keyset in await self.purse.mint.keysets()}
        parsed = expand_keyset_ids(parse_token(token), fees)
        return to_msat(input_fee(parsed.proofs, fees), parsed.unit)

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: object = None,
    ) -> tuple[Any, Mapping[str, str]]:
        """(JSON body, headers) of a 2xx answer. Raises DemoFailure for any other."""
        async with self.session.request(
            method, url, headers=headers, json=json, timeout=TIMEOUT
        ) as response:
            if response.status // 100 != 2:
                text = (await response.text())[:300]
                raise DemoFailure(f"{method} {url} answered {response.status}: {text}")
            return await response.json(content_type=None), response.headers

    async def balance(self, url: str, api_key: str) -> Msat:
        """Balance of an account in msat."""
        body, _ = await self.call("GET", f"{url}/v1/balance/info", headers=bearer(api_key))
        return Msat(int(body["balance"]))

    async def _take(self, token: str) -> Msat:
        parsed = parse_token(token)
        net = await self.purse.receive(token)
        if net <= 0:
            raise DemoFailure("the mint's fees leave nothing of a token that came back")
        return parsed.value


def bearer(api_key: str) -> dict[str, str]:
    """The header that authenticates with ``api_key``, which may be a token."""
    return {"Authorization": f"Bearer {api_key}"}


def expect(what: str, actual: object, wanted: object) -> None:
    """Raises DemoFailure when they differ."""
    if actual != wanted:
        raise DemoFailure(f"{what} is {actual!r}, not {wanted!r}")


async def eventually(
    check: Callable[[], Awaitable[T]], *, timeout_s: float, interval_s: float = 0.1
) -> T:
    """The result of the first ``check`` that does not raise DemoFailure.

    Raises the last DemoFailure at the deadline.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await check()
        except DemoFailure:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(interval_s)
