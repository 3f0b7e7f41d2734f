"""Promise: a mint has one spelling, and what is no plain http(s) URL is no mint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.ecash.token import normalize_mint_url


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://mint.example.com", "https://mint.example.com"),
        ("HTTPS://Mint.Example.COM:443//", "https://mint.example.com"),
        ("http://mint.example.com:80/", "http://mint.example.com"),
        ("https://mint.example.com:80", "https://mint.example.com:80"),
        ("https://mint.example.com/Bitcoin/", "https://mint.example.com/Bitcoin"),
        ("http://127.0.0.1:3338", "http://127.0.0.1:3338"),
        ("http://[::1]:3338/", "http://[::1]:3338"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
        ("http://abcdef.onion/x", "http://abcdef.onion/x"),
    ],
)
def test_mint_urls_have_one_spelling(url: str, normal: str) -> None:
    assert normalize_mint_url(url) == normal
    assert normalize_mint_url(normal) == normal


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mint.example.com",
        "ftp://mint.example.com",
        "javascript:alert(1)",
        "https://",
        "https:///x",
        "https://user@mint.example.com",
        "https://user:pass@mint.example.com",
        "https://mint.example.com?x=1",
        "https://mint.example.com/#x",
        "https://mint.example.com/a?",
        "https://mint.example.com/../x",
        "https://mint.example.com/a//b",
        "https://mint.example.com/%2e%2e",
        "https://mint.example.com\\@evil.example.com",
        "https://mint.example.com:0",
        "https://mint.example.com:99999",
        "https://mint.example.com:port",
        "https://mint example.com",
        "https://mint.example.com\n",
        " https://mint.example.com",
        "https://mïnt.example.com",
        "https://.example.com",
        "https://mint..example.com",
        "https://[::1",
        "https://[zz]",
        "https://mint.example.com/" + "x" * 600,
    ],
)
def test_other_urls_are_no_mint_urls(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 — any ValueError will do
        normalize_mint_url(url)


@given(st.text(max_size=60) | st.text("htps:/[].@?#%-0aA", max_size=60).map("http://".__add__))
def test_normalizing_is_idempotent_and_raises_only_value_error(url: str) -> None:
    try:
        normal = normalize_mint_url(url)
    except ValueError:
        return
    assert normalize_mint_url(normal) == normal
