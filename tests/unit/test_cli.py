"""Promise: the command line starts fast and teaches; wrong use or configuration ends with exit
code 2 and one clear line, keys are made safely, and the systemd unit calls what exists."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest
import structlog
import typer.main
from typer.testing import CliRunner, Result

from discovery.nostr.keys import Keys
from node import __version__
from node.admin.password import hash_password, is_hash
from node.cli import app
from node.settings import load
from node.settings_sections import NodeSettings

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd" / "nodestr.service"

CONFIG = """
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
per_request_msat = 1000
context_length = 4096
max_output_tokens = 1024
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("DEBUG", "CREDENTIALS_DIRECTORY", "NODESTR_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Keys:
    keys = Keys.generate()
    monkeypatch.setenv("KEY", keys.nsec())
    return keys


@pytest.fixture
def config(tmp_path: Path, keys: Keys) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(CONFIG)
    return path


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="nodestr")


def commands() -> Iterator[tuple[list[str], click.Command]]:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for sub, leaf in getattr(command, "commands", {}).items():
            yield [name, sub], leaf
        if not hasattr(command, "commands"):
            yield [name], command


# Help


def test_help_is_fast_because_it_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from node.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "heavy = {'aiohttp', 'cashu', 'openai', 'pydantic', 'websockets', 'coincurve', 'uvloop'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sells AI inference for ecash" in done.stdout


def test_every_command_explains_itself_with_two_examples() -> None:
    found = [name for name, _ in commands()]
    assert found == [
        ["serve"],
        ["check-config"],
        ["init"],
        ["doctor"],
        ["health"],
        ["check"],
        ["backup"],
        ["restore"],
        ["export"],
        ["payout"],
        ["fund"],
        ["credit"],
        ["release"],
        ["gateway"],
        ["ask"],
        ["providers"],
        ["announce"],
        ["completion"],
        ["demo"],
        ["version"],
        ["keys", "generate"],
        ["keys", "show"],
        ["admin", "password"],
        ["wallet", "receive"],
        ["wallet", "balance"],
        ["wallet", "send"],
        ["wallet", "topup"],
        ["wallet", "move"],
        ["wallet", "recover"],
        ["wallet", "history"],
    ]
    for name, command in commands():
        text = run(*name, "--help").stdout
        examples = text.split("Examples:")[1]
        assert examples.count("nodestr " + " ".join(name)) >= 2, name
        assert command.help
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


def test_examples_use_options_that_exist() -> None:
    for name, command in commands():
        options = {option for parameter in command.params for option in parameter.opts}
        for word in (command.epilog or "").split("nodestr " + name[0])[1:]:
            used = {part for part in word.split("|")[0].split() if part.startswith("--")}
            assert used <= options, name


SPEAK_FOR_THEMSELVES = {
    "serve", "gateway",  # run
    "check-config",  # is JSON
    "export",  # is CSV
    "completion", "keys generate", "version",  # one text
}  # fmt: skip


def test_every_command_speaks_json_that_a_machine_may_want_to_read() -> None:
    without = {
        " ".join(name)
        for name, command in commands()
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == SPEAK_FOR_THEMSELVES


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_is_a_script_of_the_shell(shell: str, tmp_path: Path) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_NODESTR_COMPLETE" in result.stdout
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    script = tmp_path / "script"
    script.write_text(result.stdout)
    subprocess.run([shell, "-n", script], check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    program = tmp_path / "nodestr"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m node "$@"\n')
    program.chmod(0o755)
    for words, wanted in (("doct", "doctor"), ("doctor --js", "--json"), ("keys sh", "show")):
        parts = ["nodestr", *words.split()]
        done = subprocess.run(
            [
                "bash",
                "-c",
                f"source <(nodestr completion bash); COMP_WORDS=({' '.join(parts)});"
                f" COMP_CWORD={len(parts) - 1}; _nodestr_completion nodestr;"
                ' echo "${COMPREPLY[@]}"',
            ],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        )
        assert done.stdout.split() == [wanted]


def test_version() -> None:
    assert run("version").stdout == f"nodestr {__version__}\n"


# Wrong use


@pytest.mark.parametrize(
    "args",
    [
        ["serve"],
        ["serve", "--confg", "x"],
        ["nothing"],
        ["demo", "--check", "--json"],
        ["demo", "--upstream", "http://127.0.0.1/v1"],
        ["demo", "--upstream-key-env", "KEY"],
    ],
)
def test_wrong_use_is_2_without_a_traceback(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["serve", "check-config", "keys show"])
def test_wrong_configuration_is_2_and_one_line(command: str, config: Path) -> None:
    config.write_text(CONFIG + "[http]\nprot = 1\n")
    result = run(*command.split(), "--config", config)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == 'nodestr: http.prot: there is no such key; did you mean "port"?\n'


@pytest.mark.parametrize("command", ["serve", "check-config", "keys show"])
@pytest.mark.parametrize("kind", ["missing", "npub", "rubbish"])
def test_a_secret_that_is_no_key_is_2_and_not_shown(
    command: str, kind: str, config: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"missing": "", "npub": keys.npub, "rubbish": "nsec1rubbish"}[kind]
    monkeypatch.setenv("KEY", value)
    result = run(*command.split(), "--config", config)
    assert result.exit_code == 2
    assert result.stderr.startswith("nodestr: node.secret_key: ")
    assert result.stderr.count("\n") == 1
    assert not value or value not in result.output


def test_what_is_not_there_is_told_with_what_makes_it(
    tmp_path: Path, config: Path, keys: Keys
) -> None:
    result = run("serve", "--config", tmp_path / "none.toml")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.endswith("; nodestr init makes one\n")
    config.write_text(CONFIG.replace("env:KEY", f"file:{tmp_path}/none.key"))
    result = run("serve", "--config", config)
    assert result.exit_code == 2
    assert "nodestr keys generate --out FILE" in result.stderr


def test_an_address_that_is_taken_is_told_with_what_to_do(config: Path, keys: Keys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config.write_text(
            CONFIG.replace("[node]", f'[node]\nannounce = false\ndata_dir = "{config.parent}/d"')
            + f"[http]\nport = {port}\n[nostr]\nrelays = []\nrequests = false\n"
        )
        done = subprocess.run(
            [sys.executable, "-m", "node", "serve", "--config", config],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"], "KEY": keys.nsec()},
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("nodestr: ")]
    assert "stop it (ss -ltnp shows which), or change http.port" in line


def test_debug_in_the_environment_is_2(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG", "TRUE")
    result = run("serve", "--config", config)
    assert result.exit_code == 2
    assert "DEBUG is set in the environment" in result.stderr


# Keys and settings


def test_generate_writes_a_private_file_once(tmp_path: Path) -> None:
    file = tmp_path / "node.key"
    result = run("keys", "generate", "--out", file)
    assert (result.exit_code, result.stdout) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    made = Keys.parse(file.read_text().strip())
    assert made.npub in result.stderr
    assert made.pubkey in result.stderr
    assert made.nsec() not in result.output
    again = run("keys", "generate", "--out", file)
    assert again.exit_code == 1
    assert "File exists" in again.stderr
    assert Keys.parse(file.read_text().strip()).pubkey == made.pubkey


def test_generate_prints_only_the_key_to_stdout() -> None:
    result = run("keys", "generate")
    assert Keys.parse(result.stdout.strip()).npub in result.stderr


def test_show(config: Path, keys: Keys) -> None:
    result = run("keys", "show", "--config", config)
    assert result.exit_code == 0
    assert f"npub     {keys.npub}\n" in result.stdout
    assert f"pubkey   {keys.pubkey}\n" in result.stdout
    assert f"d        {keys.pubkey[:12]} " in result.stdout
    config.write_text(CONFIG.replace("[node]", '[node]\nd = "mine"'))
    assert "d        mine\n" in run("keys", "show", "--config", config).stdout


def test_show_for_machines(config: Path, keys: Keys) -> None:
    shown = json.loads(run("keys", "show", "--config", config, "--json").stdout)
    assert shown == {"npub": keys.npub, "pubkey": keys.pubkey, "d": None}


def test_health_of_nobody_and_of_something_else(config: Path, keys: Keys) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = run("health", "--config", config, "--url", url)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "nobody answers" in result.stderr
        assert "start the node" in result.stderr
        listener.listen()
        answer = b"HTTP/1.0 200 OK\r\n\r\n<html>"

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(9999)
                connection.sendall(answer)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(serve)
            result = run("health", "--config", config, "--url", url)
    assert result.exit_code == 1
    assert "something that is no node answers" in result.stderr
    for wrong in ("https://example.com", "nonsense", "http://[::1"):
        result = run("health", "--config", config, "--url", wrong)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_check_config_prints_what_is_in_effect(
    config: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODESTR_HTTP__PORT", "9000")
    result = run("check-config", "--config", config)
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert shown["http"]["port"] == 9000
    assert shown["node"]["secret_key"] == "env:KEY"
    assert keys.nsec() not in result.output


# The systemd unit


@pytest.fixture
def unit() -> dict[str, dict[str, list[str]]]:
    sections: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            sections.setdefault(section, {}).setdefault(key, []).append(value)
    return sections


def test_the_unit_calls_a_command_that_exists(unit: dict[str, dict[str, list[str]]]) -> None:
    (start,) = unit["Service"]["ExecStart"]
    program, *args = shlex.split(start)
    assert Path(program).name == "nodestr"
    serve = {" ".join(name): command for name, command in commands()}[args[0]]
    serve.make_context("serve", args[1:])
    assert unit["Service"]["Type"] == ["notify"]
    assert unit["Service"]["Restart"] == ["on-failure"]


def test_the_unit_waits_longer_than_the_node_drains(
    unit: dict[str, dict[str, list[str]]],
) -> None:
    drain_timeout_s = NodeSettings.model_fields["drain_timeout_s"].default
    assert int(unit["Service"]["TimeoutStopSec"][0]) > drain_timeout_s + 10


def test_the_units_state_directory_is_the_default_data_directory(
    unit: dict[str, dict[str, list[str]]],
) -> None:
    (name,) = unit["Service"]["StateDirectory"]
    assert Path("/var/lib", name) == NodeSettings.model_fields["data_dir"].default


def test_the_units_credentials_and_environment_configure_the_node(
    unit: dict[str, dict[str, list[str]]],
    config: Path,
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = tmp_path / "credentials"
    directory.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    hashed = hash_password("correct horse battery")
    contents = {"nodestr.node.secret_key": keys.nsec(), "nodestr.admin.password_hash": hashed}
    monkeypatch.delenv("KEY")
    for credential in unit["Service"]["LoadCredential"]:
        name = credential.partition(":")[0]
        (directory / name).write_text(contents.pop(name))
    assert not contents
    for assignment in unit["Service"]["Environment"]:
        name, _, value = assignment.partition("=")
        monkeypatch.setenv(name, value)
    settings = load(config)
    assert settings.keys().pubkey == keys.pubkey
    assert settings.log.format == "json"
    assert settings.admin_hash.resolve() == hashed
    # the unit's words for a hash that is not there are no hash
    (fallback,) = unit["Service"]["SetCredential"]
    name, _, value = fallback.partition(":")
    (directory / name).write_text(value)
    assert not is_hash(load(config).admin_hash.resolve())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/nodestr/bin/nodestr", sys.executable)
    copy = tmp_path / "nodestr.service"
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    complaints = [line for line in done.stderr.splitlines() if "nodestr.service" in line]
    assert complaints == []
