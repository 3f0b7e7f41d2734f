"""``nodestr completion``: the script that makes a shell complete this program's commands."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

PROGRAM = "nodestr"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(
        short_help="Print the script with which a shell completes commands.",
        epilog="""\b
Examples:
  source <(nodestr completion bash)
  nodestr completion bash > /etc/bash_completion.d/nodestr
  nodestr completion zsh > ~/.zfunc/_nodestr
  nodestr completion fish > ~/.config/fish/completions/nodestr.fish
""",
    )(completion)


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(help="Which shell.", show_default=False)
    ],
) -> None:
    """Print a script that completes commands and options of nodestr in a shell.

    `nodestr --install-completion` writes it where the shell that runs it looks.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    variable = f"_{PROGRAM.upper()}_COMPLETE"
    typer.echo(get_completion_script(prog_name=PROGRAM, complete_var=variable, shell=shell))
