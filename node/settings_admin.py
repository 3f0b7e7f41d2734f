"""The section of the settings about the operator's pages."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from node.settings_sections import Section
from node.settings_types import Count, Seconds, SecretRef, Whole

HostName = Annotated[str, Field(max_length=255, pattern=r"^[a-z0-9.-]+$")]


class AdminSettings(Section):
    """[admin] the operator's pages at /admin, behind a password."""

    enabled: bool = True
    """Serve them once there is a password; without one there is nobody who could log in."""
    password_hash: SecretRef | None = None
    """The password's argon2id hash, by reference; by default the file admin.hash in the data
    directory. `nodestr admin password` makes it."""
    hosts: Annotated[tuple[HostName, ...], Field(max_length=32)] = ()
    """Names under which the pages may be opened, besides localhost, addresses and the hosts of
    http.public_urls and http.onion_url."""
    session_idle_s: Annotated[Seconds, Field(ge=60)] = 3600
    """A login ends when it was not used for so long."""
    session_max_s: Annotated[Seconds, Field(ge=60)] = 43_200
    """A login ends after this in any case."""
    max_sessions: Annotated[Count, Field(le=1000)] = 20
    """Most logins at a time; the one used longest ago gives way."""
    free_tries: Annotated[Whole, Field(ge=0, le=100)] = 3
    """Wrong passwords of an address that make nobody wait."""
    first_delay_s: Seconds = 1
    """How long it waits after one more; it doubles each time."""
    max_tries: Annotated[Count, Field(le=1000)] = 10
    """Wrong passwords after which an address is locked out."""
    lockout_s: Seconds = 900
    """For how long; after this without a try, its wrong passwords are forgotten."""
    max_tries_overall: Annotated[Count, Field(le=100_000)] = 100
    """Wrong passwords of all addresses in that time after which only those can log in that did so
    before."""
    max_streams: Annotated[Count, Field(le=1000)] = 16
    """Most open streams of live requests and log lines; a page takes one or two."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.session_max_s < self.session_idle_s:
            raise ValueError("session_max_s is below session_idle_s")
        if self.max_tries < self.free_tries:
            raise ValueError("max_tries is below free_tries")
        return self
