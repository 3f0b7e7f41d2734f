"""``nodestr admin``: who may open the operator's pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from node.commands.common import Failure, exit_codes, load

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The operator's pages at /admin: set the password that opens them.",
)


def register(parent: typer.Typer) -> None:
    """Add the commands to ``parent``."""
    parent.add_typer(app, name="admin")


@app.callback()
def _group() -> None:
    """The operator's pages at /admin: set the password that opens them."""


@app.command(
    short_help="Set a new password.",
    epilog="""\b
Examples:
  nodestr admin password --config /etc/nodestr/node.toml
  nodestr admin password --config node.toml --generate
  pass show nodestr | nodestr admin password --config node.toml --from -
  nodestr admin password --generate --hash-only | systemd-creds encrypt --name=admin - admin.cred
""",
)
def password(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", envvar="NODESTR_CONFIG", metavar="FILE", help="The node's TOML file."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Take the first line of FILE; - is standard input."
        ),
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Make one, and show it this once.")
    ] = False,
    hash_only: Annotated[
        bool,
        typer.Option("--hash-only", help="Write nothing; print the hash, to be kept elsewhere."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Set the password of the operator's pages; asks for it unless told where it is.

    Only its argon2id hash is kept, where admin.password_hash says (by default admin.hash in the
    data directory, mode 0600). A running node takes it at once, and everybody is logged out.
    """
    with exit_codes():
        from node.admin.password import WeakPassword, hash_password
        from node.ops.operator_password import new_password, read_password, write_hash

        if generate and source is not None:
            raise typer.BadParameter("--generate and --from exclude each other")
        if hash_only and as_json:
            raise typer.BadParameter("--hash-only prints the hash and nothing else")
        file = None if hash_only else _file(config)
        made = new_password() if generate else None
        try:
            if made is not None:
                chosen = made
            elif source is not None or not sys.stdin.isatty():
                chosen = read_password(source or Path("-"))
            else:
                chosen = typer.prompt("New password", hide_input=True, confirmation_prompt=True)
            hashed = hash_password(chosen)
        except (WeakPassword, ValueError) as error:
            raise Failure(str(error)) from None
        if file is None:
            typer.echo(hashed)
            if made is not None:
                typer.echo(f"password {made}", err=True)
            return
        write_hash(file, hashed)
        if as_json:
            typer.echo(json.dumps({"file": str(file), "password": made}, indent=2))
            return
        typer.echo(f"wrote    {file}")
        if made is not None:
            typer.echo(f"password {made}   (shown this once)")


def _file(config: Path | None) -> Path:
    """Where the hash goes."""
    if config is None:
        raise typer.BadParameter("--config is missing: which node is it?")
    reference = load(config).admin_hash
    if reference.scheme != "file":
        raise Failure(
            f"admin.password_hash is {reference}, which is not a file: print the hash with"
            " --hash-only and put it there"
        )
    return Path(reference.name)
