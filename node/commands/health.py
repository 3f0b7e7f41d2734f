"""``nodestr health``: is the node up? For containers, monitors and scripts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.commands.common import EXIT_FAILED, ConfigOption, Failure, exit_codes

if TYPE_CHECKING:
    from node.settings import Settings

MAX_BYTES = 1 << 20
"""Longest answer that is read."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(
        short_help="Ask the running node whether it is ready.",
        epilog="""\b
Examples:
  nodestr health --config /etc/nodestr/node.toml
  nodestr health --live --config node.toml || systemctl restart nodestr
  nodestr health --json --url http://127.0.0.1:8080 | jq .checks
""",
    )(health)


def health(
    config: ConfigOption,
    live: Annotated[
        bool, typer.Option("--live", help="Only whether it is alive, not whether it can serve.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where it listens; by default http.host and http.port."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=300.0, help="Deadline of the question.")
    ] = 4.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what it answered.")] = False,
) -> None:
    """Ask the running node for /health/ready, and print what is not as it should be.

    Exit code 0: it is ready. 1: it is not, or nobody answers. Needs nothing but this program, so
    it is the health check of a container.
    """
    with exit_codes():
        from node import settings

        address = (url or _address(settings.load(config))).rstrip("/")
        status, document = _ask(f"{address}/health/{'live' if live else 'ready'}", timeout)
        if as_json:
            typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        else:
            word = {"ok": "ok  "}
            for name, result in document.get("checks", {}).items():
                typer.echo(f"{word.get(result, 'FAIL')}  {name}: {result}")
            typer.echo("ready" if status == 200 and not live else str(document.get("status")))
    if status != 200:
        raise typer.Exit(EXIT_FAILED)


def _address(settings: Settings) -> str:
    host = settings.http.host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http.port}"


def _ask(url: str, timeout_s: float) -> tuple[int, dict[str, Any]]:
    """(status, document) of a health page. Raises Failure."""
    from http.client import HTTPConnection, HTTPException
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Failure(f"{url} is no URL: write http://host:port") from None
    if parts.scheme != "http" or not parts.hostname:
        raise Failure(f"{url}: write http://host:port, where the node itself listens")
    connection = HTTPConnection(parts.hostname, port, timeout=timeout_s)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        document = json.loads(answer.read(MAX_BYTES))
    except (OSError, HTTPException):
        raise Failure(
            f"nobody answers at {parts.netloc}: start the node (nodestr serve --config …, or"
            " systemctl start nodestr); its log says why it ended"
        ) from None
    except ValueError:
        document = None
    finally:
        connection.close()
    if not isinstance(document, dict) or "status" not in document:
        raise Failure(f"something that is no node answers at {parts.netloc}: check http.port")
    return answer.status, document
