"""Promise: what the dashboard offers to do is done, told, and can be undone where that is possible;
money is never paid twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import OpenVisit
from tests.browser.desk import DEMO, LISTED, Desk, desk, focused, shown, token_of

if TYPE_CHECKING:
    from playwright.async_api import Route

__all__ = ["desk"]

pytestmark = pytest.mark.asyncio(loop_scope="session")

NAME = "<img src=x onerror=\"document.title='hit'\">"


async def test_a_price_and_a_name_are_changed_and_the_change_is_undone(
    desk: Desk, visit: OpenVisit
) -> None:
    seen = await desk.open(visit, "models")
    page = seen.page
    row = page.get_by_role("row").filter(has_text="demo")
    await row.get_by_role("button", name="Edit").click()
    dialog = page.get_by_role("dialog")
    price = dialog.get_by_label("A million prompt tokens, msat", exact=True)
    assert await price.input_value() == "10000000"
    await price.fill("a lot")
    await dialog.get_by_role("button", name="Save").click()
    await dialog.get_by_text("A whole number of msat").wait_for()
    assert await price.get_attribute("aria-invalid") == "true"
    await price.fill("12,000,000")
    await dialog.get_by_label("Name").fill(NAME)
    await seen.assert_accessible()
    await dialog.get_by_role("button", name="Save").click()
    await page.get_by_text("Applies now:").wait_for()
    assert await focused(page) == "Edit demo"
    model = next(m for m in (await desk.get("/v1/models"))["data"] if m["id"] == DEMO.model)
    assert (model["pricing"]["prompt"], model["name"]) == (12.0, NAME)
    # a name is text, wherever it stands
    row = page.get_by_role("row").filter(has_text="demo")
    assert NAME in await row.inner_text()
    assert await page.locator("main img").count() == 0
    await row.get_by_role("button", name="Edit").click()
    await page.get_by_role("button", name="Undo all changes").click()
    await page.get_by_text("Applies now:").wait_for()
    await page.get_by_role("row").filter(has_text="10,000").first.wait_for()
    assert NAME not in await page.locator("main").inner_text()
    # and it can be switched off
    await row.get_by_role("button", name="Edit").click()
    await dialog.get_by_label("Sell it").uncheck()
    await dialog.get_by_role("button", name="Save").click()
    await page.get_by_text("it is switched off").wait_for()
    assert DEMO.model not in [m["id"] for m in (await desk.get("/v1/models"))["data"]]
    await row.get_by_role("button", name="Edit").click()
    await page.get_by_role("button", name="Undo all changes").click()
    await page.get_by_text("it is switched off").wait_for(state="detached")
    assert DEMO.model in [m["id"] for m in (await desk.get("/v1/models"))["data"]]
    await seen.assert_quiet()


async def test_a_listed_model_is_sold_no_longer_and_sold_again(
    desk: Desk, visit: OpenVisit
) -> None:
    seen = await desk.open(visit, "models")
    page = seen.page

    async def sold() -> list[str]:
        return [model["id"] for model in (await desk.get("/v1/models"))["data"]]

    assert LISTED in await sold()
    await page.get_by_role("button", name=f"Stop selling {LISTED}").click()
    await page.get_by_role("dialog").get_by_role("button", name="Stop selling").click()
    await page.get_by_role("button", name=f"Sell again {LISTED}").wait_for()
    assert LISTED not in await sold()
    assert await page.get_by_role("button", name=f"Edit {LISTED}").count() == 0
    await page.get_by_role("button", name=f"Sell again {LISTED}").click()
    await page.get_by_role("button", name=f"Edit {LISTED}").wait_for()
    assert LISTED in await sold()

    # a price of its own makes it a model of the settings
    await page.get_by_role("button", name=f"Edit {LISTED}").click()
    dialog = page.get_by_role("dialog")
    price = dialog.get_by_label("A million prompt tokens, msat", exact=True)
    await price.fill("5")
    await dialog.get_by_role("button", name="Save").click()
    await dialog.get_by_text("no price that is complete").wait_for()  # in the node's words
    assert await dialog.locator(".note code").inner_text()  # with the request's id
    await price.fill("")
    await dialog.get_by_label("A request, msat", exact=True).fill("6000")
    await dialog.get_by_role("button", name="Save").click()
    await dialog.wait_for(state="detached")
    await page.get_by_role("row").filter(has_text=LISTED).get_by_text("changed here").wait_for()
    found = next(m for m in (await desk.get("/v1/models"))["data"] if m["id"] == LISTED)
    assert found["sats_pricing"]["request"] == 6.0
    seen.console_errors[:] = [text for text in seen.console_errors if "400" not in text]
    await seen.assert_quiet()


async def test_the_announcement_is_sent_again(desk: Desk, visit: OpenVisit) -> None:
    seen = await desk.open(visit, "relays")
    page = seen.page
    assert "1 of 1 relays" in str(await page.locator(".relay-map desc").text_content())
    row = page.locator("section", has_text="Connections").locator("tbody tr")
    before = int(await row.locator("td").nth(2).inner_text())
    await page.get_by_role("button", name="Announce now").click()
    await page.get_by_text("every relay took it").wait_for()
    await page.get_by_text("What each relay said", exact=True).click()
    assert "taken" in await page.locator("details tbody tr").first.inner_text()
    await page.wait_for_function(
        "n => Number(document.querySelectorAll('section')[2].querySelectorAll('td')[2].textContent)"
        " > n",
        arg=before,
    )
    await seen.assert_quiet()


async def test_a_withdrawal_whose_answer_is_lost_is_finished_and_paid_once(
    desk: Desk, visit: OpenVisit
) -> None:
    seen = await desk.open(visit, "pay")
    page = seen.page
    before = (await desk.quiet_books()).payouts_msat
    asked: list[Any] = []

    async def lose_the_answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        if len(asked) == 1:
            await route.fetch()
            await route.abort()
        else:
            await route.continue_()

    await page.route("**/admin/api/withdraw", lose_the_answer)
    form = page.locator("section", has_text="Withdraw as a token")
    amount = form.get_by_label("Amount in sat")
    await amount.fill("100,000")
    await form.get_by_role("button", name="Withdraw").click()
    await form.get_by_text("more than can be taken out").wait_for()
    await amount.fill("300")
    await form.get_by_role("button", name="Withdraw").click()
    await seen.assert_accessible()
    await page.get_by_role("button", name="Cancel").click()
    assert await focused(page) == "Withdraw …"
    await form.get_by_role("button", name="Withdraw").click()
    await page.get_by_role("button", name="Withdraw 300 sat").click()
    await form.get_by_text("nothing is paid twice").wait_for()
    assert (await desk.quiet_books()).payouts_msat == before + 300_000

    await page.reload()  # what is not finished outlives the page
    await shown(seen)
    await page.get_by_role("button", name="Finish it").click()
    token = await token_of(page)
    assert asked[0] == asked[1]
    assert (await desk.quiet_books()).payouts_msat == before + 300_000
    await page.get_by_role("button", name="Finish it").wait_for(state="detached")
    await page.get_by_role("button", name="Show the token").first.click()
    assert await token_of(page) == token
    held = desk.purse.balance
    await desk.purse.receive(token)
    assert desk.purse.balance == held + 300
    assert await page.evaluate("localStorage.getItem('nodestr.withdrawal')") is None
    seen.console_errors[:] = [text for text in seen.console_errors if "ERR_FAILED" not in text]
    await seen.assert_quiet()


async def test_earnings_are_paid_out_over_lightning(desk: Desk, visit: OpenVisit) -> None:
    seen = await desk.open(visit, "pay")
    page = seen.page
    before = (await desk.quiet_books()).payouts_msat
    form = page.locator("section", has_text="Pay out over Lightning")
    await form.get_by_label("Amount in sat").fill("50")
    await form.get_by_role("button", name="Pay out").click()
    await page.get_by_role("dialog").get_by_role("button", name="Pay out").click()
    await form.get_by_text("Paid: 50 sat").wait_for()
    assert (await desk.quiet_books()).payouts_msat == before + 50_000
    await page.locator("section", has_text="Payouts").get_by_text("done").first.wait_for()
    await seen.assert_quiet()


async def test_a_setting_is_changed_and_the_change_is_undone(desk: Desk, visit: OpenVisit) -> None:
    seen = await desk.open(visit, "settings")
    page = seen.page

    async def edit(name: str) -> None:
        await page.get_by_label("Find a setting").fill(name)
        await page.get_by_role("button", name=f"Edit {name}").click()

    await edit("node.about")
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("about").fill("two\nlines")
    await dialog.get_by_label("about").fill("a node with a view")
    await dialog.get_by_role("button", name="Save").click()
    await page.get_by_text("Applies now:").wait_for()
    await page.get_by_text("changed here", exact=True).first.wait_for()
    await edit("limits.requests_per_day")
    await dialog.get_by_label("requests_per_day").fill("many")
    await dialog.get_by_role("button", name="Save").click()
    await dialog.locator(".field .problem:not(:empty)").wait_for()
    await seen.assert_accessible()
    await page.keyboard.press("Escape")
    await edit("ledger.refill_interval_s")
    await dialog.get_by_label("refill_interval_s").fill("77")
    await dialog.get_by_role("button", name="Save").click()
    await page.get_by_text("Applies after a restart:").wait_for()
    await page.get_by_text("These wait for a restart").wait_for()
    for name in ("ledger.refill_interval_s", "node.about"):
        await edit(name)
        await dialog.get_by_role("button", name="Undo the change").click()
        await dialog.wait_for(state="detached")
    await page.get_by_text("These wait for a restart").wait_for(state="detached")
    await page.get_by_label("Find a setting").fill("node.about")
    await page.get_by_text("from the file").first.wait_for()
    seen.console_errors[:] = [text for text in seen.console_errors if "400" not in text]
    await seen.assert_quiet()


async def test_the_key_is_replaced_only_when_its_end_was_typed(
    desk: Desk, visit: OpenVisit
) -> None:
    seen = await desk.open(visit, "keys")
    page = seen.page
    npub, key_file = desk.node.keys.npub, desk.node.directory / "node.key"
    before = key_file.read_text()
    dialog = page.get_by_role("dialog")
    await page.get_by_role("button", name="Make a new key").click()
    await dialog.get_by_label("Type the last 6 characters").fill("what")
    await dialog.get_by_role("button", name="Make a new key").click()
    await dialog.get_by_text("Nothing was changed.").wait_for()
    assert key_file.read_text() == before
    await dialog.get_by_label("Type the last 6 characters").fill(npub[-6:])
    await seen.assert_accessible()
    await dialog.get_by_role("button", name="Make a new key").click()
    await page.get_by_text("Restart the node").wait_for()
    assert key_file.read_text() != before
    backup = await dialog.locator("code").nth(-1).inner_text()
    assert await asyncio.to_thread(Path(backup).read_text) == before
    await page.get_by_role("button", name="Done").click()
    await seen.assert_quiet()
