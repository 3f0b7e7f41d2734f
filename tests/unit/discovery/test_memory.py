"""What the directory knew before a restart it knows after it, at once; a file that is damaged or
of another version costs nothing but itself."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from discovery.announcement import Announcement, build_deletion
from discovery.directory import Directory, DirectorySnapshot
from discovery.health import MAX_DAYS, Health
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.nostr.pool import RelayPool
from discovery.offers import ModelOffer
from discovery.probe import ProbeResult
from discovery.records import read_entry, read_health, read_models, read_review, read_tombs
from discovery.registry import Registry
from discovery.store import VERSION, DirectoryStore
from tests.unit.discovery.test_directory import (
    NOW,
    A,
    B,
    C,
    Clock,
    address,
    find,
    has_status,
    is_verified,
    pages,
    provider,
    until,
)
from tests.unit.discovery.test_reviews import review

LISTED = (ModelOffer("from-endpoint", "Model", 5, 6, 7, 8, 9, ("text",), ("chat",)),)


async def good(announcement: Announcement) -> ProbeResult:
    urls = announcement.urls
    return ProbeResult(True, True, 7, "", urls, b'{"name":"x"}', urls[0])


@asynccontextmanager
async def opened(file: Path, clock: Clock, **options: Any) -> AsyncIterator[Directory]:
    """A directory with what the file holds, running; everything is stored when it ends."""
    async with await DirectoryStore.open(file) as store:
        directory = Directory(
            RelayPool([]), clock=clock, store=store, debounce_s=0.0, **{"probe": None, **options}
        )
        await directory.load()
        task = asyncio.create_task(directory.run())
        await asyncio.sleep(0)
        try:
            yield directory
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert directory.closed


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "directory.db"


async def restored(file: Path, clock: Clock, **options: Any) -> DirectorySnapshot:
    async with opened(file, clock, **options) as directory:
        return directory.snapshot()


async def test_a_restart_answers_what_was_known(file: Path, clock: Clock) -> None:
    async def list_models(url: str) -> tuple[ModelOffer, ...]:
        assert url == "https://a.example"
        return LISTED

    async with opened(file, clock, probe=good, list_models=list_models) as directory:
        for event in (
            provider(A, name="first"),
            *pages(A, "m1", "m2", "m3", per_page=2),
            provider(B),
            review(C, of=A, at=NOW),
        ):
            directory.offer(event)
        clock.now += 5
        await until(directory, is_verified(A))
        await until(directory, is_verified(B))
        before = directory.rebuild()
    clock.now += 60
    after = await restored(file, clock)
    assert after.providers == before.providers
    for was, now in zip(before.providers, after.providers, strict=True):
        assert now.announcement.event == was.announcement.event
    first, second = find(after, A), find(after, B)
    assert first is not None
    assert [m.id for m in first.models] == ["m1", "m2", "m3"]
    assert (first.verified, first.status, first.latency_ms, first.uptime) == (
        True,
        "online",
        7,
        1.0,
    )
    assert first.first_seen == NOW
    assert [r.reviewer for r in first.reviews] == [C.pubkey]
    assert second is not None
    assert (second.models, second.models_source) == (LISTED, "endpoint")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_what_was_deleted_and_what_expired_does_not_return(file: Path, clock: Clock) -> None:
    gone = provider(A)
    async with opened(file, clock) as directory:
        directory.offer(gone)
        directory.offer(provider(B, expires_at=NOW + 100))
        directory.offer(provider(C))
        directory.offer(build_deletion(A, [address(A)], created_at=NOW + 1))
    clock.now += 200
    async with opened(file, clock) as directory:
        assert [p.pubkey for p in directory.snapshot().providers] == [C.pubkey]
        directory.offer(gone)
        assert [p.pubkey for p in directory.rebuild().providers] == [C.pubkey]
    assert kept(file, "provider") == {address(C)}
    assert kept(file, "tombs") == {A.pubkey}


def kept(file: Path, kind: str) -> set[str]:
    connection = sqlite3.connect(file)
    rows = connection.execute("SELECT key FROM records WHERE kind = ?", (kind,)).fetchall()
    connection.close()
    return {key for (key,) in rows}


async def test_a_smaller_registry_keeps_its_bounds_and_the_proven(file: Path, clock: Clock) -> None:
    strangers = [Keys.generate() for _ in range(20)]
    async with opened(file, clock, probe=good) as directory:
        directory.offer(provider(A))
        await until(directory, is_verified(A))
    async with opened(file, clock) as directory:
        for keys in strangers:
            directory.offer(provider(keys))
    small = Registry(clock=clock, max_entries=8, trusted_room=2)
    async with opened(file, clock, registry=small) as directory:
        snapshot = directory.snapshot()
        assert len(snapshot.providers) <= 8
        assert find(snapshot, A) is not None
    assert len(kept(file, "provider")) <= 8


async def test_a_probe_comes_when_it_is_due(file: Path, clock: Clock) -> None:
    asked: list[str] = []

    async def probe(announcement: Announcement) -> ProbeResult:
        asked.append(announcement.pubkey)
        return ProbeResult(False, False, None, "no answer")

    async with opened(file, clock, probe=good) as directory:
        directory.offer(provider(A))
        await until(directory, is_verified(A))
    async with opened(file, clock, probe=probe, reprobe_s=900.0) as directory:
        directory.offer(provider(B))
        await until(directory, has_status(B, "offline"))
        assert asked == [B.pubkey]
        found = find(directory.snapshot(), A)
        assert found is not None
        assert found.verified


@pytest.mark.parametrize("damage", ["garbage", "version", "table"])
async def test_a_file_that_cannot_be_used_is_begun_anew(
    file: Path, clock: Clock, damage: str
) -> None:
    async with opened(file, clock) as directory:
        directory.offer(provider(A))
    if damage == "garbage":
        file.write_bytes(b"this is no database, whatever it was before" * 100)
    else:
        connection = sqlite3.connect(file)
        if damage == "version":
            connection.execute(f"PRAGMA user_version = {VERSION + 1}")
        else:
            connection.execute("DROP TABLE records")
        connection.commit()
        connection.close()
    async with opened(file, clock) as directory:
        assert directory.snapshot().providers == ()
        directory.offer(provider(B))
    assert [p.pubkey for p in (await restored(file, clock)).providers] == (
        [] if damage == "table" else [B.pubkey]
    )


async def test_a_file_damaged_further_in_is_begun_anew(file: Path, clock: Clock) -> None:
    """Else each start would begin with nothing, and each attempt to store fail."""
    async with opened(file, clock) as directory:
        for _ in range(50):
            directory.offer(provider(Keys.generate()))
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    sound = file.read_bytes()
    for start in range(4096, len(sound), 4096):
        file.write_bytes(sound[:start] + b"\xaa" * 4096 + sound[start + 4096 :])
        async with opened(file, clock) as directory:
            directory.offer(provider(B))
        listed = (await restored(file, clock)).providers
        assert B.pubkey in [p.pubkey for p in listed]


async def test_a_file_that_another_process_holds_is_left_alone(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = sqlite3.connect(file)
    holder.execute("CREATE TABLE other (x)")
    holder.execute("BEGIN EXCLUSIVE")
    connect = aiosqlite.connect
    monkeypatch.setattr(aiosqlite, "connect", lambda path: connect(path, timeout=0))
    with pytest.raises(OSError, match="cannot be used now"):
        await DirectoryStore.open(file)
    holder.close()
    left = sqlite3.connect(file)
    assert left.execute("SELECT name FROM sqlite_master").fetchall() == [("other",)]
    left.close()


async def test_a_record_that_cannot_be_read_goes(file: Path, clock: Clock) -> None:
    async with opened(file, clock) as directory:
        for keys in (A, B):
            directory.offer(provider(keys))
    connection = sqlite3.connect(file)
    for kind, document in (
        ("provider", b"{}"),
        ("health", b"[]"),
        ("models", b"7"),
        ("review", b"[1]"),
        ("tombs", b"[7,7]"),
    ):
        key = address(A) if kind == "provider" else f"x:1:{kind}"
        connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (kind, key, document))
    connection.commit()
    connection.close()
    assert [p.pubkey for p in (await restored(file, clock)).providers] == [B.pubkey]
    assert kept(file, "provider") == {address(B)}
    for kind in ("health", "models", "review", "tombs"):
        assert kept(file, kind) <= {address(B)}


async def test_damaged_records_keep_no_node_from_starting(file: Path, clock: Clock) -> None:
    events = [provider(A), *pages(A, "m1")]
    for damage in (
        "key = replace(key, ':', ':zz')",
        "key = 'nothing'",
        "document = CAST(document AS TEXT)",
        "document = 12345678901234",
    ):
        async with opened(file, clock) as directory:
            for event in events:
                directory.offer(event)
        connection = sqlite3.connect(file)
        connection.execute(f"UPDATE records SET {damage} WHERE kind = 'provider'")
        connection.commit()
        connection.close()
        assert (await restored(file, clock)).providers == ()


_TOO_LARGE = b'[["x"],[""],[18446744073709551615,0,0,0,0],[[[],[],true,[0,0,0,0,0,0]]],[0]]'


@pytest.mark.parametrize(
    "document", [b"", b"{", b"null", b"7", b"[]", b"{}", b'[["x"]]', b'"x"', _TOO_LARGE]
)
def test_no_document_breaks_a_reader(document: bytes) -> None:
    readers = (
        lambda d: read_entry(address(A), d, NOW),
        read_health,
        read_models,
        read_review,
        read_tombs,
    )
    for read in readers:
        try:
            read(document)
        except ValueError:
            continue


def test_uptime_and_latency_are_of_the_last_days() -> None:
    health = Health(("https://a.example",))
    assert health.uptime() is None
    down = ProbeResult(False, False, None, "no answer")
    health.record(down, 0)
    for day in range(MAX_DAYS + 3):
        at = day * 86_400 + 10
        health.record(ProbeResult(True, True, 10 + day), at)
        health.record(ProbeResult(False, None, None, "not tried"), at)
    assert (health.uptime(), len(health.days)) == (1.0, MAX_DAYS)
    assert health.usual_latency_ms() == 16
    health.record(down, (MAX_DAYS + 2) * 86_400 + 20)
    assert health.uptime() == 0.875


def test_an_event_is_stored_as_it_was_signed() -> None:
    event = provider(A)
    assert Event.parse(event.to_dict()) == event
