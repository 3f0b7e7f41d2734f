"""HTTP client of one Cashu mint (NUT-01 to 09, 12, 23); amounts in its unit.

What matters to money is what a failure means, so there are three: MintRejected, MintUnknown,
MintOffline (see ``errors``). Answers are checked in full: shape, counts, amounts, points, ids.
Nothing is retried here: a caller that must know replays its body or asks for states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar
from urllib.parse import quote as escape

import aiohttp
import orjson
from yarl import URL

from node.core.ecash import BlindedMessage, BlindSignature, Keyset, Proof
from node.ecash.answers import (
    MeltQuote,
    MintQuote,
    QuoteState,
    State,
    read_keys,
    read_listing,
    read_melt_quote,
    read_quote,
    read_restored,
    read_signatures,
    read_states,
)
from node.ecash.crypto import keyset_id_matches
from node.ecash.errors import MintError, MintOffline, MintRejected, MintUnknown
from node.ecash.token import normalize_mint_url

__all__ = [
    "MeltQuote",
    "MintClient",
    "MintError",
    "MintOffline",
    "MintQuote",
    "MintRejected",
    "MintUnknown",
    "QuoteState",
    "State",
    "melt_body",
    "mint_body",
    "swap_body",
]

_MAX_DETAIL_CHARS = 300
_UNDECIDED = frozenset({408, 425, 429})
"""4xx answers that speak of the moment, often from a proxy, and not of the request."""

_T = TypeVar("_T")
_Quote = TypeVar("_Quote", MintQuote, MeltQuote)


def swap_body(inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]) -> bytes:
    """The body of ``POST /v1/swap`` (NUT-03).

    ``outputs`` must be in ascending order of amount, so their order gives nothing away; the
    signatures come back in it. Raises ValueError otherwise. DLEQ proofs stay here: they would
    tell the mint who paid whom (NUT-12).
    """
    return orjson.dumps(
        {"inputs": [_input(proof) for proof in inputs], "outputs": _sorted(outputs)}
    )


def mint_body(quote: str, outputs: Sequence[BlindedMessage]) -> bytes:
    """The body of ``POST /v1/mint/bolt11`` (NUT-04); ``outputs`` as in ``swap_body``."""
    return orjson.dumps({"quote": quote, "outputs": _sorted(outputs)})


def melt_body(quote: str, inputs: Sequence[Proof], blanks: Sequence[BlindedMessage]) -> bytes:
    """The body of ``POST /v1/melt/bolt11`` (NUT-05); ``blanks`` take the change (NUT-08)."""
    body: dict[str, Any] = {"quote": quote, "inputs": [_input(proof) for proof in inputs]}
    if blanks:
        body["outputs"] = [_output(message) for message in blanks]
    return orjson.dumps(body)


def _sorted(outputs: Sequence[BlindedMessage]) -> list[dict[str, Any]]:
    if any(a.amount > b.amount for a, b in pairwise(outputs)):
        raise ValueError("outputs must be in ascending order of amount")
    return [_output(message) for message in outputs]


def _output(message: BlindedMessage) -> dict[str, Any]:
    return {"amount": message.amount, "id": message.keyset_id, "B_": message.b_}


def _input(proof: Proof) -> dict[str, Any]:
    coin: dict[str, Any] = {
        "amount": proof.amount,
        "id": proof.keyset_id,
        "secret": proof.secret,
        "C": proof.c,
    }
    if proof.witness:
        coin["witness"] = proof.witness
    return coin


class MintClient:
    """Talks to the mint at ``url`` over a session that the caller owns and closes.

    Args:
        url: normalised here; raises ValueError when it is no mint URL.
        timeout_s: for one whole exchange.
        connect_timeout_s: for the connection, within ``timeout_s``.
        max_response_bytes: longer answers are garbage.
        batch: how many items one checkstate or restore carries.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        timeout_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        max_response_bytes: int = 2_000_000,
        batch: int = 100,
    ) -> None:
        self.url = normalize_mint_url(url)
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=connect_timeout_s)
        self._max_response_bytes = max_response_bytes
        self._batch = batch

    async def info(self) -> dict[str, Any]:
        """``GET /v1/info`` (NUT-06), as the mint tells it."""
        return await self._get("/v1/info")

    async def keysets(self) -> list[Keyset]:
        """All keysets, without their keys (NUT-02). Those with ids of before 2024 are left out."""
        return [keyset for keyset, _ in await self._listing()]

    async def keys(self, keyset_id: str) -> Keyset:
        """One keyset with its keys (NUT-01), its id verified against them.

        Fee, unit and activity are those of the listing, which every mint tells. Raises
        MintRejected (404) for a keyset that the mint does not list.
        """
        listing = {keyset.id: (keyset, expiry) for keyset, expiry in await self._listing()}
        if keyset_id not in listing:
            raise MintRejected(404, None, "keyset not listed")
        listed, expiry = listing[keyset_id]
        document = await self._get(f"/v1/keys/{keyset_id}")
        keys = read_keys(document, keyset_id)
        keyset = Keyset(keyset_id, listed.unit, listed.active, listed.input_fee_ppk, keys)
        if not keyset_id_matches(keyset, expiry):
            raise MintUnknown("the mint's keys do not belong to the keyset's id")
        return keyset

    async def swap(self, body: bytes) -> list[BlindSignature]:
        """``POST /v1/swap`` of a ``swap_body``; signatures in the order of its outputs."""
        return await self._sign("/v1/swap", body)

    async def mint(self, body: bytes) -> list[BlindSignature]:
        """``POST /v1/mint/bolt11`` of a ``mint_body``; signatures in the order of its outputs."""
        return await self._sign("/v1/mint/bolt11", body)

    async def check_state(self, ys: Sequence[str]) -> list[State]:
        """The states of proofs by their ``Y`` (NUT-07), in the order asked for."""
        states: dict[str, State] = {}
        for part in _batches(list(dict.fromkeys(ys)), self._batch):
            document = await self._post("/v1/checkstate", orjson.dumps({"Ys": part}))
            states |= zip(part, read_states(document, part), strict=True)
        return [states[y] for y in ys]

    async def restore(
        self, outputs: Sequence[BlindedMessage]
    ) -> list[tuple[BlindedMessage, BlindSignature]]:
        """Those of ``outputs`` that the mint has signed, with what it signed (NUT-09).

        The signature's amount is the one that counts, and may differ from what was asked.
        """
        found: list[tuple[BlindedMessage, BlindSignature]] = []
        for part in _batches(outputs, self._batch):
            body = orjson.dumps({"outputs": [_output(message) for message in part]})
            document = await self._post("/v1/restore", body)
            found += read_restored(document, part)
        return found

    async def mint_quote(self, amount: int, unit: str) -> MintQuote:
        """Ask for an invoice over ``amount`` (NUT-23)."""
        body = orjson.dumps({"amount": amount, "unit": unit})
        document = await self._post("/v1/mint/quote/bolt11", body)
        return read_quote(document)

    async def mint_quote_state(self, quote: str) -> MintQuote:
        """The quote as it stands (NUT-04)."""
        document = await self._get(f"/v1/mint/quote/bolt11/{escape(quote, safe='')}")
        return _same(read_quote(document), quote)

    async def melt_quote(self, request: str, unit: str) -> MeltQuote:
        """Ask what paying the bolt11 invoice ``request`` costs (NUT-05, NUT-23)."""
        body = orjson.dumps({"request": request, "unit": unit})
        return read_melt_quote(await self._post("/v1/melt/quote/bolt11", body))

    async def melt_quote_state(self, quote: str) -> MeltQuote:
        """The melt quote as it stands, with its change once it is paid."""
        document = await self._get(f"/v1/melt/quote/bolt11/{escape(quote, safe='')}")
        return _same(read_melt_quote(document), quote)

    async def melt(self, body: bytes) -> MeltQuote:
        """``POST /v1/melt/bolt11`` of a ``melt_body``: pays the quote's invoice.

        Payments may take longer than any deadline: MintUnknown says nothing about the outcome.
        """
        document = await self._post("/v1/melt/bolt11", body)
        return _same(read_melt_quote(document), orjson.loads(body)["quote"])

    async def _listing(self) -> list[tuple[Keyset, int | None]]:
        """Keysets and their final expiry."""
        document = await self._get("/v1/keysets")
        return read_listing(document)

    async def _sign(self, path: str, body: bytes) -> list[BlindSignature]:
        outputs = orjson.loads(body)["outputs"]
        document = await self._post(path, body)
        return read_signatures(document, outputs)

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._exchange("GET", path, None)

    async def _post(self, path: str, body: bytes) -> dict[str, Any]:
        return await self._exchange("POST", path, body)

    async def _exchange(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        """One request, one JSON object. All foreign errors are mapped here."""
        # Compressed answers could grow without bound; redirects could lead anywhere.
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        if body is not None:
            headers["content-type"] = "application/json"
        try:
            async with self._session.request(
                method,
                URL(self.url + path, encoded=True),
                data=body,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                status, raw = response.status, await self._read(response)
        except (
            aiohttp.ClientConnectorError,
            aiohttp.ConnectionTimeoutError,
            aiohttp.InvalidURL,
        ) as error:
            raise MintOffline(f"no connection to the mint ({type(error).__name__})") from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise MintUnknown(f"no answer from the mint ({type(error).__name__})") from None
        return _document(status, raw)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        raw = bytearray()
        async for chunk in response.content.iter_any():
            raw += chunk
            if len(raw) > self._max_response_bytes:
                raise MintUnknown("the mint's answer is too long")
        return bytes(raw)


def _same(answer: _Quote, quote: str) -> _Quote:
    if answer.quote != quote:
        raise MintUnknown("the mint answered with another quote")
    return answer


def _document(status: int, raw: bytes) -> dict[str, Any]:
    """The JSON object of a 2xx; MintRejected for a 4xx with one; MintUnknown for all else."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        document = None
    if isinstance(document, dict):
        if 200 <= status < 300:
            return document
        if 400 <= status < 500 and status not in _UNDECIDED and "detail" in document:
            raise MintRejected(status, _code(document), _detail(document["detail"]))
    raise MintUnknown(f"the mint answered status {status} without a usable body")


def _code(document: Mapping[str, Any]) -> int | None:
    code = document.get("code")
    return code if type(code) is int else None


def _detail(detail: object) -> str:
    """Only plain sentences: lists of validation errors repeat the input, secrets and all."""
    return detail[:_MAX_DETAIL_CHARS] if isinstance(detail, str) else "the request is not valid"


def _batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
