"""Promise: the admin endpoints get what was asked and nothing else, actions end though their page
is gone, and streams end with the session, the node and the page; there are only so many."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from node.admin.exchange import AdminRequest, AdminRoute
from node.errors import InvalidValue, NotFound, NotLoggedIn, WrongPassword
from node.transport.http.admin import AdminDoor
from node.transport.http.admin_events import StreamTerms
from tests.fakes.http_node import parts, running, wait

HEADERS = {"Cookie": "__Host-nodestr=good", "Sec-Fetch-Site": "same-origin"}

ODD = {"said": "half \ud83d", "many": 1 << 70}
"""What some JSON libraries neither write nor read, and strangers may have made."""


class Auth:
    """Lets in who has the word."""

    def __init__(self) -> None:
        self.open = True
        self.sessions = {"good"}
        self.uses: list[bool] = []

    def require_open(self) -> None:
        if not self.open:
            raise NotFound("off")

    async def login(self, password: Any, address: str) -> str:
        if password != "word":
            raise WrongPassword
        self.sessions.add("new")
        return "new"

    async def session(self, token: str | None, *, use: bool = True) -> int:
        self.uses.append(use)
        if token not in self.sessions:
            raise NotLoggedIn
        return 1234

    async def logout(self, token: str | None, address: str) -> None:
        self.sessions.discard(token or "")


class Desk:
    """Endpoints that say what they got."""

    def __init__(self) -> None:
        self.asked: list[AdminRequest] = []
        self.go_on = asyncio.Event()
        self.began = asyncio.Event()
        self.done = asyncio.Event()
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = asyncio.Event()

    def routes(self) -> list[AdminRoute]:
        return [
            AdminRoute("GET", "/things", self.echo("list")),
            AdminRoute("POST", "/things", self.echo("make")),
            AdminRoute("GET", "/things/{id}", self.echo("thing")),
            AdminRoute("PATCH", "/things/{id}", self.echo("change")),
            AdminRoute("GET", "/things/{id}/parts", self.echo("parts")),
            AdminRoute("POST", "/slow", self.slow),
            AdminRoute("GET", "/broken", self.broken),
            AdminRoute("GET", "/odd", self.odd),
            AdminRoute("GET", "/stream", stream=self.stream),
        ]

    def echo(self, name: str) -> Any:
        async def answer(asked: AdminRequest) -> dict[str, Any]:
            self.asked.append(asked)
            return {"route": name, **asked.parameters, "q": dict(asked.query)}

        return answer

    async def slow(self, asked: AdminRequest) -> dict[str, Any]:
        self.began.set()
        await self.go_on.wait()
        self.done.set()
        return {}

    async def odd(self, asked: AdminRequest) -> dict[str, Any]:
        return ODD

    async def broken(self, asked: AdminRequest) -> None:
        raise RuntimeError("a secret")

    async def stream(self, asked: AdminRequest) -> AsyncIterator[Any]:
        try:
            while (event := await self.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.closed.set()


class World:
    def __init__(self, door: AdminDoor, auth: Auth, desk: Desk, http: httpx.AsyncClient) -> None:
        self.door, self.auth, self.desk, self.http = door, auth, desk, http

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(f"/admin/api{path}", headers=HEADERS)


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[World]:
    auth, desk = Auth(), Desk()
    door = AdminDoor(auth, desk.routes(), **options)
    async with (
        running(admin=door) as node,
        httpx.AsyncClient(base_url=node.url, timeout=30) as http,
    ):
        try:
            yield World(door, auth, desk, http)
        finally:
            desk.go_on.set()
            await door.close(5)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/things", {"route": "list"}),
        ("/things/org/model.1", {"route": "thing", "id": "org/model.1"}),
        ("/things/a%2Fb%20c", {"route": "thing", "id": "a/b c"}),
        ("/things/a%0Ab", {"route": "thing", "id": "a\nb"}),
        ("/things/a/parts", {"route": "parts", "id": "a"}),
        ("/things/a/parts/parts", {"route": "parts", "id": "a/parts"}),
        ("/things/parts", {"route": "thing", "id": "parts"}),
    ],
)
async def test_the_most_literal_route_answers(path: str, expected: dict[str, str]) -> None:
    async with served() as world:
        assert (await world.get(path)).json() == expected | {"q": {}}


async def test_what_there_is_not_is_404_and_405() -> None:
    async with served() as world:
        assert (await world.get("/nothing")).status_code == 404
        assert (await world.get("/things/")).status_code == 404
        answer = await world.http.delete("/admin/api/things/a", headers=HEADERS)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, PATCH")


async def test_query_and_body_arrive() -> None:
    async with served() as world:
        assert (await world.get("/things?a=1&a=2&b=%C3%BC")).json()["q"] == {"a": "1", "b": "ü"}
        await world.http.post("/admin/api/things", headers=HEADERS, json={"x": [1]})
        assert world.desk.asked[-1].document == {"x": [1]}
        await world.http.post("/admin/api/things", headers=HEADERS)
        assert world.desk.asked[-1].document == {}
        assert (await world.get("/things?a=%ff")).status_code in (200, 400)


async def test_a_bug_tells_nothing() -> None:
    async with served() as world:
        answer = await world.get("/broken")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in answer.text
        assert answer.headers["cache-control"] == "no-store"


async def test_what_others_said_is_shown_however_odd() -> None:
    async with served() as world:
        assert json.loads((await world.get("/odd")).content) == ODD
        async with world.http.stream("GET", "/admin/api/stream", headers=HEADERS) as stream:
            world.desk.events.put_nowait(ODD)
            world.desk.events.put_nowait(None)
            lines = [line async for line in stream.aiter_lines() if line.startswith("data")]
        assert json.loads(lines[0].removeprefix("data: ")) == ODD


@pytest.mark.parametrize(
    "path",
    [
        "/%61dmin/api/things",
        "/admin%2fapi/things",
        "//admin/api/things",
        "/x/../admin/api/things",
        "/v1/../admin/api/things",
        "/ADMIN/api/things",
    ],
)
async def test_a_path_that_a_proxy_may_not_know_leads_nowhere(path: str) -> None:
    auth, desk = Auth(), Desk()
    async with running(admin=AdminDoor(auth, desk.routes())) as node:
        headers = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
        answer = await node.raw(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n".encode()
        )
    assert not desk.asked, answer


async def test_where_it_is_off_pages_are_too() -> None:
    async with served() as world:
        assert (await world.http.get("/admin")).status_code == 200, "the next in line answers"
        world.auth.open = False
        for path in ("/admin", "/admin/", "/admin/x", "/admin/api", "/admin/api/session"):
            assert (await world.http.get(path, headers=HEADERS)).status_code == 404
        assert (await world.http.get("/administration")).status_code == 200


async def test_an_action_goes_on_when_its_page_is_closed() -> None:
    async with served() as world:
        asked = asyncio.create_task(world.http.post("/admin/api/slow", headers=HEADERS))
        await wait(world.desk.began)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await asyncio.sleep(0.05)
        world.desk.go_on.set()
        await wait(world.desk.done)


async def test_an_action_that_takes_long_is_pending_and_there_are_only_so_many() -> None:
    async with served(answer_timeout_s=0.01) as world:
        codes = []
        for _ in range(17):
            answer = await world.http.post("/admin/api/slow", headers=HEADERS)
            codes.append(answer.status_code)
        assert codes == [425] * 16 + [429]


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    auth, desk = Auth(), Desk()
    door = AdminDoor(auth, desk.routes(), body_timeout_s=0.05)
    async with running(admin=door) as node:
        answer = await node.raw(
            b"POST /admin/api/things HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            b"Cookie: __Host-nodestr=good\r\nSec-Fetch-Site: same-origin\r\n"
            b"Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
        )
        assert parts(answer)[0] == 408
        for head in (b"", b"Host: \r\n", b"Host: a b\r\n", b"Host: [::1\r\n", b"Host: x:y\r\n"):
            answer = await node.raw(
                b"GET /admin/api/session HTTP/1.1\r\nConnection: close\r\n" + head + b"\r\n"
            )
            assert parts(answer)[0] in (400, 403), head


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("node.example", "https://node.example", 200),
        ("NODE.example:443", "https://node.example", 200),
        ("127.0.0.1:8080", "https://node.example", 200),  # a proxy that writes its own Host
        ("node.example:8443", "https://node.example:8443", 200),
        ("[::1]:8080", "http://[::1]:8080", 200),
        ("localhost", "http://localhost", 200),
        ("node.example", "https://node.example.evil.example", 403),
        ("node.example", "https://other.example", 403),
        ("node.example", "https://node.example:8443", 403),
        ("localhost:8080", "http://localhost:3000", 403),
        ("xnode.example", "https://xnode.example", 403),
        ("localhost.evil.example", "http://localhost.evil.example", 403),
        ("node.example", "file://", 403),
        ("node.example", "data:text/html,x", 403),
    ],
)
async def test_who_may_change_something(host: str, origin: str, status: int) -> None:
    async with served(origins=lambda: ["https://node.example"]) as world:
        headers = {"Cookie": HEADERS["Cookie"], "Host": host, "Origin": origin}
        answer = await world.http.post("/admin/api/things", headers=headers)
        assert answer.status_code == status
        headers["Sec-Fetch-Site"] = "cross-site"
        answer = await world.http.post("/admin/api/things", headers=headers)
        assert answer.status_code == 403


# Streams


@asynccontextmanager
async def streaming(world: World) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[str]]]:
    async with world.http.stream("GET", "/admin/api/stream", headers=HEADERS) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        assert await anext(lines) == ": "
        yield answer, lines


async def rest(lines: AsyncIterator[str]) -> list[str]:
    async with asyncio.timeout(20):
        return [line async for line in lines if line]


async def test_events_arrive_as_they_come_and_the_end_too() -> None:
    async with served() as world, streaming(world) as (_, lines):
        assert await anext(lines) == ""
        world.desk.events.put_nowait({"n": 1})
        assert json.loads((await anext(lines)).removeprefix("data: ")) == {"n": 1}
        world.desk.events.put_nowait(None)
        assert await rest(lines) == []
        await wait(world.desk.closed)


@pytest.mark.parametrize(
    ("error", "code"),
    [(InvalidValue("no"), "invalid_value"), (RuntimeError("x"), "internal_error")],
)
async def test_a_stream_that_fails_says_so(error: Exception, code: str) -> None:
    async with served() as world, streaming(world) as (_, lines):
        world.desk.events.put_nowait(error)
        event, data = await rest(lines)
        assert event == "event: error"
        assert json.loads(data.removeprefix("data: "))["error"]["code"] == code


async def test_a_stream_ends_at_logout_but_not_those_of_others() -> None:
    async with served() as world:
        world.auth.sessions.add("other")
        async with streaming(world) as (_, lines):
            headers = HEADERS | {"Cookie": "__Host-nodestr=other"}
            await world.http.post("/admin/api/logout", headers=headers)
            world.desk.events.put_nowait(1)
            assert (await anext(lines), await anext(lines)) == ("", "data: 1")
            await world.http.post("/admin/api/logout", headers=HEADERS)
            assert await rest(lines) == []
            await wait(world.desk.closed)


async def test_a_stream_ends_with_its_session_and_does_not_make_it_last() -> None:
    async with served(streams=StreamTerms(keepalive_s=0.01)) as world, streaming(world) as (_, ls):
        while await anext(ls) != ": keep-alive":
            pass
        world.auth.sessions.clear()
        assert set(await rest(ls)) <= {": keep-alive"}
        assert world.auth.uses[0] is True
        assert not any(world.auth.uses[1:])


async def test_streams_end_with_the_node() -> None:
    async with served() as world, streaming(world) as (_, lines):
        world.door.end_streams()
        assert await rest(lines) == []
        await wait(world.desk.closed)
        assert (await world.get("/stream")).json()["error"]["code"] == "server_draining"
        assert (await world.get("/session")).status_code == 200


async def test_a_page_that_leaves_ends_its_stream() -> None:
    async with served() as world:
        async with streaming(world):
            pass
        await wait(world.desk.closed)


async def test_a_page_that_does_not_read_is_let_go() -> None:
    async with served(streams=StreamTerms(write_timeout_s=0.05)) as world:
        host, port = world.http.base_url.host, world.http.base_url.port
        reader, writer = await asyncio.open_connection(host, port, limit=1024)
        writer.write(
            b"GET /admin/api/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Cookie: __Host-nodestr=good\r\n\r\n"
        )
        await reader.readline()
        for _ in range(100):
            world.desk.events.put_nowait("x" * 1_000_000)
        await wait(world.desk.closed)
        writer.close()


async def test_there_are_only_so_many_streams() -> None:
    async with served(streams=StreamTerms(max_streams=1)) as world:
        async with streaming(world):
            assert (await world.get("/stream")).status_code == 429
        await wait(world.desk.closed)
        async with asyncio.timeout(20):
            while True:
                world.desk.events.put_nowait(None)
                if (await world.get("/stream")).status_code == 200:
                    break
                await asyncio.sleep(0.01)
