"""Nobody gets more requests than allowed, everybody gets as many, and is told what is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.accounts import Account
from node.core.exchange import Request
from node.errors import RateLimitExceeded
from node.service.limits import Limiter, RateLimits, of_account, stranger


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def running(limiter: Limiter, key: str) -> Iterator[None]:
    limiter.enter(key)
    try:
        yield
    finally:
        limiter.leave(key)


def allowed(limiter: Limiter, key: str = "a") -> bool:
    try:
        limiter.take(key, {})
    except RateLimitExceeded:
        return False
    return True


def test_a_window_is_full_until_it_ends() -> None:
    clock = Clock()
    limiter = Limiter(RateLimits(2, 0, 0), clock)
    headers: dict[str, str] = {}
    limiter.take("a", headers)
    assert headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "60s",
        "x-ratelimit-limit": "2",
        "x-ratelimit-remaining": "1",
        "x-ratelimit-reset": "60",
    }
    clock.now += 20.5
    limiter.take("a", headers)
    assert headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(RateLimitExceeded) as refused:
        limiter.take("a", headers)
    assert refused.value.retry_after_s == 40
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset"] == "40"
    assert allowed(limiter, "b")
    clock.now += 39.5
    assert allowed(limiter)


def test_the_tightest_window_is_told_and_the_longest_wait() -> None:
    clock = Clock()
    limiter = Limiter(RateLimits(3, 2, 10), clock)
    headers: dict[str, str] = {}
    limiter.take("a", headers)
    assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("2", "1")
    limiter.take("a", headers)
    with pytest.raises(RateLimitExceeded) as refused:
        limiter.take("a", headers)
    assert refused.value.retry_after_s == 3600


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 50)), max_size=200))
def test_no_window_ever_holds_more_than_its_limit(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    limiter = Limiter(RateLimits(3, 5, 0), clock)
    taken: dict[str, list[float]] = {"a": [], "b": []}
    starts: dict[tuple[str, int], float] = {}
    for key, wait_s in steps:
        clock.now += wait_s
        counts = {}
        for limit, length_s in ((3, 60), (5, 3600)):
            start = starts.get((key, length_s))
            if start is None or start + length_s <= clock.now:
                starts[key, length_s] = start = clock.now
            counts[limit] = sum(1 for moment in taken[key] if moment >= start)
        expected = all(count < limit for limit, count in counts.items())
        assert allowed(limiter, key) == expected
        if expected:
            taken[key].append(clock.now)


def test_no_limits_no_headers() -> None:
    headers: dict[str, str] = {}
    limiter = Limiter(RateLimits(0, 0, 0, max_concurrent=0))
    for _ in range(1000):
        limiter.take("a", headers)
    assert not headers
    with running(limiter, "a"), running(limiter, "a"):
        pass


def test_the_number_of_keys_is_bounded() -> None:
    limiter = Limiter(RateLimits(1, 0, 0, max_keys=10), Clock())
    assert all(allowed(limiter, str(number)) for number in range(11))
    assert not allowed(limiter, "10")
    assert not allowed(limiter, "1")
    assert allowed(limiter, "0")  # forgotten for the eleventh


def test_concurrent_calls_of_one_account() -> None:
    limiter = Limiter(RateLimits(max_concurrent=2))
    with running(limiter, "a"), running(limiter, "b"), running(limiter, "a"):
        with pytest.raises(RateLimitExceeded), running(limiter, "a"):
            pass
        with running(limiter, ""), running(limiter, ""), running(limiter, ""):
            pass
    with running(limiter, "a"), running(limiter, "a"):
        pass


def test_who_counts() -> None:
    def key(peer: str, carriage: str = "http") -> str:
        return stranger(Request("r", "GET", "/", {}, peer=peer, carriage=carriage))  # type: ignore[arg-type]

    assert key("2001:db8::1") == key("2001:db8::ffff:1") != key("2001:db8:0:1::1")
    assert key("::ffff:192.0.2.1") == key("192.0.2.1") != key("192.0.2.2")
    assert key("fe80::1%eth0") == key("fe80::2%eth1")
    assert key("ab" * 32, "nostr") != key("ab" * 32)
    assert key("not:an:address").startswith("http:")
    own, child = Account(7, "spend", True), Account(7, "child", True, child_id=1)
    assert of_account(own) != of_account(child)
