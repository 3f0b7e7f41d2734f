"""Promise: `nodestr doctor` names what is broken in each of these worlds, with one line that says
how to mend it, finds nothing in a sound one, and changes nothing."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from discovery.nostr.keys import Keys
from node.admin.password import hash_password
from node.demo.nodes import DemoNode, Surroundings
from node.demo.process import free_port
from node.ops.probes import ask_mint, ask_relay, ask_upstream, clock_skew_s
from node.upstream.server import UpstreamServer
from tests.e2e.commands import run
from tests.e2e.conftest import OFFER, OpenWorld, World

Findings = list[dict[str, str]]


async def doctor(config: Path, *, code: int) -> Findings:
    """Its findings that are not ok; each has one line of remedy."""
    home = str(config.parent)
    got, out, err = await run(
        "doctor", "--config", config, "--json", "--timeout", "4", environment={"HOME": home}
    )
    assert (got, err) == (code, ""), out
    document = json.loads(out)
    assert document["ok"] == (code == 0)
    for finding in document["findings"]:
        assert finding["what"]
        assert (finding["remedy"] == "") == (finding["level"] == "ok"), finding
        assert "\n" not in finding["remedy"] + finding["what"]
    return [finding for finding in document["findings"] if finding["level"] != "ok"]


def changed(world: World, change: Callable[[str], str]) -> Path:
    """A configuration beside the node's own."""
    config = world.node.config_file.with_name("changed.toml")
    before = world.node.config_file.read_text()
    config.write_text(change(before))
    assert config.read_text() != before
    return config


async def test_a_sound_world_has_no_findings_and_stays_as_it_is(world: World) -> None:
    assert await doctor(world.node.config_file, code=0) == []
    code, out, _ = await run("doctor", "--config", world.node.config_file)
    assert code == 0
    assert out.endswith("all is well\n")
    assert world.node.keys.nsec() not in out
    assert not [line for line in out.splitlines() if not line.startswith(("ok", "all"))]


async def test_another_node_is_asked_whether_it_reaches_this_one(world: World) -> None:
    outside = world.node.directory.parent / "other"
    surroundings = Surroundings(world.mint.url, world.relay.url, world.upstream.url)
    async with DemoNode("other", OFFER, surroundings, outside) as other:
        async with asyncio.timeout(60), httpx.AsyncClient() as http:
            for node, neighbour in ((world.node, other), (other, world.node)):
                url = f"{node.url}/v1/providers/{neighbour.keys.npub}"
                while (await http.get(url)).json().get("verified") is not True:
                    await asyncio.sleep(0.1)
        code, out, _ = await run("doctor", "--config", world.node.config_file, "--json")
        assert code == 0, out
        (seen,) = [f for f in json.loads(out)["findings"] if f["check"] == "outside"]
        assert (seen["level"], seen["what"][:33]) == ("ok", "1 of 1 other nodes reach this one")

    code, out, _ = await run("health", "--config", world.node.config_file)
    assert (code, out.splitlines()[-1]) == (0, "ready")
    code, out, _ = await run("health", "--config", other.config_file, "--json")
    assert (code, out) == (1, "")


async def test_a_relay_that_does_not_take_the_announcement(world: World) -> None:
    async def relay(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            frame = json.loads(message.data)
            if frame[0] == "REQ":
                await socket.send_json(["EOSE", frame[1]])
            elif frame[0] == "EVENT":
                await socket.send_json(["OK", frame[1]["id"], False, "blocked: pay 21 sat first"])
        return socket

    app = web.Application()
    app.router.add_get("/", relay)
    async with TestServer(app) as server:
        url = f"ws://127.0.0.1:{server.port}"
        config = changed(
            world,
            lambda text: text.replace(f'["{world.relay.url}"]', f'["{world.relay.url}", "{url}"]'),
        )
        (found,) = await doctor(config, code=0)
    assert (found["check"], found["subject"]) == ("relay", url)
    assert "blocked: pay 21 sat first" in found["what"]


async def test_everybody_gone_at_once(world: World) -> None:
    dead = f"127.0.0.1:{free_port()}"
    config = changed(
        world,
        lambda text: (
            text.replace(world.relay.url, f"ws://{dead}")
            .replace(world.mint.url, f"http://{dead}")
            .replace(world.upstream.url, f"http://{dead}/v1")
            .replace(world.node.url, f"http://{dead}")
        ),
    )
    found = await doctor(config, code=1)
    broken = {f["check"] for f in found if f["level"] == "fail"}
    assert broken == {"relay", "mint", "upstream", "public url", "announcement"}
    assert "clock" in {f["check"] for f in found if f["level"] == "warn"}


async def test_what_is_announced_is_not_what_is_configured(world: World) -> None:
    config = changed(
        world,
        lambda text: text.replace("input_per_mtok_msat = 10000000", "input_per_mtok_msat = 5"),
    )
    (found,) = await doctor(config, code=1)
    assert found["check"] == "announcement"
    assert "input_per_mtok_msat 10000000 (configured: 5)" in found["what"]
    config = changed(world, lambda text: text.replace('id = "demo"', 'id = "demo2"'))
    found_all = await doctor(config, code=1)
    texts = [f["what"] for f in found_all if f["check"] == "announcement"]
    assert texts == [
        "it lacks models that are configured: demo2",
        "it has models that are not configured: demo",
    ]
    config = changed(
        world,
        lambda text: text.replace(
            json.dumps([world.node.url]), json.dumps([world.node.url, "https://b.invalid"])
        ),
    )
    texts = [f["what"] for f in await doctor(config, code=1) if f["check"] == "announcement"]
    assert len(texts) == 1
    assert "https://b.invalid" in texts[0]
    config = changed(world, lambda text: text.replace("[node]", "[node]\nannounce = false"))
    (found,) = await doctor(config, code=0)
    assert "though node.announce is false" in found["what"]


async def test_a_node_that_is_not_there_to_answer(world: World) -> None:
    await world.node.stop()  # takes its announcement back
    found = await doctor(world.node.config_file, code=1)
    assert {(f["check"], f["level"]) for f in found} == {
        ("node", "warn"),
        ("announcement", "warn"),
        ("public url", "fail"),
    }


async def test_another_node_answers_under_our_url(world: World) -> None:
    other = world.node.config_file.with_name("other.key")
    other.touch(mode=0o600)
    other.write_text(Keys.generate().nsec())
    config = changed(world, lambda text: text.replace("/node.key", "/other.key"))
    found = await doctor(config, code=1)
    assert {f["check"] for f in found} == {"public url", "announcement"}
    assert "another node" in next(f["what"] for f in found if f["check"] == "public url")


async def test_files_that_others_may_read(world: World) -> None:
    key = world.node.directory / "node.key"
    key.chmod(0o644)
    world.node.database.chmod(0o660)
    found = await doctor(world.node.config_file, code=1)
    assert [(f["check"], f["subject"]) for f in found] == [
        ("files", str(key)),
        ("files", str(world.node.database)),
    ]
    assert found[0]["remedy"] == f"chmod 600 {key}"


async def test_the_password_of_the_operator(world: World) -> None:
    async def found() -> dict[str, str]:
        _, out, _ = await run("doctor", "--config", world.node.config_file, "--json")
        (one,) = [f for f in json.loads(out)["findings"] if f["check"] == "admin"]
        return one

    none = await found()
    assert (none["level"], "there is no password" in none["what"]) == ("ok", True)
    file = world.node.database.with_name("admin.hash")
    file.touch(mode=0o600)
    file.write_text("hunter2")
    wrong = await found()
    assert (wrong["level"], wrong["remedy"][:15]) == ("fail", "set a password:")
    assert "hunter2" not in str(wrong)
    file.write_text(hash_password("correct horse battery"))
    right = await found()
    assert (right["level"], right["what"]) == ("ok", "the pages at /admin open with the password")
    file.chmod(0o644)
    (mode,) = await doctor(world.node.config_file, code=1)
    assert (mode["check"], mode["subject"]) == ("files", str(file))


async def test_a_model_the_server_does_not_have(world: World) -> None:
    world.upstream.models = ("demo-large", "else")
    (found,) = await doctor(world.node.config_file, code=1)
    assert (found["check"], found["what"]) == ("upstream", 'does not list "demo"')
    assert "demo-large" in found["remedy"]


async def test_databases_that_are_damaged_new_old_or_insolvent(open_world: OpenWorld) -> None:
    world = await open_world()
    await world.node.stop()
    path = world.node.database

    async def about_the_database() -> dict[str, str]:
        found = await doctor(world.node.config_file, code=1)
        (one,) = [f for f in found if f["check"] in {"database", "solvency"}]
        return one

    with sqlite3.connect(path) as connection:
        known = connection.execute("PRAGMA user_version").fetchone()[0]
        connection.execute(f"PRAGMA user_version = {known + 1}")
    connection.close()
    found = await about_the_database()
    assert "written by a newer nodestr" in found["what"]
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {known - 1}")
    connection.close()
    found = await about_the_database()
    assert (found["level"], "makes a backup" in found["remedy"]) == ("warn", True)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {known}")
        # owed to a client, and no coins
        connection.execute(
            "INSERT INTO accounts (id, kind, mint, unit, created_at, balance_msat)"
            " VALUES (100, 'key', 'x', 'sat', 0, 5000)"
        )
        connection.execute(
            "INSERT INTO transfers (source, destination, amount_msat, reference, created_at)"
            " VALUES (9, 100, 5000, 'test', 0)"
        )
    connection.close()
    found = await doctor(world.node.config_file, code=1)
    solvency = [f for f in found if f["check"] == "solvency" and f["level"] == "fail"]
    assert any("insolvent" in f["what"] for f in solvency)
    damaged = bytearray(path.read_bytes())
    damaged[5 * 4096 : 7 * 4096] = b"\xff" * 8192
    path.write_bytes(damaged)
    found = await doctor(world.node.config_file, code=1)
    assert any(f["check"] == "database" and "nodestr restore" in f["remedy"] for f in found)
    path.write_bytes(b"no database")
    assert "cannot be read" in (await about_the_database())["what"]


@pytest.mark.parametrize(
    ("change", "what", "remedy"),
    [
        (lambda t: t.replace("[http]", "[http]\nprot = 1"), "http.prot: there is no such", "key"),
        (lambda t: t + "[[", "not valid TOML", "correct"),
        (lambda t: re.sub('"file:.*"', '"env:NO_KEY"', t), "is missing or empty", "export NO_KEY"),
        (lambda t: re.sub('"file:.*"', '"cred:k"', t), "CREDENTIALS_DIRECTORY", "as the service"),
        (lambda t: re.sub('"file:.*"', '"file:/no/key"', t), "cannot be read", "/no/key"),
    ],
)
async def test_a_configuration_that_cannot_be_used(
    tmp_path: Path, change: Callable[[str], str], what: str, remedy: str
) -> None:
    dead = free_port()
    key = tmp_path / "node.key"
    key.touch(mode=0o600)
    key.write_text(Keys.generate().nsec())
    config = tmp_path / "node.toml"
    config.write_text(
        change(f"""
[node]
secret_key = "file:{key}"
data_dir = "{tmp_path}/data"
[http]
port = {dead}
[nostr]
relays = ["ws://127.0.0.1:{dead}"]
[[mints]]
url = "http://127.0.0.1:{dead}"
[[upstreams]]
name = "up"
base_url = "http://127.0.0.1:{dead}/v1"
[[models]]
id = "m"
upstream = "up"
per_request_msat = 1000
context_length = 4096
max_output_tokens = 1024
""")
    )
    found = await doctor(config, code=2)
    (first,) = [f for f in found if f["check"] == "config"]
    assert what in first["what"]
    assert remedy in first["remedy"]


# single questions to strange servers


async def _json(document: Any, status: int = 200) -> Any:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(document, status=status)

    return answer


async def test_a_mint_that_forgot_a_keyset() -> None:
    keyset = {"id": "00aabbccddeeff00", "unit": "sat", "active": True, "input_fee_ppk": 0}
    app = web.Application()
    app.router.add_get("/v1/keysets", await _json({"keysets": [keyset]}))
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{server.port}"
        sound = await ask_mint(session, url, ("sat",), 4, {"00aabbccddeeff00": 5})
        lost = await ask_mint(session, url, ("sat",), 4, {"00aabbccddeeff00": 5, "00ff": 21})
    assert sound.level == "ok"
    assert (lost.level, lost.what) == ("fail", "no longer lists 00ff, of which we hold 21")


async def test_a_mint_of_another_unit() -> None:
    keyset = {"id": "00aabbccddeeff00", "unit": "usd", "active": True, "input_fee_ppk": 0}
    app = web.Application()
    app.router.add_get("/v1/keysets", await _json({"keysets": [keyset]}))
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        finding = await ask_mint(session, f"http://127.0.0.1:{server.port}", ("sat",), 4)
    assert (finding.level, finding.what) == ("fail", "has no active keyset in sat")
    assert "usd" in finding.remedy


@pytest.mark.parametrize(
    ("status", "level", "what"),
    [(401, "fail", "refuses the API key"), (404, "warn", "no list"), (500, "fail", "status 500")],
)
async def test_a_model_server_that_refuses(status: int, level: str, what: str) -> None:
    app = web.Application()
    app.router.add_get("/v1/models", await _json({}, status))
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        upstream = UpstreamServer("up", session, f"http://127.0.0.1:{server.port}/v1")
        finding, listed = await ask_upstream(upstream, 4)
    assert (finding.level, listed) == (level, [])
    assert what in finding.what


@pytest.mark.parametrize("below", [200, 401])
async def test_a_model_server_without_its_v1(below: int) -> None:
    app = web.Application()
    app.router.add_get("/v1/models", await _json({"data": [{"id": "demo"}]}, below))
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{server.port}"
        finding, listed = await ask_upstream(UpstreamServer("up", session, url), 4)
    assert (finding.level, listed) == ("fail", [])
    assert f"write {url}/v1 " in finding.remedy


@pytest.mark.parametrize(
    ("url", "what", "remedy"),
    [
        ("localhost:8000", "is no URL", "http://host:port/v1"),
        (f"http://127.0.0.1:{free_port()}/v1", "nobody listens there", "start the model server"),
    ],
    ids=["no URL", "nobody"],
)
async def test_a_model_server_that_is_not_there(url: str, what: str, remedy: str) -> None:
    async with aiohttp.ClientSession() as session:
        finding, _ = await ask_upstream(UpstreamServer("up", session, url), 4)
    assert finding.level == "fail"
    assert what in finding.what
    assert remedy in finding.remedy


@pytest.mark.parametrize("refusal", ["restricted: pay first", "auth-required: who are you"])
async def test_a_relay_that_lets_nobody_in(refusal: str) -> None:
    async def relay(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            frame = json.loads(message.data)
            if frame[0] == "REQ":
                await socket.send_json(["CLOSED", frame[1], refusal])
        return socket

    app = web.Application()
    app.router.add_get("/", relay)
    async with TestServer(app) as server:
        finding = await ask_relay(f"ws://127.0.0.1:{server.port}", Keys.generate(), 2)
    assert finding.level == "fail"
    assert refusal in finding.what


@pytest.mark.parametrize("ahead_s", [0, 3600, -3600])
async def test_a_clock(ahead_s: int) -> None:
    async def answer(_: web.Request) -> web.Response:
        stamp = formatdate(time.time() - ahead_s, usegmt=True)
        return web.Response(status=404, headers={"Date": stamp})

    app = web.Application()
    app.router.add_get("/v1", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        skew = await clock_skew_s(session, f"http://127.0.0.1:{server.port}/v1", 4)
    assert skew is not None
    assert abs(skew - ahead_s) < 60


async def test_a_clock_that_is_wrong_is_found(world: World) -> None:
    async def answer(_: web.Request) -> web.Response:
        stamp = formatdate(time.time() + 600, usegmt=True)
        return web.json_response({"data": [{"id": "demo"}]}, headers={"Date": stamp})

    app = web.Application()
    app.router.add_get("/v1", answer)
    app.router.add_get("/v1/models", answer)
    async with TestServer(app) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        dead = f"http://127.0.0.1:{free_port()}"
        config = changed(
            world,
            lambda text: text.replace(world.upstream.url, url).replace(world.mint.url, dead),
        )
        (found,) = [f for f in await doctor(config, code=1) if f["check"] == "clock"]
    assert found["level"] == "fail"
    assert re.fullmatch(r"is \d+ s behind", found["what"])
    assert "timedatectl" in found["remedy"]
