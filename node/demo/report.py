"""What people and programs see of the demo: progress, balance sheet, snippets, summary."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.core.money import MSAT_PER_SAT
from node.demo.nodes import DemoNode


class DemoFailure(Exception):
    """A promise of the demo does not hold; the text says which."""


@dataclass(slots=True)
class Step:
    """One line of the progress."""

    name: str
    title: str
    ok: bool = False
    seconds: float = 0.0
    detail: str = ""
    """What was measured, for people."""
    measured: dict[str, Any] = field(default_factory=dict)
    """The same for programs."""

    def to_dict(self) -> dict[str, Any]:
        """For the summary of ``--check``."""
        return {
            "step": self.name,
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "detail": self.detail,
            **self.measured,
        }


@dataclass(frozen=True, slots=True)
class Sheet:
    """Where the money of both nodes went; all in msat."""

    paid_in: int
    """Face value of the tokens the client handed over, as the client counted."""
    mint_fees: int
    earned: int
    change: int
    withdrawn: int
    open: int
    dust: int
    """Too small for the mint's unit; kept by the nodes."""
    unaccounted: int

    def rows(self) -> Iterator[tuple[str, int]]:
        yield "paid in", self.paid_in
        yield "kept by the mint as input fees", -self.mint_fees
        yield "earned by the nodes", -self.earned
        yield "kept as dust (below 1 sat each)", -self.dust
        yield "returned as change", -self.change
        yield "withdrawn", -self.withdrawn
        yield "open on accounts", -self.open


class Report:
    """Prints the progress and remembers it.

    Args:
        to_stderr: standard output is for programs only.
    """

    def __init__(self, *, to_stderr: bool) -> None:
        stream = sys.stderr if to_stderr else sys.stdout
        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        self.steps: list[Step] = []

    @property
    def ok(self) -> bool:
        return bool(self.steps) and all(step.ok for step in self.steps)

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[Step]:
        """Shows ``title`` while the block runs, then ✓ or ✗ and what it measured.

        An exception marks the step as failed and passes on.
        """
        step = Step(name, title)
        self.steps.append(step)
        started = time.monotonic()
        try:
            with self.console.status(title):
                yield step
            step.ok = True
        except DemoFailure as failure:
            step.detail = str(failure)
            raise
        except Exception as error:
            step.detail = f"{type(error).__name__}: {error}"
            raise
        except BaseException:
            step.detail = "interrupted"
            raise
        finally:
            step.seconds = time.monotonic() - started
            self._line(step)

    def heading(self, text: str) -> None:
        self.console.print(Text(f"\n{text}", style="bold"))

    def sheet(self, sheet: Sheet) -> None:
        """The balance sheet as a table."""
        table = Table(title="Balance sheet of both nodes", title_justify="left")
        table.add_column("")
        table.add_column("sat", justify="right")
        for name, amount in sheet.rows():
            table.add_row(name, sats(amount))
        table.add_section()
        table.add_row("unaccounted for", sats(sheet.unaccounted), style="bold")
        self.console.print(table)

    def snippets(self, node: DemoNode, other: DemoNode, api_key: str, urls: dict[str, str]) -> None:
        """Where everything is, and what to paste."""
        self.heading("Running. Ctrl-C stops everything.")
        places = {node.name: f"{node.url}  {node.keys.npub}"}
        places |= {other.name: f"{other.url}  {other.keys.npub}"}
        for name, place in (urls | places).items():
            self.plain(f"  {name:<10} {place}")
        self.heading("curl")
        body = {
            "model": node.offer.model,
            "messages": [{"role": "user", "content": "Hello, who are you?"}],
        }
        self.plain(
            f"curl {node.url}/v1/chat/completions \\\n"
            f"  -H 'Authorization: Bearer {api_key}' -H 'Content-Type: application/json' \\\n"
            f"  -d '{json.dumps(body)}'"
        )
        self.heading("Python, with the openai SDK")
        self.plain(
            "from openai import OpenAI\n"
            f'client = OpenAI(base_url="{node.url}/v1", api_key="{api_key}")\n'
            f'stream = client.chat.completions.create(model="{node.offer.model}", stream=True,\n'
            '    messages=[{"role": "user", "content": "Hello, who are you?"}])\n'
            "for chunk in stream:\n"
            '    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="")'
        )
        self.heading("The other nodes, as this one sees them")
        self.plain(f"curl {node.url}/v1/providers\n")

    def plain(self, text: str) -> None:
        """Text to be copied: no markup, no wrapping."""
        self.console.print(text, markup=False, soft_wrap=True)

    def failed(self, error: Exception) -> None:
        """What went wrong outside of any step; a step has shown its own already."""
        if self.steps and not self.steps[-1].ok:
            return
        with suppress(Exception), self.step("demo", "the demo itself"):
            raise error

    def log_end(self, name: str, text: str) -> None:
        """The last lines of a node's log, where they help to see what failed."""
        self.heading(f"the end of {name}'s log")
        self.plain(text)

    def summary(self) -> dict[str, Any]:
        """One JSON-able object of what was verified."""
        failed = next((step for step in self.steps if not step.ok), None)
        return {
            "ok": self.ok,
            "failed": failed.name if failed else None,
            "reason": failed.detail if failed else None,
            "steps": [step.to_dict() for step in self.steps],
        }

    def _line(self, step: Step) -> None:
        mark = Text("✓ ", "green") if step.ok else Text("✗ ", "bold red")
        line = mark + Text(step.title)
        if step.detail:
            line += Text(f"  {step.detail}", "dim" if step.ok else "red")
        line += Text(f"  {step.seconds * 1000:.0f} ms", "dim")
        self.console.print(line)


def sats(msat: int) -> str:
    """``msat`` in sat with three decimals, exactly."""
    sign = "-" if msat < 0 else ""
    whole, rest = divmod(abs(msat), MSAT_PER_SAT)
    return f"{sign}{whole:,}.{rest:03d}"


def print_object(document: dict[str, Any]) -> None:
    """One JSON object as one line of standard output."""
    print(json.dumps(document, ensure_ascii=False), flush=True)
