"""HTTP as a client of the node sees it: an answer, or none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that arrived whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        document = json.loads(self.body)
        assert isinstance(document, dict)
        return document

    @property
    def code(self) -> str:
        """Of the error; empty when it is none."""
        return str(self.json().get("error", {}).get("code", "")) if self.status >= 400 else ""

    @property
    def change(self) -> str | None:
        """The change it carries: in the header, or in an event of the stream."""
        text = self.headers.get("X-Cashu", "")
        if text.startswith("cashu"):
            return text
        for event in self.events():
            if event.get("x_cashu"):
                return str(event["x_cashu"])
        return None

    @property
    def cost(self) -> int | None:
        """msat, when it says so."""
        text = self.headers.get("X-Routstr-Cost-Msats")
        if text is not None:
            return int(text)
        return int(self.usage["cost"]) if self.usage else None

    @property
    def usage(self) -> dict[str, Any] | None:
        """What the model server counted, when the answer says so."""
        documents = self.events() if self.streamed else [self.json()]
        usage = [document["usage"] for document in documents if document.get("usage")]
        return usage[-1] if usage else None

    @property
    def streamed(self) -> bool:
        return "event-stream" in self.headers.get("Content-Type", "")

    def events(self) -> list[dict[str, Any]]:
        """Of a stream."""
        if not self.streamed:
            return []
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: {")]
        return [json.loads(line) for line in lines]

    @property
    def whole(self) -> bool:
        """Whether a model's answer is complete."""
        if self.status != 200:
            return False
        if not self.streamed:
            return bool(self.json().get("choices"))
        return b"[DONE]" in self.body and not any(event.get("error") for event in self.events())


class Client:
    """Talks to the node at ``url``; None when no whole answer came."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        key: str = "",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 20.0,
    ) -> Answer | None:
        """One request; ``timeout_s`` is also how to hang up."""
        all_headers = dict(headers or {})
        if key:
            all_headers["Authorization"] = f"Bearer {key}"
        try:
            async with self._session.request(
                method,
                self._url + path,
                json=body,
                headers=all_headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as answer:
                data = await answer.read()
                return Answer(answer.status, answer.headers, data)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
