"""``python -m tests.soak``: see docs/testing.md."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from tests.soak.run import Plan, report_answers, soak


def main() -> int:
    """0 when nothing was lost and nothing made."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of all dice; random by default")
    parser.add_argument("--operations", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--alive", type=float, default=6.0, help="seconds between kills, at most")
    parser.add_argument("--faults", type=float, default=0.25, help="share of calls to one mint")
    parser.add_argument("--keep", type=Path, default=None, help="directory to run in and keep")
    parser.add_argument("--answers", action="store_true", help="print what the node answered")
    asked = parser.parse_args()
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    plan = Plan(seed, asked.operations, asked.seconds, asked.clients, asked.alive, asked.faults)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="nodestr-soak-") as directory:
        outcome = asyncio.run(soak(plan, asked.keep or Path(directory)))
    if asked.answers:
        print(report_answers(outcome))
    print(outcome.text())
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
