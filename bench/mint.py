"""A fast double of a mint: ``python -m bench.mint PORT``.

It signs, proves (NUT-12) and checks as a mint must, keeps everything in memory and takes every
invoice for paid, so that a node's own work is what is measured and not nutshell's. NUT-01 to 04,
06, 07, 09; the unit is sat and swaps cost nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
import uvloop
from aiohttp import web
from cashu.core.crypto.b_dhke import hash_to_curve, step2_bob
from cashu.core.crypto.keys import derive_keyset_id
from cashu.core.crypto.secp import PrivateKey, PublicKey

BITS = 40
"""Coins of 1 to 2^39 sat."""


class RefusedError(Exception):
    """What a client asked for is not right; the text goes to it."""


class FastMint:
    """The mint's keys and what it has done."""

    def __init__(self) -> None:
        seed = secrets.token_bytes(32)
        self._keys = {
            1 << bit: PrivateKey(hashlib.sha256(seed + bytes([bit])).digest())
            for bit in range(BITS)
        }
        public = {amount: key.public_key for amount, key in self._keys.items()}
        self._id = str(derive_keyset_id(public))
        self._public = {str(amount): key.format().hex() for amount, key in public.items()}
        self._spent: set[str] = set()
        self._signed: dict[str, dict[str, Any]] = {}
        self._quotes: dict[str, dict[str, Any]] = {}

    def info(self) -> dict[str, Any]:
        return {"name": "bench", "version": "bench/1", "nuts": {}}

    def keysets(self) -> dict[str, Any]:
        entry = {"id": self._id, "unit": "sat", "active": True, "input_fee_ppk": 0}
        return {"keysets": [entry]}

    def keys(self) -> dict[str, Any]:
        return {"keysets": [{"id": self._id, "unit": "sat", "keys": self._public}]}

    def new_quote(self, body: Mapping[str, Any]) -> dict[str, Any]:
        name = secrets.token_hex(16)
        self._quotes[name] = {
            "quote": name,
            "request": "lnbc1bench",
            "amount": body["amount"],
            "unit": "sat",
            "state": "PAID",
            "expiry": None,
        }
        return self._quotes[name]

    def quote(self, name: str) -> dict[str, Any]:
        if name not in self._quotes:
            raise RefusedError("no such quote")
        return self._quotes[name]

    def mint(self, body: Mapping[str, Any]) -> dict[str, Any]:
        quote, outputs = self.quote(body["quote"]), body["outputs"]
        if quote["state"] != "PAID" or _sum(outputs) != quote["amount"]:
            raise RefusedError("the quote is used or of another amount")
        quote["state"] = "ISSUED"
        return self._sign(outputs)

    def swap(self, body: Mapping[str, Any]) -> dict[str, Any]:
        inputs, outputs = body["inputs"], body["outputs"]
        if _sum(inputs) != _sum(outputs):
            raise RefusedError("inputs and outputs are not worth the same")
        ys = [self._verified(coin) for coin in inputs]
        if len(set(ys)) != len(ys) or not self._spent.isdisjoint(ys):
            raise RefusedError("token already spent")
        self._spent.update(ys)
        return self._sign(outputs)

    def states(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "states": [
                {"Y": y, "state": "SPENT" if y in self._spent else "UNSPENT", "witness": None}
                for y in body["Ys"]
            ]
        }

    def restore(self, body: Mapping[str, Any]) -> dict[str, Any]:
        known = [output for output in body["outputs"] if output["B_"] in self._signed]
        return {"outputs": known, "signatures": [self._signed[o["B_"]] for o in known]}

    def _verified(self, coin: Mapping[str, Any]) -> str:
        """``Y`` of a coin that this mint has signed."""
        y = hash_to_curve(coin["secret"].encode())
        if (y * self._keys[coin["amount"]]).format().hex() != coin["C"]:
            raise RefusedError("this coin is not of this mint")
        return str(y.format().hex())

    def _sign(self, outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if any(output["B_"] in self._signed for output in outputs):
            raise RefusedError("outputs have already been signed before")
        signatures = []
        for output in outputs:
            blinded = PublicKey(bytes.fromhex(output["B_"]))
            c_, e, s = step2_bob(blinded, self._keys[output["amount"]])
            signature = {
                "id": self._id,
                "amount": output["amount"],
                "C_": c_.format().hex(),
                "dleq": {"e": e.to_hex(), "s": s.to_hex()},
            }
            self._signed[output["B_"]] = signature
            signatures.append(signature)
        return {"signatures": signatures}


def _sum(items: Sequence[Mapping[str, Any]]) -> int:
    return sum(int(item["amount"]) for item in items)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _tells(tell: Callable[[], object]) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        return _json(tell())

    return handle


def _does(do: Callable[[Mapping[str, Any]], object]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return _json(do(orjson.loads(await request.read())))
        except RefusedError as error:
            return _json({"detail": str(error), "code": 11001}, 400)

    return handle


def _json(document: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json")


async def serve(port: int) -> None:
    """Serve on loopback until the process is ended."""
    mint = FastMint()
    app = web.Application()

    async def quote(request: web.Request) -> web.StreamResponse:
        return _json(mint.quote(request.match_info["name"]))

    app.router.add_get("/v1/info", _tells(mint.info))
    app.router.add_get("/v1/keysets", _tells(mint.keysets))
    app.router.add_get("/v1/keys", _tells(mint.keys))
    app.router.add_get("/v1/keys/{id}", _tells(mint.keys))
    app.router.add_get("/v1/mint/quote/bolt11/{name}", quote)
    app.router.add_post("/v1/mint/quote/bolt11", _does(mint.new_quote))
    app.router.add_post("/v1/mint/bolt11", _does(mint.mint))
    app.router.add_post("/v1/swap", _does(mint.swap))
    app.router.add_post("/v1/checkstate", _does(mint.states))
    app.router.add_post("/v1/restore", _does(mint.restore))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main:
        main.run(serve(int(sys.argv[1])))
