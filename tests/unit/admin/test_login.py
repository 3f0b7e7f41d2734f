"""Promise: only the password opens the admin pages; guessing it costs time that grows, and little
of the node's; a session ends when it should, and its token is nowhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import argon2
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from node.admin import password as passwords
from node.admin.auth import Auth
from node.admin.lockout import MAX_ADDRESSES, Lockout, LockoutTerms
from node.admin.password import Password, PasswordCheck, WeakPassword, hash_password, matches
from node.admin.sessions import Sessions, SessionTerms
from node.errors import InvalidValue, NotFound, NotLoggedIn, RateLimitExceeded, WrongPassword
from node.ledger.admin_sessions import SqliteAdminSessions
from node.ledger.database import Database
from node.settings_types import SettingsError

WORD = "a good password"
CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
HASH = CHEAP.hash(WORD)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "node.db")
    yield opened
    await opened.close()


# The password


def test_what_is_kept_is_argon2id_with_salt() -> None:
    one, other = hash_password(WORD), hash_password(WORD)
    assert one != other
    parameters = argon2.extract_parameters(one)
    assert parameters.type is argon2.Type.ID
    assert parameters.memory_cost >= 46 * 1024, "what OWASP asks for"
    assert matches(one, WORD)
    assert not matches(one, WORD + " ")


@pytest.mark.parametrize("text", ["", "x" * 9, "x" * 1025])
def test_a_password_that_is_too_short_or_too_long_is_refused(text: str) -> None:
    with pytest.raises(WeakPassword, match="10 to 1024"):
        hash_password(text)


@given(st.text())
def test_what_is_no_hash_opens_to_nobody(text: str) -> None:
    assert not matches(text, WORD)
    assert not matches("$argon2id$" + text, WORD)


def test_a_new_password_holds_soon_and_a_lost_one_lets_nobody_in() -> None:
    clock, kept, reads = Clock(), [HASH], 0

    def read() -> str:
        nonlocal reads
        reads += 1
        if not kept:
            raise SettingsError("gone")
        return kept[0]

    password = Password(read, lambda: tuple(kept), clock)
    before = password.fingerprint
    assert password.hash == HASH
    clock.now += 10
    assert password.hash == HASH
    assert reads == 1, "nothing has changed"
    kept[0] = CHEAP.hash("another password")
    assert password.hash == HASH, "read once a second at most"
    clock.now += passwords.CHECK_S
    assert password.hash == kept[0]
    assert password.fingerprint != before
    for bad in (WORD, "$argon2i$v=19$m=8,t=1,p=1$c2FsdA$aGFzaA"):
        kept[0] = bad
        clock.now += 1
        assert password.hash is None, "a password in the place of its hash is none"
    kept.clear()
    clock.now += 1
    assert password.hash is None


async def test_one_is_checked_at_a_time_and_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, let_go = 0, 0, threading.Event()

    def slow(hashed: str, password: str) -> bool:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert let_go.wait(30)
        running -= 1
        return True

    monkeypatch.setattr(passwords, "matches", slow)
    check = PasswordCheck(max_waiting=2)
    tasks = []
    for _ in range(3):
        check.enter()
        tasks.append(asyncio.create_task(check.check(HASH, WORD)))
    with pytest.raises(RateLimitExceeded):
        check.enter()
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    with pytest.raises(RateLimitExceeded):
        check.enter()  # who has left still takes the thread
    let_go.set()
    assert await asyncio.gather(*tasks[1:]) == [True, True]
    assert most == 1
    async with asyncio.timeout(30):
        while True:
            try:
                check.enter()
                break
            except RateLimitExceeded:
                await asyncio.sleep(0.01)
    check.close()


# Guessing

TERMS = LockoutTerms(
    free_tries=2, first_delay_s=4, max_tries=5, lockout_s=100, max_tries_overall=1000
)


def wait_of(lockout: Lockout, address: str) -> int:
    """How long it has to wait; 0: not at all, and then it counts as a failure."""
    try:
        lockout.begin(address)
    except RateLimitExceeded as error:
        return error.retry_after_s or 0
    return 0


def test_the_wait_doubles_up_to_the_lockout() -> None:
    clock = Clock()
    lockout = Lockout(TERMS, clock)
    assert [wait_of(lockout, "a") for _ in range(4)] == [0, 0, 0, 4]
    for then in (8, 100):
        clock.now += wait_of(lockout, "a")
        assert [wait_of(lockout, "a") for _ in range(3)] == [0, then, then]
    clock.now += 99
    assert wait_of(lockout, "a") == 1
    assert wait_of(lockout, "b") == 0, "others do not wait"
    clock.now += 1
    assert [wait_of(lockout, "a") for _ in range(4)] == [0, 0, 0, 4], "and it begins anew"


def test_who_succeeds_is_forgiven() -> None:
    clock = Clock()
    lockout = Lockout(TERMS, clock)
    for _ in range(20):
        lockout.begin("a")
        lockout.begin("a")
        lockout.succeed("a")
    assert lockout.failures("a") == 0


def test_many_addresses_lock_strangers_out_and_not_the_operator() -> None:
    clock = Clock()
    lockout = Lockout(LockoutTerms(max_tries_overall=50, lockout_s=100), clock)
    lockout.begin("home")
    lockout.succeed("home")
    for number in range(50):
        lockout.begin(f"address {number}")
    assert wait_of(lockout, "fresh") == 100
    lockout.begin("home")
    clock.now += 100
    assert wait_of(lockout, "fresh") == 0


def test_what_is_remembered_is_bounded() -> None:
    lockout = Lockout(LockoutTerms(max_tries_overall=10**9), Clock())
    for number in range(MAX_ADDRESSES + 500):
        lockout.begin(str(number))
        if number % 3 == 0:
            lockout.succeed(str(number))
    assert len(lockout._records) <= MAX_ADDRESSES
    assert len(lockout._known) <= 100


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 50))))
def test_nobody_gets_more_tries_than_there_are(steps: list[tuple[str, bool, int]]) -> None:
    clock = Clock()
    lockout = Lockout(TERMS, clock)
    failed: dict[str, list[float]] = {name: [] for name in "abc"}
    for address, right, pause in steps:
        clock.now += pause
        try:
            lockout.begin(address)
        except RateLimitExceeded:
            continue
        if right:
            lockout.succeed(address)
            failed[address].clear()
        else:
            failed[address].append(clock.now)
        recent = [at for at in failed[address] if at > clock.now - TERMS.lockout_s]
        assert len(recent) <= TERMS.max_tries


# Sessions


async def test_a_session_ends_by_age_and_by_idleness(database: Database) -> None:
    clock = Clock()
    store = SqliteAdminSessions(database)
    sessions = Sessions(store, lambda: b"p", SessionTerms(idle_s=100, max_s=250), clock)
    token = await sessions.open(b"p")
    assert await sessions.check(token) == clock.now + 100
    clock.now += 90
    assert await sessions.check(token, use=False) == clock.now + 10
    assert await sessions.check(token) == clock.now + 100
    clock.now += 90
    assert await sessions.check(token) == clock.now + 70, "the greatest age"
    clock.now += 70
    with pytest.raises(NotLoggedIn):
        await sessions.check(token)
    clock.now -= 70
    with pytest.raises(NotLoggedIn):
        await sessions.check(token)
    idle = await sessions.open(b"p")
    clock.now += 100
    with pytest.raises(NotLoggedIn):
        await sessions.check(idle)


async def test_another_password_and_logout_end_a_session(database: Database) -> None:
    fingerprint = [b"one"]
    sessions = Sessions(SqliteAdminSessions(database), lambda: fingerprint[0])
    first, second = await sessions.open(b"one"), await sessions.open(b"one")
    assert not await sessions.close("x" * 43)
    await sessions.close(first)
    with pytest.raises(NotLoggedIn):
        await sessions.check(first)
    assert await sessions.check(second)
    fingerprint[0] = b"two"
    with pytest.raises(NotLoggedIn):
        await sessions.check(second)
    fingerprint[0] = b"one"
    with pytest.raises(NotLoggedIn):
        await sessions.check(second)


async def test_of_too_many_sessions_the_one_used_longest_ago_goes(database: Database) -> None:
    clock = Clock()
    store = SqliteAdminSessions(database)
    sessions = Sessions(store, lambda: b"p", SessionTerms(max_sessions=3), clock)
    tokens = []
    for _ in range(3):
        tokens.append(await sessions.open(b"p"))
        clock.now += 60
    await sessions.check(tokens[0])
    tokens.append(await sessions.open(b"p"))
    alive = []
    for token in tokens:
        try:
            await sessions.check(token, use=False)
            alive.append(tokens.index(token))
        except NotLoggedIn:
            continue
    assert alive == [0, 2, 3]


@given(token=st.one_of(st.none(), st.text(), st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True)))
def test_what_is_no_token_opens_nothing(token: str | None) -> None:
    class Empty:
        async def find(self, digest: bytes) -> None:
            assert len(digest) == 32

        async def remove(self, digest: bytes) -> None:
            return

    async def ask() -> None:
        sessions = Sessions(Empty(), lambda: b"p")  # type: ignore[arg-type]
        with pytest.raises(NotLoggedIn):
            await sessions.check(token)
        await sessions.close(token)

    asyncio.run(ask())


# All of it


def auth(database: Database, *, enabled: bool = True, hashed: str = HASH) -> Auth:
    password = Password(lambda: hashed, lambda: None)
    sessions = Sessions(SqliteAdminSessions(database), lambda: password.fingerprint)
    return Auth(password, sessions, Lockout(TERMS), PasswordCheck(), enabled=enabled)


async def test_the_right_password_opens_a_session(database: Database) -> None:
    door = auth(database)
    token = await door.login(WORD, "192.0.2.1")
    assert await door.session(token)
    rows = await database.read(lambda c: c.execute("SELECT * FROM admin_sessions").fetchall())
    assert token.encode() not in bytes(rows[0]["digest"]) + bytes(rows[0]["password"])
    await door.logout(token, "192.0.2.1")
    with pytest.raises(NotLoggedIn):
        await door.session(token)


async def test_a_password_that_is_replaced_while_it_is_checked_opens_nothing(
    database: Database,
) -> None:
    hashes, clock = {"now": HASH}, Clock()

    class Slow(PasswordCheck):
        async def check(self, hashed: str, password: str) -> bool:
            right = await super().check(hashed, password)
            hashes["now"] = CHEAP.hash("another password")
            clock.now += 2
            return right

    password = Password(lambda: hashes["now"], lambda: hashes["now"], clock)
    sessions = Sessions(SqliteAdminSessions(database), lambda: password.fingerprint)
    door = Auth(password, sessions, Lockout(TERMS), Slow())
    token = await door.login(WORD, "192.0.2.1")
    with pytest.raises(NotLoggedIn):
        await door.session(token)


async def test_logging_out_without_a_session_is_not_told(database: Database) -> None:
    door = auth(database)
    token = await door.login(WORD, "192.0.2.1")
    with structlog.testing.capture_logs() as lines:
        for given in (None, "x", "x" * 43, token, token):
            await door.logout(given, "192.0.2.9")
    assert [line["event"] for line in lines] == ["admin_logout"]


async def test_wrong_passwords_count_for_the_network(database: Database) -> None:
    door = auth(database)
    for host in (1, 2, 3):
        with pytest.raises(WrongPassword):
            await door.login("wrong", f"2001:db8::{host}")
    with pytest.raises(RateLimitExceeded):
        await door.login(WORD, "2001:db8::4")
    assert await door.login(WORD, "2001:db8:0:1::1")


@pytest.mark.parametrize("given", [None, 5, "", "x" * 1025, ["x"], {"a": 1}])
async def test_what_is_no_password_is_not_checked(database: Database, given: object) -> None:
    with pytest.raises(InvalidValue):
        await auth(database).login(given, "192.0.2.1")


async def test_a_password_that_is_no_text_is_wrong(database: Database) -> None:
    with pytest.raises(WrongPassword):
        await auth(database).login("\ud800", "192.0.2.1")


async def test_nobody_gets_in_where_it_is_off(database: Database) -> None:
    token = await auth(database).login(WORD, "192.0.2.1")
    for door in (auth(database, enabled=False), auth(database, hashed="nothing")):
        with pytest.raises(NotFound, match="nodestr admin password"):
            await door.login(WORD, "192.0.2.1")
        with pytest.raises(NotFound):
            await door.session(token)
