"""Promise: what other nodes say of this one becomes one finding, with a remedy when it is bad."""

from __future__ import annotations

import pytest

from node.ops.seen import Witness, _read, judge, own_url
from node.settings import Settings

URL = "https://ai.example.com"


def settings(**http: object) -> Settings:
    return Settings.model_validate(
        {
            "node": {"secret_key": "env:KEY"},
            "http": {"public_urls": [URL], **http},
            "mints": [{"url": "https://mint.example.com"}],
            "upstreams": [{"name": "up", "base_url": "http://127.0.0.1:1/v1"}],
            "models": [
                {
                    "id": "m", "upstream": "up", "free": True,
                    "context_length": 10, "max_output_tokens": 5,
                }
            ],
        }
    )  # fmt: skip


def witness(status: str, *, verified: bool = True, urls: tuple[str, ...] = ()) -> Witness:
    return Witness("b", status, verified, "no answer in time", 30, urls)


@pytest.mark.parametrize(
    ("witnesses", "level", "what"),
    [
        ([], "warn", "no other node that is known answers"),
        ([witness("")] * 2, "warn", "none of 2 other nodes lists this node"),
        ([witness("unknown")], "ok", "1 of 1 other nodes know this one, none has probed it yet"),
        ([witness("online"), witness("offline")], "ok", "1 of 2 other nodes reach this one, in 30"),
        ([witness("offline"), witness("")], "fail", "1 of 2 other nodes cannot reach this one: no"),
        ([witness("online", verified=False)], "ok", "none has probed it yet"),
    ],
)
def test_what_others_say(witnesses: list[Witness], level: str, what: str) -> None:
    (finding,) = judge(witnesses, settings())
    assert finding.level == level
    assert what in finding.what
    assert bool(finding.remedy) == (level != "ok")


def test_a_url_of_ours_that_leads_elsewhere() -> None:
    seen = witness("online", urls=(URL, "https://old.example.com"))
    wrong, good = judge([seen], settings())
    assert (wrong.level, wrong.subject, good.level) == ("fail", URL, "ok")


@pytest.mark.parametrize("document", [None, [], "x", 3])
def test_what_is_no_answer(document: object) -> None:
    assert _read("b", document) is None


def test_strange_answers_say_nothing() -> None:
    said = _read("b", {"status": 7, "verified": "yes", "latency_ms": "1", "unverified_urls": {}})
    assert said == Witness("b", "unknown", False, "", None, ())


def test_where_the_node_itself_listens() -> None:
    assert str(own_url(settings(host="0.0.0.0", port=9), "/x")) == "http://127.0.0.1:9/x"
    assert str(own_url(settings(host="::", port=9), "/x")) == "http://[::1]:9/x"
    assert own_url(settings(port=0), "/x") is None
