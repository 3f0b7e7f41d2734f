"""Promise: /openapi.json says what is served, and nothing made from it brings the node down."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx

from tests.e2e.conftest import World

EXAMPLES = 3
"""For each operation and kind of input."""


async def test_whatever_is_made_from_the_document_gets_an_answer(
    world: World, tmp_path: Path
) -> None:
    async with httpx.AsyncClient(base_url=world.node.url) as http:
        created = await http.post(
            "/v1/wallet/create", json={"cashu_token": await world.purse.fund(500)}
        )
        document = (await http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert document["paths"]["/v1/chat/completions"]["post"]["security"]
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{world.node.url}/openapi.json"),
        *("--checks", "not_a_server_error,response_schema_conformance,content_type_conformance"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)),
        *("--header", f"Authorization: Bearer {created.json()['api_key']}"),
        *("--seed", "1", "--workers", "2", "--request-timeout", "20", "--no-color"),
        # a stream that goes on for an hour
        *("--exclude-path", "/v1/providers/stream"),
        *("--suppress-health-check", "all", "--generation-database", "none"),
    ]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(180):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    report = output.decode()
    print(report)
    assert process.returncode == 0, report[-4000:]
    log = world.node.log_file.read_text()
    assert "internal_error" not in log
    await world.quiet_books()
