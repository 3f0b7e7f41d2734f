"""Promise: `nodestr init` goes from a model server to a node that serves, checks every answer
before anything is written, overwrites nothing, and tells for each mistake how to mend it."""

from __future__ import annotations

import contextlib
import json
import socket
import stat
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from discovery.nostr.keys import Keys
from node.demo.mint import EmbeddedMint
from node.demo.model_server import ModelServer
from node.demo.process import free_port
from node.demo.purse import Purse
from node.demo.relay import EmbeddedRelay
from node.ops.setup import Sale, SetupError, guess_dialect, parse_sale
from node.settings import load
from tests.e2e.commands import run, serving


@pytest.fixture
async def upstream() -> AsyncIterator[ModelServer]:
    async with ModelServer(models=("demo", "other")) as server:
        yield server


def arguments(
    tmp_path: Path, upstream: ModelServer, mint: EmbeddedMint, relay: EmbeddedRelay
) -> list[str]:
    return [
        "init", "--upstream", upstream.url, "--model", "demo,10000,20000", "--mint", mint.url,
        "--relay", relay.url, "--no-public-url", "--port", str(free_port()),
        "--out", str(tmp_path / "node.toml"), "--timeout", "5",
    ]  # fmt: skip


async def test_what_init_writes_serves(
    tmp_path: Path, upstream: ModelServer, mint: EmbeddedMint, relay: EmbeddedRelay
) -> None:
    args = arguments(tmp_path, upstream, mint, relay)
    code, out, err = await run(*args, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["ok"]
    assert {check["check"] for check in document["checks"]} == {
        "upstream", "mint", "relay", "http",
    }  # fmt: skip
    config, key = tmp_path / "node.toml", tmp_path / "node.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    keys = Keys.parse(key.read_text().strip())
    assert document["npub"] == keys.npub
    assert keys.nsec() not in out
    settings = load(config)
    (model,) = settings.catalog()
    assert (model.price.input_per_mtok, model.price.output_per_mtok) == (10_000_000, 20_000_000)
    commented = [line for line in config.read_text().splitlines() if " = " in line]
    assert len(commented) >= 12
    lines = config.read_text().splitlines()
    for line in commented:
        assert lines[lines.index(line) - 1].startswith("# ") or line.startswith("#"), line
    assert (await run("check-config", "--config", config))[0] == 0

    before = config.read_bytes(), key.read_bytes()
    code, _, err = await run(*args, "--json")
    assert (code, err.count("\n")) == (1, 1)
    assert "is not overwritten" in err
    assert before == (config.read_bytes(), key.read_bytes())

    url = f"http://127.0.0.1:{settings.http.port}"
    async with (
        serving(config, url) as process,
        Purse(mint.url) as purse,
        httpx.AsyncClient(timeout=30) as http,
    ):
        assert (await http.get(f"{url}/v1/info")).json()["npub"] == keys.npub
        paid = await http.post(
            f"{url}/v1/chat/completions",
            headers={"X-Cashu": await purse.fund(500)},
            json={"model": "demo", "messages": [{"role": "user", "content": "hello"}]},
        )
        assert paid.status_code == 200, paid.text
        assert int(paid.headers["x-routstr-cost-msats"]) > 0
        code, out, err = await run("doctor", "--config", config, "--timeout", "5", "--json")
        assert (code, err) == (0, ""), out
        levels = {f["check"]: f["level"] for f in json.loads(out)["findings"]}
        assert levels["node"] == levels["announcement"] == levels["solvency"] == "ok"
    assert process.returncode == 0


async def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(
    tmp_path: Path, mint: EmbeddedMint
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, out, _ = await run(
            "init", "--upstream", f"{dead}/v1", "--model", "demo,1,1", "--mint", dead,
            "--mint", mint.url, "--relay", dead.replace("http", "ws"),
            "--public-url", "https://nowhere.invalid", "--lightning-address", "me@127.0.0.1",
            "--port", str(taken.getsockname()[1]), "--out", tmp_path / "node.toml",
            "--timeout", "2", "--json",
        )  # fmt: skip
    assert code == 1
    document = json.loads(out)
    assert not document["ok"]
    failed = [check for check in document["checks"] if check["level"] == "fail"]
    assert sorted(check["check"] for check in failed) == [
        "http", "mint", "payout", "public url", "relay", "upstream",
    ]  # fmt: skip
    assert all(check["remedy"] and "\n" not in check["remedy"] for check in failed)
    assert list(tmp_path.iterdir()) == []


async def test_a_model_that_is_not_there_is_refused_with_what_is(
    tmp_path: Path, upstream: ModelServer, mint: EmbeddedMint, relay: EmbeddedRelay
) -> None:
    args = arguments(tmp_path, upstream, mint, relay)
    args[args.index("demo,10000,20000")] = "demoo,1,1"
    code, out, err = await run(*args, "--yes")
    assert code == 1
    assert 'FAIL  upstream main: does not list "demoo"' in out
    assert "set upstream_id of the model to what the server has: demo" in out
    assert "nothing was written" in err
    assert list(tmp_path.iterdir()) == []


async def test_without_a_model_it_says_what_the_server_has(
    tmp_path: Path, upstream: ModelServer, mint: EmbeddedMint, relay: EmbeddedRelay
) -> None:
    args = arguments(tmp_path, upstream, mint, relay)
    del args[args.index("--model") : args.index("--model") + 2]
    code, out, err = await run(*args, "--json")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the server has demo, other" in err


async def test_it_asks_what_no_option_says_and_asks_again(
    tmp_path: Path, upstream: ModelServer, mint: EmbeddedMint, relay: EmbeddedRelay
) -> None:
    answers = [upstream.url, "", "nothing,1,1", "demo", "demo,5msat,0.5usd", mint.url, "", ""]
    code, _, err = await run(
        "init", "--relay", relay.url, "--port", str(free_port()), "--out", tmp_path / "node.toml",
        stdin="\n".join(answers) + "\n",
    )  # fmt: skip
    assert code == 0, err
    assert "It has: demo, other" in err
    assert "is not there" in err
    assert "has no price" in err
    document = tomllib.loads((tmp_path / "node.toml").read_text())
    (model,) = document["models"]
    assert (model["input_per_mtok_msat"], model["output_per_mtok_usd"]) == (5, "0.5")
    assert "public_urls" not in document["http"]
    assert "payout" not in document


async def test_a_key_that_is_there_is_used_and_rubbish_is_not(
    tmp_path: Path, upstream: ModelServer, mint: EmbeddedMint, relay: EmbeddedRelay
) -> None:
    args = arguments(tmp_path, upstream, mint, relay)
    key = tmp_path / "node.key"
    key.write_text("rubbish")
    code, _, err = await run(*args, "--json", "--no-check")
    assert (code, list(tmp_path.iterdir())) == (1, [key])
    assert "holds no Nostr key" in err
    keys = Keys.generate()
    key.write_text(keys.nsec())
    code, out, _ = await run(*args, "--json", "--no-check")
    document = json.loads(out)
    assert (code, document["npub"], document["key_made"]) == (0, keys.npub, False)
    assert document["checks"] == []


async def test_listed_prices_a_markup_and_a_payee(
    tmp_path: Path, mint: EmbeddedMint, relay: EmbeddedRelay
) -> None:
    async def models(request: web.Request) -> web.Response:
        if request.headers.get("authorization") != "Bearer sk-right":
            return web.json_response({}, status=401)
        pricing = {"prompt": "0.000001", "completion": "0.000002"}
        item = {"id": "a/b", "context_length": 4096, "pricing": pricing}
        return web.json_response({"data": [item]})

    async def payee(_: web.Request) -> web.Response:
        return web.json_response({"tag": "payRequest"})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_get("/.well-known/lnurlp/me", payee)
    async with TestServer(app) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        args = [
            "init", "--upstream", url, "--dialect", "openrouter", "--upstream-key-env", "THE_KEY",
            "--markup", "7.5", "--mint", mint.url, "--relay", relay.url, "--no-public-url",
            "--lightning-address", f"me@127.0.0.1:{server.port}", "--port", str(free_port()),
            "--out", str(tmp_path / "node.toml"), "--json",
        ]  # fmt: skip
        environment = {"NODESTR_DISCOVERY__ALLOW_PRIVATE_ADDRESSES": "true"}
        code, _, err = await run(*args, environment=environment)
        assert code == 1
        assert "THE_KEY is not set" in err
        code, _, err = await run(*args, environment={**environment, "THE_KEY": "sk-wrong"})
        assert code == 1
        assert "refuses the API key" in err
        code, out, err = await run(*args, environment={**environment, "THE_KEY": "sk-right"})
    assert code == 0, out + err
    text = (tmp_path / "node.toml").read_text()
    assert "sk-right" not in text + out
    document: dict[str, Any] = tomllib.loads(text)
    (entry,) = document["upstreams"]
    assert (entry["discover"], entry["markup_percent"]) == (True, "7.5")
    assert entry["api_key"] == "env:THE_KEY"
    assert document["payout"]["address"].startswith("me@")
    assert "models" not in document


@pytest.mark.parametrize(
    ("text", "prices"),
    [
        ("m", {}),
        ("m,free", {"free": True}),
        ("m,400,1200", {"input_per_mtok_msat": 400_000, "output_per_mtok_msat": 1_200_000}),
        ("m, 0.5 ,7msat", {"input_per_mtok_msat": 500, "output_per_mtok_msat": 7}),
        ("m,0.60usd,1.80USD", {"input_per_mtok_usd": "0.60", "output_per_mtok_usd": "1.80"}),
    ],
)
def test_a_sale(text: str, prices: dict[str, object]) -> None:
    assert parse_sale(text) == Sale("m", prices)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", ",1,1", "m,1", "m,1,2,3", "m,-1,1", "m,1,x", "m,0.0001,1"])
def test_what_is_no_sale_is_refused(text: str) -> None:
    with pytest.raises(SetupError):
        parse_sale(text)


@given(st.text(max_size=40))
def test_any_text_is_a_sale_or_an_error(text: str) -> None:
    with contextlib.suppress(SetupError):
        assert parse_sale(text).id


@pytest.mark.parametrize(
    ("url", "dialect"),
    [
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.anthropic.com/v1", "anthropic"),
        ("https://x.openai.azure.com/openai/v1", "azure"),
        ("http://127.0.0.1:11434/v1", "ollama"),
        ("http://127.0.0.1:8000/v1", "openai"),
    ],
)
def test_the_kind_of_server_is_guessed(url: str, dialect: str) -> None:
    assert guess_dialect(url) == dialect


async def test_the_shell_completes_commands() -> None:
    environment = {
        "_NODESTR_COMPLETE": "complete_bash", "COMP_WORDS": "nodestr doc", "COMP_CWORD": "1",
    }  # fmt: skip
    code, out, _ = await run(environment=environment)
    assert (code, out.split()) == (0, ["doctor"])
