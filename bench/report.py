"""The tables people read and the JSON machines read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.plan import (
    FAST_EVENTS,
    INFERENCE_EVENTS,
    INFERENCE_INTERVAL_MS,
    PACED_EVENTS,
    PACED_INTERVAL_MS,
)
from bench.summary import PER_EVENT, Summary
from bench.targets import MIB, Costs, Verdict

TITLES = {
    "chat": "Chat, answered in one piece; paid by accounts",
    "stream": f"Chat, streamed as fast as it goes ({FAST_EVENTS} chunks); paid by accounts",
    "pace": (
        f"Chat, streamed at {1000 // PACED_INTERVAL_MS} chunks a second ({PACED_EVENTS} chunks);"
        " paid by accounts; times are those of a chunk on its way"
    ),
    "token": "Chat, answered in one piece; paid by a token each (X-Cashu), fast mint",
    "token-real": "Chat, answered in one piece; paid by a token each (X-Cashu), nutshell",
    "inference": (
        f"Chat, streamed, {INFERENCE_EVENTS * INFERENCE_INTERVAL_MS} ms long;"
        " paid by a token each (X-Cashu)"
    ),
    "nostr": "Chat over a Nostr relay; paid by accounts",
}

_COMPARABLE = ("token", "token-real", "nostr")
"""Scenarios without yardsticks of their own that do the same job as a plain chat."""


def show(console: Console, summaries: Sequence[Summary]) -> None:
    """One table for each scenario."""
    by_place = {(s.case.scenario, s.case.server, s.clients): s for s in summaries}
    for scenario in dict.fromkeys(summary.case.scenario for summary in summaries):
        per_event = scenario in PER_EVENT
        table = Table(title=TITLES[scenario], title_justify="left", title_style="bold")
        table.add_column("clients", justify="right")
        table.add_column("server")
        unit = "chunk" if per_event else "request"
        cpu = "CPU µs/chunk" if per_event else "CPU ms/request"
        for name in (f"{unit}s/s", "of proxy", cpu, "in loop", "p50 ms", "p99 ms",
                     "added p50", "added p99", "first byte"):  # fmt: skip
            table.add_column(name, justify="right")
        chosen = [summary for summary in summaries if summary.case.scenario == scenario]
        for clients in dict.fromkeys(summary.clients for summary in chosen):
            for summary in (s for s in chosen if s.clients == clients):
                # what has no yardstick of its own is held against the plain chat's
                proxy = by_place.get((scenario, "proxy", clients)) or (
                    by_place.get(("chat", "proxy", clients)) if scenario in _COMPARABLE else None
                )
                base = by_place.get((scenario, "stub", clients)) or (
                    by_place.get(("chat", "stub", clients)) if scenario in _COMPARABLE else None
                )
                table.add_row(*_row(summary, proxy, base))
            table.add_section()
        console.print(table)
        console.print()


def _row(summary: Summary, proxy: Summary | None, base: Summary | None) -> list[str]:
    server = summary.case.server
    bare = server == "stub"
    per_event = summary.case.scenario in PER_EVENT
    return [
        str(summary.clients),
        summary.case.title,
        f"{summary.per_s:,.0f}" if summary.per_s >= 100 else f"{summary.per_s:.1f}",
        "" if bare or proxy is None else f"{100 * summary.per_s / proxy.per_s:.0f} %",
        f"{summary.cpu_ms * 1000:.1f}" if per_event else f"{summary.cpu_ms:.3f}",
        f"{100 * summary.loop_cpu_ms / summary.cpu_ms:.0f} %" if summary.cpu_ms else "",
        f"{summary.p50_ms:.2f}",
        f"{summary.p99_ms:.2f}",
        "" if bare or base is None else f"{summary.p50_ms - base.p50_ms:.2f}",
        "" if bare or base is None else f"{summary.p99_ms - base.p99_ms:.2f}",
        "" if summary.first_p50_ms is None else f"{summary.first_p50_ms:.2f}",
    ]


def show_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """The targets beside what was measured."""
    table = Table(title="Targets", title_justify="left", title_style="bold")
    for name in ("target", "wanted", "measured", "", "besides"):
        table.add_column(name, justify="right" if name in ("wanted", "measured") else "left")
    words = {True: "[green]met[/]", False: "[red]missed[/]", None: "not measured"}
    for verdict in verdicts:
        sign = "≥" if verdict.bound == "at least" else "≤"
        measured = "" if verdict.measured is None else f"{verdict.measured:.2f} {verdict.unit}"
        wanted = f"{sign} {verdict.wanted:g} {verdict.unit}"
        table.add_row(verdict.name, wanted, measured, words[verdict.met], verdict.note)
    console.print(table)


def document(
    machine: Mapping[str, Any],
    options: Mapping[str, Any],
    summaries: Sequence[Summary],
    costs: Costs,
    verdicts: Sequence[Verdict],
) -> dict[str, Any]:
    """The whole run as JSON; times in ms, memory in bytes."""
    return {
        "machine": dict(machine),
        "options": dict(options),
        "results": [summary.document() for summary in summaries],
        "rss_after_load_bytes": costs.rss_bytes,
        "start_to_ready_s": costs.start_s,
        "targets": [asdict(verdict) | {"met": verdict.met} for verdict in verdicts],
    }


def show_machine(console: Console, machine: Mapping[str, Any], costs: Costs) -> None:
    """One paragraph."""
    load = " ".join(f"{value:.2f}" for value in machine["load_average"])
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB,"
        f" {machine['filesystem']} (fsync {machine['fsync_ms']:.2f} ms), Python"
        f" {machine['python']}, load before {load}, commit {machine['commit'][:12]}"
        f" with {machine['changed_files']} changed files"
    )
    console.print(
        f"node: {costs.rss_bytes / MIB:.0f} MiB resident after load, {costs.start_s:.2f} s from"
        " start to ready"
    )
    console.print()
