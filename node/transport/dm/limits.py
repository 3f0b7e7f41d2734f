"""What the Nostr carriage allows: every bound and deadline of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.transport.dm.assembly import AssemblyLimits


@dataclass(frozen=True, slots=True)
class Pacing:
    """When a live reply's gathered bytes leave as a frame."""

    first_s: float = 0.1
    growth: float = 1.5
    max_s: float = 2.0
    max_backoff_s: float = 10.0
    """How far the interval grows while relays say ``rate-limited``."""


@dataclass(frozen=True, slots=True)
class DmLimits:
    """Caps of the Nostr carriage. ``unpaid`` is a request whose answer cost nothing and that no
    account stood behind: what it said of itself does not count."""

    assembly: AssemblyLimits = field(default_factory=AssemblyLimits)
    queue_size: int = 1000
    """Wraps waiting to be decrypted, per kind; the oldest are dropped."""
    max_unwraps_per_s: float = 400.0
    """One takes 0.2 to 0.6 ms of CPU, whoever sent it."""
    max_running: int = 64
    max_running_per_sender: int = 8
    requests_per_minute: int = 1_200
    """Of one sender, replays included; the services have their own, finer limits."""
    unpaid_per_minute: int = 30
    unpaid_total_per_minute: int = 600
    """Of all senders but those that paid within ``payer_lifetime_s``."""
    payer_lifetime_s: float = 3600.0
    errors_per_minute: int = 30
    """Error replies to one sender about messages that were never dispatched."""
    errors_total_per_minute: int = 600
    nacks_total_per_minute: int = 600
    """Times that senders are asked for missing parts of their requests."""
    resends_per_minute: int = 1200
    """Frames sent again to one sender."""
    clock_skew_s: int = 600
    max_lifetime_s: int = 86_400
    """How long a stored request may say it is valid."""
    log_timeout_s: float = 30.0
    run_timeout_s: float = 900.0
    max_stored_reply_bytes: int = 256 * 2**10
    max_plain_reply_bytes: int = 8 * 2**20
    max_sent_bytes: int = 32 * 2**20
    """Frames kept for those who ask again, in all."""
    sent_lifetime_s: float = 120.0
    publish_timeout_s: float = 10.0
    publish_attempts: int = 4
    max_unconfirmed_frames: int = 8
    """Frames of one reply under way to the relays; then the reply waits."""
    sweep_s: float = 1.0
    health_s: float = 30.0
    stored_change: bool = True
    """Also publish a stored copy of what carries change."""
    stored_lifetime_s: int = 7 * 86_400
