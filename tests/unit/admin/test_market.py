"""Promise: the operator sees all models he wants to sell, why one is not sold, and its servers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from node.core.plans import Listed
from node.core.tariff import Amount, Tariff
from node.errors import InvalidValue, NotConfigured
from node.service.shelf import Shelf
from tests.unit.admin.office import SETTINGS, open_office
from tests.unit.admin.seeds import MINT, seed


async def test_models_on_sale_and_not(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        small, dollars = (await office.get("/models"))["models"]
        assert (small["id"], small["on_sale"], small["why_not"]) == ("org/small", True, None)
        assert small["source"] == "settings"
        assert small["aliases"] == ["small"]
        assert small["price"]["input_msat_per_mtok"] == 1_000_000
        assert small["price"]["cached_msat_per_mtok"] is None
        assert small["max_cost_msat"] == 4096 + 2 * 512
        assert small["free"] is False
        assert small["configured"] == {**SETTINGS["models"][0]}
        (backend,) = small["backends"]
        assert (backend["upstream"], backend["upstream_id"]) == ("gpu", "org/small")
        assert backend["price"]["output_msat_per_mtok"] == 2_000_000
        assert (dollars["on_sale"], dollars["price"]) == (False, None)
        assert "exchange rate" in dollars["why_not"]


async def test_listed_models_and_what_is_overridden(tmp_path: Path) -> None:
    upstreams = [{"name": "gpu", "base_url": "http://127.0.0.1:9/v1", "discover": True}]
    models = [
        {"id": "own", "upstream": "gpu", "context_length": 100, "max_output_tokens": 10},
        {
            "id": "gift",
            "upstream": "gpu",
            "context_length": 100,
            "max_output_tokens": 10,
            "free": True,
        },
    ]
    async with open_office(tmp_path, upstreams=upstreams, models=models) as office:
        before = {model["id"]: model for model in (await office.get("/models"))["models"]}
        assert before["own"]["why_not"] == "its upstream lists no price for it now"
        assert before["gift"]["free"] is True
        stock = office.parts.stock
        assert isinstance(stock, Shelf)
        price = Tariff(
            {kind: Amount(Fraction(5)) for kind in ("input_per_mtok", "output_per_mtok")}
        )
        stock.listed("gpu", [Listed(id_, price, 1000, 10) for id_ in ("own", "other")])
        after = {model["id"]: model for model in (await office.get("/models"))["models"]}
        assert [after[id_]["on_sale"] for id_ in ("own", "gift", "other")] == [True] * 3
        assert after["other"]["source"] == "discovered"
        assert after["other"]["configured"] == {}


async def test_a_change_goes_to_the_settings(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        answer = await office.send("PATCH", "/models/org%2Fsmall", per_request_msat=5, name=None)
        assert office.changes == [{"models": {"org/small": {"per_request_msat": 5, "name": None}}}]
        assert answer["applied"] == ["models"]
        assert answer["model"]["id"] == "org/small"
        with pytest.raises(InvalidValue):
            await office.send("PATCH", "/models/org/small")


async def test_upstreams(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        (upstream,) = (await office.get("/upstreams"))["upstreams"]
        assert upstream == {
            "name": "gpu",
            "dialect": "openai",
            "base_url": "http://127.0.0.1:9/v1",
            "state": "closed",
            "trouble": None,
            "in_use": 0,
            "waiting": 0,
            "max_concurrency": None,
            "paused_models": 0,
            "models": 1,
            "answered": 0,
            "failed": 0,
            "last_error": None,
            "balance_msat": None,
        }


async def test_a_node_without_relays(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        relays = await office.get("/relays")
        assert relays["relays"] == []
        assert relays["announcement"]["enabled"] is False
        with pytest.raises(NotConfigured):
            await office.send("POST", "/announce")


async def test_operations_without_an_outcome(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        await office.database.write(lambda conn: seed(conn, now=1000))
        answer = await office.get("/operations")
        assert answer["count"] == 1
        assert answer["operations"] == [
            {
                "id": "stuck",
                "kind": "receive",
                "mint": MINT,
                "amount_msat": 11_000,
                "state": "intent",
                "attempts": 2,
                "created_at": 1000,
                "error": None,
                "account_id": 100,
                "outlook": "recovery sends it again every 10 s, until the mint answers",
            }
        ]
