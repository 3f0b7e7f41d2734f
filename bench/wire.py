"""What the benchmark tells its load generators, and what they answer.

A generator reads one Job as JSON from standard input, writes the line ``begin`` when it is warm,
``end`` when the measured window is over, then one Outcome as JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Expectation:
    """What every answer must hold, besides status 200."""

    contains: tuple[str, ...] = ()
    events: int = 0
    """Events of a stream, ``[DONE]`` included; 0 for an answer in one piece."""
    stamped: bool = False
    """Each event's text is the time (monotonic, ns) at which the model server wrote it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One round."""

    url: str
    """Of the server; over Nostr, of the relay."""
    clients: int
    """Connections, each with one request under way at a time."""
    seconds: float
    """The measured window; unless ``once``."""
    body: str
    headers: tuple[Mapping[str, str], ...]
    """Client number i sends those with index i modulo their number."""
    expect: Expectation = field(default_factory=Expectation)
    once: bool = False
    """Each of ``headers`` is for one request only, and the round ends when all are used."""
    spread_s: float = 0.0
    """The clients begin one after another within this time."""
    npub: str = ""
    """The node's, over Nostr."""

    def encode(self) -> bytes:
        return orjson.dumps(asdict(self)) + b"\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen within the window."""

    seconds: float
    requests: int
    """Answered."""
    events: int
    """Events of streams that arrived."""
    cpu_s: float
    """The generator's own."""
    latency_us: tuple[int, ...]
    """Of each answered request, from its first byte out to its last byte in."""
    first_us: tuple[int, ...]
    """From the first byte out to the first byte of the body."""
    transit_us: tuple[int, ...]
    """Of each stamped event, from the model server to here."""


def read_job() -> Job:
    """The job of this generator, from standard input."""
    document = orjson.loads(sys.stdin.buffer.readline())
    expect = Expectation(
        contains=tuple(document["expect"].pop("contains")), **document.pop("expect")
    )
    return Job(headers=tuple(document.pop("headers")), expect=expect, **document)


def say(line: str) -> None:
    """Tell the benchmark where this generator is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def answer(outcome: Outcome) -> None:
    """The last line of a generator."""
    say(orjson.dumps(asdict(outcome)).decode())


def read_outcome(line: bytes) -> Outcome:
    """What ``answer`` wrote. Raises ValueError when it is something else."""
    document: dict[str, Any] = orjson.loads(line)
    return Outcome(**document)
