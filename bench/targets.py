"""What the numbers have to be, and whether they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.summary import Summary

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Costs:
    """What the node takes besides CPU."""

    rss_bytes: int
    """After load."""
    start_s: float
    """From the start of the process to ready; the slower of a fresh and a used database."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was measured."""

    name: str
    bound: Literal["at least", "at most"]
    wanted: float
    unit: str
    measured: float | None
    """None when this run did not measure it."""
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        least = self.bound == "at least"
        return self.measured >= self.wanted if least else self.measured <= self.wanted


def judge(summaries: Sequence[Summary], costs: Costs) -> list[Verdict]:
    """The targets of this project, in the order of what matters."""
    found = {(s.case.scenario, s.case.server, s.clients): s for s in summaries}

    def ratio(scenario: str, clients: int) -> float | None:
        node, proxy = (found.get((scenario, server, clients)) for server in ("node", "proxy"))  # type: ignore[arg-type]
        return 100 * node.per_s / proxy.per_s if node and proxy else None

    def added(
        scenario: str, field: str, clients: int, over: str, server: str = "node"
    ) -> float | None:
        node, base = (found.get((scenario, name, clients)) for name in (server, over))  # type: ignore[arg-type]
        return getattr(node, field) - getattr(base, field) if node and base else None

    def by_cpu(scenario: str, clients: int) -> float | None:
        """The ratio as it would be if nothing but CPU counted; steady on a busy machine too."""
        node, proxy = (found.get((scenario, server, clients)) for server in ("node", "proxy"))  # type: ignore[arg-type]
        return 100 * proxy.cpu_ms / node.cpu_ms if node and proxy and node.cpu_ms else None

    def cpu(scenario: str, server: str) -> float | None:
        summary = found.get((scenario, server, 1))  # type: ignore[arg-type]
        return summary.cpu_ms if summary else None

    def nostr(field: str, clients: int) -> float | None:
        summary = found.get(("nostr", "node", clients))
        return getattr(summary, field) if summary else None

    def also(what: str, value: float | None, unit: str) -> str:
        return "" if value is None else f"{value:.2f} {unit} {what}"

    return [
        Verdict("paid chat, 64 clients, of the bare proxy's requests/s", "at least", 60, "%",
                ratio("chat", 64), also("by CPU", by_cpu("chat", 64), "%")),
        Verdict("paid chat, 16 clients, p99 added to the bare proxy's", "at most", 10, "ms",
                added("chat", "p99_ms", 16, "proxy"),
                also("added to the model server's", added("chat", "p99_ms", 16, "stub"), "ms")),
        Verdict("streaming, 16 clients, of the bare proxy's chunks/s", "at least", 70, "%",
                ratio("stream", 16), also("by CPU", by_cpu("stream", 16), "%")),
        Verdict("streaming, 16 clients, p50 added to a chunk", "at most", 0.2, "ms",
                added("pace", "p50_ms", 16, "stub"),
                also("of it beyond the bare proxy's", added("pace", "p50_ms", 16, "proxy"), "ms")),
        Verdict("chat over one Nostr relay, 1 client, p50", "at most", 40, "ms",
                nostr("p50_ms", 1), also("own CPU", nostr("cpu_ms", 1), "ms")),
        Verdict("chat over one Nostr relay, 64 clients, requests/s", "at least", 150, "",
                nostr("per_s", 64), also("own CPU", nostr("cpu_ms", 64), "ms")),
        Verdict("memory (RSS) after load", "at most", 120, "MiB", costs.rss_bytes / MIB),
        Verdict("start to ready", "at most", 1.5, "s", costs.start_s),
        Verdict("paid by token, fast mint, own CPU", "at most", 12, "ms",
                cpu("token", "node-fast"),
                also("at nutshell", cpu("token-real", "node"), "ms")),
        Verdict("paid by token, nutshell, p50 added to 150 ms", "at most", 10, "ms",
                added("inference", "p50_ms", 1, "stub"),
                also("at a fast mint", added("inference", "p50_ms", 1, "stub", "node-fast"), "ms")),
    ]  # fmt: skip
