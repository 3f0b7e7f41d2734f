"""Invoices from Lightning addresses and LNURL-pay links (LUD-01, 06, 16), over guarded HTTP.

Every URL goes through the guard, is https unless private addresses are allowed, is not redirected,
and its answer is bounded. The invoice must be over exactly the amount asked for.
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit, urlunsplit

import aiohttp
import orjson

from discovery.errors import ForbiddenAddress
from discovery.netguard import NetGuard
from node.core.lightning import PayoutError, PayRequest
from node.core.money import MSAT_PER_SAT, Msat
from node.ecash.bolt11 import read_bolt11

MAX_ANSWER_BYTES = 65_536
_ADDRESS = re.compile(r"([a-z0-9._+-]{1,64})@([a-z0-9.-]{1,253}(?::[0-9]{1,5})?)")
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_MAX_LNURL_CHARS = 2000


class LnurlPayee:
    """Implements ``node.ports.Payee``. Use with ``async with``.

    Args:
        guard: which addresses may be asked.
        timeout_s: of each of the two questions.
        allow_http: also take plain http (demos and tests on one machine).
    """

    def __init__(
        self, guard: NetGuard, *, timeout_s: float = 15.0, allow_http: bool = False
    ) -> None:
        self._guard = guard
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._schemes = ("https", "http") if allow_http else ("https",)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=self._guard.connector(limit=4), cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def check(self, destination: str) -> None:
        """Raise PayoutError when this is neither an address nor a link that may be asked.

        Asks nobody: whether there is somebody to pay turns out when it is paid.
        """
        try:
            url = urlsplit(pay_url(destination, self._schemes))
            usable = url.scheme in self._schemes and bool(url.hostname) and url.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise PayoutError("the LNURL is no link that may be asked for an invoice")

    async def invoice(self, destination: str, amount: Msat, *, or_less: bool = False) -> PayRequest:
        """An invoice over ``amount`` for an address (``name@host``) or an ``lnurl1…`` link.

        Args:
            or_less: over the most that the payee takes, in whole sat, when that is less.

        Raises PayoutError, also when the amount is outside of what the payee takes.
        """
        offer = await self._get(pay_url(destination, self._schemes))
        if offer.get("tag") != "payRequest":
            raise PayoutError("the payee does not take payments over LNURL")
        least, most, callback = (offer.get(n) for n in ("minSendable", "maxSendable", "callback"))
        if type(least) is not int or type(most) is not int or not isinstance(callback, str):
            raise PayoutError("the payee's answer is not an LNURL-pay offer")
        if or_less:
            amount = min(amount, Msat(most // MSAT_PER_SAT * MSAT_PER_SAT))
        if not least <= amount <= most:
            raise PayoutError(f"the payee takes {least} to {most} msat, not {amount}")
        answer = await self._get(_with_amount(callback, amount))
        try:
            request = read_bolt11(str(answer.get("pr", "")))
        except ValueError as error:
            raise PayoutError(f"the payee's invoice cannot be used: {error}") from None
        if request.amount != amount:
            raise PayoutError(f"the payee's invoice is over {request.amount} msat, not {amount}")
        return request

    async def _get(self, url: str) -> dict[str, Any]:
        """A JSON object that is no LNURL error."""
        assert self._session is not None, "used outside of its context"
        try:
            await self._guard.check_url(url, self._schemes)
            async with self._session.get(
                url,
                timeout=self._timeout,
                allow_redirects=False,
                headers={"accept": "application/json", "accept-encoding": "identity"},
            ) as response:
                raw = bytearray()
                async for chunk in response.content.iter_any():
                    raw += chunk
                    if len(raw) > MAX_ANSWER_BYTES:
                        raise PayoutError("the payee's answer is too long")
                status = response.status
        except ForbiddenAddress as error:
            raise PayoutError(f"the payee's address is not allowed: {error}") from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise PayoutError(f"the payee does not answer ({type(error).__name__})") from None
        try:
            document = orjson.loads(bytes(raw))
        except orjson.JSONDecodeError:
            document = None
        if status != 200 or not isinstance(document, dict) or document.get("status") == "ERROR":
            raise PayoutError(f"the payee refuses (status {status})")
        return document


def pay_url(destination: str, schemes: tuple[str, ...] = ("https",)) -> str:
    """Where to ask for an LNURL-pay offer. Raises PayoutError for what is no destination."""
    text = destination.strip().lower().removeprefix("lightning:")
    address = _ADDRESS.fullmatch(text)
    if address is not None:
        name, host = address.groups()
        return f"{schemes[-1]}://{host}/.well-known/lnurlp/{name}"
    if text.startswith("lnurl1"):
        return _decode_lnurl(text)
    raise PayoutError("neither a Lightning address nor an LNURL nor an invoice with an amount")


def _with_amount(callback: str, amount: Msat) -> str:
    try:
        parts = urlsplit(callback)
    except ValueError:
        raise PayoutError("the payee's callback is no URL") from None
    query = "&".join(filter(None, (parts.query, urlencode({"amount": amount}))))
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))


def _decode_lnurl(text: str) -> str:
    """LUD-01: the URL in a bech32 string of any length."""
    data = text.removeprefix("lnurl1")
    if len(text) > _MAX_LNURL_CHARS or len(data) < 7 or not set(data) <= set(_BECH32):
        raise PayoutError("not an LNURL")
    values = [_BECH32.index(char) for char in data]
    prefix = [ord(c) >> 5 for c in "lnurl"] + [0] + [ord(c) & 31 for c in "lnurl"]
    if _polymod(prefix + values) != 1:
        raise PayoutError("the LNURL is mistyped: its checksum is wrong")
    bits = "".join(f"{value:05b}" for value in values[:-6])
    raw = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - 7, 8))
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise PayoutError("not an LNURL") from None


def _polymod(values: list[int]) -> int:
    """The checksum of BIP-173."""
    generator = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for i in range(5):
            checksum ^= generator[i] if top >> i & 1 else 0
    return checksum
