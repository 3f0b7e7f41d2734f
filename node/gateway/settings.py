"""What a person can set for the gateway, in the manner of the node's own settings.

TOML file  <  environment (NODESTR_GATEWAY__PROFILE)  <  flags of the command
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from discovery.errors import InvalidKey
from discovery.nostr.keys import parse_pubkey
from node.settings_sections import DEFAULT_RELAYS, Section
from node.settings_sources import Environment, explain, read_toml, refuse_debug
from node.settings_types import Count, RelayUrl, Seconds, SecretRef, SettingsError, SizeBytes, Whole

Profile = Literal["cheap", "fast", "trusted"]
CarriageName = Literal["auto", "http", "nostr"]


class GatewaySettings(Section):
    """[gateway] the local endpoint and how providers are chosen and paid."""

    wallet: Path | None = None
    """The wallet's database; by default nodestr/wallet.db in $XDG_DATA_HOME (~/.local/share)."""
    host: str = "127.0.0.1"
    """Address to listen on. Who reaches it spends the wallet: set a key for any but loopback."""
    port: Annotated[Whole, Field(ge=0, le=65_535)] = 8900
    """Port to listen on; 0 takes a free one."""
    key: SecretRef | None = None
    """Key that programs must send as their API key, by reference; none by default."""
    allowed_hosts: tuple[str, ...] = ()
    """Names besides localhost under which programs may ask (the Host header, without port)."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages (scheme://host:port) that may ask; none may by default. "*" stands for all."""
    relays: tuple[RelayUrl, ...] = DEFAULT_RELAYS
    """Relays to find providers on and to reach them over."""
    carriage: CarriageName = "auto"
    """How requests travel: http, nostr, or auto, which takes HTTP to proven addresses only and
    relays otherwise."""
    profile: Profile = "cheap"
    """What counts most when several providers sell a model."""
    providers: tuple[str, ...] = ()
    """Only these (npub or hex); by default all who can prove who they are."""
    max_price_sat: Count = 2000
    """Most that is set aside for one request; what it does not cost comes back."""
    max_attempts: Annotated[Count, Field(le=10)] = 3
    """Most providers asked for one request, the first included."""
    find_timeout_s: Seconds = 5
    """How long the start waits for providers to be found."""
    lost_after_s: Seconds = 86_400
    """When a token that was redeemed, and whose change is not to be had, counts as lost."""
    recover_interval_s: Seconds = 30
    """How often money that is still with providers is asked for."""
    answer_timeout_s: Seconds = 900
    """Deadline for a whole answer."""
    first_byte_timeout_s: Seconds = 180
    """Deadline for an answer to begin, and longest silence within it."""
    max_body_bytes: SizeBytes = 20 * 1024 * 1024
    """Largest request."""
    allow_private_addresses: bool = False
    """Also connect to loopback and private addresses; for demos on one machine."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged."""

    @property
    def database(self) -> Path:
        """The wallet's database."""
        return self.wallet or default_wallet()

    def pubkeys(self) -> frozenset[str]:
        """The selected providers, hex. Raises SettingsError."""
        try:
            return frozenset(parse_pubkey(name) for name in self.providers)
        except InvalidKey:
            raise SettingsError("gateway.providers: each must be an npub or a hex key") from None


class _Environment(Environment):
    """Of the variables of nodestr those of the gateway; a node's are none of its business."""

    def names(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        for name, path, text in super().names():
            if path[0] == "gateway":
                yield name, path, text


class _File(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True
    )

    gateway: GatewaySettings = GatewaySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The first wins."""
        return _Environment(settings_cls), init_settings


def default_wallet() -> Path:
    """Where the wallet is when nothing else is said."""
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "nodestr" / "wallet.db"


def load_gateway(config: Path | None, flags: Mapping[str, Any] | None = None) -> GatewaySettings:
    """The settings of the file, if one is named, the environment, and flags that are not None.

    Raises SettingsError.
    """
    refuse_debug()
    document = read_toml(config) if config is not None else {}
    try:
        loaded = _File(**document).gateway
        given = {name: value for name, value in (flags or {}).items() if value is not None}
        if given:
            loaded = GatewaySettings.model_validate({**loaded.model_dump(), **given})
    except ValidationError as error:
        raise explain(error, _File) from None
    loaded.pubkeys()
    return loaded
