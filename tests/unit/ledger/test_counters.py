"""Promise: no counter is in use twice, and refused operations leave no gap behind."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from node.core.accounts import CounterRange, Operation, Output
from node.ledger.counters import (
    allocate,
    free_ranges,
    give_back,
    next_counter,
    skip,
    unwatch,
    watch_on,
    watched_ranges,
)
from node.ledger.migrating import migrate

KEYSET = "00" * 8
STEPS = st.lists(st.tuples(st.sampled_from(["begin", "sign", "refuse"]), st.integers(1, 20)))


@contextmanager
def empty() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    migrate(connection)
    try:
        yield connection
    finally:
        connection.close()


def operation(counters: list[int]) -> Operation:
    outputs = tuple(Output(1, KEYSET, counter, True) for counter in counters)
    return Operation("op", "receive", "failed", 100, "m", "sat", 1, 0, (), outputs)


@given(STEPS)
def test_counters_are_live_once_and_gaps_are_no_longer_than_what_is_under_way(
    steps: list[tuple[str, int]],
) -> None:
    with empty() as conn:
        live: list[list[int]] = []
        signed: set[int] = set()
        most = 0
        for what, number in steps:
            if what == "begin":
                live.append(allocate(conn, KEYSET, number))
            elif live:
                counters = live.pop(number % len(live))
                if what == "sign":
                    signed |= set(counters)
                else:
                    give_back(conn, operation(counters))
            in_use = [counter for counters in live for counter in counters]
            assert len(in_use) == len(set(in_use))
            assert not signed & set(in_use)
            most = max(most, len(in_use))
            used = signed | set(in_use)
            assert next_counter(conn, KEYSET) > max(used, default=-1)
            free = {c for r in free_ranges(conn, KEYSET) for c in range(r.first, r.first + r.count)}
            assert free | used == set(range(next_counter(conn, KEYSET)))
            assert not free & used
        ends = [-1, *sorted(signed)]
        gaps = [after - before - 1 for before, after in pairwise(ends)]
        assert max(gaps, default=0) <= most


def test_what_is_skipped_is_watched_and_never_used_again() -> None:
    with empty() as conn:
        first, second = allocate(conn, KEYSET, 5), allocate(conn, KEYSET, 5)
        give_back(conn, operation(first))
        skip(conn, "m", KEYSET, 30, 1000)
        assert free_ranges(conn, KEYSET) == []
        ranges = watched_ranges(conn, "m")
        assert ranges == [CounterRange(KEYSET, 0, 5), CounterRange(KEYSET, 10, 20)]
        assert set(second) == set(range(5, 10))
        assert allocate(conn, KEYSET, 2) == [30, 31]
        skip(conn, "m", KEYSET, 20, 1000)  # nothing is ahead
        assert watched_ranges(conn, "m") == ranges
        assert next_counter(conn, KEYSET) == 32
        unwatch(conn, ranges, 999)
        assert watched_ranges(conn, "m") == ranges
        watch_on(conn, "m", 2000)
        unwatch(conn, ranges, 1999)
        assert watched_ranges(conn, "m") == ranges
        unwatch(conn, ranges[:1], 2000)
        assert watched_ranges(conn, "m") == ranges[1:]
