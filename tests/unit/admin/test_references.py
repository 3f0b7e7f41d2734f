"""Promise: no change on the admin pages has a secret sent where it does not go already, or keeps
the node from listening at its next start."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from node.admin.addresses import check_addresses
from node.admin.keys import replace_key
from node.admin.references import check_references
from node.errors import InvalidValue
from node.settings import Settings

NSEC = "nsec1" + "q" * 58
UPSTREAM = {"name": "up", "base_url": "https://models.example/v1", "api_key": "env:UP_KEY"}
THIEF = {"name": "thief", "base_url": "https://thief.example/v1"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("UP_KEY", "sk-up"), ("COPY", "sk-up"), ("NEW_KEY", "sk-new")):
        monkeypatch.setenv(name, value)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "node.key").write_text(NSEC + "\n")
    (tmp_path / "node.key").chmod(0o600)
    return tmp_path


def settings(home: Path, *upstreams: dict[str, Any], **sections: Any) -> Settings:
    model = {"id": "m", "upstream": "up", "per_request_msat": 1, "context_length": 9}
    document: dict[str, Any] = {
        "node": {"secret_key": f"file:{home / 'node.key'}", "data_dir": str(home / "data")},
        "mints": [{"url": "https://mint.example"}],
        "upstreams": upstreams or [UPSTREAM],
        "models": [model | {"max_output_tokens": 9}],
    }
    return Settings(**document | sections)


def refused(fresh: Settings, running: Settings) -> str | None:
    try:
        check_references(fresh, [running])
    except InvalidValue as caught:
        error = caught
    else:
        return None
    assert "sk-" not in error.message
    assert "nsec" not in error.message
    return error.param


@pytest.mark.parametrize(
    ("upstreams", "param"),
    [
        ([UPSTREAM], None),
        ([UPSTREAM | {"base_url": "https://models.example/other/v1"}], "upstreams.up.api_key"),
        ([UPSTREAM | {"api_key": "env:NEW_KEY"}], None),
        ([UPSTREAM, THIEF | {"api_key": "env:NEW_KEY"}], None),
        ([UPSTREAM, THIEF | {"base_url": UPSTREAM["base_url"], "api_key": "env:COPY"}], None),
        ([UPSTREAM | {"base_url": THIEF["base_url"]}], "upstreams.up.api_key"),
        ([UPSTREAM | {"base_url": "http://models.example/v1"}], "upstreams.up.api_key"),
        ([UPSTREAM | {"base_url": "https://models.example:444/v1"}], "upstreams.up.api_key"),
        ([UPSTREAM, THIEF | {"api_key": "env:UP_KEY"}], "upstreams.thief.api_key"),
        ([UPSTREAM, THIEF | {"api_key": "env:COPY"}], "upstreams.thief.api_key"),
        ([UPSTREAM, THIEF | {"api_key": "env:NOT_THERE"}], "upstreams.thief.api_key"),
    ],
)
def test_a_key_goes_to_its_own_server_only(
    home: Path, upstreams: list[dict[str, Any]], param: str | None
) -> None:
    assert refused(settings(home, *upstreams), settings(home)) == param


def test_what_the_file_says_is_nothing_new(home: Path) -> None:
    file = settings(home, UPSTREAM | {"base_url": THIEF["base_url"]}, http={"host": "192.0.2.1"})
    for standing, allowed in (([settings(home)], False), ([settings(home), file], True)):
        for check in (check_references, check_addresses):
            with contextlib.nullcontext() if allowed else pytest.raises(InvalidValue):
                check(file, standing)


def test_keys_of_the_node_are_not_sent_nor_those_it_had(home: Path) -> None:
    running = settings(home)
    backup = replace_key(home / "node.key", "nsec1" + "p" * 58)
    hashed, beside = home / "data" / "admin.hash", home / "copy"
    hashed.write_text("$argon2id$…")
    beside.symlink_to(backup)
    for file in (home / "node.key", backup, beside, hashed):
        fresh = settings(home, UPSTREAM, THIEF | {"api_key": f"file:{file}"})
        assert refused(fresh, running) == "upstreams.thief.api_key", file


def test_only_what_can_be_a_key_is_one(home: Path) -> None:
    running = settings(home)
    words, pipe = home / "words", home / "pipe"
    words.write_text("root:*:1:\ndaemon:*:1:\n")
    os.mkfifo(pipe)
    for file in (words, pipe, home, Path("/dev/zero"), home / "none"):
        fresh = settings(home, UPSTREAM, THIEF | {"api_key": f"file:{file}"})
        assert refused(fresh, running) == "upstreams.thief.api_key", file


@pytest.mark.parametrize(
    ("sections", "param"),
    [
        ({}, None),
        ({"http": {"host": "localhost"}}, None),
        ({"http": {"port": 0}}, None),
        ({"metrics": {"host": "192.0.2.1"}}, None),
        ({"http": {"host": "192.0.2.1"}}, "http.host"),
        ({"http": {"host": "no.such.host.invalid"}}, "http.host"),
        ({"http": {"host": "a" * 70}}, "http.host"),
        ({"metrics": {"enabled": True, "host": "192.0.2.1"}}, "metrics.host"),
    ],
)
def test_only_what_can_be_listened_on_is_kept(
    home: Path, sections: dict[str, Any], param: str | None
) -> None:
    found = None
    try:
        check_addresses(settings(home, **sections), [settings(home)])
    except InvalidValue as error:
        found = error.param
    assert found == param


def test_a_port_of_somebody_else_is_refused_and_our_own_is_not(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        fresh = settings(home, http={"port": port})
        with pytest.raises(InvalidValue, match=r"http\.port"):
            check_addresses(fresh, [settings(home)])
        check_addresses(settings(home, http={"port": port, "host": "0.0.0.0"}), [fresh])
