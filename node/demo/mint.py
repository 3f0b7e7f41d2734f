"""A real Cashu mint (nutshell with FakeWallet, so invoices pay themselves) as a child process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_UNIT_INDEX = {"sat": 0, "msat": 1}
_PORTS = range(20_000, 32_000)
"""Below the range from which outgoing connections draw, so a restart finds its port free."""

_LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
sys.argv = [sys.argv[2]]
os.execv(sys.executable, [sys.executable, *sys.argv])
"""
"""Ties the mint's life to ours, then becomes the mint: no orphan outlives a killed parent."""


class EmbeddedMint:
    """Runs nutshell's ``mint`` on loopback; it keeps port and database over a restart.

    Use ``async with``, ``with``, or start and stop by hand. Start it from a thread that lives
    as long as the mint is to: Linux ends it with the thread that started it.

    Args:
        directory: its home, database and ``mint.log``; created when missing.
        input_fee_ppk: what a swap costs, in parts per thousand of a unit per input (NUT-02).
        port: a free one when None.
        units: any of ``sat``, ``msat``.
        start_timeout_s: how long the mint may take until it answers.
        stop_timeout_s: how long it may take to end before it is killed.
        settings: further variables of its environment, read at each start.
    """

    def __init__(
        self,
        directory: Path,
        *,
        input_fee_ppk: int = 0,
        port: int | None = None,
        units: Sequence[str] = ("sat",),
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 5.0,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.port = port or _free_port()
        self._input_fee_ppk = input_fee_ppk
        self._units = tuple(units)
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self.settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process else None

    @property
    def log_file(self) -> Path:
        return self.directory / "mint.log"

    async def start(self) -> None:
        """Start and wait until it answers. Raises RuntimeError with the end of its log."""
        self._spawn()
        try:
            await asyncio.to_thread(self._wait_ready)
        except BaseException:
            self.stop_sync()
            raise

    async def stop(self) -> None:
        """Ask it to end, kill it if it does not. Idempotent."""
        await asyncio.to_thread(self.stop_sync)

    def start_sync(self) -> None:
        """``start`` for code without an event loop."""
        self._spawn()
        try:
            self._wait_ready()
        except BaseException:
            self.stop_sync()
            raise

    def stop_sync(self) -> None:
        """``stop`` for code without an event loop."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _spawn(self) -> None:
        if self._process is not None:
            raise RuntimeError("the mint runs already")
        self.directory.mkdir(parents=True, exist_ok=True)
        program = Path(sys.executable).with_name("mint")
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 — our own interpreter
                [sys.executable, "-c", _LAUNCH, str(os.getpid()), str(program)],
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _environment(self) -> dict[str, str]:
        """All it may know: nothing of our environment but the path."""
        paths = [f"m/0'/{_UNIT_INDEX[unit]}'/0'" for unit in self._units]
        backends = {f"MINT_BACKEND_BOLT11_{unit.upper()}": "FakeWallet" for unit in self._units}
        return (
            backends
            | {
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": str(self.directory),
                # Two mints must not share keys: each would take the other's coins.
                "MINT_PRIVATE_KEY": f"nodestr demo mint in {self.directory.resolve()}",
                "MINT_DATABASE": str(self.directory / "database"),
                "MINT_LISTEN_HOST": "127.0.0.1",
                "MINT_LISTEN_PORT": str(self.port),
                "MINT_DERIVATION_PATH": paths[0],
                "MINT_DERIVATION_PATH_LIST": json.dumps(paths),
                "MINT_INPUT_FEE_PPK": str(self._input_fee_ppk),
                "MINT_RATE_LIMIT": "FALSE",
                "FAKEWALLET_BRR": "TRUE",
                "FAKEWALLET_DELAY_INCOMING_PAYMENT": "0",
                "FAKEWALLET_DELAY_OUTGOING_PAYMENT": "0",
            }
            | self.settings
        )

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while not self._answers():
            process = self._process
            if process is None or process.poll() is not None:
                raise RuntimeError(f"the mint ended while starting:\n{self._log_end()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the mint did not start in time:\n{self._log_end()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/v1/keysets")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def _log_end(self, size_chars: int = 2000) -> str:
        with contextlib.suppress(OSError):
            return self.log_file.read_text(errors="replace")[-size_chars:]
        return ""

    async def __aenter__(self) -> EmbeddedMint:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def __enter__(self) -> EmbeddedMint:
        self.start_sync()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_sync()


def _free_port(attempts: int = 50) -> int:
    for _ in range(attempts):
        port = random.choice(_PORTS)  # noqa: S311 — spreads, does not protect
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port on loopback")
