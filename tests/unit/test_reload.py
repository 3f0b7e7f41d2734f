"""Promise: settings that change take effect at once where they can, all others are named; what
cannot be used, or does not fit to what runs, changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.reload import Change, Part, Reloader, differences, dotted
from node.settings import Settings, SettingsError, load

HEAD = """
[node]
secret_key = "env:KEY"
[[mints]]
url = "https://mint.example.com"
[[upstreams]]
name = "up"
base_url = "http://127.0.0.1:8000/v1"
"""
MODEL = """
[[models]]
id = "{id}"
upstream = "{upstream}"
per_request_msat = {price}
context_length = 4096
max_output_tokens = 1024
"""
OTHER = '[[upstreams]]\nname = "other"\nbase_url = "http://127.0.0.1:9/v1"\n'


def model(id_: str = "m", price: int = 1, upstream: str = "up") -> str:
    return MODEL.format(id=id_, price=price, upstream=upstream)


Read = Callable[[str], Settings]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)

    def of(text: str) -> Settings:
        file = tmp_path / "node.toml"
        file.write_text(text)
        return load(file)

    return of


class Running:
    """A node of parts that remember what they got."""

    def __init__(self, settings: Settings) -> None:
        self.got: list[tuple[str, Settings]] = []
        self.fresh: Settings | Exception = settings
        self.fails = False
        self.reloader = Reloader(
            settings,
            self._read,
            [
                Part((("log", "*"),), self._part("log")),
                Part(
                    (("models", "*"), ("models", "*", "*"), ("upstreams", "*", "priority")),
                    self._part("market"),
                ),
            ],
        )

    def _read(self) -> Settings:
        if isinstance(self.fresh, Exception):
            raise self.fresh
        return self.fresh

    def _part(self, name: str) -> Callable[[Settings], Any]:
        async def apply(settings: Settings) -> None:
            if self.fails:
                raise RuntimeError("not now")
            self.got.append((name, settings))

        return apply

    async def change(self, fresh: Settings | Exception) -> Change:
        self.fresh = fresh
        return await self.reloader.reload()

    def prices(self) -> dict[str, int]:
        return {m.id: m.per_request_msat for m in self.reloader.settings.models}


def keys(change: Change) -> tuple[list[str], list[str]]:
    return [dotted(k) for k in change.applied], [dotted(k) for k in change.needs_restart]


async def test_what_can_change_does_and_the_rest_is_named(read: Read) -> None:
    node = Running(read(HEAD + model()))
    log = '[log]\nlevel = "debug"\n[http]\nport = 1\n'
    change = await node.change(read(HEAD + model("m", 5) + model("n/x", 2) + log))
    assert keys(change) == (["log.level", "models.m.per_request_msat", "models.n/x"], ["http.port"])
    assert [name for name, _ in node.got] == ["log", "market"]
    assert node.prices() == {"m": 5, "n/x": 2}
    assert node.got[1][1].http.port == 8080, "parts see what is in effect"
    assert node.reloader.waiting == (("http", "port"),)
    # it still waits when nothing else changes, and no longer when it is taken back
    node.got.clear()
    assert keys(await node.change(node.fresh)) == ([], ["http.port"])
    change = await node.change(read(HEAD + model("n/x", 2)))
    assert keys(change) == (["log.level", "models.m"], [])
    assert node.prices() == {"n/x": 2}


async def test_settings_that_cannot_be_used_change_nothing(read: Read) -> None:
    node = Running(read(HEAD + model()))
    assert await node.change(SettingsError("http.port: must be a number")) == Change()
    assert node.got == []


async def test_a_model_of_an_upstream_that_does_not_run_waits(read: Read) -> None:
    node = Running(read(HEAD + model()))
    text = HEAD + OTHER + model("m", 7) + model("n", 2, "other")
    change = await node.change(read(text))
    assert keys(change) == (["models.m.per_request_msat"], ["models.n", "upstreams.other"])
    assert node.prices() == {"m": 7}
    # the same for one that is moved there: it goes on being sold as before
    change = await node.change(read(HEAD + OTHER + model("m", 9, "other")))
    assert node.prices() == {"m": 7}
    assert set(keys(change)[1]) == {
        "models.m.per_request_msat", "models.m.upstream", "upstreams.other",
    }  # fmt: skip


async def test_names_that_clash_with_what_waits_wait_too(read: Read) -> None:
    aliased = model("m").replace("context", 'aliases = ["n"]\ncontext')
    node = Running(read(HEAD + aliased))
    change = await node.change(read(HEAD + OTHER + model("m", 1, "other") + model("n")))
    assert node.prices() == {"m": 1}
    assert keys(change)[0] == []


async def test_a_part_that_fails_leaves_its_keys_waiting(read: Read) -> None:
    node = Running(read(HEAD + model()))
    node.fails = True
    change = await node.change(read(HEAD + model("m", 5) + '[log]\nlevel = "debug"\n'))
    assert keys(change) == ([], ["log.level", "models.m.per_request_msat"])
    assert node.prices() == {"m": 1}
    node.fails = False
    change = await node.change(node.fresh)
    assert keys(change) == (["log.level", "models.m.per_request_msat"], [])


def test_differences_name_entries_and_fields(read: Read) -> None:
    before = read(HEAD + model("a.b") + model("gone")).document()
    after = read(HEAD + model("new") + model("a.b", 2)).document()
    assert set(differences(before, after)) == {
        ("models", "a.b", "per_request_msat"),
        ("models", "gone"),
        ("models", "new"),
    }
    assert list(differences(before, before)) == []


def test_every_setting_survives_being_a_document(read: Read) -> None:
    example = Path(__file__).parents[2] / "config" / "node.example.toml"
    settings = load(example)
    assert Settings(**settings.document()) == settings
