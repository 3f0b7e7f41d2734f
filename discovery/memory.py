"""Writes what changed to the store, now and then, and reads it back at the start."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import time
from collections.abc import Callable

import structlog

from discovery import records
from discovery.health import Health
from discovery.probing import Prospector
from discovery.registry import Registry, Trust
from discovery.reviews import Reviews
from discovery.store import DirectoryStore, RecordKey

log = structlog.get_logger()

_PER_TRANSACTION = 200


class Memory:
    """The directory's state on disk.

    Args:
        store: where to; closed by whoever opened it.
        interval_s: how often changes are written.
        clock: unix seconds.
    """

    def __init__(
        self,
        store: DirectoryStore,
        registry: Registry,
        reviews: Reviews,
        prospector: Prospector,
        *,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._registry = registry
        self._reviews = reviews
        self._prospector = prospector
        self._interval_s = interval_s
        self._clock = clock
        self._unsaved: dict[RecordKey, None] = {}
        self._saved: set[RecordKey] = set()
        self._trust: dict[str, Trust] = {}
        """By address, as written."""
        self._busy = asyncio.Lock()

    def entry_changed(self, address: str) -> None:
        """An announcement or its pages changed."""
        self._unsaved["provider", address] = None

    def health_changed(self, address: str) -> None:
        """A probe of it ended."""
        self._unsaved["health", address] = None
        entry = self._registry.get(address)
        if entry is not None and entry.trust is not self._trust.get(address):
            self._unsaved["provider", address] = None
        health = self._prospector.health.get(address)
        if health is not None and health.listed and health.listed_at == health.asked_at:
            self._unsaved["models", address] = None

    def reviews_changed(self, pubkey: str) -> None:
        """Something was said about a provider."""
        for review in self._reviews.about(pubkey):
            self._unsaved["review", records.review_key(review)] = None

    def deleted(self, pubkey: str) -> None:
        """An author deleted something, if his signature was right."""
        if self._registry.tombs(pubkey) is not None:
            self._unsaved["tombs", pubkey] = None

    async def load(self) -> int:
        """Read everything back; gives the number of providers. What cannot be read goes."""
        # All that is made here stays: to look through it for garbage would take longer.
        collects = gc.isenabled()
        gc.disable()
        try:
            return await self._load()
        finally:
            if collects:
                gc.enable()

    async def _load(self) -> int:
        began = time.monotonic()
        healths: dict[str, Health] = {}
        try:
            await self._each("tombs", self._load_tombs)
            await self._each("provider", self._load_provider)
            await self._each(
                "health", lambda key, document: healths.update({key: records.read_health(document)})
            )
            await self._each(
                "models",
                lambda key, document: setattr(
                    healths[key], "listed", records.read_models(document)
                ),
            )
            await self._each(
                "review", lambda _, document: self._reviews.restore(*records.read_review(document))
            )
        except sqlite3.Error as error:
            log.warning("directory_file_unreadable", reason=type(error).__name__)
        for entry in self._registry:
            health = healths.get(entry.address)
            if health is None:
                self._prospector.follow(entry)
            else:
                self._prospector.resume(entry, health)
        log.info(
            "directory_restored",
            providers=len(self._registry),
            duration_ms=round(1000 * (time.monotonic() - began)),
        )
        return len(self._registry)

    async def run(self) -> None:
        """Write changes until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.flush()

    async def flush(self) -> None:
        """Write what has changed. A disk that fails is tried again the next time."""
        async with self._busy:
            self._find_gone()
            while self._unsaved:
                keys = list(self._unsaved)[:_PER_TRANSACTION]
                changes = {key: self._document(key) for key in keys}
                for key in keys:
                    del self._unsaved[key]
                try:
                    await self._store.save(changes)
                except (sqlite3.Error, ValueError) as error:
                    self._unsaved.update(dict.fromkeys(keys))
                    log.warning("directory_not_saved", reason=type(error).__name__)
                    return
                for key, document in changes.items():
                    (self._saved.discard if document is None else self._saved.add)(key)

    def _find_gone(self) -> None:
        for key in self._saved:
            kind, name = key
            if kind in ("provider", "health", "models"):
                gone = self._registry.get(name) is None
            elif kind == "tombs":
                gone = self._registry.tombs(name) is None
            else:
                gone = self._reviews.get(name) is None
            if gone:
                self._unsaved[key] = None

    def _document(self, key: RecordKey) -> bytes | None:
        kind, name = key
        if kind == "tombs":
            tombs = self._registry.tombs(name)
            return None if tombs is None else records.write_tombs(tombs)
        if kind == "review":
            found = self._reviews.get(name)
            return None if found is None else records.write_review(*found)
        entry = self._registry.get(name)
        if entry is None:
            self._trust.pop(name, None)
            return None
        if kind == "provider":
            self._trust[name] = entry.trust
            return records.write_entry(entry)
        health = self._prospector.health.get(name)
        if health is None:
            return None
        return (
            records.write_models(health.listed)
            if kind == "models"
            else records.write_health(health)
        )

    async def _each(self, kind: str, take: Callable[[str, bytes], object]) -> None:
        async for batch in self._store.records(kind):
            for key, document in batch:
                self._saved.add((kind, key))
                try:
                    take(key, document)
                except (ValueError, KeyError):
                    # put down as changed: what nobody knows is removed
                    self._unsaved[kind, key] = None
            await asyncio.sleep(0)

    def _load_tombs(self, key: str, document: bytes) -> None:
        self._registry.restore_tombs(key, records.read_tombs(document))

    def _load_provider(self, key: str, document: bytes) -> None:
        entry = records.read_entry(key, document, self._clock())
        self._registry.restore(entry)
        self._trust[key] = entry.trust
