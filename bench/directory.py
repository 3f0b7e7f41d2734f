"""How the directory carries a large market: ``python -m bench.directory``.

Two processes, as in life: one takes in signed announcements and stores them, the other starts
from the file. Prints one JSON object. Times are of the processor, which others who use the machine
do not lengthen; for starting also of the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from discovery.aggregator import registry
from discovery.announcement import Announcement, build_provider_event
from discovery.directory import Directory
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from discovery.offers import ModelOffer, build_model_pages
from discovery.probe import ProbeResult
from discovery.store import DirectoryStore
from node.service.endpoints.market import market
from node.service.endpoints.providers import Pages, etag, list_providers

_WELL_KNOWN = 400
"""Models that the market knows; each provider sells some of them at its own price."""


def _market(keys: Keys, number: int, models: int, now: int) -> list[Event]:
    chance = random.Random(number)  # noqa: S311 the same market every time
    sold = chance.sample(range(_WELL_KNOWN), models)
    offers = [
        ModelOffer(
            f"maker-{model % 20}/model-{model}",
            f"Maker: Model {model}",
            chance.randrange(10**5, 10**8),
            chance.randrange(10**5, 10**8),
            context=131_072,
            max_output=8_192,
            modalities=("text", "image"),
        )
        for model in sold
    ]
    said = Announcement(
        pubkey=keys.pubkey,
        d=keys.pubkey[:12],
        name=f"node {number}",
        about="inference for ecash",
        urls=(f"https://node-{number}.example.com",),
        mints=("https://mint.example.com",),
        version="1.0.0",
        relays=("wss://relay.example.com", "wss://other.example.com"),
        wraps=(21059, 1059),
        http=("80", "81", "frames-v1"),
        created_at=now,
        expires_at=now + 7 * 86_400,
    )
    pages = build_model_pages(keys, said.d, offers, created_at=now, expires_at=said.expires_at)
    # as they come from a relay: without what their maker knew of them
    return [Event.shape(e.to_dict()) for e in (build_provider_event(keys, said), *pages)]


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 2**20, 1)


def _timed(call: Callable[[], object], times: int) -> dict[str, float]:
    spent = []
    for _ in range(times):
        began = time.process_time()
        call()
        spent.append(1000 * (time.process_time() - began))
    spent.sort()
    return {
        "p50_ms": round(statistics.median(spent), 3),
        "p99_ms": round(spent[int(len(spent) * 0.99)], 3),
        "per_s": round(1000 * len(spent) / sum(spent)),
    }


def _directory(store: DirectoryStore, providers: int) -> Directory:
    # a third more than needed: a quarter of the room is for the proven only
    return Directory(
        RelayPool([]), probe=None, registry=registry(providers * 4 // 3 + 4), store=store
    )


async def _fill(file: Path, providers: int, models: int) -> dict[str, Any]:
    """Take everything in and store it."""
    now = int(time.time())
    store = await DirectoryStore.open(file)
    directory = _directory(store, providers)
    spent, events = 0.0, 0
    for number in range(providers):
        batch = _market(Keys.generate(), number, models, now)
        began = time.process_time()
        for event in batch:
            directory.offer(event)
        spent += time.process_time() - began
        events += len(batch)
    began = time.process_time()
    snapshot = directory.rebuild()
    rebuilt = time.process_time() - began
    flood = [Event.shape(_forged(number, now)) for number in range(20_000)]
    began = time.process_time()
    for event in flood:
        directory.offer(event)
    flooded = time.process_time() - began
    task = asyncio.create_task(directory.run())
    await asyncio.sleep(0.1)
    began = time.perf_counter()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    saved = time.perf_counter() - began
    await store.close()
    return {
        "listed": len(snapshot.providers),
        "signed_events_per_s": round(events / spent),
        "stale_events_per_s": round(len(flood) / flooded),
        "first_snapshot_ms": round(1000 * rebuilt),
        "save_all_ms": round(1000 * saved),
        "file_mib": round((await asyncio.to_thread(file.stat)).st_size / 2**20, 1),
    }


def _forged(number: int, now: int) -> dict[str, Any]:
    """An expired event of a fresh key: the cheapest thing to flood with."""
    return {
        "id": f"{number:064x}",
        "pubkey": f"{number + 1:064x}",
        "created_at": now - 100 * 86_400,
        "kind": 38421,
        "tags": [["d", "x"], ["u", f"https://flood-{number}.example.com"]],
        "content": "{}",
        "sig": "0" * 128,
    }


async def _serve(file: Path, providers: int) -> dict[str, Any]:
    """Start from the file and answer."""
    before = _rss_mib()
    began, worked = time.perf_counter(), time.process_time()
    store = await DirectoryStore.open(file)
    directory = _directory(store, providers)
    restored = await directory.load()
    first = orjson.dumps(list_providers(directory.snapshot(), {}))
    started, worked = time.perf_counter() - began, time.process_time() - worked
    snapshot, pages = directory.snapshot(), Pages()
    names = [f"maker-{model % 20}/model-{model}" for model in range(_WELL_KNOWN)]
    turn = iter(range(10**9))

    def fresh() -> object:
        query = {"model": names[next(turn) % _WELL_KNOWN]}
        return orjson.dumps(list_providers(snapshot, query, pages.item))

    def asked_before() -> object:
        query = {"model": names[0]}
        tag = etag(snapshot, query)
        return orjson.dumps(
            pages.get(snapshot, tag, lambda: list_providers(snapshot, query, pages.item))
        )

    def book() -> object:
        return orjson.dumps(market(snapshot, names[next(turn) % _WELL_KNOWN], {}))

    addresses = [f"38421:{p.pubkey}:{p.announcement.d}" for p in snapshot.providers[:100]]

    def probed() -> object:
        """One provider's health is another: a new snapshot."""
        address = addresses[next(turn) % len(addresses)]
        health = directory._prospector.health[address]
        health.record(ProbeResult(False, True, next(turn), ""), int(time.time()))
        directory._probed(address)
        return directory.rebuild()

    answers = {
        "list_by_model": _timed(fresh, 400),
        "list_by_model_asked_before": _timed(asked_before, 5_000),
        "order_book": _timed(book, 400),
        "snapshot_after_a_probe": _timed(probed, 100),
    }
    await store.close()
    return {
        "restored": restored,
        "models_held": sum(len(p.models) for p in snapshot.providers),
        "restart_to_first_answer_ms": round(1000 * started),
        "restart_to_first_answer_cpu_ms": round(1000 * worked),
        "first_answer_bytes": len(first),
        "rss_mib": _rss_mib(),
        "rss_before_mib": before,
        **answers,
    }


async def _child(step: str, file: Path, options: argparse.Namespace) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.directory",
        f"--step={step}",
        f"--file={file}",
        f"--providers={options.providers}",
        f"--models={options.models}",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"step {step} failed")
    return json.loads(out.splitlines()[-1])


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    if options.step == "fill":
        return await _fill(options.file, options.providers, options.models)
    if options.step == "serve":
        return await _serve(options.file, options.providers)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "directory.db"
        return {
            "providers": options.providers,
            "models_each": options.models,
            "fill": await _child("fill", file, options),
            "serve": await _child("serve", file, options),
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.directory", description=__doc__)
    parser.add_argument("--providers", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--step", choices=("fill", "serve"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    sys.stdout.write(json.dumps(asyncio.run(_run(parser.parse_args()))) + "\n")


if __name__ == "__main__":
    main()
