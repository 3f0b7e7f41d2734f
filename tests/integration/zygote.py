"""Talks to a process that forks journeys of money and lets them die (``kill_scenarios``)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


class Zygote:
    """The process that forks; see ``zygote_of``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, task: dict[str, Any]) -> tuple[int, str]:
        """(exit code, output) of a child with this task."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        answer = json.loads(line)
        return answer["code"], answer["output"]


@asynccontextmanager
async def zygote_of(module: str) -> AsyncIterator[Zygote]:
    """Runs ``module`` as the zygote."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        limit=1 << 22,
    )
    yield Zygote(process)
    assert process.stdin is not None
    process.stdin.close()
    await asyncio.wait_for(process.wait(), 30)
