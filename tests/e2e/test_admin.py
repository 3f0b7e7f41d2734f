"""Promise: whoever knows the password, and nobody else, sees and changes a running node; what is
changed holds at once where it can, is kept over a restart, and no secret is ever in an answer."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import argon2
import httpx
import pytest
import pytest_asyncio

from node.admin.password import CHECK_S
from node.client.nostr import NostrClient
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.nodes import DemoNode, Surroundings
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay
from tests.e2e.conftest import BODY, OFFER
from tests.e2e.shop import Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSWORD = "correct horse battery"
HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""Quick, for tests."""
UPSTREAM_KEY = ("SOME_UPSTREAM_KEY", "sk-upstream-sentinel-0815")
ENVIRONMENT = {
    "NODESTR_LIMITS__MAX_CONCURRENT_PER_ACCOUNT": "77",
    "NODESTR_ADMIN__FREE_TRIES": "2",
    "NODESTR_ADMIN__MAX_TRIES": "3",
    "NODESTR_RATES__SOURCES": '[{"url": "http://127.0.0.1:9/", "path": "a"}]',
    "NODESTR_RATES__MIN_SOURCES": "1",
    "ANOTHER_KEY": "sk-another-sentinel-4711",
}
ROOT = Path(__file__).parents[2]
LOGIN = "/admin/api/login"
SETTINGS = "/admin/api/settings"
SESSION = "/admin/api/session"


def write_hash(node: DemoNode, password: str) -> None:
    file = node.database.parent / "admin.hash"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.write_text(HASHER.hash(password))
    file.chmod(0o600)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(mint: EmbeddedMint, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(EmbeddedRelay())
        upstream = await stack.enter_async_context(ModelServer())
        home = tmp_path_factory.mktemp("admin") / "node"
        around = Surroundings(mint.url, relay.url, upstream.url, upstream_key=UPSTREAM_KEY)
        node = DemoNode("node", OFFER, around, home, environment=ENVIRONMENT)
        write_hash(node, PASSWORD)
        await stack.enter_async_context(node)
        purse = await stack.enter_async_context(Purse(mint.url))
        opened = Shop(node, mint, relay, upstream, purse)
        yield opened
        opened.books()


class Operator:
    """A browser on a page of the node."""

    def __init__(self, node: DemoNode, **headers: str) -> None:
        self.http = httpx.AsyncClient(
            base_url=node.url, headers={"Origin": node.url} | headers, timeout=30
        )
        self.seen: list[str] = []

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = await self.http.request(method, path, **options)
        self.seen.append(answer.text)
        assert answer.headers["cache-control"] == "no-store"
        return answer

    async def login(self, password: str = PASSWORD) -> httpx.Response:
        answer = await self.ask("POST", LOGIN, json={"password": password})
        if answer.status_code == 204:
            # a cookie that is Secure is sent by hand: this is not a browser
            self.http.headers["Cookie"] = answer.headers["set-cookie"].partition(";")[0]
        return answer

    async def patch(self, document: Any) -> httpx.Response:
        return await self.ask("PATCH", SETTINGS, json=document)

    async def settings(self) -> dict[str, Any]:
        answer = await self.ask("GET", SETTINGS)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["settings"])


@asynccontextmanager
async def operator(
    node: DemoNode, *, login: bool = True, **headers: str
) -> AsyncIterator[Operator]:
    someone = Operator(node, **headers)
    async with someone.http:
        if login:
            assert (await someone.login()).status_code == 204
        yield someone
    for text in someone.seen:
        assert "sentinel" not in text
        assert PASSWORD not in text
        assert "$argon2" not in text
        assert node.keys.nsec() not in text


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


# Logging in


async def test_the_cookie_is_for_this_host_and_for_no_script(shop: Shop) -> None:
    async with operator(shop.node, login=False) as someone:
        assert (await someone.ask("GET", SESSION)).status_code == 401
        answer = await someone.login()
        assert (answer.status_code, answer.text) == (204, "")
        name, *flags = answer.headers["set-cookie"].split("; ")
        assert name.startswith("__Host-nodestr=")
        assert sorted(flags) == ["HttpOnly", "Path=/", "SameSite=Strict", "Secure"]
        session = await someone.ask("GET", SESSION)
        assert session.status_code == 200
        assert session.json()["expires_at"] > 0
        token = name.partition("=")[2]
        database = shop.node.database
        for file in database.parent.glob("node.db*"):
            assert token.encode() not in file.read_bytes()


async def test_after_logout_the_cookie_opens_nothing(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        answer = await someone.ask("POST", "/admin/api/logout")
        assert answer.status_code == 204
        assert "Max-Age=0" in answer.headers["set-cookie"]
        answer = await someone.ask("GET", SESSION)
        assert (answer.status_code, code(answer)) == (401, "not_logged_in")


@pytest.mark.parametrize("path", ["/admin/api", "/admin/api/nothing", SETTINGS, SESSION])
@pytest.mark.parametrize("cookie", ["", "__Host-nodestr=" + "A" * 43, '__Host-nodestr="\\'])
async def test_without_a_session_nothing_is_told(shop: Shop, path: str, cookie: str) -> None:
    async with operator(shop.node, login=False, Cookie=cookie) as someone:
        for method in ("GET", "PATCH", "DELETE"):
            answer = await someone.ask(method, path)
            assert (answer.status_code, code(answer)) == (401, "not_logged_in")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_pages_of_other_sites_change_nothing(shop: Shop, headers: dict[str, str]) -> None:
    async with operator(shop.node) as someone:
        if "Origin" not in headers:
            del someone.http.headers["Origin"]
        someone.http.headers.update(headers)
        for method, path in (("POST", LOGIN), ("PATCH", SETTINGS), ("POST", "/admin/api/logout")):
            answer = await someone.ask(method, path, json={"password": PASSWORD})
            assert (answer.status_code, code(answer)) == (403, "forbidden_origin"), path
        assert "access-control-allow-origin" not in answer.headers
        assert (await someone.ask("OPTIONS", SETTINGS)).status_code == 403


async def test_what_changes_something_says_where_it_comes_from(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        del someone.http.headers["Origin"]
        answer = await someone.patch({})
        assert (answer.status_code, code(answer)) == (403, "forbidden_origin")
        someone.http.headers["Sec-Fetch-Site"] = "same-origin"
        assert (await someone.patch({})).status_code == 200
        someone.http.headers["Sec-Fetch-Site"] = "cross-site"
        assert (await someone.ask("GET", SETTINGS)).status_code == 403


async def test_foreign_names_that_lead_here_are_refused(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        for host in ("evil.example", f"evil.example:{shop.node.port}", "127.0.0.1.evil.example"):
            headers = {"Host": host, "Origin": f"http://{host}"}
            answer = await someone.ask("GET", SESSION, headers=headers)
            assert (answer.status_code, code(answer)) == (403, "forbidden_origin")
        headers = {"Host": f"localhost:{shop.node.port}"}
        assert (await someone.ask("GET", SESSION, headers=headers)).status_code == 200


async def test_over_nostr_there_is_nothing(shop: Shop) -> None:
    node = shop.node
    async with operator(node) as someone, NostrClient([shop.relay.url]) as client:
        headers = {"cookie": someone.http.headers["Cookie"], "origin": node.url}
        headers["sec-fetch-site"] = "same-origin"
        for method, path in (("GET", "/admin"), ("GET", SESSION), ("PATCH", SETTINGS)):
            answer = await client.request(node.keys.pubkey, method, path, headers=headers)
            assert answer.status == 404, path


async def test_a_body_is_json_and_bounded(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        for content, type_, expected in (
            (b"{}", "text/plain", "unsupported_media"),
            (b"[]", "application/json", "invalid_json"),
            (b"{", "application/json", "invalid_json"),
            (b'{"a": "' + b"x" * 300_000 + b'"}', "application/json", "request_too_large"),
        ):
            headers = {"Content-Type": type_}
            answer = await someone.ask("PATCH", SETTINGS, content=content, headers=headers)
            assert code(answer) == expected
        answer = await someone.ask("DELETE", SETTINGS)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, PATCH")


# Settings


async def test_every_value_tells_where_it_comes_from(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        settings = await someone.settings()
        concurrent = settings["limits"]["max_concurrent_per_account"]
        assert (concurrent["value"], concurrent["default"]) == (77, 128)
        assert (concurrent["origin"], concurrent["live"]) == ("environment", True)
        assert settings["http"]["port"]["origin"] == "file"
        assert settings["http"]["port"]["live"] is False
        assert settings["http"]["max_body_bytes"]["origin"] == "default"
        assert settings["http"]["port"]["about"].startswith("TCP port")
        key = settings["upstreams"]["upstream"]["api_key"]
        assert (key["value"], key["secret"]) == (f"env:{UPSTREAM_KEY[0]}", True)
        model = settings["models"][OFFER.model]
        assert model["input_per_mtok_msat"]["origin"] == "file"
        assert model["name"]["origin"] == "default"
        assert settings["log"]["level"]["choices"] == ["debug", "info", "warning", "error"]


async def test_a_price_changes_at_once(shop: Shop) -> None:
    key = await shop.account(100)
    before = (await shop.post(key, "/v1/chat/completions", BODY)).json()["usage"]["cost"]
    async with operator(shop.node) as someone:
        answer = await someone.patch(
            {"models": {OFFER.model: {"per_request_msat": 5_100, "name": "Another name"}}}
        )
        assert answer.status_code == 200, answer.text
        keys = [f"models.{OFFER.model}.name", f"models.{OFFER.model}.per_request_msat"]
        assert answer.json() == {"applied": keys, "needs_restart": []}
        (listed,) = (await someone.http.get("/v1/models")).json()["data"]
        assert listed["name"] == "Another name"
        after = (await shop.post(key, "/v1/chat/completions", BODY)).json()["usage"]["cost"]
        assert after - before == 5_000
        field = (await someone.settings())["models"][OFFER.model]["per_request_msat"]
        assert (field["value"], field["origin"]) == (5_100, "override")
        answer = await someone.patch({"models": {OFFER.model: None}})
        assert answer.json() == {"applied": keys, "needs_restart": []}
    again = (await shop.post(key, "/v1/chat/completions", BODY)).json()["usage"]["cost"]
    assert again == before


async def test_a_call_under_way_keeps_its_price_and_its_model(shop: Shop) -> None:
    """Streamed: one while the price becomes another, one while the model goes."""
    key = await shop.account(200)
    headers = {"Authorization": f"Bearer {key}"}
    plain = (await shop.post(key, "/v1/chat/completions", BODY)).json()["usage"]["cost"]
    earned = (await shop.quiet_books()).revenue_msat
    entry = {"upstream": "upstream", "per_request_msat": 700, "context_length": 8192}
    entry |= {"upstream_id": OFFER.model, "max_output_tokens": 64}
    async with (
        operator(shop.node) as someone,
        httpx.AsyncClient(base_url=shop.node.url, headers=headers, timeout=60) as client,
    ):
        assert (await someone.patch({"models": {"going": entry}})).status_code == 200
        for model, patch, cost in (
            (OFFER.model, {OFFER.model: {"per_request_msat": 9_000_000}}, plain),
            ("going", {"going": None}, 700),
        ):
            body = BODY | {"model": model, "stream": True, "max_tokens": 64}
            shop.upstream.delay_s = 0.1
            try:
                async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
                    lines = stream.aiter_lines()
                    first = await anext(lines)
                    assert (await someone.patch({"models": patch})).status_code == 200
                    shop.upstream.delay_s = 0
                    rest = [first, *[line async for line in lines]]
            finally:
                shop.upstream.delay_s = 0
            assert rest[-2:] == ["data: [DONE]", ""]
            earned, before = (await shop.quiet_books()).revenue_msat, earned
            assert earned - before == cost, model
        answer = await shop.post(key, "/v1/chat/completions", BODY)
        assert answer.status_code == 402, "the new price"
        assert (await shop.post(key, "/v1/chat/completions", BODY | {"model": "going"})).is_error
        assert (await someone.patch({"models": {OFFER.model: None}})).status_code == 200


async def test_a_model_comes_and_goes(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        entry = {
            "upstream": "upstream",
            "upstream_id": OFFER.model,
            "per_request_msat": 1000,
            "context_length": 100,
            "max_output_tokens": 10,
        }
        answer = await someone.patch({"models": {"org/new": entry}})
        assert answer.json() == {"applied": ["models.org/new"], "needs_restart": []}
        listed = (await someone.http.get("/v1/models")).json()["data"]
        assert {model["id"] for model in listed} == {OFFER.model, "org/new"}
        answer = await someone.patch({"models": {"org/new": None}})
        assert answer.json()["applied"] == ["models.org/new"]
        listed = (await someone.http.get("/v1/models")).json()["data"]
        assert {model["id"] for model in listed} == {OFFER.model}


async def test_a_price_in_usd_asks_for_the_rate_that_nobody_needed_before(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        checks = (await someone.http.get("/health/ready")).json()["checks"]
        assert "exchange rate" not in checks
        entry = {"upstream": "upstream", "per_request_usd": "0.01", "context_length": 9}
        answer = await someone.patch({"models": {"usd": entry | {"max_output_tokens": 9}}})
        assert answer.json() == {"applied": ["models.usd"], "needs_restart": []}
        checks = (await someone.http.get("/health/ready")).json()["checks"]
        assert checks["exchange rate"] != "ok"
        listed = (await someone.http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == [OFFER.model]
        assert (await someone.patch({"models": {"usd": None}})).status_code == 200


async def test_relays_and_the_name_change_at_once(shop: Shop) -> None:
    async with EmbeddedRelay() as another, operator(shop.node) as someone:
        answer = await someone.patch(
            {"nostr": {"relays": [shop.relay.url, another.url]}, "node": {"name": "renamed"}}
        )
        assert answer.json() == {"applied": ["node.name", "nostr.relays"], "needs_restart": []}
        assert (await someone.http.get("/v1/info")).json()["name"] == "renamed"
        checks = (await someone.http.get("/health/ready")).json()["checks"]
        assert {name for name in checks if name.startswith("relay ")} == {
            f"relay {shop.relay.url}",
            f"relay {another.url}",
        }
        answer = await someone.patch({"nostr": None, "node": {"name": None}})
        assert answer.json()["applied"] == ["node.name", "nostr.relays"]
        checks = (await someone.http.get("/health/ready")).json()["checks"]
        assert {name for name in checks if name.startswith("relay ")} == {f"relay {shop.relay.url}"}


async def test_an_answer_over_relays_that_are_no_longer_wanted_arrives(shop: Shop) -> None:
    key = await shop.account(100)
    body = json.dumps(BODY | {"stream": True, "max_tokens": 64}).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    async with (
        EmbeddedRelay() as another,
        operator(shop.node) as someone,
        NostrClient([shop.relay.url]) as client,
    ):
        shop.upstream.delay_s = 0.1
        try:
            path = "/v1/chat/completions"
            async with client.stream(
                shop.node.keys.pubkey, "POST", path, headers=headers, body=body
            ) as stream:
                got = b""
                async for data in stream:
                    if not got:
                        answer = await someone.patch({"nostr": {"relays": [another.url]}})
                        assert answer.json()["applied"] == ["nostr.relays"]
                        shop.upstream.delay_s = 0
                    got += data
        finally:
            shop.upstream.delay_s = 0
            assert (await someone.patch({"nostr": None})).status_code == 200
    assert got.rstrip().endswith(b"data: [DONE]")
    assert (await shop.quiet_books()).held_msat == 0


async def test_overrides_stay_when_the_files_are_read_again(shop: Shop) -> None:
    text = shop.node.config_file.read_text()
    async with operator(shop.node) as someone:

        async def info() -> dict[str, Any]:
            return dict((await someone.http.get("/v1/info")).json())

        await someone.patch({"node": {"name": "overridden"}})
        other = text.replace('name = "node"', 'name = "other"').replace("nodestr demo", "tests")
        shop.node.config_file.write_text(other)
        try:
            assert shop.node.pid is not None
            os.kill(shop.node.pid, signal.SIGHUP)
            async with asyncio.timeout(30):
                while (await info())["description"] != "a node of the tests":
                    await asyncio.sleep(0.05)
            assert (await info())["name"] == "overridden"
            await someone.patch({"node": None})
            assert (await info())["name"] == "other"
        finally:
            shop.node.config_file.write_text(text)
            await someone.patch({"node": None})
        assert (await info())["name"] == "node"


async def test_payouts_and_refunds_change_at_once_but_not_whether_there_are_any(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        answer = await someone.patch(
            {
                "payout": {"address": "me@example.com"},
                "refund": {"floor_sat": 5, "enabled": False},
                "upstreams": {"upstream": {"weight": 5, "max_concurrency": 9}},
            }
        )
        assert answer.json() == {
            "applied": ["payout.address", "refund.floor_sat", "upstreams.upstream.weight"],
            "needs_restart": ["refund.enabled", "upstreams.upstream.max_concurrency"],
        }
        waiting = (await someone.ask("GET", SETTINGS)).json()["needs_restart"]
        assert waiting == ["refund.enabled", "upstreams.upstream.max_concurrency"]
        await someone.patch({"payout": None, "refund": None, "upstreams": None})
        assert (await someone.ask("GET", SETTINGS)).json()["needs_restart"] == []


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({"http": {"port": 99999}}, "http.port"),
        ({"http": {"prot": 1}}, "http.prot"),
        ({"nothing": {"a": 1}}, "nothing"),
        ({"http": 5}, "http"),
        ({"models": {OFFER.model: 5}}, f"models.{OFFER.model}"),
        ({"models": {OFFER.model: {"per_request_msat": -1}}},
         f"models.{OFFER.model}.per_request_msat"),
        ({"models": {OFFER.model: {"id": "other"}}}, f"models.{OFFER.model}.id"),
        ({"models": {"new": {"upstream": "upstream"}}}, "models.new.context_length"),
        ({"models": {OFFER.model: {"upstream": "none"}}}, f"models.{OFFER.model}.upstream"),
        ({"node": {"secret_key": "env:ANOTHER_KEY"}}, "node.secret_key"),
        ({"node": {"data_dir": "/tmp/x"}}, "node.data_dir"),
        ({"node": {"overrides": "/tmp/x"}}, "node.overrides"),
        ({"admin": {"password_hash": "env:ANOTHER_KEY"}}, "admin.password_hash"),
        ({"upstreams": {"upstream": {"api_key": "sk-literal-sentinel"}}},
         "upstreams.upstream.api_key"),
        ({"upstreams": {"upstream": {"api_key": "env:NOT_THERE"}}}, "upstreams.upstream.api_key"),
        ({"mints": {"https://mint.example/": {"url": "https://other.example"}}},
         "mints.https://mint.example.url"),
    ],
)  # fmt: skip
async def test_what_is_not_valid_changes_nothing(
    shop: Shop, document: dict[str, Any], param: str
) -> None:
    file = shop.node.database.with_name("node.db.overrides.json")
    before = file.read_text() if file.exists() else None
    async with operator(shop.node) as someone:
        answer = await someone.patch(document | {"log": {"level": "debug"}})
        assert (answer.status_code, code(answer)) == (400, "invalid_value"), answer.text
        assert answer.json()["error"]["param"] == param
        assert (await someone.settings())["log"]["level"]["value"] == "info"
    assert (file.read_text() if file.exists() else None) == before


async def test_the_keys_of_the_node_are_no_keys_of_upstreams(shop: Shop) -> None:
    home = shop.node.directory
    link = home / "innocent"
    link.symlink_to(home / "node.key")
    (home / "node.key.20260101-000000.bak").write_text("a key it had before")
    async with operator(shop.node) as someone:
        for file in (
            home / "node.key",
            link,
            home / "node.key.20260101-000000.bak",
            home / "x" / ".." / "node.key",
            shop.node.database.parent / "admin.hash",
        ):
            answer = await someone.patch({"upstreams": {"upstream": {"api_key": f"file:{file}"}}})
            assert (answer.status_code, code(answer)) == (400, "invalid_value")
            assert answer.json()["error"]["param"] == "upstreams.upstream.api_key"


async def test_changes_at_the_same_time_all_count(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        answers = await asyncio.gather(
            *(someone.patch({"limits": {f"requests_per_{unit}": at + 5000}})
              for at, unit in enumerate(("minute", "hour", "day"))),
        )  # fmt: skip
        assert [answer.status_code for answer in answers] == [200] * 3
        limits = (await someone.settings())["limits"]
        values = [limits[f"requests_per_{unit}"]["value"] for unit in ("minute", "hour", "day")]
        assert values == [5000, 5001, 5002]
        assert (await someone.patch({"limits": None})).status_code == 200


async def test_every_page_of_the_desk_answers(shop: Shop) -> None:
    key = await shop.account(50)
    assert (await shop.post(key, "/v1/chat/completions", BODY)).status_code == 200
    text = (ROOT / "docs" / "admin.md").read_text()
    paths = set(re.findall(r"`GET (/[\w/]+)[`?\s]", text)) - {"/requests/stream", "/log/stream"}
    assert len(paths) > 10
    async with operator(shop.node) as someone:
        for path in sorted(paths):
            answer = await someone.ask("GET", f"/admin/api{path}")
            assert answer.status_code == 200, (path, answer.text)
            assert isinstance(answer.json(), dict)
            assert key not in answer.text
        answer = await someone.ask(
            "PATCH", f"/admin/api/models/{OFFER.model}", json={"per_request_msat": 200}
        )
        assert answer.json()["applied"] == [f"models.{OFFER.model}.per_request_msat"]
        assert answer.json()["model"]["source"] == "override"
        assert answer.json()["model"]["price"]["per_request_msat"] == 200
        answer = await someone.ask(
            "PATCH", f"/admin/api/models/{OFFER.model}", json={"per_request_msat": None}
        )
        assert answer.json()["model"]["source"] == "settings"


# What lasts, and what ends


async def test_overrides_outlive_the_process_and_commands_see_them(shop: Shop) -> None:
    node = shop.node
    async with operator(node) as someone:
        answer = await someone.patch(
            {"http": {"max_buffered_bytes": 99_000_000}, "node": {"about": "kept"}}
        )
        assert answer.json() == {
            "applied": ["node.about"],
            "needs_restart": ["http.max_buffered_bytes"],
        }
        cookie = someone.http.headers["Cookie"]
    file = node.database.with_name("node.db.overrides.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["node"] == {"about": "kept"}
    await node.stop()
    await node.start()
    async with operator(node, login=False, Cookie=cookie) as someone:
        # the session was not of the process either
        settings = await someone.settings()
        assert settings["http"]["max_buffered_bytes"]["value"] == 99_000_000
        assert (await someone.http.get("/v1/info")).json()["description"] == "kept"
        answer = await someone.ask("GET", SETTINGS)
        assert answer.json()["needs_restart"] == []
        await someone.patch({"http": None, "node": None})


async def test_another_password_ends_every_session(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        write_hash(shop.node, "another password")
        try:
            async with asyncio.timeout(30):
                while (await someone.ask("GET", SESSION)).status_code == 200:
                    await asyncio.sleep(0.1)
        finally:
            write_hash(shop.node, PASSWORD)
        await asyncio.sleep(1.1 * CHECK_S)  # until then it would be the wrong one, and count
        assert (await someone.ask("GET", SESSION)).status_code == 401
        assert (await someone.login()).status_code == 204


async def test_a_stream_ends_with_the_session(shop: Shop) -> None:
    async with operator(shop.node) as someone:
        path = "/admin/api/requests/stream"
        async with someone.http.stream("GET", path) as stream:
            assert stream.status_code == 200
            assert stream.headers["content-type"] == "text/event-stream"
            assert stream.headers["cache-control"] == "no-store"
            lines = stream.aiter_lines()
            assert await anext(lines) == ": "
            await someone.http.get("/v1/models")
            event = [line async for line in _until_data(lines)][-1]
            assert json.loads(event.removeprefix("data: "))["endpoint"] == "/v1/models"
            await someone.ask("POST", "/admin/api/logout")
            async with asyncio.timeout(30):
                assert [line async for line in lines if line.startswith("data")] == []


async def _until_data(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    async for line in lines:
        yield line
        if line.startswith("data"):
            return


async def test_without_a_password_there_is_nothing(shop: Shop) -> None:
    file = shop.node.database.parent / "admin.hash"
    hidden = file.with_name("hidden")
    os.rename(file, hidden)  # noqa: PTH104
    try:
        async with httpx.AsyncClient(base_url=shop.node.url, timeout=30) as http:
            async with asyncio.timeout(30):
                while (await http.get("/admin")).status_code != 404:
                    await asyncio.sleep(0.1)
            for path in ("/admin", "/admin/", "/admin/static/admin.js", LOGIN, SETTINGS):
                answer = await http.get(path)
                assert answer.status_code == 404
                assert "nodestr admin password" in answer.json()["error"]["message"]
    finally:
        hidden.rename(file)
    async with operator(shop.node, login=False) as someone, asyncio.timeout(30):
        while (await someone.login()).status_code != 204:
            await asyncio.sleep(0.3)


async def test_wrong_passwords_make_who_sends_them_wait(shop: Shop) -> None:
    """Last: the address is locked out afterwards."""
    async with operator(shop.node) as inside, operator(shop.node, login=False) as someone:
        answers = [await someone.login("wrong password") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
        assert len({answer.text.partition("request_id")[0] for answer in answers[:3]}) == 1
        assert code(answers[0]) == "wrong_password"
        assert int(answers[-1].headers["retry-after"]) > 800
        # the right one has to wait as well, and who is logged in goes on
        assert (await someone.login()).status_code == 429
        assert (await inside.ask("GET", SESSION)).status_code == 200
    log = Path(shop.node.log_file).read_text()
    assert "admin_login_failed" in log
    assert '"address":"127.0.0.1"' in log
    assert "wrong password" not in log
    assert PASSWORD not in log
