"""Child processes of the demo: they never outlive it, and their last words are kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

_PORTS = range(20_000, 32_000)
"""Below the range from which outgoing connections draw."""

_LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""Ties the child's life to ours, then becomes the child: no orphan outlives a killed parent."""


class Process(Protocol):
    """What is used of ``subprocess.Popen``."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


def launch(
    arguments: Sequence[str], directory: Path, environment: Mapping[str, str], output: int
) -> Process:
    """``python arguments``, its output and errors into a descriptor. Raises OSError."""
    return subprocess.Popen(  # noqa: S603  our own interpreter
        [sys.executable, "-c", _LAUNCH, str(os.getpid()), *arguments],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # Ctrl-C reaches us only: we stop things in the right order.
        start_new_session=True,
    )


class Child:
    """A Python program run as a child of this process.

    Start it from a thread that lives as long as the child is to: Linux ends it with the thread
    that started it.

    Args:
        arguments: what follows ``python`` on the command line.
        directory: its working directory.
        environment: all of its environment.
        log_file: where its standard output and error go.
        stop_timeout_s: how long it may take to end before it is killed.
    """

    launch: ClassVar[Callable[..., Process]] = staticmethod(launch)

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        log_file: Path,
        stop_timeout_s: float,
    ) -> None:
        self.log_file = log_file
        self._arguments = tuple(arguments)
        self._directory = directory
        self._environment = dict(environment)
        self._stop_timeout_s = stop_timeout_s
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it. Raises OSError."""
        with self.log_file.open("ab") as log:
            self._process = self.launch(
                self._arguments, self._directory, self._environment, log.fileno()
            )

    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    async def stop(self) -> int | None:
        """SIGTERM, and SIGKILL when that does not help; returns the exit code.

        None when it was not running. Idempotent.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._stop_timeout_s
        while (code := process.poll()) is None:
            if time.monotonic() > deadline:
                process.kill()
                return process.wait()
            await asyncio.sleep(0.02)
        return code

    def kill(self) -> None:
        """End it at once, as a crash would. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def log_end(self, size_chars: int = 3000) -> str:
        """The last it said."""
        with contextlib.suppress(OSError):
            return self.log_file.read_text(errors="replace")[-size_chars:]
        return ""


def free_port(attempts: int = 50) -> int:
    """A TCP port that nothing listens on at 127.0.0.1. Raises RuntimeError."""
    for _ in range(attempts):
        port = random.choice(_PORTS)  # noqa: S311  spreads, does not protect
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port on loopback")
