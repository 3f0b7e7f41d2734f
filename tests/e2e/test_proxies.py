"""Promise: behind the sample nginx and Caddy, run for real, a node gets headers of 64 KiB, bodies
of 20 MB and its clients' addresses, streams leave at once, the operator's pages stay inside."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node.demo.process import free_port
from tests.e2e.conftest import BODY, OpenWorld

CONFIG = Path(__file__).parents[2] / "config"
NAME = "ai.example.com"
TOKEN = "cashuB" + "x" * 60_000
"""Longer than any real one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy listens, what it leads to, and its files."""

    port: int
    backend: int
    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "cert.pem"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"


def nginx(place: Place) -> list[str]:
    """The sample, on another port, with another certificate."""
    text = (CONFIG / "nginx.conf").read_text()
    text = re.sub(r"server \{\s+listen 80;.*?\n\}\n", "", text, flags=re.DOTALL)
    text = re.sub(r"\n\s+listen \[::\]:443.*", "", text)
    text = text.replace("listen 443 ", f"listen 127.0.0.1:{place.port} ")
    text = text.replace("127.0.0.1:8080;", f"127.0.0.1:{place.backend};")
    text = re.sub(r"(ssl_certificate ).*;", rf"\1 {place.certificate};", text)
    text = re.sub(r"(ssl_certificate_key ).*;", rf"\1 {place.key};", text)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "\n".join(f"{kind}_temp_path {place.directory}/{kind};" for kind in kinds)
    file = place.directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    file.write_text(
        f"{user}\ndaemon off;\nworker_processes 1;\npid {place.directory}/pid;\n"
        f"error_log {place.directory}/log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}\n{text}\n}}\n"
    )
    return ["nginx", "-c", str(file), "-e", str(place.directory / "log")]


def caddy(place: Place) -> list[str]:
    """The sample, on another port, with another certificate."""
    text = (CONFIG / "Caddyfile").read_text()
    text = text.replace("reverse_proxy 127.0.0.1:8080", f"reverse_proxy 127.0.0.1:{place.backend}")
    text = text.replace(
        f"\n{NAME} {{\n",
        f"\nhttps://{NAME}:{place.port} {{\nbind 127.0.0.1\ntls {place.certificate} {place.key}\n",
    )
    file = place.directory / "Caddyfile"
    file.write_text(
        "{\nadmin off\nauto_https disable_redirects\nskip_install_trust\n"
        f"storage file_system {place.directory}/storage\n}}\n{text}"
    )
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)]


def write_certificate(place: Place) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    names = [x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    place.certificate.write_bytes(certificate.public_bytes(pem))
    place.key.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


Command = Callable[[Place], list[str]]
PROXIES = [
    pytest.param(
        command,
        id=command.__name__,
        marks=pytest.mark.skipif(not shutil.which(command.__name__), reason="not installed"),
    )
    for command in (nginx, caddy)
]


@asynccontextmanager
async def proxied(
    command: Command, backend: int, directory: Path
) -> AsyncIterator[Callable[..., httpx.AsyncClient]]:
    """A proxy in front of a port of loopback; gives what makes clients of it, by their address."""
    directory.mkdir()
    place = Place(free_port(), backend, directory)
    write_certificate(place)
    trust = ssl.create_default_context(cafile=str(place.certificate))

    def client(address: str = "127.0.0.1") -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{place.port}",
            headers={"Host": NAME},
            transport=_Named(verify=trust, local_address=address),
            timeout=60,
        )

    process = await asyncio.create_subprocess_exec(
        *command(place),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory)},
    )
    try:
        async with asyncio.timeout(60), client() as http:
            while True:
                assert process.returncode is None
                try:
                    await http.get("/health/live")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
        yield client
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 60)


class _Named(httpx.AsyncHTTPTransport):
    """Asks for the sample's name, whatever the URL says."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = NAME
        return await super().handle_async_request(request)


@pytest.mark.parametrize("command", PROXIES)
async def test_everything_is_passed_on_as_it_is(command: Command, tmp_path: Path) -> None:
    seen: list[web.Request] = []
    proceed = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        size = sum([len(chunk) async for chunk in request.content.iter_any()])
        return web.json_response({"size": size}, headers={"X-Cashu": TOKEN})

    async def stream(_: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(_)
        await response.write(b"data: 1\n\n")
        await proceed.wait()
        await response.write(b"data: 2\n\n")
        return response

    app = web.Application()
    app.router.add_get("/stream", stream)
    app.router.add_route("*", "/{path:.*}", answer)
    server = TestServer(app)
    await server.start_server(max_field_size=1 << 16)
    try:
        assert server.port is not None
        async with proxied(command, server.port, tmp_path / "proxy") as client, client() as http:
            async with http.stream("GET", "/stream") as streamed:
                pieces = streamed.aiter_raw()
                # the second is not even sent before the first is here
                assert await anext(pieces) == b"data: 1\n\n"
                proceed.set()
                assert [piece async for piece in pieces] == [b"data: 2\n\n"]

            body = bytes(20_000_000)
            sent = await http.post("/v1/chat/completions", content=body, headers={"X-Cashu": TOKEN})
            assert (sent.status_code, sent.json()) == (200, {"size": len(body)})
            assert sent.headers["x-cashu"] == TOKEN
            assert seen[-1].headers["x-cashu"] == TOKEN
            assert seen[-1].path == "/v1/chat/completions"
            assert seen[-1].headers["host"] == NAME

            await http.get("/a", headers={"X-Forwarded-For": "203.0.113.9"})
            assert seen[-1].headers.getall("x-forwarded-for") == ["127.0.0.1"]

            asked = len(seen)
            for path in ("/admin", "/admin/", "/admin/api/session", "/admin/static/a.js"):
                assert (await http.get(path)).status_code == 404, path
            assert len(seen) == asked
    finally:
        await server.close()


@pytest.mark.parametrize("command", PROXIES)
async def test_a_node_tells_its_clients_apart(
    command: Command, open_world: OpenWorld, tmp_path: Path
) -> None:
    world = await open_world(
        environment={
            "NODESTR_LIMITS__REQUESTS_PER_MINUTE": "3",
            "NODESTR_HTTP__TRUSTED_PROXIES": '["127.0.0.1/32"]',
        }
    )
    async with (
        proxied(command, world.node.port, tmp_path / "proxy") as client,
        client("127.0.0.2") as one,
        client("127.0.0.3") as other,
    ):
        claims = {"X-Forwarded-For": "203.0.113.9"}
        answers = [await one.get("/v1/models", headers=claims) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert (await other.get("/v1/models")).status_code == 200

        bad = await other.post("/v1/chat/completions", json=BODY, headers={"X-Cashu": TOKEN})
        assert (bad.status_code, bad.json()["error"]["code"]) == (400, "token_malformed")
        token = await world.purse.fund(200)
        paid = await other.post(
            "/v1/chat/completions", json={**BODY, "stream": True}, headers={"X-Cashu": token}
        )
        assert paid.status_code == 200, paid.text
        assert paid.text.rstrip().endswith("data: [DONE]")
        assert (await other.get("/metrics")).status_code == 404
    await world.quiet_books()
