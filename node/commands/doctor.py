"""``nodestr doctor``: what is wrong, and how to mend it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands.common import EXIT_FAILED, EXIT_USAGE, ConfigOption, exit_codes

if TYPE_CHECKING:
    from node.ops.probes import Finding

_MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(
        short_help="Say what is wrong with a node, and how to mend it.",
        epilog="""\b
Examples:
  nodestr doctor --config /etc/nodestr/node.toml
  nodestr doctor --config node.toml --timeout 30
  nodestr doctor --config node.toml --json | jq '.findings[] | select(.level != "ok")'
""",
    )(doctor)


def doctor(
    config: ConfigOption,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.1, max=300.0, help="Deadline of each question."),
    ] = 10.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of lines.")
    ] = False,
) -> None:
    """Check configuration, files, clock, mints, relays, model servers, database and announcement.

    Asks everybody the node depends on, changes nothing, and works whether the node runs or not.
    Each problem comes with one line that says how to mend it. Exit code 0: nothing is broken
    (there may be warnings). 1: something is. 2: the configuration cannot be used.
    """
    with exit_codes():
        from node.ops import logging
        from node.ops.doctor import check_config, examine, verdict

        logging.configure("error", "console")
        settings, keys, findings = check_config(config)
        if settings is not None:
            findings = [*findings, *asyncio.run(examine(settings, keys, timeout))]
        worst = verdict(findings)
        if as_json:
            document = {
                "ok": worst != "fail",
                "verdict": worst,
                "findings": [finding.document() for finding in findings],
            }
            typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        else:
            show(findings)
    if any(finding.check == "config" and finding.level == "fail" for finding in findings):
        raise typer.Exit(EXIT_USAGE)
    if worst == "fail":
        raise typer.Exit(EXIT_FAILED)


def show(findings: Sequence[Finding]) -> None:
    """A line for each finding, the remedy below."""
    for finding in findings:
        subject = f" {finding.subject}" if finding.subject else ""
        typer.echo(f"{_MARKS[finding.level]}  {finding.check}{subject}: {finding.what}")
        if finding.remedy:
            typer.echo(f"      -> {finding.remedy}")
    broken = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    if broken or warned:
        typer.echo(f"{broken} broken, {warned} worth a look")
    else:
        typer.echo("all is well")
