"""Promise: no answer of the admin API holds a token, a key, a hash, a coin or a prompt."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from node.core.exchange import Receipt
from node.core.money import Msat
from node.core.usage import Usage
from node.errors import NodeError
from node.ops import logging as node_logging
from tests.unit.admin.office import open_office
from tests.unit.admin.seeds import HASH, SENTINEL, seed

NSEC = "nsec1" + "q" * 58
TOKEN = "cashuB" + SENTINEL * 8
KEY = f"sk-{SENTINEL}{SENTINEL}"


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


async def test_no_get_shows_a_secret(tmp_path: Path) -> None:
    stream = io.StringIO()
    async with open_office(tmp_path) as office:
        await office.database.write(lambda conn: seed(conn, now=int(time.time())))
        node_logging.taps.append(office.parts.log.add)
        try:
            node_logging.configure("info", "json", stream=stream)
            log = structlog.get_logger()
            log.info("an_event", token=TOKEN, key=KEY, nested={"a": [NSEC]}, secret="f" * 64)
            logging.getLogger("somebody").warning("a line with %s and %s", TOKEN, KEY)
            try:
                raise ValueError(TOKEN)
            except ValueError:
                log.exception("an_error")
        finally:
            node_logging.taps.remove(office.parts.log.add)
        office.parts.feed.served(
            "/v1/chat/completions",
            "http",
            200,
            "",
            Receipt(cost=Msat(5), usage=Usage(1, 2), change=TOKEN),
            0.5,
            0.1,
            "request-1",
            "m",
        )
        paths = [route.path for route in office.routes if route.method == "GET" and route.answer]
        assert len(paths) > 12
        seen = []
        for path in paths:
            for query in ({}, {"order": "balance"}, {"limit": "1"}, {"bucket": "day"}):
                try:
                    answer = await office.get(path.replace("{id}", "100"), **query)
                except NodeError as error:
                    answer = {"error": str(error)}
                seen.append(f"{path} {json.dumps(answer)}")
        secret_key = (tmp_path / "nostr.key").read_text().strip()
        for secret in (SENTINEL, HASH, NSEC, TOKEN, KEY, "f" * 64, secret_key, "cashuB" + "S"):
            assert [text[:300] for text in seen if secret in text] == []
        text = "\n".join(seen)
        for shown in ("an_event", "a line with", "request-1", "withdrawal-1", "me@example.com"):
            assert shown in text  # the places were looked at


async def test_the_tail_has_what_the_log_has(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        stream = io.StringIO()
        node_logging.taps.append(office.parts.log.add)
        try:
            node_logging.configure("info", "json", stream=stream)
            log = structlog.get_logger("test")
            log.debug("not_written")
            log.info("first", number=1)
            log.warning("second", text="x")
            logging.getLogger("library").error("third %d", 3)
        finally:
            node_logging.taps.remove(office.parts.log.add)
        written = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
        lines = (await office.get("/log"))["lines"]
        assert (
            [line["event"] for line in reversed(lines)]
            == written
            == [
                "first",
                "second",
                "third 3",
            ]
        )
        assert lines[2]["fields"] == {"number": 1}
        assert lines[2]["level"] == "info"
        assert abs(lines[0]["at"] - time.time()) < 3600
        warnings = (await office.get("/log", level="warning"))["lines"]
        assert [line["event"] for line in warnings] == ["third 3", "second"]
        assert len((await office.get("/log", limit="1"))["lines"]) == 1
