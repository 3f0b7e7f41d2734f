"""Promise: a payee gets an invoice only over what was asked, from nowhere inside, or an error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from discovery.netguard import NetGuard
from node.core.lightning import PayoutError
from node.core.money import Msat
from node.ecash.bolt11 import read_bolt11
from node.ecash.lnurl import _BECH32, MAX_ANSWER_BYTES, LnurlPayee, _polymod, pay_url

# The example of LUD-01.
LNURL = (
    "LNURL1DP68GURN8GHJ7UM9WFMXJCM99E3K7MF0V9CXJ0M385EKVCENXC6R2C35XVUKXEFCV5MKVV34X5EKZD3EV56NYD3"
    "HXQURZEPEXEJXXEPNXSCRVWFNV9NXZCN9XQ6XYEFHVGCXXCMYXYMNSERXFQ5FNS"
)
# The example of BOLT 11 with 250,000,000 msat ("coffee beans"), payment hash 0001…0102.
COFFEE = (
    "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqs"
    "yqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdl"
    "a2087ne0xh8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh"
)


def test_the_destinations_of_the_specification_are_understood() -> None:
    assert pay_url("Satoshi@Example.com") == "https://example.com/.well-known/lnurlp/satoshi"
    assert pay_url(LNURL) == (
        "https://service.com/api?q=3fc3645b439ce8e7f2553a69e5267081d96dcd340693afabe04be7b0ccd178df"
    )
    assert pay_url("lightning:" + LNURL.lower()) == pay_url(LNURL)


@pytest.mark.parametrize(
    "text",
    ["", "me", "me@", "@host", "me@host/path", "a b@host", "lnurl1", LNURL[:-1] + "Q", "lnurl1bbb",
     "lnbc1", "https://example.com", "me@host@other", "lnurl1" + "q" * 5000],
)  # fmt: skip
def test_what_is_no_destination_is_refused(text: str) -> None:
    with pytest.raises(PayoutError):
        pay_url(text)


@given(st.text(max_size=200) | st.text("qpzry9x8gf2tvdw0s3jn54khce6mua7l").map("lnurl1".__add__))
def test_nothing_but_our_own_error_comes_of_garbage(text: str) -> None:
    with suppress(PayoutError):
        assert pay_url(text)


def test_an_invoice_is_read() -> None:
    invoice = read_bolt11("LIGHTNING:".lower() + COFFEE.upper())
    assert invoice.amount == 250_000_000
    assert invoice.payment_hash == (
        "0001020304050607080900010203040506070809000102030405060708090102"
    )
    assert invoice.expires_at == 1496314658 + 60


@given(
    st.text(max_size=100).map("lnbc".__add__)
    | st.tuples(st.integers(0, len(COFFEE) - 1), st.sampled_from("qpz1ry9x8b")).map(
        lambda change: COFFEE[: change[0]] + change[1] + COFFEE[change[0] + 1 :]
    )
)
def test_a_spoilt_invoice_is_no_invoice(text: str) -> None:
    if text == COFFEE:
        return
    with pytest.raises(ValueError, match="invoice"):
        read_bolt11(text)


@asynccontextmanager
async def serving(offer: dict[str, Any], answer: Any = None) -> AsyncIterator[str]:
    """A payee: what it says first, what it says to the amount."""

    async def first(request: web.Request) -> web.Response:
        host = request.url.origin()
        filled = {k: v.replace("HOST", str(host)) if isinstance(v, str) else v
                  for k, v in offer.items()}  # fmt: skip
        return web.json_response(filled)

    async def second(request: web.Request) -> web.StreamResponse:
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        if answer == "redirect":
            raise web.HTTPFound("http://169.254.169.254/")
        return web.json_response(answer)

    app = web.Application()
    app.router.add_get("/.well-known/lnurlp/me", first)
    app.router.add_get("/pay", second)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"me@127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


OFFER = {"tag": "payRequest", "callback": "HOST/pay", "minSendable": 1000, "maxSendable": 10**9}


@pytest.mark.parametrize(
    ("offer", "answer", "reason"),
    [
        (OFFER | {"tag": "withdrawRequest"}, {}, "does not take"),
        (OFFER | {"minSendable": "1"}, {}, "not an LNURL-pay offer"),
        (OFFER | {"callback": 5}, {}, "not an LNURL-pay offer"),
        (OFFER | {"maxSendable": 5000}, {}, "takes 1000 to 5000"),
        (OFFER | {"callback": "http://169.254.169.254/x"}, {}, "not allowed"),
        (OFFER | {"callback": "file:///etc/passwd"}, {}, "not allowed"),
        (OFFER | {"callback": "http://[::1"}, {}, "no URL"),
        ({"status": "ERROR", "reason": "no"}, {}, "refuses"),
        (OFFER, "redirect", "refuses"),
        (OFFER, [], "refuses"),
        (OFFER, b"<html>", "refuses"),
        (OFFER, b" " * (MAX_ANSWER_BYTES + 1), "too long"),
        (OFFER, {"pr": 5}, "cannot be used"),
        (OFFER, {"pr": "lnbc1garbage"}, "cannot be used"),
        (OFFER, {"pr": COFFEE}, "is over 250000000 msat"),
    ],
)
async def test_a_payee_that_does_not_keep_to_the_rules_is_not_paid(
    offer: dict[str, Any], answer: Any, reason: str
) -> None:
    guard = NetGuard(allow_private=True)
    async with serving(offer, answer) as address, LnurlPayee(guard, allow_http=True) as payee:
        with pytest.raises(PayoutError, match=reason):
            await payee.invoice(address, Msat(6000))


async def test_the_right_invoice_is_taken() -> None:
    guard = NetGuard(allow_private=True)
    async with (
        serving(OFFER, {"pr": COFFEE}) as address,
        LnurlPayee(guard, allow_http=True) as payee,
    ):
        assert (await payee.invoice(address, Msat(250_000_000))).bolt11 == COFFEE


async def test_a_payee_on_a_private_address_is_not_asked() -> None:
    async with serving(OFFER, {"pr": COFFEE}) as address:
        async with LnurlPayee(NetGuard(), allow_http=True) as payee:
            with pytest.raises(PayoutError, match="not allowed"):
                await payee.invoice(address, Msat(6000))
        async with LnurlPayee(NetGuard(allow_private=True)) as payee:
            with pytest.raises(PayoutError, match="does not answer"):  # https only
                await payee.invoice(address, Msat(6000))


async def test_a_payee_that_takes_no_more_is_asked_for_what_it_takes() -> None:
    offer = OFFER | {"maxSendable": 250_000_999}
    guard = NetGuard(allow_private=True)
    async with serving(offer, {"pr": COFFEE}) as address, LnurlPayee(guard, allow_http=True) as it:
        request = await it.invoice(address, Msat(900_000_000), or_less=True)
        assert request.amount == 250_000_000
        with pytest.raises(PayoutError, match="takes"):
            await it.invoice(address, Msat(900_000_000))
        with pytest.raises(PayoutError, match="takes"):
            await it.invoice(address, Msat(999), or_less=True)


def _lnurl(url: str) -> str:
    """``url`` as LUD-01 writes it."""
    bits = "".join(f"{byte:08b}" for byte in url.encode())
    bits += "0" * (-len(bits) % 5)
    values = [int(bits[i : i + 5], 2) for i in range(0, len(bits), 5)]
    prefix = [ord(c) >> 5 for c in "lnurl"] + [0] + [ord(c) & 31 for c in "lnurl"]
    checksum = _polymod(prefix + values + [0] * 6) ^ 1
    values += [checksum >> 5 * (5 - i) & 31 for i in range(6)]
    return "lnurl1" + "".join(_BECH32[value] for value in values)


def test_a_destination_is_checked_without_asking_anybody() -> None:
    payee = LnurlPayee(NetGuard())
    for good in ("me@example.com", "me@example.com:8443", LNURL, _lnurl("https://example.com/x")):
        payee.check(good)
    for bad in (
        "me@example.com:99999", "me@example.com:0", "me@", COFFEE, _lnurl("http://example.com/x"),
        _lnurl("file:///etc/passwd"), _lnurl("https://"), _lnurl("https://[::1"), _lnurl("\x00"),
    ):  # fmt: skip
        with pytest.raises(PayoutError):
            payee.check(bad)


@given(st.text(max_size=200) | st.text(max_size=60).map(_lnurl))
def test_checking_garbage_raises_nothing_else(text: str) -> None:
    with suppress(PayoutError):
        LnurlPayee(NetGuard()).check(text)
