"""Who leaves a stream just before its end pays for what the end tells; else for what was seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from node.core.catalog import Catalog
from node.core.exchange import Chunk, Receipt, Request, Started
from node.core.money import Msat
from node.core.usage import Usage
from node.ports import UpstreamCall, UpstreamReply
from node.service.inference.chat import prepare_chat
from node.service.payers import Payer
from node.service.pipeline import Pipeline
from tests.unit.service.test_stopping import MODEL, Purse

TEXT = b'data: {"choices":[{"delta":{"content":"all"}}]}\n\n'
USAGE = {"prompt_tokens": 5, "completion_tokens": 60, "total_tokens": 65}
END = b"data: %s\n\ndata: [DONE]\n\n" % orjson.dumps({"choices": [], "usage": USAGE})


class Reasoner:
    """Says its text, and what it took to get there when it is read on."""

    backend = MODEL.backends[0]
    status = 200
    content_type = "text/event-stream"

    def __init__(self, *, resumable: bool, ends: bool) -> None:
        self.resumable = resumable
        self._ends = ends
        self._said = False

    async def open(self, call: UpstreamCall) -> UpstreamReply:
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        if not self._said:
            self._said = True
            yield TEXT
            await asyncio.Event().wait()
        if self._ends:
            yield END
        else:
            await asyncio.Event().wait()

    async def close(self) -> None:
        pass


class Counting(Purse):
    """A purse that keeps the usage it was charged for."""

    def __init__(self) -> None:
        super().__init__()
        self.usages: list[Usage] = []

    async def settle(self, cost: Msat, usage: Usage) -> Receipt:
        self.usages.append(usage)
        return await super().settle(cost, usage)


@pytest.mark.parametrize(
    ("resumable", "ends", "tokens"), [(True, True, 60), (True, False, 1), (False, True, 1)]
)
async def test_the_end_is_heard_when_it_comes_at_once(
    resumable: bool, ends: bool, tokens: int
) -> None:
    purse = Counting()

    async def choose(_: Request) -> Payer:
        return purse

    upstream = Reasoner(resumable=resumable, ends=ends)
    pipeline = Pipeline(Catalog([MODEL]), choose, upstream, lambda _: None)
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "stream": True}
    request = Request("r", "POST", "/v1/chat/completions", {}, orjson.dumps(body))
    events = pipeline.run(request, prepare_chat)
    assert isinstance(await anext(events), Started)
    assert isinstance(await anext(events), Chunk)
    await events.aclose()
    (usage,) = purse.usages
    assert usage.completion_tokens == tokens
