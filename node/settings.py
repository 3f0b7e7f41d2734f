"""Everything an operator can set, in one frozen object read once at start.

    TOML file  <  environment (NODESTR_HTTP__PORT)  <  systemd credentials (nodestr.http.port)
               <  overrides (what was changed on the admin pages)

``settings_sections.py``, ``settings_admin.py``, ``settings_market.py`` and ``settings_routing.py``
hold the keys, ``settings_layers.py`` puts the sources together,
``config/node.example.toml`` shows every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from node.core.catalog import Catalog
from node.core.plans import ModelPlan
from node.settings_admin import AdminSettings
from node.settings_layers import Layers, read_layers
from node.settings_market import ModelSettings, UpstreamSettings
from node.settings_routing import RateSettings, RoutingSettings
from node.settings_sections import (
    DiscoverySettings,
    HttpSettings,
    LedgerSettings,
    LightningSettings,
    LimitSettings,
    LogSettings,
    MetricsSettings,
    MintSettings,
    NodeSettings,
    NostrSettings,
    PaymentSettings,
    PayoutSettings,
    RefundSettings,
)
from node.settings_sources import explain, key_path, refuse_debug
from node.settings_types import SecretRef, SettingsError

if TYPE_CHECKING:
    from discovery.nostr.keys import Keys

__all__ = ["SecretRef", "Settings", "SettingsError", "layers", "load", "settings_of"]

ADMIN_HASH_FILE = "admin.hash"
"""In the data directory: the hash of the operator's password, unless it is kept elsewhere."""


class Settings(BaseSettings):
    """All settings. Make one with :func:`load`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=True,
    )

    node: NodeSettings
    http: HttpSettings = HttpSettings()
    nostr: NostrSettings = NostrSettings()
    mints: tuple[MintSettings, ...] = ()
    payments: PaymentSettings = PaymentSettings()
    upstreams: tuple[UpstreamSettings, ...] = ()
    models: tuple[ModelSettings, ...] = ()
    routing: RoutingSettings = RoutingSettings()
    rates: RateSettings = RateSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    ledger: LedgerSettings = LedgerSettings()
    lightning: LightningSettings = LightningSettings()
    payout: PayoutSettings = PayoutSettings()
    refund: RefundSettings = RefundSettings()
    limits: LimitSettings = LimitSettings()
    admin: AdminSettings = AdminSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the constructor gets: ``settings_layers`` has put the sources together."""
        return (init_settings,)

    @model_validator(mode="after")
    def _check(self) -> Self:
        upstreams = _unique("upstreams", "name", [upstream.name for upstream in self.upstreams])
        _unique("models", "id", [name for m in self.models for name in (m.id, *m.aliases)])
        _unique("mints", "url", [mint.url for mint in self.mints])
        discovering = any(upstream.discover for upstream in self.upstreams)
        if not self.models and not discovering:
            raise ValueError("models: nothing is for sale; add a [[models]] entry")
        for index, model in enumerate(self.models):
            for position, name in enumerate(model.upstreams()):
                if name not in upstreams:
                    key = f"models[{index}]" + (f".backends[{position}]" if model.backends else "")
                    known = ", ".join(sorted(upstreams)) or "none"
                    raise ValueError(
                        f'{key}.upstream: there is no [[upstreams]] entry "{name}"'
                        f" (there is: {known})"
                    )
        self.plans()
        if not self.mints and (discovering or not all(model.free for model in self.models)):
            raise ValueError("mints: nobody can pay; add a [[mints]] entry")
        if self.metrics.enabled and (self.metrics.host, self.metrics.port) == (
            self.http.host,
            self.http.port or None,
        ):
            raise ValueError("metrics.port: must not be http.port: metrics are not public")
        if not self.nostr.relays and (self.nostr.requests or self.node.announce):
            raise ValueError(
                "nostr.relays: is empty; name relays, or set nostr.requests and node.announce to "
                "false"
            )
        return self

    def plans(self) -> list[ModelPlan]:
        """What is to be sold of [[models]]. Raises ValueError when a price is missing."""
        upstreams = {upstream.name: upstream for upstream in self.upstreams}
        return [model.plan(upstreams) for model in self.models]

    def catalog(self) -> Catalog:
        """Those models for sale whose price is known without asking anybody."""
        return Catalog(model for plan in self.plans() if (model := plan.model(None)))

    def secrets(self) -> Iterator[tuple[str, SecretRef]]:
        """(key, reference) of every secret that the node cannot do without.

        It can without the operator's password: then nobody gets in.
        """
        yield "node.secret_key", self.node.secret_key
        for index, upstream in enumerate(self.upstreams):
            if upstream.api_key is not None:
                yield key_path(("upstreams", index, "api_key")), upstream.api_key

    @property
    def admin_hash(self) -> SecretRef:
        """Where the hash of the operator's password is, if there is one."""
        default = SecretRef("file", str((self.node.data_dir / ADMIN_HASH_FILE).absolute()))
        return self.admin.password_hash or default

    def check_secrets(self) -> None:
        """Read every secret once. Raises SettingsError naming the keys that cannot be read."""
        problems = []
        for key, secret in self.secrets():
            try:
                secret.resolve()
            except SettingsError as error:
                problems.append(f"{key}: {error}")
        if problems:
            raise SettingsError(*problems)

    def keys(self) -> Keys:
        """The node's Nostr key. Raises SettingsError when there is none or it is not a key."""
        # Imported here: the command line must not load the Nostr code to print its help.
        from discovery.errors import InvalidKey
        from discovery.nostr.keys import Keys

        try:
            return Keys.parse(self.node.secret_key.resolve())
        except SettingsError as error:
            raise SettingsError(f"node.secret_key: {error}") from None
        except InvalidKey:
            raise SettingsError(
                f"node.secret_key: {self.node.secret_key} holds no Nostr private key "
                "(nsec1… or 64 hex digits); make one with `nodestr keys generate`"
            ) from None

    def document(self) -> dict[str, Any]:
        """The effective settings as JSON-able data; secrets as their references."""
        return self.model_dump(mode="json")


def load(path: Path) -> Settings:
    """Settings from the TOML file and everything that goes before it.

    Secrets are not read yet: see :meth:`Settings.check_secrets`. Raises SettingsError.
    """
    refuse_debug()
    return settings_of(layers(path))


def layers(path: Path) -> Layers:
    """What each source says. Raises SettingsError."""
    return read_layers(path, Settings)


def settings_of(sources: Layers) -> Settings:
    """The settings that come of it. Raises SettingsError."""
    try:
        return Settings(**sources.document())
    except ValidationError as error:
        found = explain(error, Settings)
    if sources.overrides:
        raise SettingsError(
            *found.problems,
            f"{sources.overrides_path} overrides the other settings: if that is what is wrong,"
            " mend it or move it away",
        )
    raise found


def _unique(section: str, key: str, values: list[str]) -> set[str]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f'{section}: two entries have the {key} "{value}"')
    return set(values)
