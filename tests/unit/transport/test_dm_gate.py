"""Budgets of the Nostr carriage refuse exactly what is over them and stay bounded themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import RateLimitExceeded
from node.transport.dm.gate import Budget, Gate, Ticket
from node.transport.dm.limits import DmLimits
from node.transport.dm.outbox import Recipient, SentReplies
from node.transport.dm.runner import counts_as_paid


def test_budget_gives_a_burst_then_refills() -> None:
    budget = Budget(60, burst=3)
    assert [budget.take("a", 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 1.0]
    assert budget.take("b", 0.0) == 0.0
    assert budget.take("a", 0.5) == 0.5
    assert budget.take("a", 1.0) == 0.0
    assert budget.take("a", 1000.0, 3) == 0.0
    assert budget.take("a", 1000.0) == 1.0


@given(st.lists(st.floats(0, 5), max_size=50))
def test_budget_never_gives_more_than_its_rate(gaps: list[float]) -> None:
    budget = Budget(60, burst=5)
    now, taken = 0.0, 0
    for gap in gaps:
        now += gap
        taken += budget.take("a", now) == 0.0
    assert taken <= 5 + now + 1e-6


def test_budget_is_bounded_in_keys() -> None:
    budget = Budget(60, burst=1, max_keys=2)
    for key in "abc":
        budget.take(key, 0.0)
    assert budget.take("c", 0.0) > 0
    assert budget.take("a", 0.0) == 0.0  # forgotten, so full again


def admit(gate: Gate, sender: str, now: float = 0.0) -> Ticket:
    return gate.admit(sender, now, running=0, of_sender=0)


def test_requests_that_turn_out_unpaid_are_limited_per_sender_and_in_all() -> None:
    gate = Gate(DmLimits(unpaid_per_minute=2, unpaid_total_per_minute=3, requests_per_minute=100))
    admit(gate, "a")
    admit(gate, "a")
    with pytest.raises(RateLimitExceeded) as caught:
        admit(gate, "a")
    assert caught.value.retry_after_s == 31
    admit(gate, "b")
    with pytest.raises(RateLimitExceeded):
        admit(gate, "c")


def test_what_is_paid_for_costs_no_quota() -> None:
    gate = Gate(DmLimits(unpaid_per_minute=2, unpaid_total_per_minute=2, requests_per_minute=10))
    for _ in range(9):
        gate.paid(admit(gate, "a"), 0.0)
    admit(gate, "a")
    with pytest.raises(RateLimitExceeded):
        admit(gate, "a")  # requests_per_minute holds for all


def test_a_request_under_way_is_counted_so_that_many_at_once_gain_nothing() -> None:
    gate = Gate(DmLimits(unpaid_per_minute=2))
    first, _ = admit(gate, "a"), admit(gate, "a")
    with pytest.raises(RateLimitExceeded):
        admit(gate, "a")
    gate.paid(first, 0.0)
    admit(gate, "a")


def test_strangers_do_not_shut_out_those_who_pay() -> None:
    limits = DmLimits(unpaid_total_per_minute=3, payer_lifetime_s=5.0)
    gate = Gate(limits)
    gate.paid(admit(gate, "payer"), 0.0)
    for stranger in "abc":
        admit(gate, stranger)
    with pytest.raises(RateLimitExceeded):
        admit(gate, "d")
    gate.paid(admit(gate, "payer"), 0.0)
    with pytest.raises(RateLimitExceeded):
        admit(gate, "d")  # the payer gave nothing back that it had not taken
    with pytest.raises(RateLimitExceeded):
        admit(gate, "payer", 5.0)


@pytest.mark.parametrize(
    ("path", "status", "cost", "paid"),
    [
        ("/v1/chat/completions", 200, 5, True),
        ("/v1/chat/completions", 409, 5, True),
        ("/v1/chat/completions", 400, 5, False),
        ("/v1/chat/completions", 502, 0, False),
        ("/v1/info", 200, 0, False),
        ("/v1/wallet/balance", 200, 0, True),
        ("/v1/wallet/balance", 401, 0, False),
        ("/v1/balance/refund", 425, 0, False),
        ("/v1/wallets", 200, 0, False),
    ],
)
def test_the_answer_says_whether_a_request_was_paid(
    path: str, status: int, cost: int, paid: bool
) -> None:
    assert counts_as_paid(path, status, cost) is paid


def test_unwraps_are_spread_when_the_burst_is_used_up() -> None:
    gate = Gate(DmLimits(max_unwraps_per_s=10))
    now, moments = 0.0, []
    for _ in range(30):
        now += gate.unwrap_delay_s(now)
        moments.append(now)
    assert moments[10] == 0.0
    assert moments[-1] == pytest.approx(1.9)
    assert gate.unwrap_delay_s(now + 60) == 0.0


def test_sent_replies_are_bounded_and_expire() -> None:
    sent = SentReplies(max_bytes=10, lifetime_s=60)
    recipient = Recipient("a" * 64, 21059)
    first = sent.open(("a", "1"), recipient, frames=True)
    sent.append(first, "12345678")
    second = sent.open(("a", "2"), recipient, frames=True)
    sent.append(second, "1234")
    assert sent.get(("a", "1")) is None
    sent.append(first, "late")
    assert sent.get(("a", "2")) is second
    sent.expire(1e9)
    assert sent.get(("a", "2")) is second  # still being written
    sent.close(second, 0.0)
    sent.expire(59.0)
    assert sent.get(("a", "2")) is second
    sent.expire(60.0)
    assert sent.get(("a", "2")) is None
