"""Promise: a client finds the key to lock to, pays with a locked token, and gets its change."""

from __future__ import annotations

import httpx

from discovery.nostr.pool import RelayPool
from node.ecash.payment_request import PaymentRequest
from tests.e2e.conftest import BODY, World


async def test_a_locked_token_pays_for_a_request(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.node.url, timeout=60) as http:
        key = (await http.get("/v1/info")).json()["pubkey_lock"]
        assert key == "02" + world.node.keys.pubkey
        path = "/v1/chat/completions"
        unpaid = await http.post(path, json=BODY, headers={"x-cashu": await world.purse.fund(1)})
        assert unpaid.status_code == 402
        asked = PaymentRequest.decode(unpaid.headers["x-cashu"])
        assert (asked.unit, asked.mints, asked.lock) == ("sat", (world.mint.url,), None)
        token = await world.purse.fund(asked.amount or 0, lock_to=key)
        paid = await http.post(path, json=BODY, headers={"x-cashu": token})
        assert paid.status_code == 200
        assert await world.purse.receive(paid.headers["x-cashu"]) > 0
        other = await world.purse.fund(asked.amount or 0, lock_to="02" + "79be667ef9dcbbac" * 4)
        refused = await http.post(path, json=BODY, headers={"x-cashu": other})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "token_malformed")
        ready = (await http.get("/health/ready")).json()
        assert f"mint {world.mint.url}" in str(ready)
    async with RelayPool([world.relay.url]) as pool:
        (event,) = await pool.query([{"kinds": [38421], "authors": [world.node.keys.pubkey]}])
        assert event.first("pubkey-lock") == key
