"""Promise: ``nodestr demo`` does the whole job, and says so in a form programs can read."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import httpx
import pytest


async def start(tmp_path: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "node",
        "demo",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=tmp_path,
        limit=1 << 20,
    )


async def test_check_verifies_every_step_and_exits_0(tmp_path: Path) -> None:
    process = await start(tmp_path, "--check")
    output, _ = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0
    result = json.loads(output.decode().splitlines()[-1])
    assert result["ok"] is True
    steps = {step["step"]: step["ok"] for step in result["steps"]}
    assert len(steps) >= 15
    assert all(steps.values())


@pytest.mark.parametrize("part", ["--mint", "--relay", "--upstream"])
async def test_check_says_which_step_failed_and_exits_1(part: str, tmp_path: Path) -> None:
    scheme = "ws" if part == "--relay" else "http"
    model = ["--model", "m"] if part == "--upstream" else []
    process = await start(tmp_path, "--check", part, f"{scheme}://127.0.0.1:9/v1", *model)
    output, _ = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 1
    result = json.loads(output.decode().splitlines()[-1])
    assert result["ok"] is False
    assert result["failed"]


async def test_json_lets_an_outside_program_attach(tmp_path: Path) -> None:
    process = await start(tmp_path, "--json")
    assert process.stdout is not None
    try:
        facts = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
        assert len(facts["nodes"]) == 2
        headers = {"authorization": f"Bearer {facts['api_key']}"}
        async with httpx.AsyncClient(headers=headers, timeout=30) as http:
            answer = await http.post(
                f"{facts['nodes'][0]['url']}/v1/chat/completions",
                json={"model": facts["model"], "messages": [{"role": "user", "content": "hi"}]},
            )
            assert answer.status_code == 200
            for node in facts["nodes"]:
                listed = (await http.get(f"{node['url']}/v1/providers")).json()["providers"]
                others = [n["npub"] for n in facts["nodes"] if n is not node]
                assert [provider["npub"] for provider in listed] == others
                assert all(provider["verified"] for provider in listed)
    finally:
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
