"""``nodestr gateway``: a local endpoint for any program that speaks OpenAI's or Anthropic's API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.commands.common import EXIT_FAILED, Failure, exit_codes

if TYPE_CHECKING:
    from node.gateway.settings import GatewaySettings

GatewayConfig = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="NODESTR_GATEWAY_CONFIG",
        metavar="FILE",
        help="A TOML file with a [gateway] section; docs/clients.md lists its keys.",
    ),
]
WalletFile = Annotated[
    Path | None,
    typer.Option(
        "--wallet", metavar="FILE", help="The wallet; by default ~/.local/share/nodestr/wallet.db."
    ),
]
CarriageOption = Annotated[
    str | None,
    typer.Option("--carriage", metavar="auto|http|nostr", help="How requests travel."),
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile", metavar="cheap|fast|trusted", help="What counts most among providers."
    ),
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option("--provider", metavar="NPUB", help="Use only this provider; may be repeated."),
]
RelayOption = Annotated[
    list[str] | None,
    typer.Option("--relay", metavar="URL", help="A relay instead of the usual ones; repeatable."),
]
MaxPriceOption = Annotated[
    int | None,
    typer.Option(
        "--max-price", metavar="SAT", help="Most that is set aside for one request (2000)."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(
        short_help="A local endpoint that buys from the providers of the network.",
        epilog="""\b
Examples:
  nodestr wallet receive cashuB…
  nodestr gateway
  nodestr gateway --carriage nostr --profile cheap --max-price 500
  OPENAI_BASE_URL=http://127.0.0.1:8900/v1 OPENAI_API_KEY=none your-program
""",
    )(gateway)


def gateway(
    config: GatewayConfig = None,
    wallet: WalletFile = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Listen here (127.0.0.1).")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="PORT", help="Listen on this port (8900).")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="REFERENCE",
            help="Key that programs must send, as env:NAME or file:/path; none by default.",
        ),
    ] = None,
    carriage: CarriageOption = None,
    profile: ProfileOption = None,
    max_price: MaxPriceOption = None,
    provider: ProviderOption = None,
    relay: RelayOption = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin", metavar="ORIGIN", help="A web page that may ask; repeatable."
        ),
    ] = None,
) -> None:
    """Serve OpenAI's API on this machine, bought from providers and paid from the wallet.

    Programs need no key. Whatever a request does not cost comes back into the wallet; what a crash
    leaves with a provider is fetched at the next start.
    """
    with exit_codes():
        settings = load(
            config,
            wallet=wallet,
            host=host,
            port=port,
            key=key,
            carriage=carriage,
            profile=profile,
            max_price_sat=max_price,
            providers=provider,
            relays=relay,
            allowed_origins=allow_origin,
        )
        _serve(settings)


def load(config: Path | None, **flags: Any) -> GatewaySettings:
    """The settings with what the flags say. Raises SettingsError."""
    from node.gateway.settings import load_gateway

    return load_gateway(config, flags)


def in_use(settings: GatewaySettings) -> Failure:
    """The wallet is open elsewhere."""
    return Failure(
        f"{settings.database} is in use by another nodestr, a gateway perhaps: ask that one,"
        " or stop it first"
    )


def _serve(settings: GatewaySettings) -> None:
    import asyncio

    import structlog
    import uvloop

    from node.gateway import app as gateway_app
    from node.ledger.database import StorageError
    from node.settings_types import SettingsError

    def ready(url: str) -> None:
        typer.echo(f"listening on {url}", err=True)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(gateway_app.serve(settings, ready=ready))
    except StorageError as error:
        raise (in_use(settings) if "in use" in str(error) else Failure(str(error))) from None
    except (SettingsError, OSError):
        raise
    except Exception:
        # Through the log, whose lines hold no secret, and not as Python would print it.
        structlog.get_logger().exception("gateway_failed")
        raise typer.Exit(EXIT_FAILED) from None
