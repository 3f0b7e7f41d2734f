"""``python -m bench``: see ``--help`` and docs/performance.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import orjson
from rich.console import Console

from bench import machine, parts, plan, report
from bench.process import rss_bytes
from bench.profiling import profile
from bench.rounds import Extent, RoundError, run_rounds
from bench.summary import summarise
from bench.targets import Costs, judge
from bench.world import ROOT, Wanted, World
from node.demo.purse import PurseError
from node.demo.report import DemoFailure
from node.ecash.mint import MintError

FULL = Extent(rounds=3, seconds=2.0, clients=(1, 16, 64), tokens_per_client=2, min_tokens=24)
QUICK = Extent(rounds=1, seconds=1.0, clients=(1, 16), tokens_per_client=1, min_tokens=8)
MAX_ACCOUNTS = 64

_DESCRIPTION = """\
Measures a node beside a bare aiohttp proxy and the model server alone, with the same model server
and the same clients in the same run. The node is a real `nodestr serve` with its database on disk;
every answer is checked.
"""
_EPILOG = """\
groups:
{groups}

examples:
  make bench
  make bench ARGS='--quick --only chat --only stream'
  make bench ARGS='--json bench.json'
  make bench ARGS=--profile
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the command line says; returns the exit code: 0 done, 1 an answer was wrong."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        if options.parts:
            parts.show(sys.stdout, parts.measure(options.seconds or 1.0))
        elif options.profile is not None:
            options.profile.mkdir(parents=True, exist_ok=True)
            seconds = options.seconds or 3.0
            asyncio.run(profile(options.profile.resolve(), seconds, sys.stdout))
        else:
            asyncio.run(_bench(options, console))
    except (RoundError, RuntimeError, OSError, DemoFailure, PurseError, MintError) as error:
        Console(stderr=True).print(f"the benchmark failed: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    groups = "\n".join(f"  {name:11} {text}" for name, text in plan.GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(groups=groups),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of a second, 1 and 16 clients"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers there too")
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=list(plan.GROUPS),
        help="measure this group only (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each case is run")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="how long a round is, in seconds"
    )
    parser.add_argument(
        "--clients", type=int, metavar="N", action="append",
        help="at the same time (may be repeated)",
    )  # fmt: skip
    parser.add_argument(
        "--mint", metavar="URL",
        help="a running mint whose invoices pay themselves, instead of an own nutshell",
    )  # fmt: skip
    parser.add_argument(
        "--directory", type=Path, metavar="DIR",
        help="where databases and logs go, on a real disk (default: the system's for temporary"
        " files); removed at the end",
    )  # fmt: skip
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", nargs="?", const=Path("build/profile"),
        help="run the node under cProfile instead, print its dearest functions and keep the"
        " profiles there (default build/profile)",
    )  # fmt: skip
    parser.add_argument(
        "--parts", action="store_true",
        help="measure the parts of a paid chat one by one instead, in CPU time; nothing is started",
    )  # fmt: skip
    return parser


async def _bench(options: argparse.Namespace, console: Console) -> None:
    base = QUICK if options.quick else FULL
    extent = Extent(
        rounds=options.rounds or base.rounds,
        seconds=options.seconds or base.seconds,
        clients=tuple(options.clients or base.clients),
        tokens_per_client=base.tokens_per_client,
        min_tokens=base.min_tokens,
    )
    groups = list(dict.fromkeys(options.only or plan.GROUPS))
    wanted = Wanted(groups, min(MAX_ACCOUNTS, max(extent.clients)), options.mint)
    with tempfile.TemporaryDirectory(
        prefix="nodestr-bench-", dir=options.directory, ignore_cleanup_errors=True
    ) as directory:
        facts = machine.facts(ROOT, Path(directory))
        with Console(stderr=True).status("starting") as status:
            async with World(wanted, Path(directory)) as world:
                samples = await run_rounds(world, plan.cases(groups), extent, status.update)
                status.update("the node once more, on its used database")
                costs = await _costs(world)
    summaries = summarise(samples)
    verdicts = judge(summaries, costs)
    report.show_machine(console, facts, costs)
    report.show(console, summaries)
    report.show_verdicts(console, verdicts)
    if options.json is not None:
        chosen = {"groups": groups, "rounds": extent.rounds, "seconds": extent.seconds,
                  "clients": extent.clients, "accounts": wanted.accounts}  # fmt: skip
        document = report.document(facts, chosen, summaries, costs, verdicts)
        options.json.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")


async def _costs(world: World) -> Costs:
    node = world.servers["node"]
    memory = rss_bytes(node.pid)
    await node.stop()
    await node.start()
    return Costs(memory, max(node.start_s))


if __name__ == "__main__":
    sys.exit(main())
