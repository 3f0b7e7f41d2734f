"""An event passes a filter exactly when every condition of NIP-01 holds."""

from __future__ import annotations

from typing import Any

import pytest

from discovery.nostr.filters import Matcher, matches
from discovery.nostr.keys import Keys

KEYS = Keys.generate()
EVENT = KEYS.sign(1059, "", [["p", "aa"], ["p", "bb", "x"], ["t"], ["long", "v"]], 1_000)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, True),
        ({"limit": 0}, True),
        ({"search": "anything"}, True),
        ({"ids": [EVENT.id]}, True),
        ({"ids": ["0" * 64]}, False),
        ({"ids": []}, False),
        ({"authors": ["0" * 64, KEYS.pubkey]}, True),
        ({"authors": ["0" * 64]}, False),
        ({"kinds": [1, 1059]}, True),
        ({"kinds": [1]}, False),
        ({"since": 1_000}, True),
        ({"since": 1_001}, False),
        ({"until": 1_000}, True),
        ({"until": 999}, False),
        ({"since": 0, "until": 0}, False),
        ({"#p": ["bb", "cc"]}, True),
        ({"#p": ["x"]}, False),
        ({"#p": []}, False),
        ({"#t": [""]}, False),
        ({"#q": ["aa"]}, False),
        ({"kinds": [1059], "#p": ["aa"], "authors": [KEYS.pubkey], "since": 5}, True),
        ({"kinds": [1059], "#p": ["aa"], "authors": ["0" * 64]}, False),
    ],
)
def test_conditions(conditions: dict[str, Any], expected: bool) -> None:
    assert matches(conditions, EVENT) is expected


def test_several_filters_are_alternatives() -> None:
    assert Matcher([{"kinds": [1]}, {"kinds": [1059]}])(EVENT)
    assert not Matcher([{"kinds": [1]}, {"kinds": [2]}])(EVENT)
    assert not Matcher([])(EVENT)
