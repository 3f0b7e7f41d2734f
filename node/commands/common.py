"""What the commands of ``nodestr`` share."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from node.settings import Settings

EXIT_FAILED = 1
EXIT_USAGE = 2

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        envvar="NODESTR_CONFIG",
        metavar="FILE",
        help="The node's TOML file; config/node.example.toml explains every key.",
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]


class Failure(Exception):
    """Ends the command with exit code 1 and this one line."""


_ADVICE = {
    errno.EADDRINUSE: "another program listens there: stop it (ss -ltnp shows which), or change"
    " http.port",
    errno.EADDRNOTAVAIL: "this machine has no such address: correct http.host",
    errno.EACCES: "run it as the owner of that, or as root",
    errno.ENOENT: "make it first, or correct the path",
    errno.ENOSPC: "make room on that disk",
    errno.EROFS: "that disk cannot be written: name another place",
}
"""What to do about an error of the system."""


def _remedy(problem: str) -> str:
    """What to do about a file of the configuration that is not there."""
    if not problem.endswith("cannot be read: No such file or directory"):
        return ""
    if problem.startswith("node.secret_key: "):
        return "; nodestr init makes one, and so does: nodestr keys generate --out FILE"
    return "" if ": file:" in problem else "; nodestr init makes one"


@contextmanager
def exit_codes() -> Iterator[None]:
    """Problems end the command with one line each on standard error, not with a traceback."""
    from node.settings_types import SettingsError

    try:
        yield
    except SettingsError as error:
        for problem in error.problems:
            typer.echo(f"nodestr: {problem}{_remedy(problem)}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    except Failure as error:
        typer.echo(f"nodestr: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        typer.echo(f"nodestr: {error}{f'; {advice}' if advice else ''}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_FAILED) from None


def emit(document: Mapping[str, object]) -> None:
    """Print ``document`` as ``--json`` asks for it."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def load(config: Path) -> Settings:
    """The settings, with logging set up as they say."""
    from node import settings
    from node.ops import logging

    loaded = settings.load(config)
    logging.configure(loaded.log.level, loaded.log.format)
    return loaded
