"""What is measured: the cases, and what their clients send and must get."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from bench.stub import TEXT, TOKENS
from bench.wire import Expectation

GROUPS = {
    "chat": "a chat paid by an account, answered in one piece",
    "stream": "the same, streamed: as fast as it goes, and at the pace of a model",
    "token": "a chat paid by a token of its own (X-Cashu) at a fast double of a mint",
    "token-real": "the same at a real mint (nutshell)",
    "nostr": "a chat paid by an account, over a Nostr relay",
}
"""What ``--only`` chooses from."""

MODEL = "bench"
FAST_EVENTS = 200
PACED_EVENTS, PACED_INTERVAL_MS = 40, 20
INFERENCE_EVENTS, INFERENCE_INTERVAL_MS = 10, 15
TOKEN_SAT = 7
"""Three coins; twice of what a chat may cost."""
NUTSHELL_MAX_CLIENTS = 16
"""One nutshell does some 20 swaps a second: more clients would only wait for it."""

Scenario = Literal["chat", "stream", "pace", "token", "token-real", "inference", "nostr"]
Payment = Literal["none", "account", "token"]


@dataclass(frozen=True, slots=True)
class Case:
    """One server under one scenario, with each number of clients."""

    group: str
    scenario: Scenario
    server: str
    """As ``World.servers`` names it."""
    payment: Payment = "none"
    max_clients: int | None = None

    @property
    def title(self) -> str:
        """The server as people read it."""
        return {
            "stub": "model server alone",
            "proxy": "bare aiohttp proxy",
            "node": "node" if self.group != "token-real" else "node, nutshell",
            "node-fast": "node, fast mint",
        }[self.server]


def cases(groups: Collection[str]) -> list[Case]:
    """What the chosen groups measure, the yardsticks first."""
    found = []
    for scenario, group in (("chat", "chat"), ("stream", "stream"), ("pace", "stream")):
        if group in groups:
            found += [
                Case(group, scenario, "stub"),  # type: ignore[arg-type]
                Case(group, scenario, "proxy"),  # type: ignore[arg-type]
                Case(group, scenario, "node", "account"),  # type: ignore[arg-type]
            ]
    if "token" in groups:
        found.append(Case("token", "token", "node-fast", "token"))
    if "token-real" in groups:
        found.append(Case("token-real", "token-real", "node", "token", NUTSHELL_MAX_CLIENTS))
    if "token" in groups or "token-real" in groups:
        found.append(Case("token", "inference", "stub", max_clients=1))
    if "token" in groups:
        found.append(Case("token", "inference", "node-fast", "token", 1))
    if "token-real" in groups:
        found.append(Case("token-real", "inference", "node", "token", 1))
    if "nostr" in groups:
        found.append(Case("nostr", "nostr", "node", "account"))
    return found


def body(scenario: Scenario) -> str:
    """The request's JSON."""
    prompt = "What do you sell, and who keeps the books?"
    request: dict[str, Any] = {"model": MODEL, "max_tokens": TOKENS}
    match scenario:
        case "stream":
            request |= {"stream": True, "max_tokens": FAST_EVENTS}
        case "pace":
            request |= {"stream": True, "max_tokens": PACED_EVENTS}
            prompt += f" interval_ms={PACED_INTERVAL_MS}"
        case "inference":
            request |= {"stream": True, "max_tokens": INFERENCE_EVENTS}
            prompt += f" interval_ms={INFERENCE_INTERVAL_MS}"
    request["messages"] = [{"role": "user", "content": prompt}]
    return orjson.dumps(request).decode()


def expectation(case: Case) -> Expectation:
    """What each answer of a case must hold."""
    match case.scenario:
        case "stream":
            return Expectation(events=FAST_EVENTS + 2)
        case "pace":
            return Expectation(events=PACED_EVENTS + 2, stamped=True)
        case "inference" if case.payment == "token":  # its change comes in one more
            return Expectation(('"x_cashu":"cashu',), events=INFERENCE_EVENTS + 3, stamped=True)
        case "inference":
            return Expectation(events=INFERENCE_EVENTS + 2, stamped=True)
    counted = f'"completion_tokens":{TOKENS}'
    paid = () if case.payment == "none" else ('"cost":',)
    return Expectation((TEXT, counted, *paid))
