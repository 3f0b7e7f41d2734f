"""What is for sale follows settings, lists and the exchange rate, and is never priced by guess."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from node.core.catalog import Catalog
from node.core.money import Msat
from node.core.plans import BackendPlan, Listed, ListTerms, ModelPlan
from node.core.pricing import Price
from node.core.tariff import FREE, Amount, Tariff
from node.errors import ModelNotFound, PriceUnknown
from node.service.shelf import Shelf

RATE = Fraction(100_000)
MSAT = Tariff({"input_per_mtok": Amount(Fraction(10)), "output_per_mtok": Amount(Fraction(20))})
USD = Tariff({"input_per_mtok": Amount(Fraction(1), usd=True)})
LISTED = Listed("x", USD, context_length=8_000, max_output_tokens=1_000)


def plan(model_id: str, *tariffs: Tariff | None, **fields: object) -> ModelPlan:
    backends = tuple(
        BackendPlan(f"u{i}", f"{model_id}-{i}", tariff) for i, tariff in enumerate(tariffs)
    )
    return replace(ModelPlan(model_id, backends, 4_000, 500), **fields)  # type: ignore[arg-type]


class Shop:
    def __init__(self, *plans: ModelPlan, terms: tuple[ListTerms, ...] = ()) -> None:
        self.catalog = Catalog()
        self.changes = 0
        self.shelf = Shelf(
            self.catalog, plans, terms, lambda upstream, endpoint: endpoint != "messages"
        )
        self.shelf.changed = self._changed

    def _changed(self) -> None:
        self.changes += 1

    def ids(self) -> list[str]:
        return [model.id for model in self.catalog]


def test_usd_is_sold_only_while_the_rate_is_known() -> None:
    shop = Shop(plan("m", MSAT), plan("d", USD, aliases=("dollar",)))
    assert shop.shelf.needs_rate
    assert shop.ids() == ["m"]
    for name in ("d", "dollar"):
        with pytest.raises(PriceUnknown) as caught:
            shop.catalog.get(name)
        assert (caught.value.status, caught.value.retry_after_s) == (503, 30)
    shop.shelf.rate(RATE)
    assert shop.ids() == ["m", "d"]
    assert shop.catalog.get("dollar").price == Price(Msat(1_000_000))
    sold = shop.catalog.get("d")
    shop.shelf.rate(RATE / 2)
    assert shop.catalog.get("d").price.input_per_mtok == 2_000_000
    assert sold.price.input_per_mtok == 1_000_000, "who holds a price keeps it"
    shop.shelf.rate(None)
    assert shop.ids() == ["m"]
    assert shop.changes == 3


def test_one_backend_without_a_price_leaves_the_others() -> None:
    shop = Shop(plan("m", MSAT, USD))
    assert [b.upstream for b in shop.catalog.get("m").backends] == ["u0"]
    shop.shelf.rate(RATE)
    model = shop.catalog.get("m")
    assert [b.upstream for b in model.backends] == ["u0", "u1"]
    assert model.price == Price(Msat(1_000_000), Msat(20), cached_per_mtok=Msat(1_000_000),
        cache_write_per_mtok=Msat(1_000_000), reasoning_per_mtok=Msat(20))  # fmt: skip


def test_nothing_changes_when_nothing_has_changed() -> None:
    shop = Shop(plan("m", MSAT))
    version = shop.catalog.version
    shop.shelf.rate(RATE)
    shop.shelf.listed("u0", [])
    assert (shop.changes, shop.catalog.version) == (0, version)
    assert not shop.shelf.needs_rate


def test_listed_models() -> None:
    terms = ListTerms("u0", only=("x*",), exclude=("*:free",), markup_percent=Fraction(50))
    shop = Shop(plan("xm", MSAT), terms=(terms,))
    shop.shelf.rate(RATE)
    others = [replace(LISTED, id=i) for i in ("y", "x:free", "xm", "x2")]
    shop.shelf.listed("u0", [LISTED, *others])
    assert shop.ids() == ["xm", "x", "x2"]
    assert shop.catalog.get("xm").price == Price(Msat(10), Msat(20)), "what is configured wins"
    model = shop.catalog.get("x")
    assert model.price == Price(Msat(1_500_000))
    assert (model.backends[0].upstream_id, model.context_length) == ("x", 8_000)
    shop.shelf.rate(None)
    with pytest.raises(PriceUnknown):
        shop.catalog.get("x")
    shop.shelf.listed("u0", None)
    with pytest.raises(ModelNotFound):
        shop.catalog.get("x")


def test_several_upstreams_with_the_same_model() -> None:
    terms = (ListTerms("u0"), ListTerms("u1", priority=1, weight=3))
    shop = Shop(terms=terms)
    shop.shelf.listed("u0", [replace(LISTED, tariff=MSAT, modalities=("text", "image"))])
    shop.shelf.listed(
        "u1", [replace(LISTED, tariff=MSAT.raised(Fraction(100)), context_length=4_000)]
    )
    model = shop.catalog.get("x")
    assert [(b.upstream, b.priority, b.weight) for b in model.backends] == [
        ("u0", 0, 1),
        ("u1", 1, 3),
    ]
    assert (model.context_length, model.modalities) == (4_000, ("text",))
    assert model.price.input_per_mtok == 20
    shop.shelf.listed("u0", [])
    assert [b.upstream for b in shop.catalog.get("x").backends] == ["u1"]


@pytest.mark.parametrize(
    ("listed", "terms", "price"),
    [
        (replace(LISTED, tariff=None), {}, None),
        (replace(LISTED, tariff=None), {"default": MSAT}, Price(Msat(10), Msat(20))),
        (replace(LISTED, tariff=None), {"free": True}, Price()),
        (replace(LISTED, tariff=FREE), {}, None),
        (replace(LISTED, tariff=FREE), {"free": True}, Price()),
        (replace(LISTED, tariff=MSAT), {"default": USD}, Price(Msat(10), Msat(20))),
        (replace(LISTED, tariff=MSAT, context_length=0), {}, None),
        (
            replace(LISTED, tariff=MSAT, context_length=0),
            {"default_context_length": 10},
            Price(Msat(10), Msat(20)),
        ),
        (replace(LISTED, tariff=MSAT, unmetered=("image",)), {}, None),
        (
            replace(LISTED, tariff=MSAT, unmetered=("image",)),
            {"sell_unmetered": True},
            Price(Msat(10), Msat(20)),
        ),
    ],
)
def test_what_is_not_known_is_not_sold(
    listed: Listed, terms: dict[str, object], price: Price | None
) -> None:
    shop = Shop(terms=(ListTerms("u0", **terms),))  # type: ignore[arg-type]
    shop.shelf.listed("u0", [listed])
    assert [model.price for model in shop.catalog] == ([] if price is None else [price])
    assert all(m.max_output_tokens <= m.context_length for m in shop.catalog)


def test_a_configured_model_at_the_listed_price() -> None:
    markup = Fraction(10)
    backend = BackendPlan("u0", "x", None, markup_percent=markup)
    wanted = ModelPlan("mine", (backend,), 4_000, 500)
    shop = Shop(wanted, terms=(ListTerms("u0", only=("nothing",), markup_percent=Fraction(99)),))
    with pytest.raises(PriceUnknown):
        shop.catalog.get("mine")
    shop.shelf.listed("u0", [replace(LISTED, tariff=MSAT)])
    assert shop.ids() == ["mine"]
    assert shop.catalog.get("mine").price == Price(Msat(11), Msat(22))


def test_endpoints_nobody_serves_are_not_offered() -> None:
    shop = Shop(
        plan("m", MSAT, endpoints=("chat", "messages")), plan("n", MSAT, endpoints=("messages",))
    )
    assert [(m.id, m.endpoints) for m in shop.catalog] == [("m", ("chat",))]


def test_bounds() -> None:
    shop = Shop(terms=(ListTerms("u0", max_models=2),))
    shop.shelf.listed("u0", [replace(LISTED, id=f"x{i}", tariff=MSAT) for i in range(5)])
    assert shop.ids() == ["x0", "x1"]


def test_what_is_switched_off_is_unknown_even_if_it_is_listed() -> None:
    terms = ListTerms("u0", markup_percent=Fraction(0))
    shop = Shop(plan("x", MSAT, enabled=False, aliases=("y",)), plan("m", MSAT), terms=(terms,))
    shop.shelf.rate(RATE)
    shop.shelf.listed("u0", [LISTED])
    assert shop.ids() == ["m"]
    for name in ("x", "y"):
        with pytest.raises(ModelNotFound):
            shop.catalog.get(name)
    shop.shelf.sell([plan("x", MSAT), plan("m", MSAT)], (terms,))
    assert shop.ids() == ["x", "m"]
