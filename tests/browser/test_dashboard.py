"""Promise: the operator sees from the dashboard how the node is, on any screen, with or without a
mouse or eyes; neither an ended session nor a restart loses what was begun."""

from __future__ import annotations

import pytest

from tests.browser.conftest import OpenVisit, Visit
from tests.browser.desk import (
    HOSTILE,
    PASSWORD,
    ROUTES,
    Desk,
    desk,
    focused,
    go,
    shown,
    token_of,
)

__all__ = ["desk"]

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_who_has_no_session_sees_the_sign_in_and_gets_in_by_keyboard(
    desk: Desk, visit: OpenVisit
) -> None:
    seen = await visit(f"{desk.node.url}/admin#/balance")
    page = seen.page
    await page.get_by_label("Password").wait_for()
    assert not await page.locator("#nav").is_visible()
    await seen.assert_accessible()
    await seen.screenshot("dashboard-sign-in")
    await page.keyboard.press("Enter")  # the field has the focus, and is empty
    await page.get_by_text("Enter the password.").wait_for()
    await page.keyboard.type("not the password")
    await page.keyboard.press("Enter")
    await page.get_by_text("That is not the password.").wait_for()
    await page.keyboard.type(PASSWORD)  # what was wrong is selected
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Balance sheet", level=1).wait_for()
    assert await focused(page) == "Balance sheet"
    cookies = await seen.context.cookies()
    assert [(c["name"], c["httpOnly"], c["secure"], c["sameSite"]) for c in cookies] == [
        ("__Host-nodestr", True, True, "Strict")
    ]
    # of a browser that has no session, the node says so
    assert all("401" in text for text in seen.console_errors)
    seen.console_errors.clear()

    # on by keyboard: past the navigation, into it, to another view
    await page.locator(".skip").focus()
    await page.keyboard.press("Enter")
    assert await focused(page) == "Balance sheet"
    await page.get_by_role("link", name="Operations").focus()
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Operations", level=1).wait_for()
    assert await focused(page) == "Operations"
    await page.get_by_text("Nothing is stuck").wait_for()
    await page.get_by_role("button", name="Sign out").focus()
    await page.keyboard.press("Enter")
    await page.get_by_label("Password").wait_for()
    assert await seen.context.cookies() == []
    assert all("401" in text for text in seen.console_errors)
    assert (await seen.violations(), seen.outside) == ([], [])


@pytest.mark.parametrize(("dark", "phone"), [(False, True), (True, False)])
async def test_each_view_is_quiet_accessible_and_fits(
    desk: Desk, visit: OpenVisit, dark: bool, phone: bool
) -> None:
    seen = await desk.open(visit, "accounts/100", dark=dark, phone=phone)
    look = f"{'dark' if dark else 'light'}-{'phone' if phone else 'desktop'}"
    for route in (*ROUTES, "accounts/100", "settings/http"):
        await go(seen, route)
        assert await seen.page.locator("main .note.bad").count() == 0, route
        assert await seen.page.locator("main h1").count() == 1, route
        await seen.assert_fits()
        await seen.assert_accessible()
        await seen.screenshot(f"dashboard-{route.replace('/', '-')}-{look}")
    await seen.assert_quiet()
    if phone:
        nav, menu = seen.page.locator("#nav"), seen.page.get_by_role("button", name="Menu")
        assert not await nav.is_visible()
        await menu.click()
        await nav.get_by_role("link", name="Keys").wait_for()
        await seen.assert_accessible()
        await seen.page.keyboard.press("Escape")
        assert not await nav.is_visible()
        assert await focused(seen.page) == "Menu"


async def test_the_overview_and_the_earnings_say_what_was_earned(
    desk: Desk, visit: OpenVisit
) -> None:
    seen = await desk.open(visit)
    page = seen.page
    books = await desk.quiet_books()
    earned = page.locator(".stats div", has_text="Yours to take out").locator("data")
    assert await earned.get_attribute("value") == str(books.earned_msat)
    npub = await page.locator("main code").inner_text()
    assert npub == desk.node.keys.npub
    await go(seen, "earnings?range=day")
    last = page.locator(".point").nth(-1)
    await page.locator(".point[tabindex='0']").first.focus()
    await page.keyboard.press("End")
    label = await page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label == await page.locator("figure").first.locator(".point").nth(-1).get_attribute(
        "aria-label"
    )
    assert "sat" in str(label)
    assert "requests" in str(await last.get_attribute("aria-label"))
    await page.get_by_text("Show the numbers").click()
    cells = page.locator("details tbody tr").first.locator("td data")
    assert int(str(await cells.first.get_attribute("value"))) > 0
    await page.get_by_role("radio", name="30 days").check()
    await page.get_by_text("Earnings of the last 30 days, by day").wait_for(state="attached")
    await seen.assert_quiet()


async def test_hostile_names_are_text_everywhere(desk: Desk, visit: OpenVisit) -> None:
    seen = await desk.open(visit)
    for route in ("models", "requests", "earnings", "accounts/100", "accounts/all", "settings"):
        await go(seen, route)
        assert HOSTILE.model in await seen.page.locator("main").inner_text(), route
        assert await seen.page.locator("main img, main script").count() == 0
    assert await seen.page.title() != "hit"
    await seen.assert_quiet()


async def test_requests_and_log_lines_come_live_and_can_be_paused(
    desk: Desk, visit: OpenVisit
) -> None:
    seen = await desk.open(visit, "requests")
    page = seen.page
    rows = page.locator("tbody tr")
    await page.get_by_text("Live", exact=True).wait_for()
    before = await rows.count()
    await desk.chat()
    await page.wait_for_function(
        "n => document.querySelectorAll('tbody tr').length === n", arg=before + 1
    )
    await page.get_by_role("button", name="Pause").click()
    await desk.chat()
    await page.get_by_text("Paused, 1 new").wait_for()
    assert await rows.count() == before + 1
    await page.get_by_role("button", name="Go on").click()
    await page.wait_for_function(
        "n => document.querySelectorAll('tbody tr').length === n", arg=before + 2
    )
    newest = await rows.first.inner_text()
    assert "200" in newest
    assert "demo" in newest

    await go(seen, "log")
    await page.get_by_text("Live", exact=True).wait_for()
    lines = page.locator(".log li")
    before = await lines.count()
    await desk.chat()
    await page.wait_for_function("n => document.querySelectorAll('.log li').length > n", arg=before)
    await page.get_by_label("Words").fill("nothing has these words")
    await page.get_by_text("No line matches.").wait_for()
    await page.get_by_label("Words").fill("wallet/create")
    await lines.first.wait_for()
    await page.get_by_label("Level").select_option("error")
    await page.get_by_text("No line matches.").wait_for()
    await seen.assert_quiet()


async def test_an_ended_session_and_a_restart_lose_neither_the_view_nor_what_was_typed(
    desk: Desk, visit: OpenVisit
) -> None:
    seen = await desk.open(visit, "pay")
    page = seen.page
    form = page.locator("section", has_text="Withdraw as a token")
    await form.get_by_label("Amount in sat").fill("21")
    await seen.context.clear_cookies()
    await form.get_by_role("button", name="Withdraw").click()
    await page.get_by_role("button", name="Withdraw 21 sat").click()
    await page.get_by_text("Your session has ended").wait_for()
    await seen.assert_accessible()
    await page.get_by_label("Password").fill(PASSWORD)
    await page.keyboard.press("Enter")
    token = await token_of(page)
    await desk.purse.receive(token)

    await go(seen, "overview")
    desk.node.kill()
    await page.get_by_text("Connection lost, trying again").wait_for()
    await desk.node.start()
    await page.wait_for_function(
        "() => document.getElementById('connection').childNodes.length === 0"
    )
    await go(seen, "requests")
    await page.get_by_text("Live", exact=True).wait_for()
    await desk.chat()
    await page.locator("tbody tr", has_text="demo").first.wait_for()
    assert seen.outside == []
    assert await seen.violations() == []


async def test_colours_are_chosen_and_kept(desk: Desk, visit: OpenVisit) -> None:
    seen = await desk.open(visit)
    page = seen.page
    colour = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(colour)
    await page.get_by_label("Colours").select_option("dark")
    dark = await page.evaluate(colour)
    assert dark != light
    await page.reload()
    await shown(seen)
    assert await page.evaluate(colour) == dark
    await page.get_by_label("Colours").select_option("light")
    assert await page.evaluate(colour) == light


async def test_what_is_not_there_is_said_in_words(desk: Desk, visit: OpenVisit) -> None:
    seen: Visit = await desk.open(visit, "accounts/999999")
    await seen.page.get_by_text("There is no such account").wait_for()
    assert await seen.page.locator("main .note code").inner_text()
    await seen.page.get_by_role("button", name="Try again").wait_for()
