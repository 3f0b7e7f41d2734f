"""Promise: the node is ready exactly when every named check passes in time, and a check that hangs
or breaks fails only itself."""

from __future__ import annotations

import asyncio

from node.ops.health import Health


async def test_ready_without_checks() -> None:
    health = Health()
    assert health.live()
    assert await health.ready() == (True, {})


async def test_all_kinds_of_checks() -> None:
    draining = False

    async def database() -> str | None:
        await asyncio.sleep(0)
        return None

    health = Health()
    health.add("database", database)
    health.add("draining", lambda: "the node is shutting down" if draining else None)
    assert await health.ready() == (True, {"database": "ok", "draining": "ok"})
    draining = True
    assert await health.ready() == (
        False,
        {"database": "ok", "draining": "the node is shutting down"},
    )
    assert health.live()


async def test_checks_that_hang_or_break() -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    def breaks() -> None:
        raise RuntimeError("with a private reason")

    health = Health(timeout_s=0.01)
    health.add("hangs", hangs)
    health.add("breaks", breaks)
    health.add("works", lambda: None)
    assert await health.ready() == (
        False,
        {"hangs": "no answer", "breaks": "failed", "works": "ok"},
    )


async def test_a_detail_is_shown_and_does_not_make_the_node_unready() -> None:
    health = Health()
    health.add("database", lambda: None)
    health.add("mint a", lambda: "does not answer", detail=True)
    assert await health.ready() == (True, {"database": "ok", "mint a": "does not answer"})
