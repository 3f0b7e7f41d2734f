"""Small JSON documents of others, within a deadline and a bound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import aiohttp
from yarl import URL


class FetchFailed(Exception):
    """There is no such document now. The text is for the log."""


async def fetch_json(
    session: aiohttp.ClientSession,
    url: URL,
    *,
    timeout_s: float,
    max_bytes: int,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """The JSON behind ``url``; numbers with a point are Decimals. Redirects are not followed.

    Raises FetchFailed.
    """
    try:
        async with asyncio.timeout(timeout_s):
            async with session.get(
                url,
                headers={"accept": "application/json", "user-agent": "nodestr", **headers},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None),
            ) as response:
                if response.status != 200:
                    raise FetchFailed(f"status {response.status}")
                body = bytearray()
                async for data in response.content.iter_any():
                    body += data
                    if len(body) > max_bytes:
                        raise FetchFailed("the answer is too large")
            return await asyncio.to_thread(json.loads, bytes(body), parse_float=Decimal)
    except TimeoutError:
        raise FetchFailed("no answer in time") from None
    except (aiohttp.ClientError, OSError, ValueError, ArithmeticError, RecursionError) as error:
        raise FetchFailed(type(error).__name__) from error
