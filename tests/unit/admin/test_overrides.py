"""Promise: overrides go before every other source, keep what they do not mention, are written whole
or not at all, and no document makes anything but settings or a clear refusal of them."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from pydantic_core import to_jsonable_python

from node import settings as node_settings
from node.admin.exchange import AdminRequest
from node.admin.overrides import FIXED, patched, write_overrides
from node.admin.settings_api import SettingsApi
from node.errors import InternalError, InvalidValue, NodeError, RequestTooLarge
from node.reload import Part, Reloader
from node.settings import SettingsError, layers, load, settings_of
from node.settings_layers import LISTS

CONFIG = """
[node]
secret_key = "env:KEY"
data_dir = "{data}"
name = "from the file"
[http]
port = 1111
[[mints]]
url = "https://mint.example.com/"
max_balance_sat = 5
[[upstreams]]
name = "up"
base_url = "http://127.0.0.1:8000/v1"
[[models]]
id = "org/m.1"
upstream = "up"
input_per_mtok_msat = 1000
output_per_mtok_msat = 2000
context_length = 4096
max_output_tokens = 1024
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEBUG", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("KEY", "1" * 64)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(CONFIG.format(data=tmp_path))
    return path


@pytest.fixture
def override(tmp_path: Path) -> Callable[[Any], None]:
    return lambda document: write_overrides(tmp_path / "node.db.overrides.json", document)


# Reading


def test_overrides_go_before_file_environment_and_credentials(
    config: Path,
    override: Callable[[Any], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for number, key in enumerate(("http.host", "http.port", "node.about"), start=1):
        (credentials / f"nodestr.{key}").write_text(f"300{number}")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    monkeypatch.setenv("NODESTR_HTTP__PORT", "2222")
    monkeypatch.setenv("NODESTR_HTTP__BODY_TIMEOUT_S", "2223")
    override({"http": {"port": 4444}})
    found = load(config)
    assert (found.http.port, found.http.host, found.node.about) == (4444, "3001", "3003")
    assert (found.http.body_timeout_s, found.node.name) == (2223, "from the file")
    sources = layers(config)
    origins = {
        ("http", "port"): "override",
        ("http", "host"): "credential",
        ("http", "body_timeout_s"): "environment",
        ("node", "name"): "file",
        ("http", "max_body_bytes"): "default",
        ("log", "level"): "default",
        ("models", "org/m.1", "upstream"): "file",
        ("models", "org/m.1", "name"): "default",
    }
    assert {path: sources.origin(*path) for path in origins} == origins


def test_entries_of_lists_keep_what_is_not_overridden(
    config: Path, override: Callable[[Any], None]
) -> None:
    override(
        {
            "models": {"org/m.1": {"input_per_mtok_msat": 7}},
            "mints": {"https://MINT.example.com": {"timeout_s": 3}},
            "upstreams": {"another": {"base_url": "http://127.0.0.1:9/v1"}},
        }
    )
    found = load(config)
    (model,), (mint,) = found.models, found.mints
    assert (model.input_per_mtok_msat, model.output_per_mtok_msat) == (7, 2000)
    assert (mint.max_balance_sat, mint.timeout_s) == (5, 3)
    assert [upstream.name for upstream in found.upstreams] == ["up", "another"]
    sources = layers(config)
    assert sources.origin("models", "org/m.1", "input_per_mtok_msat") == "override"
    assert sources.origin("mints", mint.url, "timeout_s") == "override"
    assert sources.origin("mints", mint.url, "max_balance_sat") == "file"
    assert sources.origin("upstreams", "another", "base_url") == "override"


def test_a_list_of_the_environment_is_taken_as_a_whole(
    config: Path, override: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"url": "https://other.example"}
    monkeypatch.setenv("NODESTR_MINTS", json.dumps([entry]))
    override({"mints": {"https://other.example": {"max_balance_sat": 9}}})
    (mint,) = load(config).mints
    assert (mint.url, mint.max_balance_sat) == ("https://other.example", 9)
    sources = layers(config)
    assert sources.origin("mints", "https://other.example", "url") == "environment"
    assert sources.origin("mints", "https://other.example", "timeout_s") == "default"


def test_they_can_be_somewhere_else(config: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else.json"
    text = config.read_text().replace("[http]", f'overrides = "{elsewhere}"\n[http]')
    config.write_text(text)
    write_overrides(elsewhere, {"http": {"port": 5}})
    assert load(config).http.port == 5


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '"x"', "\xff", "[" * 100_000, "9" * 5000])
def test_a_file_that_is_no_object_is_told(config: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "node.db.overrides.json"
    file.write_text(text, "latin-1")
    with pytest.raises(SettingsError, match=r"node\.db\.overrides\.json"):
        load(config)


def test_a_file_that_is_too_large_or_cannot_be_read_is_told(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "node.db.overrides.json"
    file.write_text(" " * (1024 * 1024 + 1))
    with pytest.raises(SettingsError, match="larger"):
        load(config)
    file.unlink()
    file.mkdir()
    with pytest.raises(SettingsError, match="cannot be read"):
        load(config)


def test_what_is_wrong_because_of_an_override_names_its_file(
    config: Path, override: Callable[[Any], None]
) -> None:
    override({"models": {"gone": {"input_per_mtok_msat": 7}}})
    with pytest.raises(SettingsError) as caught:
        load(config)
    assert caught.value.problems[0].startswith("models[1].context_length: is missing")
    assert "node.db.overrides.json" in caught.value.problems[-1]


# Changing


def test_a_patch_adds_changes_and_takes_back() -> None:
    before = {"http": {"port": 1, "host": "a"}, "models": {"m": {"name": "n"}, "k": {"name": "k"}}}
    after = patched(
        before,
        {
            "http": {"port": None, "body_timeout_s": 5},
            "models": {"m": {"name": None, "free": True}, "k": {"name": None}, "new": {}},
            "log": {"level": "debug"},
            "limits": None,
        },
    )
    assert after == {
        "http": {"host": "a", "body_timeout_s": 5},
        "models": {"m": {"free": True}, "new": {}},
        "log": {"level": "debug"},
    }
    assert patched(after, {"http": None, "models": {"m": None, "new": None}, "log": None}) == {}
    assert before["http"] == {"port": 1, "host": "a"}, "what was given stays as it is"


@pytest.mark.parametrize(("section", "key"), sorted(FIXED))
def test_what_is_fixed_cannot_even_be_taken_back(section: str, key: str) -> None:
    for value in (None, "env:KEY"):
        with pytest.raises(InvalidValue) as caught:
            patched({}, {section: {key: value}})
        assert caught.value.param == f"{section}.{key}"


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "o.json"
    write_overrides(file, {"a": 1})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (tmp_path / ".o.json.partial").write_text("of a process that was killed")
    write_overrides(file, {"a": "ü"})
    assert json.loads(file.read_bytes()) == {"a": "ü"}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InternalError, match="No space left"):
        write_overrides(file, {"a": 3})
    assert json.loads(file.read_bytes()) == {"a": "ü"}
    with pytest.raises(RequestTooLarge):
        write_overrides(file, {"a": "x" * 2_000_000})


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="No such file"):
        write_overrides(tmp_path / "none" / "o.json", {})


# All of it

PARTS = [Part((("log", "*"), ("models", "*"), ("models", "*", "*")), lambda fresh: None)]


def api(config: Path) -> SettingsApi:
    read = partial(layers, config)
    return SettingsApi(read, Reloader(load(config), lambda: settings_of(read()), PARTS))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(["env:KEY", "file:/etc/passwd", "https://a.example", "up", "0.5"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


def fields_of(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Some keys of a section, with any values or with those that they may well have."""
    likely = {
        key: st.just(to_jsonable_python(field.default, fallback=str))
        for key, field in kind.model_fields.items()
        if not field.is_required() and field.default_factory is None
    }
    anything = st.dictionaries(st.sampled_from(sorted(kind.model_fields)), VALUES, max_size=2)
    return st.fixed_dictionaries({}, optional=likely) | anything


@st.composite
def patches(draw: st.DrawFn) -> dict[str, Any]:
    """Documents about what there is, with values that need not be any."""
    result: dict[str, Any] = {}
    sections = list(node_settings.Settings.model_fields)
    for section in draw(st.lists(st.sampled_from(sections), min_size=1, max_size=3)):
        kind: Any = node_settings.Settings.model_fields[section].annotation
        if section in LISTS:
            names = st.sampled_from(["org/m.1", "up", "https://mint.example.com", "new", ""])
            entries = fields_of(kind.__args__[0])
            result[section] = draw(st.dictionaries(names, entries | VALUES, max_size=2) | VALUES)
        else:
            result[section] = draw(fields_of(kind) | VALUES)
    return result | draw(st.just({}) | st.dictionaries(st.text(max_size=6), VALUES, max_size=1))


@given(documents=st.lists(patches(), min_size=1, max_size=2))
@profile(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_document_is_settings_or_is_refused(
    config: Path, documents: list[dict[str, Any]]
) -> None:
    file = config.with_name("node.db.overrides.json")
    file.unlink(missing_ok=True)
    door = api(config)

    async def ask() -> None:
        for document in documents:
            before = file.read_bytes() if file.exists() else None
            refused: NodeError | None = None
            try:
                answer = await door.change(document)
                assert set(answer) == {"applied", "needs_restart"}
            except NodeError as error:
                refused = error
            if refused is not None:
                assert refused.status in (400, 413)
                assert (file.read_bytes() if file.exists() else None) == before
            load(config)  # whatever was kept can be used at the next start
            json.dumps(await door.show(AdminRequest()))

    asyncio.run(ask())


async def test_every_setting_is_shown(config: Path) -> None:
    shown = (await api(config).show(AdminRequest()))["settings"]
    assert set(shown) == set(node_settings.Settings.model_fields)
    for section, fields in shown.items():
        for entry in fields.values() if section in LISTS else [fields]:
            for key, described in entry.items():
                assert described["about"] or key == "upstream", (section, key)
                assert not described["fixed"] or not described["live"]
