"""Promise: what the demo starts ends with it, in time, whatever happens; and the configuration it
writes for its nodes is one that ``nodestr serve`` takes."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.demo.nodes import DemoNode, Surroundings, two_offers
from node.demo.process import Child, free_port
from node.settings import load

FOREVER = "import time\nprint('up', flush=True)\ntime.sleep(600)"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
POLITE = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n" + FOREVER


def child(code: str, directory: Path, *, stop_timeout_s: float = 10.0) -> Child:
    return Child(
        ["-c", code],
        directory=directory,
        environment={"ONLY": "this"},
        log_file=directory / "log",
        stop_timeout_s=stop_timeout_s,
    )


def wait_for(text: str, log_file: Path, timeout_s: float = 30.0) -> str:
    deadline = time.monotonic() + timeout_s
    while not log_file.exists() or text not in log_file.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in time"
        time.sleep(0.01)
    return log_file.read_text()


def ended(pid: int) -> bool:
    """Gone, or dead and waiting for init to notice."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_stop_asks_first(tmp_path: Path) -> None:
    polite = child(POLITE, tmp_path)
    polite.start()
    wait_for("up", polite.log_file)
    assert polite.running()
    assert await polite.stop() == 7
    assert not polite.running()
    assert await polite.stop() is None


async def test_stop_insists(tmp_path: Path) -> None:
    stubborn = child(STUBBORN, tmp_path, stop_timeout_s=0.2)
    stubborn.start()
    wait_for("up", stubborn.log_file)
    assert await stubborn.stop() == -signal.SIGKILL


def test_a_child_knows_only_what_it_is_told(tmp_path: Path) -> None:
    shows = child("import os\nprint(sorted(os.environ), os.getcwd(), 'end', flush=True)", tmp_path)
    shows.start()
    said = wait_for("end", shows.log_file)
    shows.kill()
    assert "'ONLY'" in said
    assert "'PATH'" not in said
    assert str(tmp_path) in said
    assert shows.log_end() == said


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    parent = (
        "import os, pathlib, sys\n"
        "from node.demo.process import Child\n"
        "home = pathlib.Path(sys.argv[1])\n"
        "child = Child(['-c', sys.argv[2]], directory=home, environment={},\n"
        "              log_file=home / 'log', stop_timeout_s=1)\n"
        "child.start()\n"
        "while 'up' not in child.log_end(): pass\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent, str(tmp_path), FOREVER],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while not ended(pid):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.01)


def test_a_free_port_is_free() -> None:
    assert len({free_port() for _ in range(20)}) > 1


def test_the_nodes_configuration_is_one_that_serve_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEBUG", raising=False)
    monkeypatch.setenv("SOME_KEY", "sk-x")
    surroundings = Surroundings(
        mint="http://127.0.0.1:3338",
        relay="ws://127.0.0.1:7000",
        upstream="http://127.0.0.1:8000/v1",
        upstream_key=("SOME_KEY", "sk-verysecret"),
    )
    for index, offer in enumerate(two_offers("a/model:free")):
        node = DemoNode(f"node-{index}", offer, surroundings, tmp_path / f'"{index}" \\ö')
        node.write_files()
        settings = load(node.config_file)
        settings.check_secrets()
        assert settings.keys().pubkey == node.keys.pubkey
        assert settings.node.database == node.database
        assert settings.http.public_urls == (node.url,)
        assert [mint.url for mint in settings.mints] == [surroundings.mint]
        assert [model.price for model in settings.catalog()] == [offer.price]
        assert "verysecret" not in node.config_file.read_text() + repr(surroundings)
        key_file = node.directory / "node.key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
