"""The sections of the settings. The docstring under a field is its description.

Names carry the unit: ``_s`` seconds, ``_bytes`` bytes, ``_sat`` satoshi, ``_msat`` millisatoshi.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from node.settings_types import (
    Count,
    FilePath,
    Line,
    MintUrl,
    NetworkRange,
    OnionUrl,
    PublicKey,
    PublicUrl,
    RelayUrl,
    Seconds,
    SecretRef,
    SizeBytes,
    SocksUrl,
    Whole,
)

MIB = 1024 * 1024

DEFAULT_RELAYS = (
    "wss://relay.damus.io",
    "wss://nos.lol",
    "wss://relay.routstr.com",
    "wss://relay.primal.net",
)


class Section(BaseModel):
    """Base of the sections: frozen, no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        validate_default=True,
    )


class NodeSettings(Section):
    """[node] who this node is."""

    secret_key: SecretRef
    """The node's Nostr key (nsec or 64 hex digits), by reference. Required."""
    name: Line = "nodestr"
    """Name shown in announcements."""
    about: Line = ""
    """One line about the node, shown in announcements."""
    data_dir: FilePath = Path("/var/lib/nodestr")
    """Directory of the database (node.db); made with mode 0700 if it is missing."""
    d: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")] | None = None
    """Identifier of the announcement; by default the one found on the relays for this key, else
    the first 12 hex digits of the public key."""
    announce: bool = True
    """Publish the announcement and the model pages on the relays."""
    announce_interval_s: Seconds = 10_800
    """Publish them again this often even when nothing changed; 3600 to 21600 is sensible."""
    retract_on_stop: bool = False
    """Delete the announcement from the relays on an orderly stop."""
    drain_timeout_s: Seconds = 30
    """How long running requests may go on after a stop signal."""
    overrides: FilePath | None = None
    """File of the settings that were changed on the admin pages; by default
    node.db.overrides.json beside the database."""

    @property
    def database(self) -> Path:
        """The SQLite file that holds the ledger and the wallet."""
        return self.database_in(self.data_dir)

    @staticmethod
    def database_in(data_dir: Path) -> Path:
        """The same, by the directory."""
        return data_dir / "node.db"

    @classmethod
    def overrides_in(cls, data_dir: Path) -> Path:
        """Where the overrides are by default."""
        database = cls.database_in(data_dir)
        return database.with_name(f"{database.name}.overrides.json")


class HttpSettings(Section):
    """[http] the HTTP server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[Whole, Field(ge=0, le=65535)] = 8080
    """TCP port to listen on; 0 takes a free one."""
    public_urls: tuple[PublicUrl, ...] = ()
    """https URLs under which clients reach this server, without /v1; announced. None: the node
    is reachable over Nostr only."""
    onion_url: OnionUrl | None = None
    """Tor onion service address of this server; announced after the public URLs."""
    onion_hostname_file: FilePath | None = None
    """Tor's hostname file of that service, read at start when onion_url is not set."""
    max_body_bytes: SizeBytes = 26 * MIB
    """Largest request body."""
    max_buffered_bytes: SizeBytes = 256 * MIB
    """Most bytes of request bodies kept in memory, of all requests; beyond, clients are asked to
    come back later."""
    body_timeout_s: Annotated[Seconds, Field(ge=1)] = 60
    """Deadline for a request's body to arrive."""
    trusted_proxies: tuple[NetworkRange, ...] = ()
    """Addresses or networks of reverse proxies whose X-Forwarded-For is believed; without it all
    clients behind a proxy share one limit."""
    stream_keepalive_s: Annotated[Seconds, Field(ge=1)] = 15
    """A stream in which nothing was said for so long gets a comment, so that nobody between takes
    it for dead."""
    keepalive_timeout_s: Annotated[Seconds, Field(ge=1)] = 75
    """How long an idle connection is kept, and how long headers may take."""
    pages: bool = True
    """Show web pages for people at /, /providers (the market) and /docs (this interface)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_buffered_bytes < self.max_body_bytes:
            raise ValueError("max_buffered_bytes is below max_body_bytes")
        return self


class NostrSettings(Section):
    """[nostr] requests over relays."""

    relays: tuple[RelayUrl, ...] = DEFAULT_RELAYS
    """Relays to announce on, to take requests from and to find other nodes on."""
    requests: bool = True
    """Answer requests that arrive as encrypted Nostr messages."""
    stored_change: bool = True
    """Send a stored copy (kind 1059) of every answer that carries change."""
    connect_timeout_s: Seconds = 10
    """Deadline to connect to a relay."""
    ok_timeout_s: Seconds = 10
    """Deadline for a relay to confirm an event."""
    max_concurrent_requests: Count = 64
    """Requests worked on at the same time, of all senders."""
    max_concurrent_per_sender: Count = 8
    """Requests worked on at the same time, of one sender."""
    max_body_bytes: SizeBytes = 8 * MIB
    """Largest request body after its parts are put together."""
    assembly_max_bytes: SizeBytes = 128 * MIB
    """Most bytes of unfinished requests kept in memory, of all senders."""
    assembly_max_bytes_per_sender: SizeBytes = 16 * MIB
    """Most bytes of unfinished requests kept in memory, of one sender."""
    assembly_max_per_sender: Count = 8
    """Most unfinished requests kept, of one sender."""
    assembly_timeout_s: Seconds = 60
    """How long the missing parts of a request are waited for."""
    free_requests_per_minute: Count = 30
    """Unpaid requests (catalogue, info, balance) answered each minute, of one sender."""


class MintSettings(Section):
    """[[mints]] a mint whose tokens are accepted; there is no other way to be on the list."""

    url: MintUrl
    """URL of the mint. Required."""
    units: Annotated[tuple[Literal["sat", "msat"], ...], Field(min_length=1)] = ("sat",)
    """Units taken from it."""
    timeout_s: Seconds = 15
    """Deadline of one call to the mint."""
    max_balance_sat: Annotated[Whole, Field(ge=0, lt=2**43)] = 0
    """Most that the node's coins of this mint may be worth; a payment that would exceed it is
    refused. 0: no limit."""
    require_dleq: bool = False
    """Refuse coins without the proof that the mint signed them (NUT-12); false proofs are always
    refused."""


class PaymentSettings(Section):
    """[payments] what a client that has to pay is asked for."""

    lock: bool = False
    """Ask for tokens that are locked to the node's key (NUT-11). Others are taken all the same."""
    request_format: Literal["creqA", "creqB"] = "creqA"
    """Form of the payment request in a 402 answer: creqA (NUT-18) or creqB (NUT-26)."""


class DiscoverySettings(Section):
    """[discovery] finding the other nodes."""

    enabled: bool = True
    """Follow the announcements of other nodes; without it /v1/providers is empty."""
    poll_interval_s: Seconds = 900
    """How often the relays are asked for everything, besides following them."""
    probe: bool = True
    """Ask each announced node for /v1/info, to tell whether it is online and who it says it is."""
    probe_interval_s: Seconds = 900
    """How often a node is asked."""
    probe_timeout_s: Seconds = 10
    """Deadline of one such question."""
    probe_concurrency: Count = 8
    """How many nodes are asked at the same time."""
    max_providers: Annotated[Count, Field(le=100_000)] = 10_000
    """Most nodes kept."""
    socks_proxy: SocksUrl | None = None
    """Tor's SOCKS5 port, such as socks5://127.0.0.1:9050: onion services are asked through it;
    without it their state stays unknown."""
    max_learnt_relays: Annotated[Whole, Field(ge=0, le=32)] = 8
    """Most relays read besides those of [nostr]: such as are named by nodes that were verified.
    0: none."""
    operator_pubkey: PublicKey | None = None
    """Your own Nostr key (npub or hex): reviews and nodes show how far their keys are from it, by
    who follows whom."""
    trust_distance: Annotated[Whole, Field(ge=1, le=3)] = 2
    """How far that goes: 1 is whom you follow, 2 whom these follow."""
    allow_private_addresses: bool = False
    """Also connect to announced loopback and private addresses; for demos on one machine."""


class LedgerSettings(Section):
    """[ledger] the database."""

    reply_keep_s: Annotated[Seconds, Field(ge=87_000)] = 90_000
    """How long answers are kept so that a repeated request gets the same one."""
    max_stored_answer_bytes: SizeBytes = 8 * MIB
    """Longest answer that is kept for its Idempotency-Key; asking again for a longer one gives
    409."""
    max_stored_answers_bytes: SizeBytes = 1024 * MIB
    """Most bytes of such answers in the database, compressed; beyond, the oldest are forgotten, and
    asking again for one of them gives 409."""
    max_stored_answers_bytes_per_account: SizeBytes = 64 * MIB
    """The same of one account."""
    watchdog_interval_s: Seconds = 60
    """How often the books are added up, to see that the coins cover what clients are owed."""
    refill_interval_s: Seconds = 60
    """How often small coins for change are made of large ones, if they run short; the fee for
    one swap of the mint each time."""
    restore_gap_counters: Annotated[Count, Field(le=10_000_000)] = 5000
    """After a restore the search for coins ends after so many counters in a row without one."""
    child_key_cost_msat: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """What an account pays for each child key it makes."""


class LightningSettings(Section):
    """[lightning] filling accounts over Lightning, through the mints."""

    min_sat: Count = 1
    """Smallest invoice."""
    max_sat: Count = 1_000_000
    """Largest invoice."""
    max_open: Count = 1000
    """Most unpaid invoices, of everybody."""
    max_open_per_peer: Count = 50
    """Most unpaid invoices of one sender or address (behind a proxy all clients have one)."""
    expiry_s: Seconds = 3600
    """After this an invoice is told to be expired, or earlier when its mint says so."""
    grace_s: Seconds = 86_400
    """How long after that a payment is still looked for, and credited."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_sat < self.min_sat:
            raise ValueError("max_sat is below min_sat")
        return self


class PayoutSettings(Section):
    """[payout] paying what the node has earned to its operator."""

    address: Annotated[
        str,
        Field(max_length=2000, pattern=r"^$|^[^@\s]+@[^@\s]+$|^(lnurl1|LNURL1)[0-9A-Za-z]+$"),
    ] = ""
    """Lightning address (name@host) or LNURL-pay link; without it nothing is paid by itself."""
    floor_sat: Count = 10_000
    """Pay when at least that much was earned beyond the reserve."""
    cap_sat: Count = 1_000_000
    """Most of one payout."""
    reserve_sat: Annotated[Whole, Field(ge=0)] = 1_000
    """Earnings that stay, for the mints' fees."""
    interval_s: Seconds = 3600
    """How often the earnings are looked at."""
    max_fee_ppm: Annotated[Whole, Field(ge=0, le=200_000)] = 20_000
    """Most that Lightning may cost, in millionths of the amount."""
    max_fee_base_sat: Annotated[Whole, Field(ge=0)] = 5
    """Most that Lightning may cost when the above is less."""


class RefundSettings(Section):
    """[refund] paying what expired keys still have to their Lightning addresses."""

    enabled: bool = True
    """Take refund addresses and pay to them; otherwise they are refused."""
    floor_sat: Count = 100
    """What is less stays with the key, for its holder to withdraw."""
    interval_s: Seconds = 60
    """How often expired keys are looked for."""
    retry_s: Seconds = 600
    """Pause after a refund that failed; it doubles each time."""
    max_retry_s: Seconds = 86_400
    """Longest pause between two tries."""
    max_fee_ppm: Annotated[Whole, Field(ge=0, le=200_000)] = 20_000
    """Most that Lightning may cost, in millionths of the amount; the key pays it."""
    max_fee_base_sat: Annotated[Whole, Field(ge=0)] = 5
    """Most that Lightning may cost when the above is less."""


class LimitSettings(Section):
    """[limits] how much one account, sender or address may ask for."""

    requests_per_minute: Annotated[Whole, Field(ge=0)] = 60
    """Requests of an account (of an address or sender that has none) in a minute; 0: no limit."""
    requests_per_hour: Annotated[Whole, Field(ge=0)] = 1_000
    """The same in an hour."""
    requests_per_day: Annotated[Whole, Field(ge=0)] = 10_000
    """The same in a day."""
    max_concurrent_per_account: Annotated[Whole, Field(ge=0)] = 128
    """Paid calls of one account that run at the same time; 0: no limit."""
    max_buffered_answers_bytes: SizeBytes = 256 * MIB
    """Most bytes of answers in one piece kept in memory, of all calls; beyond, model servers are
    read from in turn."""


class MetricsSettings(Section):
    """[metrics] numbers for Prometheus, on an address of their own."""

    enabled: bool = False
    """Answer GET /metrics on the address below. It says how much the node earns: never make it
    public."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[Whole, Field(ge=0, le=65535)] = 9464
    """TCP port to listen on; 0 takes a free one."""


class LogSettings(Section):
    """[log] logging to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important level that is written."""
    format: Literal["json", "console"] = "console"
    """json: an object a line, for machines; console: for people."""
