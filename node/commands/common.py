"""What the commands of ``nodestr`` share."""

from __future__ import annotations

from collections.abc import Iterator
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


class Failure(Exception):
    """Ends the command with exit code 1 and this one line."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Problems end the command with one line each on standard error, not with a traceback."""
    from node.settings_types import SettingsError

    try:
        yield
    except SettingsError as error:
        for problem in error.problems:
            typer.echo(f"nodestr: {problem}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    except (Failure, OSError) as error:
        typer.echo(f"nodestr: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_FAILED) from None


def load(config: Path) -> Settings:
    """The settings, with logging set up as they say."""
    from node import settings
    from node.ops import logging

    loaded = settings.load(config)
    logging.configure(loaded.log.level, loaded.log.format)
    return loaded
