"""Promise: the web pages are served whole, cacheable and locked down, and nothing else is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from node.transport.http.site import CONTENT_TYPES, Site
from tests.fakes.http_node import Node, parts, running

WEB = Path(__file__).parents[2] / "node" / "web"
PAGES = ("/", "/providers", "/docs")
POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none';"
    " form-action 'self'"
)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running(site=Site()) as node:
        yield node


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def files(*folders: str) -> dict[str, Path]:
    """Where each file of the folders is to be found."""
    at = {}
    for folder in folders:
        for file in (WEB / folder).rglob("*"):
            name = file.relative_to(WEB / folder).as_posix()
            if file.is_file() and name != "index.html":
                prefix = {"shared": "/static", "admin": "/admin/static"}.get(
                    folder, f"/static/{folder}"
                )
                at[f"{prefix}/{name}"] = file
    return at


@pytest.mark.parametrize("path", [*PAGES, "/static/base.css", "/static/dom.js", "/favicon.ico"])
async def test_what_is_served_is_locked_down(
    node: Node, client: aiohttp.ClientSession, path: str
) -> None:
    async with client.get(node.url + path) as response:
        assert response.status == 200
        body = await response.read()
        headers = response.headers
    assert headers["Content-Security-Policy"] == POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    assert "camera=()" in headers["Permissions-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-cache"
    assert "Access-Control-Allow-Origin" not in headers
    assert "Set-Cookie" not in headers
    suffix = {"/favicon.ico": ".svg"}.get(path) or Path(path).suffix or ".html"
    assert headers["Content-Type"] == CONTENT_TYPES[suffix]
    assert int(headers["Content-Length"]) == len(body) > 0
    assert headers["X-Request-Id"]
    assert node.dispatcher.requests == []


async def test_every_file_of_the_package_is_served_as_it_is(client: aiohttp.ClientSession) -> None:
    site = Site(admin=True)
    wanted = files("shared", "home", "providers", "docs", "admin")
    assert site.paths == {*wanted, *PAGES, "/admin", "/favicon.ico"}
    async with running(site=site) as node:
        for path, file in wanted.items():
            async with client.get(node.url + path) as response:
                assert await response.read() == file.read_bytes()
                assert response.headers["Content-Type"] == CONTENT_TYPES[file.suffix]


@pytest.mark.parametrize(
    ("tag", "status"),
    [
        ("{tag}", 304),
        ("W/{tag}", 304),
        ('"other", {tag}', 304),
        ("*", 304),
        ('"other"', 200),
        ("{bare}", 200),
        ("", 200),
    ],
)
async def test_what_a_browser_has_is_not_sent_again(
    node: Node, client: aiohttp.ClientSession, tag: str, status: int
) -> None:
    async with client.get(node.url + "/docs") as response:
        etag = response.headers["ETag"]
        body = await response.read()
    assert re.fullmatch('"[0-9a-f]{24}"', etag)
    given = tag.format(tag=etag, bare=etag.strip('"'))
    async with client.get(node.url + "/docs", headers={"If-None-Match": given}) as response:
        assert response.status == status
        assert response.headers["ETag"] == etag
        assert response.headers["Content-Security-Policy"] == POLICY
        assert await response.read() == (b"" if status == 304 else body)


async def test_head_is_get_without_the_body(node: Node, client: aiohttp.ClientSession) -> None:
    async with client.get(node.url + "/docs") as response:
        wanted = {name: response.headers[name] for name in ("Content-Length", "ETag")}
    async with client.head(node.url + "/docs") as response:
        assert response.status == 200
        assert {name: response.headers[name] for name in wanted} == wanted
        assert await response.read() == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_other_methods_are_refused(
    node: Node, client: aiohttp.ClientSession, method: str
) -> None:
    async with client.request(method, node.url + "/docs") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET, HEAD"
        assert (await response.json())["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "target",
    [
        "/static/../../pyproject.toml",
        "/static/%2e%2e/%2e%2e/pyproject.toml",
        "/static/..%2f..%2fpyproject.toml",
        "/static/....//....//etc/passwd",
        "/static//etc/passwd",
        "/static/%00",
        "/static/base.css%00.html",
        "/static/..\\..\\pyproject.toml",
        "/static/shared/base.css",
        "/static/home/index.html",
        "/static",
        "/static/",
        "/docs/../../../etc/passwd",
        "//providers",
        "/DOCS",
        "/docs/x",
        "/docs//",
        "/admin",
        "/admin/static/app.js",
        "/static/admin/index.html",
    ],
)
async def test_nothing_else_is_there(node: Node, target: str) -> None:
    request = f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = await node.raw(request.encode())
    status, headers, _ = parts(answer)
    # it goes on to the dispatcher like any path, or is no request at all
    assert "content-security-policy" not in headers
    assert (status == 200) == (len(node.dispatcher.requests) == 1)


async def test_a_slash_too_many_is_mended(node: Node, client: aiohttp.ClientSession) -> None:
    async with client.get(node.url + "/docs/?a=b", allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (308, "/docs")


async def test_what_is_off_is_not_there(client: aiohttp.ClientSession) -> None:
    assert Site(pages=False).paths == frozenset()
    only_admin = Site(pages=False, admin=True).paths
    assert only_admin == {*files("shared", "admin"), "/admin", "/favicon.ico"}
    async with running(site=Site(pages=False)) as node:
        async with client.get(node.url + "/docs") as response:
            assert "Content-Security-Policy" not in response.headers
        assert [request.path for request in node.dispatcher.requests] == ["/docs"]


def test_the_package_takes_every_file_along() -> None:
    project = tomllib.loads((WEB.parents[1] / "pyproject.toml").read_text())
    globs = project["tool"]["setuptools"]["package-data"]["node"]
    taken = {file for glob in globs for file in WEB.parent.glob(glob)}
    assert {file for file in WEB.rglob("*") if file.is_file()} <= taken


@pytest.mark.parametrize("page", sorted(p.relative_to(WEB).as_posix() for p in WEB.rglob("*.html")))
def test_a_page_has_nothing_inline_and_nothing_from_elsewhere(page: str) -> None:
    text = (WEB / page).read_text()
    assert text.startswith("<!doctype html>\n")
    assert '<html lang="en"' in text
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text, re.IGNORECASE)
    assert not re.search(r"<script(?![^>]*\ssrc=)", text)
    paths = Site(admin=True).paths
    for url in re.findall(r'\s(?:src|href)="([^"]*)"', text):
        if not url.startswith("#"):
            assert url in paths or url.startswith(("/v1/", "/openapi.json")), url


@pytest.mark.parametrize("script", sorted(p.relative_to(WEB).as_posix() for p in WEB.rglob("*.js")))
def test_a_script_makes_no_markup_of_text_and_imports_what_is_there(script: str) -> None:
    text = (WEB / script).read_text()
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    assert not re.search(unsafe, text)
    paths = Site(admin=True).paths
    folder, _, name = script.partition("/")
    prefix = {"shared": "/static/", "admin": "/admin/static/"}.get(folder, f"/static/{folder}/")
    at = prefix + name
    for imported in re.findall(r'(?m)^[^"\n]*\bfrom "([^"]+)";$', text):
        target = imported
        if imported.startswith("."):
            parts_ = at.split("/")[:-1]
            for step in imported.split("/"):
                parts_ = parts_[:-1] if step == ".." else parts_ if step == "." else [*parts_, step]
            target = "/".join(parts_)
        assert target in paths, imported
