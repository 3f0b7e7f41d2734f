"""What one relay may cost us, and what it has done so far."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from discovery.nostr.event import MAX_EVENT_BYTES


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What one relay may cost us; durations in seconds."""

    connect_timeout_s: float = 10
    send_timeout_s: float = 10
    close_timeout_s: float = 1
    auth_grace_s: float = 2
    """Some relays never answer AUTH with OK; after this we go on as if they had."""
    ping_interval_s: float = 20
    backoff_min_s: float = 0.5
    backoff_max_s: float = 300
    alive_s: float = 30
    """A connection that lived this long resets the backoff."""
    retry_after_closed_s: float = 1
    """First pause before asking again after CLOSED; doubles up to ``backoff_max_s``."""
    retry_after_silence_s: float = 10
    """Without EOSE a standing REQ is sent again after so long, then twice as long, and so on."""
    max_silent_retries: int = 3
    """How often that is done per connection: some relays never send EOSE."""
    ok_patience_min_s: float = 1
    """An EVENT without OK is sent again on the same connection after some round trips, but not
    before this."""
    ok_patience_max_s: float = 8
    max_unanswered_events: int = 5
    """So often that is done before the first OK of a connection: some relays never send one."""
    pace_first_s: float = 0.1
    """Between two events, after the relay said ``rate-limited`` for the first time."""
    pace_max_s: float = 10
    max_paced_events: int = 256
    """Events that wait for their turn; more are refused."""
    max_message_bytes: int = 1_048_576
    max_event_bytes: int = MAX_EVENT_BYTES
    max_received_frames: int = 16
    """Read from the connection ahead of us."""
    max_frames_per_s: float = inf
    """Of 4 KiB each, that are read on average; ``burst_s`` as much may come at once."""
    burst_s: float = 10
    max_queued_frames: int = 256
    max_pending_oks: int = 1_000
    max_auths: int = 10
    """AUTH challenges answered per connection."""


STRANGERS = RelayLimits(
    max_message_bytes=2 * MAX_EVENT_BYTES, max_received_frames=4, max_frames_per_s=200
)
"""For relays that others chose: one that floods us takes about a fiftieth of a core."""


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What one relay said to one event; ``message`` is the relay's or ours."""

    ok: bool
    message: str = ""
    limited: bool = False
    """The relay said ``rate-limited`` to it, this time or before it took it."""


@dataclass(slots=True)
class Counters:
    """What a relay has done since the start; the numbers behind RelayHealth."""

    connects: int = 0
    events: int = 0
    duplicates: int = 0
    unmatched: int = 0
    invalid: int = 0
    published: int = 0
    refused: int = 0
    limited: int = 0
    resent: int = 0
    last_notice: str = ""
