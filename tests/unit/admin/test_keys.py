"""Promise: a new key takes the old one's place, whole or not at all, and the old one is kept."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from discovery.nostr.keys import Keys
from node.admin.keys import replace_key
from node.errors import InvalidValue, NotConfigured
from tests.unit.admin.office import open_office


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_new_key_is_written_and_the_old_one_kept(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        shown = await office.get("/keys")
        assert (shown["npub"], shown["can_rotate"]) == (office.parts.npub, True)
        old = (tmp_path / "nostr.key").read_text()
        answer = await office.send("POST", "/keys/rotate", confirm=office.parts.npub)
        path, backup = Path(answer["file"]), Path(answer["backup"])
        assert backup.read_text() == old
        assert Keys.parse(path.read_text().strip()).npub == answer["npub"] != office.parts.npub
        assert (mode(path), mode(backup)) == (0o600, 0o600)
        assert answer["old_npub"] == office.parts.npub
        assert answer["needs_restart"] is True
        assert any("lock" in text for text in answer["means"])
        assert "nsec" not in str(answer)
        assert sorted(p.name for p in tmp_path.iterdir() if "key" in p.name) == sorted(
            [path.name, backup.name]
        )
        with pytest.raises(NotConfigured, match="restart"):
            await office.send("POST", "/keys/rotate", confirm=office.parts.npub)


@pytest.mark.parametrize("confirm", ["", "npub1x", 5, None])
async def test_without_the_right_npub_nothing_happens(tmp_path: Path, confirm: object) -> None:
    async with open_office(tmp_path) as office:
        with pytest.raises(InvalidValue):
            await office.send("POST", "/keys/rotate", confirm=confirm)
        assert Keys.parse((tmp_path / "nostr.key").read_text().strip()).npub == office.parts.npub


async def test_a_key_of_the_environment_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", Keys.generate().nsec())
    async with open_office(tmp_path, node={"secret_key": "env:THE_KEY"}) as office:
        assert (await office.get("/keys"))["can_rotate"] is False
        with pytest.raises(NotConfigured, match="env:THE_KEY"):
            await office.send("POST", "/keys/rotate", confirm=office.parts.npub)


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_text("old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        replace_key(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_backup_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    first = replace_key(path, "second")
    try:
        other = replace_key(path, "third")
    except FileExistsError:  # in the same second
        assert path.read_text() == "second\n"
    else:
        assert other != first
    assert first.read_text() == "old"


def test_a_link_stays_one(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(real)
    backup = replace_key(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new\n"
    assert backup.parent == tmp_path
    assert backup.read_text() == "old"
