"""Promise: the operator's password is made with the node or set later, shown at most once, and only
its hash is kept, for its owner's eyes."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from node.admin.password import is_hash, matches
from node.demo.process import free_port
from node.settings import load
from tests.e2e.commands import run


def arguments(tmp_path: Path) -> list[str]:
    return [
        "init", "--upstream", "http://127.0.0.1:9/v1", "--model", "m,1,1", "--mint",
        "https://mint.example.com", "--relay", "wss://relay.example.com", "--no-public-url",
        "--port", str(free_port()), "--out", str(tmp_path / "node.toml"), "--no-check",
    ]  # fmt: skip


@pytest.fixture
async def config(tmp_path: Path) -> Path:
    """A new node's."""
    assert (await run(*arguments(tmp_path), "--yes"))[0] == 0
    return tmp_path / "node.toml"


def kept(config: Path) -> str:
    return load(config).admin_hash.resolve()


async def test_init_makes_one_and_shows_it_once(tmp_path: Path) -> None:
    code, out, err = await run(*arguments(tmp_path), "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    password = document["admin_password"]
    assert len(password) == 24
    assert document["admin_page"].endswith("/admin")
    file = tmp_path / "admin.hash"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert matches(kept(tmp_path / "node.toml"), password)
    for written in tmp_path.iterdir():
        assert password not in written.read_text()
    # a second node beside it uses what is there
    (tmp_path / "node.toml").unlink()
    before = file.read_bytes()
    code, out, _ = await run(*arguments(tmp_path), "--yes")
    assert code == 0
    assert f"password the one of {file}" in out
    assert file.read_bytes() == before


async def test_init_takes_one_or_makes_none(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("the operator's own\nsecond line\n")
    code, out, _ = await run(*arguments(tmp_path), "--json", "--admin-password-file", str(given))
    assert code == 0
    assert json.loads(out)["admin_password"] is None
    assert "operator's own" not in out
    assert matches(kept(tmp_path / "node.toml"), "the operator's own")
    (tmp_path / "node.toml").unlink()
    (tmp_path / "admin.hash").unlink()
    args = [*arguments(tmp_path), "--json", "--admin-password-file", "-"]
    code, out, _ = await run(*args, stdin="from standard input\n")
    assert code == 0
    assert matches(kept(tmp_path / "node.toml"), "from standard input")
    (tmp_path / "node.toml").unlink()
    (tmp_path / "admin.hash").unlink()
    code, out, _ = await run(*arguments(tmp_path), "--json", "--no-admin")
    assert code == 0
    assert json.loads(out)["admin_password"] is None
    assert load(tmp_path / "node.toml").admin.enabled is False
    assert not (tmp_path / "admin.hash").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [("short\n", "10 to 1024 characters"), ("\n", "holds no password"), ("ü\n", "10 to 1024")],
)
async def test_init_refuses_what_is_no_password(tmp_path: Path, text: str, why: str) -> None:
    args = [*arguments(tmp_path), "--yes", "--admin-password-file", "-"]
    code, _, err = await run(*args, stdin=text)
    assert (code, err.count("\n")) == (1, 1)
    assert why in err
    assert list(tmp_path.iterdir()) == []


async def test_init_does_not_replace_one(config: Path) -> None:
    config.unlink()
    before = config.with_name("admin.hash").read_bytes()
    args = [*arguments(config.parent), "--yes", "--admin-password-file", "-"]
    code, _, err = await run(*args, stdin="another password\n")
    assert code == 1
    assert "nodestr admin password" in err
    assert config.with_name("admin.hash").read_bytes() == before
    assert not config.exists()


async def test_another_is_set(config: Path) -> None:
    code, out, err = await run(
        "admin", "password", "--config", config, stdin="from standard input\n"
    )
    assert (code, err) == (0, "")
    assert out == f"wrote    {config.with_name('admin.hash')}\n"
    assert matches(kept(config), "from standard input")
    assert stat.S_IMODE(config.with_name("admin.hash").stat().st_mode) == 0o600
    code, out, _ = await run("admin", "password", "--config", config, "--generate", "--json")
    assert code == 0
    assert matches(kept(config), json.loads(out)["password"])
    before = kept(config)
    code, out, err = await run("admin", "password", "--config", config, stdin="short\n")
    assert (code, out) == (1, "")
    assert "10 to 1024" in err
    assert kept(config) == before


async def test_without_a_setting_it_is_in_the_data_directory(config: Path) -> None:
    text = config.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("password_hash")]
    config.write_text("\n".join(lines))
    code, out, _ = await run("admin", "password", "--config", config, "--generate")
    assert code == 0
    file = load(config).node.data_dir / "admin.hash"
    assert str(file) in out
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert matches(kept(config), out.splitlines()[1].split()[1])


async def test_the_hash_alone_is_for_other_places(config: Path) -> None:
    code, out, err = await run("admin", "password", "--generate", "--hash-only")
    assert code == 0
    assert is_hash(out.strip())
    assert matches(out.strip(), err.split()[1])
    environment = {"NODESTR_ADMIN__PASSWORD_HASH": out.strip()}
    code, _, err = await run(
        "admin", "password", "--config", config, "--generate", environment=environment
    )
    assert code == 1
    assert "--hash-only" in err


@pytest.mark.parametrize(
    "args",
    [["--generate"], ["--generate", "--from", "-", "--hash-only"],
     ["--generate", "--hash-only", "--json"]],
)  # fmt: skip
async def test_what_does_not_go_together_is_told(args: list[str]) -> None:
    code, _, err = await run("admin", "password", *args)
    assert code == 2
    assert "Traceback" not in err
