"""Promise: flags win over the environment, that over the file; mistakes name their key."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.gateway.settings import GatewaySettings, load_gateway
from node.settings_types import SettingsError

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEBUG", raising=False)


def test_flags_win_over_environment_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[gateway]\nport = 1\nprofile = "fast"\nmax_price_sat = 7\n')
    monkeypatch.setenv("NODESTR_GATEWAY__PORT", "2")
    monkeypatch.setenv("NODESTR_GATEWAY__PROFILE", "trusted")
    monkeypatch.setenv("NODESTR_HTTP__PORT", "9")  # a node's, and none of its business
    loaded = load_gateway(file, {"port": 3, "host": None})
    assert (loaded.port, loaded.profile, loaded.max_price_sat) == (3, "trusted", 7)
    assert loaded.host == "127.0.0.1"


def test_the_wallet_is_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert load_gateway(None).database == Path("/data/nodestr/wallet.db")
    assert load_gateway(None, {"wallet": Path("/w.db")}).database == Path("/w.db")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[gateway]\nprofil = 'cheap'", 'gateway.profil: there is no such key; did you mean "pr'),
        ("[gateway]\nprofile = 'dear'", "gateway.profile: "),
        ("[gateway]\nproviders = ['npub1']", "gateway.providers: each must be an npub"),
        ("[gateway]\nkey = 'sk-1'", "gateway.key: a secret may not stand here"),
    ],
)
def test_mistakes_name_their_key(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as refused:
        load_gateway(file)
    assert refused.value.problems[0].startswith(told)


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    for name in GatewaySettings.model_fields:
        assert f"| `{name}` |" in page, name
