"""The dispatcher knows the methods of a path, answers HEAD, and says what a failure cost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import pytest

from node.core.exchange import Chunk, Failed, Receipt, ReplyEvent, Request, Started
from node.core.money import Msat
from node.errors import InsufficientBalance, MethodNotAllowed, NodeError, NotFound, Pending
from node.service.dispatch import Dispatcher, Reply, Route
from node.service.limits import Limiter, RateLimits


async def plain(request: Request, params: Mapping[str, str]) -> Reply:
    return Reply({"method": request.method, **params})


async def nothing(_: Request, __: Mapping[str, str]) -> Reply:
    return Reply(None, status=304)


async def unpaid(_: Request) -> AsyncGenerator[ReplyEvent, None]:
    yield Failed(InsufficientBalance(), Receipt(change="cashuBback"))


async def unknown(_: Request) -> AsyncGenerator[ReplyEvent, None]:
    raise Pending
    yield Receipt()


DISPATCHER = Dispatcher(
    [
        Route("GET", "/v1/a", "", plain),
        Route("POST", "/v1/a", "", plain),
        Route("GET", "/v1/none", "", nothing),
        Route("GET", "/v1/b/{id}", "", plain),
        Route("DELETE", "/v1/b/{name}", "", plain),
        Route("POST", "/v1/paid", "", streaming=unpaid, bare=True),
        Route("POST", "/v1/unknown", "", streaming=unknown),
    ]
)


async def ask(method: str, path: str, dispatcher: Dispatcher = DISPATCHER) -> list[ReplyEvent]:
    return [event async for event in dispatcher.handle(Request("r", method, path, {}))]


async def failure(method: str, path: str) -> tuple[NodeError, Receipt]:
    (event,) = await ask(method, path)
    assert isinstance(event, Failed)
    return event.error, event.receipt


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/a", ("GET", "HEAD", "POST")),
        ("POST", "/v1/b/x", ("DELETE", "GET", "HEAD")),
        ("GET", "/v1/paid", ("POST",)),
        ("HEAD", "/paid", ("POST",)),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    method: str, path: str, allow: tuple[str, ...]
) -> None:
    error, _ = await failure(method, path)
    assert isinstance(error, MethodNotAllowed)
    assert error.allow == allow


async def test_each_method_of_a_path_has_its_own_parameters() -> None:
    for method, name in (("GET", "id"), ("DELETE", "name")):
        _, chunk, _ = await ask(method, "/v1/b/x")
        assert isinstance(chunk, Chunk)
        assert chunk.data == f'{{"method":"{method}","{name}":"x"}}'.encode()


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    started, end = await ask("HEAD", "/v1/b/x")
    assert isinstance(started, Started)
    assert isinstance(end, Receipt)
    length = len(b'{"method":"HEAD","id":"x"}')
    own = {n: v for n, v in started.headers.items() if not n.startswith("x-ratelimit-")}
    assert own == {"content-type": "application/json", "content-length": str(length)}
    started, _ = await ask("HEAD", "/v1/none")
    assert isinstance(started, Started)
    assert (started.status, "content-length" in started.headers) == (304, False)


async def test_a_refused_paid_call_cost_nothing_and_keeps_its_change() -> None:
    error, receipt = await failure("POST", "/v1/paid")
    assert isinstance(error, InsufficientBalance)
    assert receipt == Receipt(cost=Msat(0), change="cashuBback")


async def test_what_is_not_known_is_not_called_nothing() -> None:
    """An error that breaks out of a call may come after its charge."""
    _, receipt = await failure("POST", "/v1/unknown")
    assert receipt.cost is None


async def test_while_draining_a_paid_call_costs_nothing() -> None:
    dispatcher = Dispatcher(DISPATCHER.routes)
    dispatcher.draining = True
    for path, cost in (("/v1/paid", Msat(0)), ("/v1/a", None)):
        (event,) = await ask("POST", path, dispatcher)
        assert isinstance(event, Failed)
        assert (event.error.code, event.receipt.cost) == ("server_draining", cost)


async def test_what_is_free_has_no_cost() -> None:
    error, receipt = await failure("GET", "/v1/nowhere")
    assert isinstance(error, NotFound)
    assert receipt.cost is None


def test_what_is_paid() -> None:
    assert DISPATCHER.is_paid("POST", "/v1/paid")
    assert DISPATCHER.is_paid("POST", "/paid")
    assert not DISPATCHER.is_paid("GET", "/v1/paid")
    assert not DISPATCHER.is_paid("POST", "/v1/a")
    assert not DISPATCHER.is_paid("POST", "/v1/nowhere")


async def test_junk_credentials_lift_no_limit() -> None:
    """Where nobody looks at them, and where somebody does and finds no account."""
    ran = 0

    async def count(_: Request, __: Mapping[str, str]) -> Reply:
        nonlocal ran
        ran += 1
        return Reply({})

    async def events(_: Request) -> AsyncGenerator[ReplyEvent, None]:
        yield Started(200, {})
        yield Receipt()

    async def account(request: Request, _: Mapping[str, str]) -> Reply:
        request.answer_headers["x-ratelimit-limit"] = "9"  # as Accounts.identify counts it
        return Reply({})

    for route, runs in (
        (Route("GET", "/v1/x", "", count, open=True), 3),
        (Route("POST", "/v1/x", "", count, open=True), 3),
        (Route("GET", "/v1/x", "", count), 8),  # what it had to look up was nothing
        (Route("GET", "/v1/x", "", streaming=events, open=True), 0),
        (Route("GET", "/v1/x", "", account), None),
    ):
        dispatcher = Dispatcher([route], Limiter(RateLimits(3, 0, 0)))
        ran = 0
        statuses = []
        for header in ("x-cashu", "x-api-key", "authorization") * 2 + ("x-cashu",) * 2:
            asked = Request("r", route.method, "/v1/x", {header: "x"}, peer="192.0.2.1")
            first, *_ = [event async for event in dispatcher.handle(asked)]
            assert isinstance(first, Started | Failed)
            statuses.append(first.status if isinstance(first, Started) else first.error.status)
        if runs is None:
            assert statuses == [200] * 8
        else:
            assert statuses == [200] * 3 + [429] * 5
            assert ran == runs
