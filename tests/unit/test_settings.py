"""Promise: settings are read once, strictly, from file < environment < credentials; every problem
is one clear sentence naming the key; no secret stands in the file or is ever shown."""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from structlog.testing import capture_logs

from discovery.nostr.relay import normalize_url
from node.core.money import Msat
from node.core.pricing import Price
from node.settings import SecretRef, Settings, SettingsError, load
from node.settings_sections import LimitSettings, NostrSettings
from node.settings_sources import _required

EXAMPLE = Path(__file__).parents[2] / "config" / "node.example.toml"

MINIMAL = """
[node]
secret_key = "env:KEY"
[[mints]]
url = "https://mint.example.com"
[[upstreams]]
name = "up"
base_url = "http://127.0.0.1:8000/v1"
[[models]]
id = "m"
upstream = "up"
input_per_mtok_msat = 1000
output_per_mtok_msat = 2000
context_length = 4096
max_output_tokens = 1024
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEBUG", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(MINIMAL)
    return path


def problems(path: Path, text: str | None = None) -> tuple[str, ...]:
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(path)
    return caught.value.problems


def fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(section, key) of every setting; tables in tables are sections of their own."""
    for name, field in model.model_fields.items():
        kind = _required(field.annotation)
        if get_origin(kind) is tuple:
            kind = kind.__args__[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, (*path, name))
        else:
            assert field.description, (*path, name)
            yield ".".join(path), name


# The example


def test_the_example_loads_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_SECRET_KEY", "11" * 32)
    monkeypatch.setenv("UPSTREAM_API_KEY", "sk-x")
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-y")
    settings = load(EXAMPLE)
    settings.check_secrets()
    (llama,) = settings.catalog()
    assert (llama.id, llama.aliases) == ("llama-3.3-70b", ("llama-3.3",))
    assert llama.price.input_per_mtok == 400_000
    _, qwen = settings.plans()
    assert [backend.priority for backend in qwen.backends] == [0, 1]
    assert qwen.in_usd


def test_the_example_names_every_field_and_nothing_else() -> None:
    section, written = "", set()
    for line in EXAMPLE.read_text().splitlines():
        if match := re.match(r"\[\[?([\w.]+)\]\]?$", line):
            section = match[1]
        elif match := re.match(r"#?(\w+) =", line):
            written.add((section, match[1]))
    named = set(fields(Settings))
    backend = {(section, key) for section, key in named if section == "models.backends"}
    prices = {("models.backends", key) for section, key in named if section == "models"}
    assert written <= named
    assert named - written <= backend & prices, "a backend's prices are those of models"


def test_the_example_shows_the_defaults(config: Path) -> None:
    shown = re.sub(r"(?m)^#(\w+ =)", r"\1", EXAMPLE.read_text())
    example, actual = tomllib.loads(shown), load(config).document()
    settings_without_default = {
        "d",
        "onion_url",
        "onion_hostname_file",
        "operator_pubkey",
        "public_urls",
        "socks_proxy",
    }
    for section in ("http", "nostr", "discovery", "ledger", "log"):
        for key, value in example[section].items():
            if key not in settings_without_default:
                assert actual[section][key] == value, key
    commented = re.findall(r"(?m)^#(\w+) =", EXAMPLE.read_text())
    for section in ("mints", "upstreams", "models"):
        for key, value in example[section][0].items():
            if key in commented:
                assert actual[section][0][key] == value, key


def test_every_field_is_described() -> None:
    assert len(set(fields(Settings))) > 100


# Where values come from


def test_defaults(config: Path) -> None:
    settings = load(config)
    assert settings.node.database == Path("/var/lib/nodestr/node.db")
    assert settings.http.port == 8080
    assert settings.http.max_body_bytes == 26 * 1024 * 1024
    assert len(settings.nostr.relays) == 4
    assert settings.ledger.reply_keep_s == 90_000
    with pytest.raises(ValidationError):
        settings.http.port = 1


def test_file_then_environment_then_credentials(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(MINIMAL + "[http]\nport = 1\nhost = '::1'\n[log]\nlevel = 'error'\n")
    monkeypatch.setenv("NODESTR_HTTP__PORT", "2")
    monkeypatch.setenv("NODESTR_LOG__LEVEL", "debug")
    monkeypatch.setenv("NODESTR_NOSTR__RELAYS", '["wss://r.example.com/"]')
    monkeypatch.setenv("NODESTR_NODE__ANNOUNCE", "false")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "nodestr.http.port").write_text("3\n")
    (credentials / "nodestr.node.secret_key").write_text("22" * 32)
    (credentials / "another").write_text("not ours")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    settings = load(config)
    assert (settings.http.host, settings.http.port) == ("::1", 3)
    assert settings.log.level == "debug"
    assert settings.nostr.relays == ("wss://r.example.com",)
    assert settings.node.announce is False
    assert str(settings.node.secret_key) == "cred:nodestr.node.secret_key"
    assert settings.node.secret_key.resolve() == "22" * 32


def test_a_secret_in_its_own_variable_becomes_a_reference(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODESTR_NODE__SECRET_KEY", "nsec1verysecret")
    settings = load(config)
    assert settings.node.secret_key.resolve() == "nsec1verysecret"
    assert "verysecret" not in repr(settings) + str(settings) + json.dumps(settings.document())


def test_tables_from_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODESTR_MINTS", '[{"url": "https://other.example.com"}]')
    assert [mint.url for mint in load(config).mints] == ["https://other.example.com"]
    monkeypatch.setenv("NODESTR_MINTS", "https://other.example.com")
    assert problems(config) == ("NODESTR_MINTS must be JSON, as it sets a list",)


def test_mistakes_in_variable_names(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODESTR_HTTP_PORT", "1")
    assert problems(config) == (
        "NODESTR_HTTP_PORT sets nothing: between section and key stand two underscores",
    )
    monkeypatch.delenv("NODESTR_HTTP_PORT")
    monkeypatch.setenv("NODESTR_HTPP__PORT", "1")
    assert problems(config) == ('htpp: there is no such key; did you mean "http"?',)
    monkeypatch.delenv("NODESTR_HTPP__PORT")
    monkeypatch.setenv("NODESTR_NODE_SECRET_KEY", "this may be what an env: reference names")
    load(config)


# What is refused, and how


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "[nostr]\nwraps = [1059]",
            "nostr.wraps: is gone: gift wraps of both kinds are always taken; delete the line",
        ),
        ("[http]\nprot = 1", 'http.prot: there is no such key; did you mean "port"?'),
        ("[htpp]\nport = 1", 'htpp: there is no such key; did you mean "http"?'),
        ("[http]\nzzzzzz = 1", "http.zzzzzz: there is no such key"),
        ("[http]\nport = 70000", "http.port: must be less than or equal to 65535"),
        ("[http]\nport = 80.0", "http.port: must be a whole number"),
        ("[http]\nport = true", "http.port: must be a whole number"),
        (
            "[nostr]\nrelays = ['https://r.example.com']",
            "nostr.relays[0]: must be a URL beginning with ws:// or wss://",
        ),
        (
            "[http]\npublic_urls = ['http://ai.example.com']",
            "http.public_urls[0]: must be https (http is taken for loopback addresses only)",
        ),
        (
            "[http]\npublic_urls = ['https://ai.example.com/v1/']",
            "http.public_urls[0]: must be given without /v1: clients append it",
        ),
        (
            "[http]\npublic_urls = ['https://me:secret@ai.example.com']",
            "http.public_urls[0]: must not hold a user name or password",
        ),
        (
            "[http]\nonion_url = 'http://x.com'",
            "http.onion_url: must be an address ending in .onion",
        ),
        (
            "[http]\nmax_buffered_bytes = 20971519",
            "http: max_buffered_bytes is below max_body_bytes",
        ),
        ("[log]\nformat = 'xml'", "log.format: must be 'json' or 'console'"),
    ],
)
def test_one_sentence_naming_the_key(config: Path, change: str, sentence: str) -> None:
    assert problems(config, MINIMAL + change) == (sentence,)


def test_a_key_missing_in_a_table(config: Path) -> None:
    assert problems(config, MINIMAL.replace('id = "m"\n', "")) == ("models[0].id: is missing",)


def test_a_key_unknown_in_a_table(config: Path) -> None:
    text = MINIMAL.replace("per_mtok_msat = 2000", "per_mtok = 2000").replace(
        "output_per_mtok", "output_per_mtok_msats"
    )
    assert "models[0].output_per_mtok_msats: there is no such key" in problems(config, text)[0]


def test_all_problems_at_once(config: Path) -> None:
    found = problems(config, MINIMAL + "[http]\nport = -1\n[log]\nlevl = 'info'\n")
    assert [problem.split(":")[0] for problem in found] == ["http.port", "log.levl"]


@pytest.mark.parametrize(
    ("price", "words"),
    [
        ("", "has no price"),
        ("input_per_mtok_msat = 5", "has no price"),
        ("input_per_mtok_msat = 0\noutput_per_mtok_msat = 0", "has no price"),
        ("free = true\nper_request_msat = 1", "choose one"),
        ("input_per_mtok_msat = 1.5\noutput_per_mtok_msat = 2", "whole number"),
        ("input_per_mtok_msat = -1\noutput_per_mtok_msat = 2", "greater than or equal to 0"),
    ],
)
def test_no_model_without_a_price(config: Path, price: str, words: str) -> None:
    text = re.sub(r"(in|out)put_per_mtok_msat = \d+\n", "", MINIMAL) + price
    assert words in problems(config, text)[0]


@pytest.mark.parametrize("price", ["free = true", "per_request_msat = 1"])
def test_models_with_another_price(config: Path, price: str) -> None:
    config.write_text(re.sub(r"(in|out)put_per_mtok_msat = \d+\n", "", MINIMAL) + price)
    load(config)


def priced(lines: str) -> str:
    """The minimal configuration with other prices."""
    return re.sub(r"(in|out)put_per_mtok_msat = \d+\n", "", MINIMAL) + lines


def test_prices_in_usd_are_exact(config: Path) -> None:
    config.write_text(
        priced('input_per_mtok_usd = "0.1"\noutput_per_mtok_usd = 3\nper_image_msat = 7')
    )
    (plan,) = load(config).plans()
    (backend,) = plan.backends
    assert backend.tariff is not None
    price = backend.tariff.price(Fraction(100_000))
    assert price == Price(Msat(100_000), Msat(3_000_000), per_image=Msat(7))
    assert plan.model(None) is None
    assert len(load(config).catalog()) == 0
    document = load(config).document()["models"][0]
    assert document["input_per_mtok_usd"] == "0.1"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("input_per_mtok_usd = 0.1", 'must be a decimal number in quotes, such as "0.60"'),
        ('input_per_mtok_usd = "-1"', "must be a decimal number"),
        ('input_per_mtok_usd = "1e3"', "must be a decimal number"),
        ('input_per_mtok_usd = "1.0000000000001"', "must be a decimal number"),
        ("input_per_mtok_usd = true", "must be a decimal number"),
        (
            'input_per_mtok_usd = "1"\ninput_per_mtok_msat = 1\noutput_per_mtok_msat = 1',
            'model "m": input_per_mtok_msat and input_per_mtok_usd exclude each other',
        ),
        (
            'per_image_usd = "1"\nper_image_msat = 1',
            "per_image_msat and per_image_usd exclude each other",
        ),
        ('input_per_mtok_usd = "1"', "has no price that is complete"),
        ('free = true\nper_request_usd = "1"', "choose one"),
        ("markup_percent = 5", 'model "m" has no price'),
        ("per_request_msat = 1\nmarkup_percent = 5", "it has prices of its own"),
        (
            'per_request_msat = 1\n[[models.backends]]\nupstream = "up"',
            "name its upstream, or several in [[models.backends]]",
        ),
        (
            "per_request_msat = 1\n[routing]\nstrategy = 'dearest'",
            "routing.strategy: must be 'cheapest' or 'weighted'",
        ),
        (
            "per_request_msat = 1\n[rates]\nsources = ['coinbase']",
            "rates: min_sources is above the number of sources",
        ),
        ("per_request_msat = 1\n[rates]\nmax_age_s = 1", "max_age_s is below interval_s"),
        (
            "per_request_msat = 1\n[rates]\nmin_sources = 1\n"
            "sources = [{url = 'http://example.com', path = 'a'}]",
            "url must be https",
        ),
        ("per_request_msat = 1\naliases = ['m']", 'two entries have the id "m"'),
        ("per_request_msat = 1\naliases = ['a b']", "models[0].aliases[0]"),
        ("per_request_msat = 1\nfixed = { n = 2, size = 'x' }", "fixed cannot set n"),
        ("per_request_msat = 1\nfixed = { size = ['x'] }", "models[0].fixed"),
    ],
)
def test_what_is_wrong_with_a_price_or_a_market(config: Path, lines: str, words: str) -> None:
    assert any(words in problem for problem in problems(config, priced(lines)))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("dialect = 'x'", "upstreams[0].dialect: must be 'openai', 'anthropic'"),
        ("api_version = '2024-10-21'", 'upstream "up": api_version is of dialect azure only'),
        ("markup_percent = 1.5", "must be a decimal number in quotes"),
        (
            "discover = true\nfree = true\ndefault_input_per_mtok_msat = 1",
            'upstream "up" is free = true and has default prices; choose one',
        ),
        (
            "default_input_per_mtok_msat = 1\ndefault_input_per_mtok_usd = '1'",
            "default_input_per_mtok_msat and default_input_per_mtok_usd exclude each other",
        ),
        ("only = ['a*']", "set discover = true"),
        ("default_per_request_usd = '1'", "set discover = true"),
        ("endpoints = ['chats']", "upstreams[0].endpoints[0]"),
        ("max_models = 5000", "less than or equal to 800"),
        ("weight = 0", "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_with_an_upstream(config: Path, lines: str, words: str) -> None:
    text = MINIMAL.replace('name = "up"', f'name = "up"\n{lines}')
    assert any(words in problem for problem in problems(config, text))


def test_several_upstreams_of_one_model(config: Path) -> None:
    text = MINIMAL.replace('upstream = "up"\n', "") + (
        '[[models.backends]]\nupstream = "up"\nupstream_id = "x"\nper_request_msat = 5\n'
        '[[models.backends]]\nupstream = "two"\npriority = 3\n'
        '[[upstreams]]\nname = "two"\nbase_url = "http://127.0.0.1:1/v1"\nweight = 4\n'
    )
    config.write_text(text)
    (model,) = load(config).catalog()
    assert [(b.upstream, b.upstream_id, b.priority, b.weight) for b in model.backends] == [
        ("up", "x", 0, 1),
        ("two", "m", 3, 4),
    ]
    assert model.backends[0].price == Price(per_request=Msat(5))
    assert model.backends[1].price == Price(Msat(1000), Msat(2000))
    wrong = text.replace('upstream = "two"', 'upstream = "three"')
    assert problems(config, wrong) == (
        'models[0].backends[1].upstream: there is no [[upstreams]] entry "three"'
        " (there is: two, up)",
    )


def test_listed_models_need_no_entry(config: Path) -> None:
    config.write_text(MINIMAL.split("[[models]]")[0] + 'discover = true\nmarkup_percent = "7.5"\n')
    settings = load(config)
    terms = settings.upstreams[0].list_terms()
    assert terms is not None
    assert terms.markup_percent == Fraction(15, 2)
    assert settings.plans() == []


def test_a_rate_source_of_ones_own_is_asked_as_it_is_written(config: Path) -> None:
    config.write_text(
        MINIMAL + "[rates]\nsources = ['kraken', {url = 'https://x.example.com/a/', path = 'b.0'}]"
    )
    preset, own = load(config).rates.sources
    assert preset == "kraken"
    assert not isinstance(own, str)
    assert (own.url, own.path) == ("https://x.example.com/a/", "b.0")


def test_what_is_fixed_reaches_the_catalogue_as_it_is_written(config: Path) -> None:
    config.write_text(
        priced('per_image_msat = 9\nfixed = { quality = "hd", seed = 1, raw = true }')
    )
    (plan,) = load(config).plans()
    model = plan.model(None)
    assert model is not None
    assert model.fixed == {"quality": "hd", "seed": 1, "raw": True}
    assert [type(value) for value in model.fixed.values()] == [str, int, bool]


def test_a_model_at_the_price_its_upstream_lists(config: Path) -> None:
    text = priced('markup_percent = "10"')
    config.write_text(text.replace('name = "up"', 'name = "up"\ndiscover = true'))
    (plan,) = load(config).plans()
    assert plan.backends[0].tariff is None
    assert plan.backends[0].markup_percent == 10


def test_what_refers_to_nothing_or_twice(config: Path) -> None:
    text = MINIMAL.replace('upstream = "up"', 'upstream = "down"')
    assert problems(config, text) == (
        'models[0].upstream: there is no [[upstreams]] entry "down" (there is: up)',
    )
    twice = MINIMAL + '[[upstreams]]\nname = "up"\nbase_url = "https://x.example.com/v1"\n'
    assert problems(config, twice) == ('upstreams: two entries have the name "up"',)
    same = MINIMAL + '[[mints]]\nurl = "https://MINT.example.com:443/"\n'
    assert problems(config, same) == ('mints: two entries have the url "https://mint.example.com"',)
    nothing = MINIMAL.split("[[models]]")[0]
    assert problems(config, nothing) == ("models: nothing is for sale; add a [[models]] entry",)


@pytest.mark.parametrize("value", ["1", "TRUE", "true", "yes", " On "])
def test_debug_is_refused(config: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DEBUG", value)
    assert "DEBUG is set in the environment" in problems(config)[0]
    monkeypatch.setenv("DEBUG", "false")
    load(config)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in problems(tmp_path / "nothing.toml")[0]
    assert "is not valid TOML" in problems(tmp_path / "bad.toml", "[http\nport")[0]
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    assert "is not UTF-8" in problems(tmp_path / "latin.toml")[0]


# Secrets


def test_a_literal_secret_in_the_file_is_refused_and_not_repeated(config: Path) -> None:
    (problem,) = problems(config, MINIMAL.replace("env:KEY", "nsec1verysecret"))
    assert problem.startswith("node.secret_key: a secret may not stand here")
    assert '"file:/path"' in problem
    assert "verysecret" not in problem


def test_secrets_are_resolved_from_all_three_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "  one\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    file = tmp_path / "key"
    file.write_text("two\n")
    file.chmod(0o600)
    with capture_logs() as logs:
        assert SecretRef.parse("env:A_KEY").resolve() == "one"
        assert SecretRef.parse(f"file:{file}").resolve() == "two"
        assert SecretRef.parse("cred:key").resolve() == "two"
    assert logs == []
    assert repr(SecretRef.parse("env:A_KEY")) == "SecretRef(scheme='env', name='A_KEY')"


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_open_to_others_is_warned_about(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text("verysecret")
    file.chmod(mode)
    with capture_logs() as logs:
        SecretRef.parse(f"file:{file}").resolve()
    assert [log["event"] for log in logs] == ["secret_file_open_to_others"]
    assert "verysecret" not in str(logs)


def test_secrets_that_cannot_be_read(config: Path, tmp_path: Path) -> None:
    config.write_text(
        MINIMAL.replace('name = "up"', f'name = "up"\napi_key = "file:{tmp_path}/nothing"')
    )
    with pytest.raises(SettingsError) as caught:
        load(config).check_secrets()
    assert caught.value.problems == (
        "node.secret_key: the secret env:KEY is missing or empty",
        f"upstreams[0].api_key: file:{tmp_path}/nothing cannot be read: No such file or directory",
    )
    with pytest.raises(SettingsError, match=r"CREDENTIALS_DIRECTORY"):
        SecretRef.parse("cred:x").resolve()


@given(
    st.text(max_size=60)
    | st.builds("{}:{}".format, st.sampled_from(["env", "file", "cred"]), st.text(max_size=9))
)
def test_a_reference_parses_to_itself_or_is_refused(text: str) -> None:
    reference = None
    with contextlib.suppress(ValueError):
        reference = SecretRef.parse(text)
    assert reference is None or str(reference) == text


@pytest.mark.parametrize("text", ["cred:../x", "cred:..", "cred:a/b", "env:", "file:x", "env:A=B"])
def test_references_that_lead_elsewhere(text: str) -> None:
    with pytest.raises(ValueError, match="reference"):
        SecretRef.parse(text)


@given(
    host=st.sampled_from(
        ["r.example", "@r.example", "a@r.example", "[::1]", "[::1", "ü.example", ""]
    )
    | st.text(max_size=10),
    rest=st.sampled_from(["", "/", ":0", ":99999", ":x", "/p?q", "/p#f", "/" + "x" * 3000])
    | st.text(max_size=10),
)
def test_relays_that_are_taken_can_be_connected_to(host: str, rest: str) -> None:
    """Else a start would fail for what was called valid."""
    with contextlib.suppress(ValidationError):
        for url in NostrSettings(relays=(f"wss://{host}{rest}",)).relays:
            normalize_url(url)


def test_no_number_is_larger_than_json_and_the_database_can_hold() -> None:
    for value in (2**53, str(2**53), "9" * 30):
        with pytest.raises(ValidationError, match="less than"):
            LimitSettings.model_validate({"requests_per_minute": value})
    assert LimitSettings(requests_per_minute=2**53 - 1)
