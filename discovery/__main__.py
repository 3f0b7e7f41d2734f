"""``python -m discovery``: the aggregator alone; JSON lines on standard output.

    {"event":"provider","provider":{…}}     new or changed
    {"event":"removed","provider":{…}}      gone

Logs go to standard error. Ends with SIGINT or SIGTERM, or with ``--once`` after a snapshot.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

import orjson
import structlog

from discovery.aggregator import DEFAULT_MAX_PROVIDERS, DEFAULT_RELAYS, aggregator
from discovery.documents import changes, provider_item
from discovery.errors import InvalidKey, RelayError
from discovery.nostr.keys import parse_pubkey
from discovery.snapshot import DirectorySnapshot


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m discovery", description=__doc__)
    parser.add_argument(
        "--relay", action="append", metavar="URL", help="relay to follow; repeat for more"
    )
    parser.add_argument(
        "--database", type=Path, metavar="FILE", help="keep what is known over a restart"
    )
    parser.add_argument(
        "--max-providers", type=int, default=DEFAULT_MAX_PROVIDERS, metavar="N", help="most kept"
    )
    parser.add_argument(
        "--no-probe", action="store_true", help="ask no announced URL; nothing is verified then"
    )
    parser.add_argument(
        "--socks-proxy", metavar="URL", help="socks5://127.0.0.1:9050: ask onion services there"
    )
    parser.add_argument(
        "--learn-relays",
        type=int,
        default=8,
        metavar="N",
        help="read so many relays more, of those that verified nodes name; 0: none",
    )
    parser.add_argument(
        "--operator", metavar="KEY", help="npub or hex: count trust from there, by who follows whom"
    )
    parser.add_argument(
        "--once", type=float, metavar="SECONDS", help="print what is known after so long, and end"
    )
    parser.add_argument(
        "--allow-private",
        action="store_true",
        help="connect to loopback and private addresses too; for tests on one machine",
    )
    return parser.parse_args()


def _print(before: DirectorySnapshot, after: DirectorySnapshot) -> None:
    for kind, provider in changes(before, after):
        line = {"event": kind, "provider": provider_item(provider)}
        sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
    sys.stdout.buffer.flush()


async def _run(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with aggregator(
        options.relay or DEFAULT_RELAYS,
        database=options.database,
        probe=not options.no_probe,
        max_providers=options.max_providers,
        socks_proxy=options.socks_proxy,
        max_learnt_relays=options.learn_relays,
        operator=parse_pubkey(options.operator) if options.operator else None,
        allow_private=options.allow_private,
    ) as directory:
        shown = DirectorySnapshot()
        if options.once is not None:
            await asyncio.sleep(options.once)
            _print(shown, directory.snapshot())
            return
        while True:
            now = directory.snapshot()
            _print(shown, now)
            shown = now
            if directory.snapshot() is now:
                await directory.changed()


def main() -> int:
    """Exit codes: 0 done, 1 failed."""
    options = _options()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        with contextlib.suppress(asyncio.CancelledError, BrokenPipeError):
            asyncio.run(_run(options))
    except (OSError, RelayError, InvalidKey) as error:
        sys.stderr.write(f"discovery: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
