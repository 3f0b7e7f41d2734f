"""Starts ``python -m node …`` by forking a process that has imported it already.

A test starts some programs of ours, and importing takes each of them 0.8 s of a core. What a child
gets is what a process of its own has: session, directory, environment, files; it dies with us. The
suites of systemd, the demo, the command line and child processes start theirs from nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from node.demo import process
from node.demo.process import Process

_MAX_TASK_BYTES = 1 << 20


class Forked:
    """A child; has the methods of ``subprocess.Popen`` that are used here."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ended(self.pid)
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("node", timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks; start it once, from a thread that lives as long."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.forks", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parents[2],
            )
        self._codes: dict[int, int] = {}

    def close(self) -> None:
        self._socket.close()
        self._process.wait(10)

    def spawn(
        self,
        arguments: Sequence[str],
        directory: Path | None,
        environment: Mapping[str, str],
        files: tuple[int, int, int],
    ) -> Forked:
        """``python -m node arguments`` with these descriptors as input, output and errors."""
        task = {"arguments": list(arguments), "environment": dict(environment)}
        task["directory"] = str(directory or Path.cwd())
        socket.send_fds(self._socket, [json.dumps(task).encode()], files)
        while True:
            answer = json.loads(self._socket.recv(4096))
            if "pid" in answer:
                return Forked(self, answer["pid"])
            self._codes[answer["ended"]] = answer["code"]

    def ended(self, pid: int) -> int | None:
        """The exit code of a child that has ended."""
        with contextlib.suppress(BlockingIOError):
            while True:
                answer = json.loads(self._socket.recv(4096, socket.MSG_DONTWAIT))
                self._codes[answer["ended"]] = answer["code"]
        return self._codes.get(pid)

    async def run(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdin: bytes = b"",
        directory: Path | None = None,
        timeout_s: float = 60.0,
    ) -> tuple[int, str, str]:
        """(exit code, output, errors) of a child that ends by itself."""
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as errors,
        ):
            given.write(stdin)
            given.seek(0)
            files = (given.fileno(), out.fileno(), errors.fileno())
            child = self.spawn(arguments, directory, environment, files)
            try:
                async with asyncio.timeout(timeout_s):
                    while (code := child.poll()) is None:
                        await asyncio.sleep(0.01)
            finally:
                child.kill()
            out.seek(0)
            errors.seek(0)
            return code, out.read().decode(), errors.read().decode()


_server: ForkServer | None = None


def server() -> ForkServer:
    """The one of this process, started when first asked for."""
    global _server
    if _server is None:
        _server = ForkServer()
    return _server


def stop() -> None:
    """End it, and with it whatever it has started."""
    global _server
    if _server is not None:
        _server.close()
        _server = None


def launch(
    arguments: Sequence[str], directory: Path, environment: Mapping[str, str], output: int
) -> Process:
    """In place of ``node.demo.process.launch``: ours are forked."""
    if tuple(arguments[:2]) != ("-m", "node"):
        return process.launch(arguments, directory, environment, output)
    with Path(os.devnull).open("rb") as nothing:
        files = (nothing.fileno(), output, output)
        return server().spawn(arguments[2:], directory, environment, files)


def _serve(requests: socket.socket) -> None:
    import node.app
    import node.cli
    import node.commands.ask
    import node.commands.gateway
    import node.gateway.app  # noqa: F401

    gc.freeze()
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _bury(requests)
        if requests in ready:
            message, files, _, _ = socket.recv_fds(requests, _MAX_TASK_BYTES, 3)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for end in (requests, woken, wake):
                    end.close()
                _become(json.loads(message), files)
            for file in files:
                os.close(file)
            requests.send(json.dumps({"pid": pid}).encode())


def _bury(requests: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            requests.send(json.dumps({"ended": pid, "code": code}).encode())


def _become(task: dict[str, object], files: Sequence[int]) -> None:
    """Go on as the program that was asked for."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 256)
    os.chdir(str(task["directory"]))
    os.environ.clear()
    os.environ.update(task["environment"])  # type: ignore[call-overload]
    sys.argv = ["nodestr", *task["arguments"]]  # type: ignore[misc]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    code = 1
    try:
        from node.cli import main

        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
