"""``/admin/api/…`` over HTTP: who may ask, matching, JSON in and out, server-sent events.

    GET/POST … ─▶ on? ─▶ Host, Origin ─▶ login | session ─▶ route ─▶ body ─▶ answer | events

A session travels in a cookie that no other site can set or send. Whatever changes anything must
come from a page of this node as well, which the browser says (Origin, Sec-Fetch-Site). The name in
Host must be one of this node's, or a number: else a foreign name that was made to lead here would
make a foreign page one of ours (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import orjson
import structlog
from aiohttp import web

from node.admin.exchange import AdminRequest, AdminRoute
from node.errors import (
    InternalError,
    InvalidJson,
    InvalidValue,
    MethodNotAllowed,
    NodeError,
    NotFound,
    Pending,
    RateLimitExceeded,
    UnsupportedMedia,
)
from node.transport.http.admin_events import RETRY_S, Streams, StreamTerms, dump
from node.transport.http.body import BodyBudget, BodyLimits, read_body
from node.transport.http.encode import common_headers, error_response
from node.transport.http.same_site import SAFE, SameSite

log = structlog.get_logger()

COOKIE = "__Host-nodestr"
PREFIX = "/admin/api"
MAX_BODY_BYTES = 256 << 10
BODY_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 60.0
"""How long the operator waits for an action; it goes on without him."""
MAX_ACTIONS = 16
"""Actions under way at the same time."""
_NO_STORE = {"cache-control": "no-store"}
_JSON = re.compile(r"application/json(?:\s*;\s*charset=\"?utf-8\"?)?", re.IGNORECASE)
_PARAMETER = re.compile(r"\{(\w+)\}")


class Auth(Protocol):
    """Who may ask; see ``node.admin.auth``."""

    def require_open(self) -> None: ...

    async def login(self, password: Any, address: str) -> str: ...

    async def session(self, token: str | None, *, use: bool = True) -> int: ...

    async def logout(self, token: str | None, address: str) -> None: ...


class AdminDoor:
    """Answers every request below ``/admin/api``.

    Args:
        origins: gives the base URLs under which the node is known, see ``SameSite``.
    """

    def __init__(
        self,
        auth: Auth,
        routes: Iterable[AdminRoute] = (),
        *,
        origins: Callable[[], Iterable[str]] = tuple,
        streams: StreamTerms | None = None,
        body_timeout_s: float = BODY_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._auth = auth
        self._routes = _Routes(routes)
        self._site = SameSite(origins)
        self._streams = Streams(streams or StreamTerms())
        self._limits = BodyLimits(MAX_BODY_BYTES, MAX_BODY_BYTES, body_timeout_s)
        self._answer_timeout_s = answer_timeout_s
        self._actions: set[asyncio.Task[Any]] = set()

    def serve(self, routes: Iterable[AdminRoute]) -> None:
        """These endpoints from now on. Raises ValueError when two are the same."""
        self._routes = _Routes(routes)

    async def handle(
        self, request: web.BaseRequest, id_: str, peer: str, budget: BodyBudget
    ) -> web.StreamResponse | None:
        """The answer; None for a path that is of a page, which anybody may have."""
        path = request.path
        try:
            self._auth.require_open()
            if path != PREFIX and not path.startswith(PREFIX + "/"):
                return None
            self._site.check(request)
            return await self._answer(request, path.removeprefix(PREFIX), id_, peer, budget)
        except NodeError as error:
            return error_response(error, id_, more=_NO_STORE)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("admin_request_failed", request_id=id_, path=path)
            return error_response(InternalError(), id_, more=_NO_STORE)

    def end_streams(self) -> None:
        """Let the pages go; they come back when the node does."""
        self._streams.end()

    async def close(self, timeout_s: float) -> None:
        """End the streams and wait for the actions that are under way."""
        self.end_streams()
        if self._actions:
            await asyncio.wait(set(self._actions), timeout=timeout_s)

    async def _answer(
        self, request: web.BaseRequest, path: str, id_: str, peer: str, budget: BodyBudget
    ) -> web.StreamResponse:
        token = _token(request)
        match (request.method, path):
            case ("POST", "/login"):
                document = await self._document(request, budget)
                token = await self._auth.login(document.get("password"), peer)
                return _with_cookie(_empty(id_), token)
            case ("POST", "/logout"):
                self._streams.end_of(token)
                await self._auth.logout(token, peer)
                return _with_cookie(_empty(id_), None)
            case ("GET", "/session"):
                return _json({"expires_at": await self._auth.session(token)}, id_)
        await self._auth.session(token)
        route, parameters = self._routes.find(request.method, path)
        asked = AdminRequest(parameters, _query(request), await self._document(request, budget))
        if route.stream is not None:
            lasts = partial(self._auth.session, token, use=False)
            return await self._streams.run(request, route.stream(asked), id_, token, lasts)
        assert route.answer is not None
        if request.method in SAFE:
            return _json(await route.answer(asked), id_)
        return _json(await self._act(route.answer(asked), f"{route.method} {route.path}"), id_)

    async def _act(self, action: Any, name: str) -> Any:
        """What changes something goes on though its page is closed."""
        if len(self._actions) >= MAX_ACTIONS:
            action.close()
            raise RateLimitExceeded("too many actions at once", retry_after_s=RETRY_S)
        task = asyncio.create_task(action, name=name)
        self._actions.add(task)
        task.add_done_callback(self._acted)
        done, _ = await asyncio.wait({task}, timeout=self._answer_timeout_s)
        if not done:
            raise Pending("this is still under way", retry_after_s=RETRY_S)
        return task.result()

    def _acted(self, task: asyncio.Task[Any]) -> None:
        self._actions.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            log.info("admin_action", action=task.get_name())
        elif isinstance(error, NodeError):
            log.info("admin_action_refused", action=task.get_name(), reason=str(error))
        else:
            log.error("admin_action_failed", action=task.get_name(), exc_info=error)

    async def _document(self, request: web.BaseRequest, budget: BodyBudget) -> dict[str, Any]:
        """The JSON object of the body; empty without one."""
        with budget.share() as share:
            body = await read_body(request, self._limits, share)
            if not body:
                return {}
            if not _JSON.fullmatch(request.headers.get("Content-Type", "").strip()):
                raise UnsupportedMedia(
                    "the body must be JSON: send the header Content-Type: application/json",
                    param="content-type",
                )
            try:
                document = orjson.loads(body)
            except orjson.JSONDecodeError:
                raise InvalidJson from None
        if not isinstance(document, dict):
            raise InvalidJson("the request body must be a JSON object")
        return document


class _Routes:
    """Finds the route of a path; of several the one with most literal text."""

    def __init__(self, routes: Iterable[AdminRoute]) -> None:
        table = [(_pattern(route.path), route) for route in routes]
        table.sort(key=lambda item: len(_PARAMETER.sub("", item[1].path)), reverse=True)
        names = [(route.method, route.path) for _, route in table]
        if len(set(names)) != len(names):
            raise ValueError("two admin routes are the same")
        self._table = table

    def find(self, method: str, path: str) -> tuple[AdminRoute, dict[str, str]]:
        """(route, parameters). Raises NotFound, MethodNotAllowed."""
        allowed = set()
        for pattern, route in self._table:
            found = pattern.fullmatch(path)
            if found is None:
                continue
            if route.method == method:
                return route, found.groupdict()
            allowed.add(route.method)
        if allowed:
            raise MethodNotAllowed(allow=allowed)
        raise NotFound


def _pattern(path: str) -> re.Pattern[str]:
    """``/models/{id}``: the parameter takes slashes as well."""
    parts = _PARAMETER.split(path)
    text = "".join(
        f"(?P<{part}>.+)" if at % 2 else re.escape(part) for at, part in enumerate(parts)
    )
    return re.compile(text, re.DOTALL)


def _token(request: web.BaseRequest) -> str | None:
    try:
        return request.cookies.get(COOKIE)
    except ValueError:
        return None


def _query(request: web.BaseRequest) -> dict[str, str]:
    """The first value of each name. Raises InvalidValue."""
    values: dict[str, str] = {}
    for name, value in request.query.items():
        values.setdefault(name, value)
    try:
        request.path.encode()
        "".join([*values, *values.values()]).encode()
    except UnicodeEncodeError:
        raise InvalidValue("the request's path is not UTF-8") from None
    return values


def _json(document: Any, id_: str) -> web.Response:
    headers = common_headers(id_) | {"content-type": "application/json"} | _NO_STORE
    return web.Response(status=200, body=dump(document), headers=headers)


def _empty(id_: str) -> web.Response:
    return web.Response(status=204, headers=common_headers(id_) | _NO_STORE)


def _with_cookie(response: web.Response, token: str | None) -> web.Response:
    """Written by hand: a name with ``__Host-`` needs all of these, and no domain."""
    value = f"{COOKIE}={token or ''}; Path=/; Secure; HttpOnly; SameSite=Strict"
    response.headers["set-cookie"] = value if token else f"{value}; Max-Age=0"
    return response
