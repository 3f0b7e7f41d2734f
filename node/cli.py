"""The ``nodestr`` command.

Nothing heavy is imported at the top: ``nodestr --help`` answers at once, and the environment is
read before any library that would change it.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import (
    admin,
    announce,
    ask,
    completion,
    doctor,
    export,
    gateway,
    health,
    init,
    mend,
    money,
    payout,
    providers,
    wallet,
)
from node.commands.common import (
    EXIT_FAILED,
    ConfigOption,
    Failure,
    JsonOption,
    emit,
    exit_codes,
    load,
)

if TYPE_CHECKING:
    from node.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="""nodestr sells AI inference for ecash and can be found and used without asking anyone.

A node stands in front of an OpenAI-compatible model server (vLLM, Ollama, OpenRouter …). It
announces its models and prices on Nostr relays, answers the OpenAI API over HTTP and the same
requests as encrypted Nostr messages, and is paid with Cashu tokens: per request, or from an
account that tokens fill.

\b
See it work, on this machine, with everything it needs:
  nodestr demo
Run one of your own:
  nodestr init                          (asks, checks every answer, writes node.toml and node.key)
  nodestr serve --config node.toml
  nodestr doctor --config node.toml     (says what is wrong, and how to mend it)
""",
)
keys_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make or show the node's Nostr key, which is its identity.",
)
app.add_typer(keys_app, name="keys")


@app.command(
    short_help="Run a node.",
    epilog="""\b
Examples:
  nodestr serve --config /etc/nodestr/node.toml
  NODESTR_HTTP__PORT=9000 NODESTR_LOG__LEVEL=debug nodestr serve --config node.toml
""",
)
def serve(config: ConfigOption) -> None:
    """Run a node until SIGTERM or Ctrl-C; running requests are finished first.

    SIGHUP reads the configuration again: models, prices, relays, limits and the log change at
    once, for the rest the log says what needs a restart.
    """
    with exit_codes():
        settings = load(config)
        settings.check_secrets()
        settings.keys()
        _serve(settings, config)


def _serve(settings: Settings, config: Path) -> None:
    # all that is imported and built until the node is ready stays, so there is nothing to collect:
    # 0.1 s; see ``node.app.serve``
    gc.disable()
    import structlog
    import uvloop

    from node import app as node_app
    from node import settings as node_settings
    from node.ops import sdnotify
    from node.settings_types import SettingsError

    def ready() -> None:
        sdnotify.ready()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sources = partial(node_settings.layers, config)
            runner.run(node_app.serve(settings, sources, ready=ready))
    except (SettingsError, OSError):
        raise
    except Exception:
        # Through the log, whose lines hold no secret, and not as Python would print it.
        structlog.get_logger().exception("node_failed")
        raise typer.Exit(EXIT_FAILED) from None


@app.command(
    "check-config",
    short_help="Load the configuration and print what is in effect.",
    epilog="""\b
Examples:
  nodestr check-config --config /etc/nodestr/node.toml
  NODESTR_HTTP__PORT=9000 nodestr check-config --config node.toml
""",
)
def check_config(config: ConfigOption) -> None:
    """Load the configuration as serve would, read every secret, print what is in effect.

    Secrets are shown as where they are kept, never as what they are.
    """
    with exit_codes():
        settings = load(config)
        settings.check_secrets()
        settings.keys()
        typer.echo(json.dumps(settings.document(), indent=2, ensure_ascii=False))


init.register(app)
admin.register(app)
doctor.register(app)
health.register(app)
money.register(app)
export.register(app)
payout.register(app)
mend.register(app)
gateway.register(app)
ask.register(app)
wallet.register(app)
providers.register(app)
announce.register(app)
completion.register(app)


@keys_app.command(
    epilog="""\b
Examples:
  nodestr keys generate --out /etc/nodestr/node.key
  nodestr keys generate | systemd-creds encrypt --name=nodestr.node.secret_key - node.cred
"""
)
def generate(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the private key here (mode 0600, never over an existing file) "
            "instead of printing it.",
        ),
    ] = None,
) -> None:
    """Make a new key: the private key goes to FILE or standard output, the public one is shown."""
    with exit_codes():
        from discovery.nostr.keys import Keys

        keys = Keys.generate()
        if out is None:
            typer.echo(keys.nsec())
        else:
            _write_private(out, keys.nsec() + "\n")
            typer.echo(f"wrote    {out}", err=True)
        typer.echo(f"npub     {keys.npub}", err=True)
        typer.echo(f"pubkey   {keys.pubkey}", err=True)


@keys_app.command(
    epilog="""\b
Examples:
  nodestr keys show --config /etc/nodestr/node.toml
  nodestr keys show --config node.toml --json | jq -r .npub
"""
)
def show(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Show the public side of the node's key, and the identifier (d) of its announcement."""
    with exit_codes():
        settings = load(config)
        keys = settings.keys()
        if as_json:
            emit({"npub": keys.npub, "pubkey": keys.pubkey, "d": settings.node.d})
            return
        typer.echo(f"npub     {keys.npub}")
        typer.echo(f"pubkey   {keys.pubkey}")
        reused = "" if settings.node.d else " (unless the relays hold an announcement with another)"
        typer.echo(f"d        {settings.node.d or keys.pubkey[:12]}{reused}")


@app.command(
    short_help="See the whole job work on this machine.",
    epilog="""\b
Examples:
  nodestr demo
  nodestr demo --check
  nodestr demo --json > demo.json
  nodestr demo --upstream https://openrouter.ai/api/v1 --upstream-key-env OPENROUTER_API_KEY \\
               --model meta-llama/llama-3.3-70b-instruct
""",
)
def demo(
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Verify and stop; the last line is one JSON object; exit code 0 or 1."
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object with every URL and a funded key as the first line, then "
            "keep running; the progress goes to standard error.",
        ),
    ] = False,
    upstream: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A real model server, /v1 included, for the built-in."),
    ] = None,
    upstream_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable that holds its API key."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Which of its models to sell.")
    ] = None,
    mint: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="A real mint; invoices that do not pay themselves are shown."
        ),
    ] = None,
    relay: Annotated[
        str | None, typer.Option(metavar="URL", help="A real relay for the built-in one.")
    ] = None,
) -> None:
    """See the whole job on this machine: a mint, a relay, a model server and two nodes.

    Pays for chats with a key, with a token and over Nostr, takes the change back, and closes
    with a balance sheet. Leaves the nodes running until Ctrl-C.
    """
    if check and as_json:
        raise typer.BadParameter("--check stops at the end and --json keeps running; choose one")
    if bool(upstream) != bool(model):
        raise typer.BadParameter("--upstream and --model go together")
    if upstream_key_env and not upstream:
        raise typer.BadParameter("--upstream-key-env needs --upstream")
    with exit_codes():
        try:
            from node.demo.walk import DemoOptions, run_demo
        except ModuleNotFoundError as error:
            raise Failure(f"the demo needs {error.name}: pip install 'nodestr[demo]'") from None
        options = DemoOptions(
            check=check,
            json=as_json,
            upstream=upstream,
            upstream_key_env=upstream_key_env,
            model=model,
            mint=mint,
            relay=relay,
        )
        code = asyncio.run(run_demo(options))
    raise typer.Exit(code)


@app.command(
    epilog="""\b
Examples:
  nodestr version
  nodestr version | cut -d' ' -f2
"""
)
def version() -> None:
    """Print the version."""
    from node import __version__

    typer.echo(f"nodestr {__version__}")


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """Entry point of the ``nodestr`` command."""
    app(prog_name="nodestr")
