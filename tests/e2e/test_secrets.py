"""Promise: after one run over every journey, with logs at debug, no prompt, answer, token, key,
coin, invoice id or mnemonic is in a log, a metric, a health page, or what a command prints."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from discovery.nostr.keys import Keys
from node.admin.password import hash_password
from node.client.nostr import NostrClient
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.nodes import DemoNode, Surroundings
from node.demo.process import free_port
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay
from node.ecash.token import parse_token
from tests.e2e.commands import run
from tests.e2e.conftest import OFFER
from tests.e2e.gateway_world import Gateway

CHAT = "/v1/chat/completions"
PROMPT = "sentinel-prompt-7b1c"
PASSWORD = "sentinel password 41a7"
READ = (
    "overview", "balances", "accounts", "transactions", "requests", "models", "upstreams",
    "relays", "operations", "settings", "log",
)  # fmt: skip
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
UPSTREAM_KEY = "upstream-sentinel-key-5e0d"


@dataclass
class Secrets:
    """What must not be seen, by what it is."""

    known: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, *values: str) -> str:
        """Remember; a token with each secret and signature in it. Returns the first."""
        for value in values:
            assert len(value) > 10, what
            self.known[value] = what
            if value.startswith("cashu"):
                self.known[value[8:60]] = f"{what} (a part)"
                for proof in parse_token(value).proofs:
                    self.known[proof.secret] = f"{what} (a coin)"
                    self.known[proof.c] = f"{what} (a signature)"
        return values[0]

    def add_keys(self, what: str, keys: Keys) -> None:
        nsec = keys.nsec()
        number = 0
        for character in nsec[5:-6]:  # 52 times five bits, the last four of them fill up
            number = number * 32 + BECH32.index(character)
        self.add(what, nsec, f"{number >> 4:064x}")

    def add_database(self, path: Path) -> None:
        """The mnemonic, and every coin there ever was."""
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            for name, value in connection.execute(
                "SELECT key, value FROM meta WHERE length(value) > 30"
            ):
                self.add(f"{name} of {path.name}", value)
            for (secret,) in connection.execute("SELECT secret FROM proofs"):
                self.add(f"a coin of {path.name}", secret)
        finally:
            connection.close()

    def assert_none_in(self, where: str, text: str) -> None:
        found = sorted({what for value, what in self.known.items() if value in text})
        assert found == [], f"in {where}"


def chat(words: str = PROMPT, **more: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": words}], **more}


async def over_http(http: httpx.AsyncClient, purse: Purse, secrets: Secrets) -> None:
    """Tokens, accounts, streams, child keys, top-ups, withdrawals, Lightning, refunds."""
    token = secrets.add("token", await purse.fund(100))
    paid = await http.post(CHAT, json=chat(), headers={"X-Cashu": token})
    assert PROMPT in paid.json()["choices"][0]["message"]["content"]
    secrets.add("change", paid.headers["x-cashu"])

    token = secrets.add("token", await purse.fund(100))
    made = await http.get("/v1/balance/create", params={"initial_balance_token": token})
    key = secrets.add("API key", made.json()["api_key"])
    http.headers["Authorization"] = f"Bearer {key}"
    streamed = await http.post(CHAT, json=chat(stream=True))
    assert streamed.text.rstrip().endswith("data: [DONE]")
    anthropic = {**chat(max_tokens=9), "system": PROMPT}
    assert (await http.post("/v1/messages", json=anthropic)).status_code == 200
    more = secrets.add("token", await purse.fund(20))
    topped = await http.post("/v1/balance/topup", params={"cashu_token": more})
    assert topped.status_code == 200
    children = await http.post("/v1/balance/child-key", json={"count": 1})
    child = secrets.add("child key", children.json()["api_keys"][0])
    by_child = await http.post(CHAT, json=chat(), headers={"Authorization": f"Bearer {child}"})
    assert by_child.status_code == 200
    await http.request("DELETE", "/v1/balance/child-key", json={"child_key": child})

    order = (await http.post("/lightning/invoice", json={"amount_sats": 30})).json()
    invoice = secrets.add("invoice id", order["invoice_id"])
    async with asyncio.timeout(60):
        while True:
            status = (await http.get(f"/lightning/invoice/{invoice}/status")).json()
            if status["status"] == "paid":
                break
            await asyncio.sleep(0.05)
    secrets.add("API key", status["api_key"])

    token = secrets.add("token", await purse.fund(50))
    admin_key = secrets.add("admin key", "sentinel-admin-key-93")
    body = {"cashu_token": token, "admin_key": admin_key}
    made = await http.post("/v1/wallet/create", json=body)
    secrets.add("API key", made.json()["api_key"])
    taken = await http.post(
        "/v1/wallet/withdraw",
        json={"amount": 9},
        headers={"Authorization": f"Bearer {admin_key}", "Idempotency-Key": "sentinel-idem-11"},
    )
    secrets.add("withdrawn token", taken.json()["cashu_token"])
    assert (await http.get("/v1/wallet/transactions")).status_code == 200
    refund = await http.post("/v1/balance/refund")
    secrets.add("refund", refund.json()["token"])


async def with_mistakes(
    http: httpx.AsyncClient, purse: Purse, upstream: ModelServer, secrets: Secrets
) -> None:
    """Everything that is refused, fails in the middle, or hangs up."""
    spent = secrets.add("spent token", await purse.fund(5))
    await http.post(CHAT, json=chat(), headers={"X-Cashu": spent})
    junk = f"cashuB{'sentinel' * 8}"
    secrets.known["sentinelsentinel"] = "a token that is none"
    wrong = secrets.add("key of nobody", "sk-sentinelOfNobody000000000001")
    bearer = {"Authorization": f"Bearer {wrong}"}
    await http.post(CHAT, json=chat(), headers={"X-Cashu": spent})
    await http.post(CHAT, json=chat(), headers={"X-Cashu": junk})
    await http.post(CHAT, json=chat(), headers={"Authorization": f"Bearer {junk}"})
    await http.post(CHAT, json=chat(), headers=bearer)
    await http.post(CHAT, json=chat(), headers={"Authorization": "Basic c2VudGluZWw6c2VjcmV0"})
    secrets.known["c2VudGluZWw6c2VjcmV0"] = "basic credentials"
    await http.post(CHAT, content=f'{{"messages": "{PROMPT}', headers=bearer)
    await http.post(CHAT, json=chat(model="none"), headers=bearer)
    await http.get(f"/v1/{wrong}", params={"initial_balance_token": spent})
    await http.get("/v1/balance/create", params={"initial_balance_token": junk})
    await http.get(f"/lightning/invoice/{wrong}/status")
    await http.post("/v1/wallet/create", json={"cashu_token": junk, "refund_address": PROMPT})
    await http.get("/v1/info", headers={"X-Cashu": spent * 200})
    for upstream.fault in ("error-event", "cut", "garbage", "status-500"):
        token = secrets.add("token", await purse.fund(9))
        body = chat(f"{PROMPT} {upstream.fault}", stream=True)
        await http.post(CHAT, json=body, headers={"X-Cashu": token})
    upstream.fault = None
    token = secrets.add("token", await purse.fund(9))
    with pytest.raises(httpx.ReadTimeout):
        await http.post(CHAT, json=chat(stream=True), headers={"X-Cashu": token}, timeout=0.001)


async def over_nostr(node: DemoNode, relay: str, purse: Purse, secrets: Secrets) -> None:
    keys = Keys.generate()
    secrets.add_keys("key of a client", keys)
    token = secrets.add("token", await purse.fund(50))
    body = json.dumps(chat(stream=True)).encode()
    async with NostrClient([relay], keys=keys) as client:
        for headers in ({"x-cashu": token}, {"x-cashu": token}, {"authorization": "Bearer sk-x"}):
            reply = await client.request(
                node.keys.npub, "POST", CHAT, headers=headers, body=body, timeout_s=60
            )
            if change := {**reply.headers, **reply.trailers}.get("x-cashu"):
                secrets.add("change", change)
        bare = await client.request(node.keys.npub, "POST", CHAT, body=b'{"x": "' + body)
        assert bare.status >= 400


async def as_a_buyer(gateway: Gateway, purse: Purse, secrets: Secrets) -> dict[str, str]:
    """Wallet, ask and gateway; returns what they print where no secret has to be."""
    token = secrets.add("token", await purse.fund(100))
    said = {}
    _, said["receive"], said["receive, errors"] = await gateway.run(
        "wallet", "receive", "-", "--yes", text=token
    )
    code, out, said["ask, errors"] = await gateway.run(
        "ask", PROMPT, "--max-tokens", "9", "--carriage", "nostr"
    )
    assert (code, PROMPT in out) == (0, True), said
    await gateway.start()
    answer = await gateway.post(CHAT, chat(max_tokens=9))
    assert answer.status_code == 200, answer.text
    said["health"] = await _get(f"{gateway.url}/health/ready")
    await gateway.stop()
    code, out, said["send, errors"] = await gateway.run("wallet", "send", "5")
    secrets.add("token", out.strip())
    for name in ("balance", "history", "recover"):
        _, out, err = await gateway.run("wallet", name)
        said[name] = out + err
    said["log"] = "\n".join(gateway.log())
    secrets.add_database(gateway.wallet)
    return said


async def as_the_operator(node: DemoNode, secrets: Secrets) -> dict[str, str]:
    """Logins, right and wrong, and every page that only reads; returns those of the log."""
    said = {}
    async with httpx.AsyncClient(
        base_url=node.url, headers={"Origin": node.url}, timeout=60
    ) as http:
        login = "/admin/api/login"
        wrong = await http.post(login, json={"password": f"{PASSWORD} no"})
        assert wrong.status_code == 401
        done = await http.post(login, json={"password": PASSWORD})
        assert done.status_code == 204, done.text
        session = secrets.add("session", done.cookies["__Host-nodestr"])
        http.headers["Cookie"] = f"__Host-nodestr={session}"
        http.cookies.clear()
        for page in READ:
            answer = await http.get(f"/admin/api/{page}")
            assert answer.status_code == 200, (page, answer.text)
            said[f"/admin/api/{page}"] = answer.text
        assert (await http.post("/admin/api/logout", json={})).status_code == 204
    return said


async def _get(url: str) -> str:
    async with httpx.AsyncClient(timeout=60) as http:
        return (await http.get(url)).text


async def test_nothing_that_is_secret_is_seen(
    mint: EmbeddedMint, relay: EmbeddedRelay, tmp_path: Path
) -> None:
    secrets = Secrets(
        {PROMPT: "prompt", UPSTREAM_KEY: "key of the model server", PASSWORD: "password"}
    )
    metrics = free_port()
    hashed = secrets.add("hash of the password", hash_password(PASSWORD))
    hash_file = tmp_path / "node" / "data" / "admin.hash"
    hash_file.parent.mkdir(parents=True, mode=0o700)
    hash_file.touch(mode=0o600)
    hash_file.write_text(hashed)
    async with (
        ModelServer(api_key=UPSTREAM_KEY) as upstream,
        Purse(mint.url) as purse,
        DemoNode(
            "node",
            OFFER,
            Surroundings(mint.url, relay.url, upstream.url, ("UPSTREAM_KEY", UPSTREAM_KEY)),
            tmp_path / "node",
            environment={
                "NODESTR_LOG__LEVEL": "debug",
                "NODESTR_METRICS__ENABLED": "true",
                "NODESTR_METRICS__PORT": str(metrics),
            },
        ) as node,
    ):
        secrets.add_keys("key of the node", node.keys)
        async with httpx.AsyncClient(base_url=node.url, timeout=60) as http:
            await over_http(http, purse, secrets)
            await with_mistakes(http, purse, upstream, secrets)
        await over_nostr(node, relay.url, purse, secrets)
        home = tmp_path / "buyer"
        home.mkdir()
        gateway = Gateway(home, (relay.url,), environment={"NODESTR_GATEWAY__LOG_LEVEL": "debug"})
        said = await as_a_buyer(gateway, purse, secrets)
        said |= await as_the_operator(node, secrets)
        said["metrics"] = await _get(f"http://127.0.0.1:{metrics}/metrics")
        said["ready"] = await _get(f"{node.url}/health/ready")
        said["openapi"] = await _get(f"{node.url}/openapi.json")
        environment = {"UPSTREAM_KEY": UPSTREAM_KEY}
        for command in (
            ("doctor",), ("doctor", "--json"), ("check", "--online"), ("check", "--json"),
            ("check-config",), ("export", "transactions"), ("export", "charges"),
            ("keys", "show"), ("backup", "--out", str(tmp_path / "copy.db")), ("health",),
        ):  # fmt: skip
            code, out, err = await run(
                *command, "--config", node.config_file, environment=environment
            )
            assert code == 0, (command, out, err)
            said[" ".join(command)] = out + err
    secrets.add_database(node.database)
    log = node.log_file.read_text()
    said["the node's log"] = log
    lines = [json.loads(line) for line in log.splitlines()]
    assert {line["level"] for line in lines} >= {"info", "warning"}
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) > 30
    assert all(line["request_id"] for line in requests)
    assert {line["carriage"] for line in requests} == {"http", "nostr"}
    for where, text in said.items():
        secrets.assert_none_in(where, text)
    assert len(secrets.known) > 100
