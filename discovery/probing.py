"""Asks each announced node again and again, the proven first, and keeps what was found."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import structlog

from discovery.announcement import Announcement
from discovery.columns import Offers
from discovery.health import Health
from discovery.offers import ModelOffer
from discovery.probe import ProbeResult
from discovery.registry import Entry, Registry, Trust
from discovery.schedule import Schedule

log = structlog.get_logger()

Probe: TypeAlias = Callable[[Announcement], Awaitable[ProbeResult]]
ListModels: TypeAlias = Callable[[str], Awaitable[tuple[ModelOffer, ...] | None]]

_FAILURES_UNTIL_UNTRUSTED = 3


class Prospector:
    """Health of every provider of a registry.

    Args:
        probe: asks an announced node who it is.
        list_models: reads the ``/v1/models`` of a base URL, for nodes without model pages.
        changed: told the address whose health is another now.
        reprobe_s: pause after a probe; ``retry_s`` after the first that failed, then doubling.
        relist_s: how long a list of models that was read counts.
        concurrency: probes at once; ``reserve`` of them only for proven nodes, so that a flood
            of newcomers cannot make the proven look dead.
        clock: unix seconds.
    """

    def __init__(
        self,
        registry: Registry,
        probe: Probe | None,
        list_models: ListModels | None,
        changed: Callable[[str], object],
        *,
        reprobe_s: float,
        retry_s: float,
        relist_s: float,
        concurrency: int,
        reserve: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._probe = probe
        self._list_models = list_models
        self._changed = changed
        self._reprobe_s = reprobe_s
        self._retry_s = retry_s
        self._relist_s = relist_s
        self._concurrency = concurrency
        self._reserve = min(reserve, concurrency - 1)
        self._clock = clock
        self._schedule = Schedule()
        self._wanted = asyncio.Event()
        self.health: dict[str, Health] = {}

    def follow(self, entry: Entry) -> None:
        """An announcement is new or another: ask it now, if it has other URLs than before."""
        announcement = entry.announcement
        if announcement is None:
            return
        health = self.health.get(entry.address)
        if health is None or health.urls != announcement.urls:
            self.health[entry.address] = Health(announcement.urls)
            self._plan(entry, 0.0)

    def resume(self, entry: Entry, health: Health) -> None:
        """Go on with what an earlier process found: the next probe comes when it was due."""
        if entry.announcement is None or health.urls != entry.announcement.urls:
            self.follow(entry)
            return
        self.health[entry.address] = health
        due_s = health.asked_at + self._reprobe_s - self._clock()
        # all of them may be due at once after a long pause
        spread_s = random.uniform(0, 0.1 * self._reprobe_s)  # noqa: S311 it only spreads load
        self._plan(entry, max(due_s, spread_s))

    def forget(self, address: str) -> None:
        """The registry has let it go."""
        self.health.pop(address, None)
        self._schedule.cancel(address)

    async def run(self) -> None:
        """Probe what is due until cancelled."""
        probe = self._probe
        if probe is None:
            return
        running: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()

        def done(task: asyncio.Task[None]) -> None:
            running.discard(task)
            self._wanted.set()

        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wanted.clear()
                while len(running) < self._concurrency:
                    reserved = len(running) >= self._concurrency - self._reserve
                    address = self._schedule.pop(loop.time(), preferred_only=reserved)
                    if address is None:
                        break
                    task = tasks.create_task(self._probe_one(probe, address))
                    running.add(task)
                    task.add_done_callback(done)
                reserved = len(running) >= self._concurrency - self._reserve
                due = self._schedule.next_at(preferred_only=reserved)
                if len(running) >= self._concurrency:
                    due = None
                try:
                    async with asyncio.timeout_at(due):
                        await self._wanted.wait()
                except TimeoutError:
                    continue

    def _plan(self, entry: Entry, delay_s: float) -> None:
        at = asyncio.get_running_loop().time() + delay_s
        self._schedule.plan(entry.address, at, preferred=entry.trust is Trust.PROVEN)
        self._wanted.set()

    async def _probe_one(self, probe: Probe, address: str) -> None:
        entry = self._registry.get(address)
        if entry is None or entry.announcement is None:
            return
        announcement = entry.announcement
        models: tuple[ModelOffer, ...] | None = None
        try:
            result = await probe(announcement)
            if result.url and self._list_models is not None and self._wants_models(entry):
                models = await self._list_models(result.url)
        except Exception:
            # One announcement, whatever it holds, does not end the directory.
            log.exception("probe_broken", provider=announcement.pubkey)
            result = ProbeResult(False, None, None, "the probe itself failed")
        health = self.health.get(address)
        entry = self._registry.get(address)
        if entry is None or health is None or health.urls != announcement.urls:
            return  # replaced meanwhile: the newer announcement has its own plan
        now = int(self._clock())
        health.record(result, now)
        if models is not None:
            health.listed, health.listed_at = Offers.of(models), now
        if result.reachable:
            self._registry.mark(address, Trust.PROVEN if result.verified else Trust.FAILED)
            delay_s = self._reprobe_s
        else:
            tired = health.failures >= _FAILURES_UNTIL_UNTRUSTED
            if result.reachable is False and (entry.trust is not Trust.PROVEN or tired):
                self._registry.mark(address, Trust.FAILED)
            delay_s = min(self._retry_s * 2 ** min(health.failures - 1, 16), self._reprobe_s)
        self._plan(entry, delay_s * random.uniform(0.9, 1.1))  # noqa: S311 it only spreads load
        self._changed(address)

    def _wants_models(self, entry: Entry) -> bool:
        """Has it no pages of its own, and was it not asked lately?"""
        health = self.health.get(entry.address)
        return (
            not entry.models
            and health is not None
            and self._clock() - health.listed_at >= self._relist_s
        )
