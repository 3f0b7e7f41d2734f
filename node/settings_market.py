"""The sections of the settings about what is sold: upstreams and models."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from node.core.catalog import Endpoint
from node.core.plans import BackendPlan, ListTerms, ModelPlan, takes_only_newer_limit
from node.core.tariff import FREE, KINDS, Amount, Tariff
from node.settings_sections import Section
from node.settings_types import (
    AmountMsat,
    BaseUrl,
    Count,
    Exact,
    Line,
    Seconds,
    SecretRef,
    Whole,
)

_TOKEN_KINDS = ("input_per_mtok", "output_per_mtok")
_OTHER_KINDS = ("per_request", "per_image", "per_audio_minute", "per_mchar")


Glob = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+$")]
ModelId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+$")]
FieldName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]
COUNTED_FIELDS = frozenset({
    "model", "messages", "prompt", "input", "system", "file", "documents", "query", "suffix",
    "tools", "functions", "instructions", "stream", "stream_options", "stream_format", "n",
    "best_of", "echo", "max_tokens", "max_completion_tokens", "max_output_tokens", "thinking",
    "partial_images", "response_format", "speed", "store", "top_n", "service_tier",
})  # fmt: skip
"""What a call is measured by, and therefore not fixed for all of them."""
Endpoints = Annotated[tuple[Endpoint, ...], Field(min_length=1)]


class UpstreamSettings(Section):
    """[[upstreams]] a model server."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Name that [[models]] refer to. Required."""
    base_url: BaseUrl
    """URL including /v1. Required."""
    dialect: Literal["openai", "anthropic", "azure", "ollama", "vllm", "openrouter", "routstr"] = (
        "openai"
    )
    """What kind of server it is; openai stands for all that are compatible, routstr for another
    node of this network."""
    api_key: SecretRef | None = None
    """Key by reference, sent as the dialect wants it (of another node: a prepaid sk-…); none is
    sent by default."""
    api_version: Annotated[str, Field(pattern=r"^[0-9A-Za-z-]{0,40}$")] = ""
    """Azure only: version of its older paths, with deployments; without it /openai/v1 is used."""
    connect_timeout_s: Seconds = 10
    """Deadline to connect."""
    first_byte_timeout_s: Seconds = 120
    """Deadline for a stream to begin."""
    whole_answer_timeout_s: Seconds = 600
    """Deadline for an answer in one piece, which comes when all of it has been made."""
    chunk_timeout_s: Seconds = 60
    """Longest silence inside an answer."""
    answer_timeout_s: Seconds = 3600
    """Deadline for the whole answer."""
    max_concurrency: Annotated[Whole, Field(ge=0)] = 0
    """Most calls at a time; others go to the next upstream, or wait. 0: no limit."""
    priority: Whole = 0
    """Among the upstreams of a model those with the lowest number are asked first."""
    weight: Annotated[Count, Field(le=1_000_000)] = 1
    """Its share among those of one priority when routing.strategy is weighted."""
    low_balance_sat: Annotated[Whole, Field(ge=0, lt=2**43)] = 1000
    """Dialect routstr: /health/ready tells when less than this is left of the prepaid key."""
    discover: bool = False
    """Sell the models that the server lists."""
    only: tuple[Glob, ...] = ()
    """Patterns of ids, such as "openai/*"; of the listed models only these are sold."""
    exclude: tuple[Glob, ...] = ()
    """Patterns of ids that are not sold though they are listed."""
    max_models: Annotated[Count, Field(le=800)] = 300
    """Most listed models that are sold."""
    markup_percent: Exact = Decimal(0)
    """What is added to listed prices, in percent."""
    free: bool = False
    """Serve listed models without a price for nothing; otherwise they are not sold."""
    sell_unmetered: bool = False
    """Also sell listed models that charge apart for images or sound in the prompt, or for searches,
    though this node does not; otherwise they are not sold."""
    default_input_per_mtok_msat: AmountMsat | None = None
    """Price of a million prompt tokens of a listed model without a listed price, in msat."""
    default_output_per_mtok_msat: AmountMsat | None = None
    """The same for a million generated tokens."""
    default_per_request_msat: AmountMsat | None = None
    """The same for a request on top of its tokens."""
    default_input_per_mtok_usd: Exact | None = None
    """Price of a million prompt tokens of a listed model without a listed price, in USD."""
    default_output_per_mtok_usd: Exact | None = None
    """The same for a million generated tokens."""
    default_per_request_usd: Exact | None = None
    """The same for a request on top of its tokens."""
    default_context_length: Annotated[Whole, Field(ge=0)] = 0
    """Tokens of prompt and answer of a listed model that says nothing about it. 0: such models
    are not sold."""
    default_max_output_tokens: Count = 4096
    """Longest answer of a listed model that says nothing about it, in tokens."""
    endpoints: Endpoints = ("chat", "messages")
    """What listed models can be used for, if the list does not say."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.api_version and self.dialect != "azure":
            raise ValueError(f'upstream "{self.name}": api_version is of dialect azure only')
        tariff = self.default_tariff()
        if self.free and tariff is not None:
            raise ValueError(
                f'upstream "{self.name}" is free = true and has default prices; choose one'
            )
        if not self.discover and (self.only or self.exclude or self.free or tariff is not None):
            raise ValueError(
                f'upstream "{self.name}": only, exclude, free and default prices are about listed '
                "models; set discover = true"
            )
        return self

    def list_terms(self) -> ListTerms | None:
        """On which terms its listed models are sold; None when they are not."""
        if not self.discover:
            return None
        return ListTerms(
            upstream=self.name,
            only=self.only,
            exclude=self.exclude,
            markup_percent=Fraction(self.markup_percent),
            default=self.default_tariff(),
            free=self.free,
            sell_unmetered=self.sell_unmetered,
            default_context_length=self.default_context_length,
            default_max_output_tokens=self.default_max_output_tokens,
            endpoints=self.endpoints,
            priority=self.priority,
            weight=self.weight,
            max_models=self.max_models,
        )

    def default_tariff(self) -> Tariff | None:
        """The price of listed models without one; None when there is none. Raises ValueError."""
        kinds = (*_TOKEN_KINDS, "per_request")
        tariff = _tariff(self, kinds, prefix="default_", whose=f'upstream "{self.name}"')
        return tariff if tariff.amounts else None


class Prices(Section):
    """Prices of a model, in msat or in USD, never both for one kind."""

    input_per_mtok_msat: AmountMsat | None = None
    """Price of a million prompt tokens, in msat."""
    output_per_mtok_msat: AmountMsat | None = None
    """Price of a million generated tokens, in msat."""
    per_request_msat: AmountMsat = 0
    """Price of a request on top of its tokens, in msat."""
    cached_per_mtok_msat: AmountMsat | None = None
    """Price of a million prompt tokens that the upstream had in its cache, in msat; by default
    that of others."""
    cache_write_per_mtok_msat: AmountMsat | None = None
    """Price of a million prompt tokens that the upstream wrote to its cache, in msat; by default
    that of others."""
    reasoning_per_mtok_msat: AmountMsat | None = None
    """Price of a million reasoning tokens, in msat; by default that of other generated tokens."""
    per_image_msat: AmountMsat = 0
    """Price of an image made, in msat."""
    per_audio_minute_msat: AmountMsat = 0
    """Price of a minute of audio listened to or made, in msat."""
    per_mchar_msat: AmountMsat = 0
    """Price of a million characters read aloud, in msat."""
    input_per_mtok_usd: Exact | None = None
    """Price of a million prompt tokens, in USD; converted at the rate of [rates]."""
    output_per_mtok_usd: Exact | None = None
    """Price of a million generated tokens, in USD."""
    per_request_usd: Exact | None = None
    """Price of a request on top of its tokens, in USD."""
    cached_per_mtok_usd: Exact | None = None
    """Price of a million prompt tokens that the upstream had in its cache, in USD."""
    cache_write_per_mtok_usd: Exact | None = None
    """Price of a million prompt tokens that the upstream wrote to its cache, in USD."""
    reasoning_per_mtok_usd: Exact | None = None
    """Price of a million reasoning tokens, in USD."""
    per_image_usd: Exact | None = None
    """Price of an image made, in USD."""
    per_audio_minute_usd: Exact | None = None
    """Price of a minute of audio listened to or made, in USD."""
    per_mchar_usd: Exact | None = None
    """Price of a million characters read aloud, in USD."""

    def tariff(self, whose: str) -> Tariff | None:
        """The prices; None when none is set that would make it something to sell.

        Raises ValueError naming ``whose`` when one kind has two.
        """
        tariff = _tariff(self, KINDS, whose=whose)
        known = tariff.amounts
        tokens = all(kind in known for kind in _TOKEN_KINDS) and any(
            known[kind].value for kind in _TOKEN_KINDS
        )
        return tariff if tokens or any(kind in known for kind in _OTHER_KINDS) else None

    @property
    def priced(self) -> bool:
        """Whether any price is set."""
        return any(getattr(self, f"{kind}_{unit}") for kind in KINDS for unit in ("msat", "usd"))


class BackendSettings(Prices):
    """[[models.backends]] one of several upstreams of a model."""

    upstream: str
    """Name of the [[upstreams]] entry. Required."""
    upstream_id: str = ""
    """The upstream's name for the model; by default the model's id."""
    priority: Whole | None = None
    """Lower numbers are asked first; by default the upstream's."""
    weight: Annotated[Count, Field(le=1_000_000)] | None = None
    """Its share among those of one priority; by default the upstream's."""


class ModelSettings(Prices):
    """[[models]] a model for sale."""

    id: ModelId
    """Name clients ask for. Required."""
    upstream: str = ""
    """Name of the [[upstreams]] entry that serves it. Required, unless there are backends."""
    upstream_id: str = ""
    """The upstream's name for it; by default the id."""
    backends: Annotated[tuple[BackendSettings, ...], Field(max_length=32)] = ()
    """Several upstreams, in place of ``upstream``; prices left out are the model's."""
    aliases: tuple[ModelId, ...] = ()
    """Other names clients may ask for it by."""
    name: Line = ""
    """Name shown to people; by default the id."""
    description: Line = ""
    """One line about the model."""
    markup_percent: Exact | None = None
    """For a model without a price here whose upstream lists one (discover = true): what is added
    to that, in percent; by default the upstream's markup."""
    enabled: bool = True
    """Sell it; false keeps it here and sells it no more, also if an upstream lists it."""
    free: bool = False
    """Serve it for nothing; without this a model without a price is refused."""
    context_length: Count
    """Tokens of prompt and answer together. Required."""
    max_output_tokens: Count
    """Longest answer in tokens. Required."""
    modalities: Annotated[tuple[Literal["text", "image", "audio"], ...], Field(min_length=1)] = (
        "text",
    )
    """What it understands."""
    output_modalities: Annotated[
        tuple[Literal["text", "image", "audio", "embeddings"], ...], Field(min_length=1)
    ] = ("text",)
    """What it makes."""
    endpoints: Endpoints = ("chat", "messages")
    """What it can be used for: chat is /v1/chat/completions, transcriptions is
    /v1/audio/transcriptions and so on."""
    max_completion_tokens_only: bool | None = None
    """Its upstreams refuse max_tokens and get max_completion_tokens; by default so for names like
    those of OpenAI's reasoning models (o1, o3, gpt-5)."""
    fixed: dict[FieldName, str | int | float | bool] = Field(default_factory=dict, max_length=32)
    """Fields of a request that are sold with one value only, such as { quality = "standard",
    size = "1024x1024" }: they are always sent so, and who asks for another value is refused."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.upstream) == bool(self.backends):
            raise ValueError(
                f'model "{self.id}": name its upstream, or several in [[models.backends]]'
            )
        if self.upstream_id and self.backends:
            raise ValueError(f'model "{self.id}": upstream_id goes into [[models.backends]]')
        if self.free and (self.priced or any(backend.priced for backend in self.backends)):
            raise ValueError(f'model "{self.id}" is free = true and has a price; choose one')
        tariff = self.tariff(f'model "{self.id}"')
        if self.markup_percent is not None and (self.free or tariff is not None):
            raise ValueError(
                f'model "{self.id}": markup_percent is for prices that the upstream lists, and it '
                "has prices of its own"
            )
        counted = sorted(COUNTED_FIELDS.intersection(self.fixed))
        if counted:
            raise ValueError(f'model "{self.id}": fixed cannot set {", ".join(counted)}')
        if self.max_output_tokens > self.context_length:
            raise ValueError(f'model "{self.id}": max_output_tokens is above context_length')
        return self

    def upstreams(self) -> list[str]:
        """Names of the upstreams that serve it."""
        return [backend.upstream for backend in self.backends] or [self.upstream]

    def plan(self, upstreams: Mapping[str, UpstreamSettings]) -> ModelPlan:
        """What is to be sold.

        Raises ValueError when a price is missing that no upstream lists, or is there twice.
        """
        own = FREE if self.free else self.tariff(f'model "{self.id}"')
        if own is None and self.priced:
            raise ValueError(self._unpriced("no price that is complete"))
        entries = self.backends or (
            BackendSettings(upstream=self.upstream, upstream_id=self.upstream_id),
        )
        return ModelPlan(
            id=self.id,
            backends=tuple(self._backend(entry, own, upstreams) for entry in entries),
            context_length=self.context_length,
            max_output_tokens=self.max_output_tokens,
            name=self.name or self.id,
            description=self.description,
            modalities=self.modalities,
            output_modalities=self.output_modalities,
            endpoints=self.endpoints,
            aliases=self.aliases,
            max_completion_tokens_only=(
                takes_only_newer_limit(entries[0].upstream_id or self.id)
                if self.max_completion_tokens_only is None
                else self.max_completion_tokens_only
            ),
            fixed=self.fixed,
            enabled=self.enabled,
        )

    def _backend(
        self,
        entry: BackendSettings,
        own: Tariff | None,
        upstreams: Mapping[str, UpstreamSettings],
    ) -> BackendPlan:
        upstream = upstreams[entry.upstream]
        tariff = own
        if entry.priced:
            tariff = entry.tariff(f'model "{self.id}", backend "{entry.upstream}"')
            if tariff is None:
                raise ValueError(self._unpriced(f'no complete price for "{entry.upstream}"'))
        if tariff is None and not upstream.discover:
            raise ValueError(self._unpriced("no price"))
        markup = upstream.markup_percent if self.markup_percent is None else self.markup_percent
        return BackendPlan(
            upstream=entry.upstream,
            upstream_id=entry.upstream_id or self.id,
            tariff=tariff,
            priority=upstream.priority if entry.priority is None else entry.priority,
            weight=entry.weight or upstream.weight,
            markup_percent=Fraction(markup),
        )

    def _unpriced(self, what: str) -> str:
        return (
            f'model "{self.id}" has {what}: set input_per_mtok_msat and output_per_mtok_msat (or '
            "per_request_msat, or the same in _usd), or free = true to give it away"
        )


def _tariff(section: Section, kinds: tuple[str, ...], *, whose: str, prefix: str = "") -> Tariff:
    """The prices that are set; 0 for what is not charged by default counts as not set."""
    amounts: dict[str, Amount] = {}
    for kind in kinds:
        msat = getattr(section, f"{prefix}{kind}_msat")
        usd = getattr(section, f"{prefix}{kind}_usd")
        if kind in _OTHER_KINDS:
            msat = msat or None
        if msat is not None and usd is not None:
            raise ValueError(
                f"{whose}: {prefix}{kind}_msat and {prefix}{kind}_usd exclude each other"
            )
        if msat is not None:
            amounts[kind] = Amount(Fraction(msat))
        elif usd is not None and (usd or kind not in _OTHER_KINDS):
            amounts[kind] = Amount(Fraction(usd), usd=True)
    return Tariff(amounts)
