"""Runs ``nodestr`` commands as an operator would, in processes of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.fakes import forks


async def run(
    *args: str | Path,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
    cwd: Path | None = None,
) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of ``nodestr args``.

    Args:
        environment: all the variables it has besides PATH.
    """
    return await forks.server().run(
        [str(arg) for arg in args],
        environment={"PATH": os.environ.get("PATH", os.defpath), **(environment or {})},
        stdin=stdin.encode(),
        directory=cwd,
    )


@asynccontextmanager
async def serving(config: Path, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """``nodestr serve`` with a configuration, ready; ended with SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "node",
        "serve",
        "--config",
        str(config),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", os.defpath)},
    )
    assert process.stderr is not None
    said = asyncio.create_task(process.stderr.read())
    try:
        async with asyncio.timeout(60), httpx.AsyncClient() as http:
            while True:
                assert process.returncode is None, (await said).decode()
                try:
                    if (await http.get(f"{url}/health/ready")).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(60):
            await process.wait()
            await said
