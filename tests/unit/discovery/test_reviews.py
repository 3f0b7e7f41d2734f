"""The newest word of each reviewer counts once, nobody reviews himself, and floods stay within
bounds."""

from __future__ import annotations

import pytest

from discovery.announcement import build_deletion
from discovery.nostr.event import Event
from discovery.nostr.keys import Keys
from discovery.reviews import KIND_RECOMMENDATION, KIND_REVIEW, Reviews, summary

NOW = 1_790_000_000
NODE, OTHER, ANN, BOB = (Keys.generate() for _ in range(4))


@pytest.fixture
def reviews() -> Reviews:
    return Reviews(clock=lambda: NOW)


def review(by: Keys, label: str = "lgtm", at: int = NOW, of: Keys = NODE) -> Event:
    tags = [("d", of.pubkey), ("node", of.pubkey), ("t", label)]
    return by.sign(KIND_REVIEW, "tried it", tags, at)


def recommendation(by: Keys, at: int = NOW, of: Keys = NODE) -> Event:
    tags = [("k", "38421"), ("d", "x"), ("a", f"38421:{of.pubkey}:x", "wss://relay.example")]
    return by.sign(KIND_RECOMMENDATION, "good", tags, at)


def test_reviews_and_recommendations_are_counted_by_key(reviews: Reviews) -> None:
    assert reviews.offer(review(ANN)) == (NODE.pubkey,)
    assert reviews.offer(review(BOB, "avoid", NOW - 5)) == (NODE.pubkey,)
    assert reviews.offer(recommendation(ANN)) == (NODE.pubkey,)
    reviews.offer(review(ANN, of=OTHER))
    found = reviews.about(NODE.pubkey)
    assert {(r.reviewer, r.label) for r in found} == {
        (ANN.pubkey, "lgtm"),
        (ANN.pubkey, "recommended"),
        (BOB.pubkey, "avoid"),
    }
    assert [r.created_at for r in found] == [NOW, NOW, NOW - 5]
    assert summary(found) == {"recommendations": 1, "approvals": 1, "warnings": 1, "others": 0}


def test_the_newest_word_of_a_reviewer_counts(reviews: Reviews) -> None:
    reviews.offer(review(ANN, "avoid", NOW))
    assert reviews.offer(review(ANN, "lgtm", NOW - 1)) == ()
    assert [r.label for r in reviews.about(NODE.pubkey)] == ["avoid"]
    assert len(reviews) == 1


def test_what_does_not_count(reviews: Reviews) -> None:
    real = review(ANN)
    forged = Event.shape(real.to_dict() | {"content": "x", "created_at": NOW + 1})
    for event in (
        forged,
        review(NODE),
        review(ANN, at=NOW + 1_000),
        review(ANN, at=NOW - 400 * 86_400),
        ANN.sign(KIND_REVIEW, "", [("node", "not a key"), ("t", "lgtm")], NOW),
        ANN.sign(KIND_RECOMMENDATION, "", [("k", "38172"), ("a", f"38421:{NODE.pubkey}:x")], NOW),
        ANN.sign(KIND_REVIEW, "", [("node", NODE.pubkey), ("expiration", str(NOW))], NOW - 9),
    ):
        assert reviews.offer(event) == ()
    assert len(reviews) == 0


def test_its_author_deletes_a_review_and_nobody_else(reviews: Reviews) -> None:
    event = review(ANN)
    reviews.offer(event)
    assert reviews.offer(build_deletion(BOB, [], ids=[event.id], created_at=NOW)) == ()
    assert len(reviews) == 1
    assert reviews.offer(build_deletion(ANN, [], ids=[event.id], created_at=NOW)) == (NODE.pubkey,)
    assert reviews.about(NODE.pubkey) == ()
    assert len(reviews) == 0


def test_a_flood_is_bounded(reviews: Reviews) -> None:
    reviews = Reviews(max_reviews=20, max_per_provider=5, clock=lambda: NOW)
    for n in range(10):
        reviews.offer(review(Keys.generate(), at=NOW - n))
    assert sorted(NOW - r.created_at for r in reviews.about(NODE.pubkey)) == [0, 1, 2, 3, 4]
    for _ in range(30):
        reviews.offer(review(ANN, of=Keys.generate()))
    assert len(reviews) == 20
