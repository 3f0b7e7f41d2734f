"""Promise: /metrics tells what the node does with documented names, true numbers and no secret, on
an address of its own and never on the public one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from node.core.exchange import Receipt
from node.core.money import Msat
from node.core.usage import Usage
from node.demo.process import free_port
from node.ops.metrics import METRICS
from node.ops.traffic import DURATION_BOUNDS_S, Histogram, LoopLag, Traffic
from node.settings import SettingsError, load
from tests.e2e.conftest import BODY, OpenWorld, World


@dataclass
class Watched:
    """A world and the scrapes of its node."""

    world: World
    url: str

    async def text(self) -> str:
        async with httpx.AsyncClient() as http:
            answer = await http.get(self.url)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        return answer.text

    async def values(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """(name, labels) → value of a fresh scrape."""
        families = text_string_to_metric_families(await self.text())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    async def until(self, name: str, wanted: float, **labels: str) -> None:
        """Wait until a scrape says so; equal scrapes in a row are remembered for a moment."""
        async with asyncio.timeout(60):
            while (await self.values()).get((name, frozenset(labels.items()))) != wanted:
                await asyncio.sleep(0.1)


@pytest.fixture
async def watched(open_world: OpenWorld) -> AsyncIterator[Watched]:
    port = free_port()
    world = await open_world(
        environment={
            "NODESTR_METRICS__ENABLED": "true",
            "NODESTR_METRICS__PORT": str(port),
            "NODESTR_LEDGER__WATCHDOG_INTERVAL_S": "0.2",
        }
    )
    yield Watched(world, f"http://127.0.0.1:{port}/metrics")
    world.books()


async def test_a_scrape_has_every_documented_name_and_no_other(watched: Watched) -> None:
    families: list[Metric] = list(text_string_to_metric_families(await watched.text()))
    ours = {family.name: family for family in families if family.name.startswith("nodestr_")}
    assert {name.removesuffix("_total") for name in METRICS} == set(ours)
    for name, described in METRICS.items():
        family = ours[name.removesuffix("_total")]
        assert (family.type, family.documentation) == (described.kind, described.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(described.labels), sample
    others = {family.name for family in families} - set(ours)
    assert others
    assert all(name.startswith("process_") for name in others)


async def test_the_numbers_are_true(watched: Watched) -> None:
    world = watched.world
    path = "/v1/chat/completions"
    token = await world.purse.fund(40)
    async with httpx.AsyncClient(timeout=60) as http:
        paid = await http.post(f"{world.node.url}{path}", headers={"X-Cashu": token}, json=BODY)
        assert paid.status_code == 200
        unpaid = await http.post(f"{world.node.url}{path}", json=BODY)
        assert unpaid.status_code == 401
        for unknown in ("a", "b"):
            await http.get(f"{world.node.url}/v1/{unknown}/{token}")
    await world.quiet_books()
    chat = {"endpoint": path, "carriage": "http"}
    await watched.until("nodestr_requests_total", 1, **chat, status="200")
    books = world.books()
    await watched.until("nodestr_revenue_msat", books.revenue_msat)
    await watched.until("nodestr_coins_msat", books.proofs_msat, mint=world.mint.url)

    values = await watched.values()

    def value(name: str, **labels: str) -> float:
        return values[name, frozenset(labels.items())]

    assert value("nodestr_requests_total", **chat, status="401") == 1
    assert value("nodestr_requests_total", endpoint="other", carriage="http", status="404") == 2
    assert value("nodestr_errors_total", code=unpaid.json()["error"]["code"]) == 1
    usage = paid.json()["usage"]
    assert value("nodestr_tokens_total", kind="prompt") == usage["prompt_tokens"]
    assert value("nodestr_tokens_total", kind="completion") == usage["completion_tokens"]
    assert value("nodestr_charged_msat_total") == float(paid.headers["x-routstr-cost-msats"])
    assert value("nodestr_change_tokens_total") == 1
    assert value("nodestr_request_duration_seconds_count", endpoint=path) == 2
    assert value("nodestr_request_duration_seconds_bucket", endpoint=path, le="+Inf") == 2
    assert value("nodestr_first_byte_seconds_count", endpoint=path) == 1
    assert value("nodestr_requests_running") == 0
    assert value("nodestr_holds_open") == value("nodestr_holds_msat") == 0
    assert value("nodestr_operations", kind="receive", state="intent") == 0
    assert value("nodestr_solvency_margin_msat") == books.equity_msat
    assert value("nodestr_liabilities_msat") == books.liabilities_msat
    assert value("nodestr_books_ok") == value("nodestr_ready") == value("nodestr_models") == 1
    assert value("nodestr_mint_up", mint=world.mint.url) == 1
    assert value("nodestr_upstream_up", upstream="upstream") == 1
    assert value("nodestr_upstream_calls_total", upstream="upstream", result="answered") == 1
    assert value("nodestr_relay_up", relay=world.relay.url) == 1
    assert value("nodestr_health_check", check="database") == 1

    text = await watched.text()
    assert token not in text
    assert "cashu" not in text
    assert world.node.keys.nsec() not in text


async def test_what_is_down_is_told(watched: Watched) -> None:
    await watched.until("nodestr_ready", 1)
    await watched.world.relay.__aexit__(None, None, None)
    await watched.until("nodestr_relay_up", 0, relay=watched.world.relay.url)


async def test_it_is_not_on_the_public_address(watched: Watched) -> None:
    async with httpx.AsyncClient() as http:
        for path in ("/metrics", "/v1/metrics"):
            assert (await http.get(f"{watched.world.node.url}{path}")).status_code == 404
        assert (await http.get(watched.url.replace("/metrics", "/v1/info"))).status_code == 404
        assert (await http.post(watched.url)).status_code == 405


async def test_it_is_off_by_default_and_never_on_http_port(world: World) -> None:
    settings = load(world.node.config_file)
    assert not settings.metrics.enabled
    text = world.node.config_file.read_text()
    config = world.node.config_file.with_name("same.toml")
    config.write_text(f"{text}\n[metrics]\nenabled = true\nport = {world.node.port}\n")
    with pytest.raises(SettingsError, match=r"must not be http\.port"):
        load(config)


# the counters


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value_s in (0.5, 1.0, 1.5, 99.0):
        histogram.add(value_s)
    assert histogram.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum_s == 102.0
    assert len(Histogram().buckets()) == len(DURATION_BOUNDS_S) + 1


def test_traffic_adds_up() -> None:
    traffic = Traffic()
    usage = Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=2, reasoning_tokens=3)
    receipt = Receipt(cost=Msat(11), usage=usage, change="cashuBx")
    traffic.served("/v1/x", "http", 200, "", receipt, 0.5, 0.1)
    traffic.served("/v1/x", "dm", 200, "", receipt, 0.5, None)
    traffic.served("/v1/x", "dm", 429, "rate_limit_exceeded", Receipt(), 0.001, None)
    assert traffic.requests == {
        ("/v1/x", "http", 200): 1, ("/v1/x", "dm", 200): 1, ("/v1/x", "dm", 429): 1,
    }  # fmt: skip
    assert traffic.tokens == {"prompt": 10, "completion": 14, "cached": 4, "reasoning": 6}
    assert (traffic.charged_msat, traffic.change_tokens) == (22, 2)
    assert traffic.errors == {"rate_limit_exceeded": 1}
    assert sum(traffic.durations["/v1/x"].counts) == 3
    assert sum(traffic.first_bytes["/v1/x"].counts) == 1


async def test_a_busy_loop_is_seen_as_late() -> None:
    lag = LoopLag()
    task = asyncio.create_task(lag.run())
    await asyncio.sleep(0)
    busy_until = asyncio.get_running_loop().time() + 0.8
    while asyncio.get_running_loop().time() < busy_until:
        pass
    while not lag.last_s:
        await asyncio.sleep(0.01)
    assert lag.worst_s() > 0.1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
