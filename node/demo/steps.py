"""What the demo proves, one function a promise. Each raises DemoFailure when it does not hold.

announced ─▶ found ─▶ key ─▶ token as key ─▶ X-Cashu ─▶ Nostr ─▶ withdrawn ─▶ balance sheet
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import openai
import orjson

from discovery.announcement import parse_provider_event
from discovery.nostr.pool import RelayPool
from discovery.offers import parse_model_pages
from discovery.wire import KIND_MODEL_PAGE, KIND_PROVIDER
from node.client.nostr import NostrClient
from node.core.money import MSAT_PER_SAT
from node.core.usage import Usage
from node.demo.client import Customer, bearer, eventually, expect
from node.demo.nodes import DemoNode
from node.demo.report import DemoFailure, Report, Sheet, sats
from node.demo.world import World
from node.ecash.token import parse_token
from node.ledger.books import Books, read_books
from node.transport.dm.assembly import ReplyError

MAX_TOKENS = 48
PROMPT = "Tell me in one sentence why ecash suits machines that pay machines."
KEY_SAT = 160
TOKEN_SAT = 96
REQUEST_SAT = 48
NODE_KEY_SAT = 1000


@dataclass(frozen=True, slots=True)
class Chat:
    """A paid chat as the client saw it."""

    text: str
    usage: Usage
    cost: int
    """As the node said, in msat."""


class Walk:
    """The customer's way through the demo."""

    def __init__(self, world: World, customer: Customer, report: Report) -> None:
        self.world = world
        self.customer = customer
        self.report = report
        self._listed: dict[str, dict[str, Any]] = {}
        """Name → what the other node lists."""

    async def announced(self) -> None:
        """Both nodes' announcements and model pages are on the relay."""
        with self.report.step("announced", "both nodes announce themselves on the relay") as step:
            async with RelayPool([self.world.relay]) as pool:
                await eventually(partial(self._reached, pool), timeout_s=10)
                for node in self.world.nodes:
                    await eventually(partial(self._announced, pool, node), timeout_s=60)
            step.detail = f"kinds {KIND_PROVIDER} and {KIND_MODEL_PAGE}, prices as configured"

    async def _reached(self, pool: RelayPool) -> None:
        trouble = pool.trouble(self.world.relay)
        if trouble is not None:
            raise DemoFailure(f"{self.world.relay}: {trouble}")

    async def _announced(self, pool: RelayPool, node: DemoNode) -> None:
        kinds = [KIND_PROVIDER, KIND_MODEL_PAGE]
        events = await pool.query([{"kinds": kinds, "authors": [node.keys.pubkey]}])
        own = [event for event in events if event.kind == KIND_PROVIDER]
        pages = [event for event in events if event.kind == KIND_MODEL_PAGE]
        if not own or not pages:
            raise DemoFailure(f"{node.name} has not announced itself on {self.world.relay}")
        announcement = parse_provider_event(own[0])
        expect(f"{node.name}'s announced URL", announcement.urls, (node.url,))
        offers = parse_model_pages(pages) or []
        price = node.offer.price
        expect(
            f"what {node.name} announces for sale",
            [(o.id, o.input_per_mtok, o.output_per_mtok, o.per_request) for o in offers],
            [(node.offer.model, price.input_per_mtok, price.output_per_mtok, price.per_request)],
        )

    async def found(self) -> None:
        """Each node lists the other, verified, with models, prices, mints and relays."""
        for node, other in (self.world.nodes, self.world.nodes[::-1]):
            title = f"{node.name} lists {other.name} under /v1/providers, verified"
            with self.report.step(f"found-{other.name}", title) as step:
                item = await eventually(partial(self._found, node, other), timeout_s=90)
                self._listed[other.name] = item
                step.detail = f"{item['status']}, answers in {item['latency_ms']} ms"
                step.measured = {"latency_ms": item["latency_ms"]}

    async def _found(self, node: DemoNode, other: DemoNode) -> dict[str, Any]:
        body, _ = await self.customer.call("GET", f"{node.url}/v1/providers")
        items = [item for item in body["providers"] if item["pubkey"] == other.keys.pubkey]
        if not items:
            raise DemoFailure(f"{node.name} does not list {other.name}")
        item: dict[str, Any] = items[0]
        what = f"{other.name} as {node.name} lists it: "
        expect(what + "verified", item["verified"], True)
        expect(what + "npub", item["npub"], other.keys.npub)
        expect(what + "mints", item["mint_urls"], [self.world.mint])
        expect(what + "relays", item["relays"], [self.world.relay])
        expect(what + "URL", item["endpoint_url"], other.url)
        expect(what + "models", item["models"], [other.offer.model])
        priced = item["pricing"][other.offer.model]
        price = other.offer.price
        # sat per 1,000 tokens there, msat per million here
        expect(what + "prompt price", priced["prompt"], price.input_per_mtok / 1_000_000)
        expect(what + "answer price", priced["completion"], price.output_per_mtok / 1_000_000)
        return item

    async def key(self) -> str:
        """A token becomes a key; it pays for two chats to the msat. Returns the key."""
        node = self.world.a
        with self.report.step("key", "a token buys an sk- key (POST /v1/wallet/create)") as step:
            token = await self.customer.token(KEY_SAT)
            body, _ = await self.customer.call(
                "POST", f"{node.url}/v1/wallet/create", json={"cashu_token": token}
            )
            key = str(body["api_key"])
            if not key.startswith("sk-"):
                raise DemoFailure("the key does not begin with sk-")
            credit = parse_token(token).value - await self.customer.input_fee(token)
            expect("the new balance", await self.customer.balance(node.url, key), credit)
            step.detail = f"balance {sats(credit)} sat"
            step.measured = {"balance_msat": int(credit)}
        await self._chat_from_balance("key", "the sk- key", node, key)
        return key

    async def token_as_key(self) -> str:
        """A token is a key from its first use. Returns it."""
        node = self.world.a
        token = await self.customer.token(TOKEN_SAT)
        title = "Authorization: Bearer cashuB…"
        with self.report.step("bearer", f"{title} opens an account by itself") as step:
            credit = parse_token(token).value - await self.customer.input_fee(token)
            expect("the new balance", await self.customer.balance(node.url, token), credit)
            step.detail = f"balance {sats(credit)} sat"
        await self._chat_from_balance("bearer", title, node, token)
        return token

    async def _chat_from_balance(self, name: str, who: str, node: DemoNode, key: str) -> None:
        for stream in (False, True):
            suffix = "stream" if stream else "chat"
            with self.report.step(f"{name}-{suffix}", f"{who} pays for a {suffix}") as step:
                before = await self.customer.balance(node.url, key)
                chat = await self._openai(node, key, stream=stream)
                quoted = int(node.offer.price.cost(chat.usage))
                expect("the cost the node says (msat)", chat.cost, quoted)

                async def fallen(before: int = before, quoted: int = quoted) -> None:
                    after = await self.customer.balance(node.url, key)
                    expect("what the balance fell by (msat)", before - after, quoted)

                await eventually(fallen, timeout_s=10)
                step.detail = f"{_words(chat)}, balance fell by exactly {sats(quoted)} sat"
                step.measured = {"cost_msat": quoted}

    async def _openai(self, node: DemoNode, key: str, *, stream: bool) -> Chat:
        """A chat with the SDK as it comes."""
        request: dict[str, Any] = {
            "model": node.offer.model,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": MAX_TOKENS,
        }
        async with openai.AsyncOpenAI(
            base_url=f"{node.url}/v1", api_key=key, max_retries=0, timeout=120
        ) as client:
            try:
                if not stream:
                    raw = await client.chat.completions.with_raw_response.create(**request)
                    done = raw.parse()
                    told = int(raw.headers["x-routstr-cost-msats"])
                    expect("usage.cost (msat)", getattr(done.usage, "cost", None), told)
                    return _chat(done.choices[0].message.content, done.usage)
                text, usage = "", None
                async for chunk in await client.chat.completions.create(
                    **request, stream=True, stream_options={"include_usage": True}
                ):
                    usage = chunk.usage or usage
                    text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            except openai.APIError as error:
                raise DemoFailure(f"{node.name} refused the chat: {error}") from None
        return _chat(text, usage)

    async def x_cashu(self) -> None:
        """Pay one request with a token; the change is in the header and is money."""
        node = self.world.a
        with self.report.step("x-cashu", "X-Cashu pays for one chat; change in the header") as step:
            token = await self.customer.token(REQUEST_SAT)
            body, headers = await self.customer.call(
                "POST",
                f"{node.url}/v1/chat/completions",
                headers={"X-Cashu": token},
                json=self._request(node),
            )
            chat = _chat(body["choices"][0]["message"]["content"], body["usage"])
            expect("X-Routstr-Cost-Msats", headers["X-Routstr-Cost-Msats"], str(chat.cost))
            step.detail, step.measured = await self._settled(node, token, chat, headers["X-Cashu"])

    async def nostr(self) -> None:
        """The same chat over the relay, from a fresh key, in one piece and as it is generated."""
        node = self.world.b
        for stream in (False, True):
            kind = "framed stream" if stream else "chat"
            title = f"an encrypted Nostr message from a fresh key buys a {kind}"
            with self.report.step(f"nostr-{'stream' if stream else 'chat'}", title) as step:
                token = await self.customer.token(REQUEST_SAT)
                chat, change = await self._over_nostr(node, token, stream=stream)
                step.detail, step.measured = await self._settled(node, token, chat, change)

    async def _over_nostr(self, node: DemoNode, token: str, *, stream: bool) -> tuple[Chat, str]:
        """(the chat, the change) bought with ``token``, in http2nostr's format or framed.

        All the client knows is what the other node lists: key and relays.
        """
        listed = self._listed[node.name]
        async with NostrClient(listed["relays"]) as client:
            try:
                reply = await client.request(
                    listed["npub"],
                    "POST",
                    "/v1/chat/completions",
                    headers={"content-type": "application/json", "x-cashu": token},
                    body=orjson.dumps(self._request(node, stream=stream)),
                    plain=not stream,
                )
            except ReplyError as error:
                raise DemoFailure(f"{node.name} did not answer over Nostr: {error}") from None
        if reply.status != 200:
            raise DemoFailure(f"{node.name} answered {reply.status}: {reply.body[:300]!r}")
        if not reply.change:
            raise DemoFailure("no change came with the answer")
        chat = _chat_of_stream(reply.body) if stream else _chat_of_document(reply.body)
        return chat, reply.change

    async def _settled(
        self, node: DemoNode, token: str, chat: Chat, change: str
    ) -> tuple[str, dict[str, Any]]:
        """Checks paid - change = cost and takes the change; (detail, measured)."""
        paid, fee = parse_token(token).value, await self.customer.input_fee(token)
        quoted = int(node.offer.price.cost(chat.usage))
        expect("the cost the node says (msat)", chat.cost, quoted)
        back = await self.customer.take_change(change)
        dust = paid - fee - back - quoted
        # Change is whole coins: what is below the smallest one stays at the node.
        if not 0 <= dust < MSAT_PER_SAT:
            raise DemoFailure(f"paid {paid}, fee {fee}, change {back}, cost {quoted} msat")
        detail = (
            f"{_words(chat)}, paid {sats(paid)} - change {sats(back)} = "
            f"cost {sats(quoted)} + dust {sats(dust)}"
        )
        return detail, {
            "paid_msat": int(paid),
            "mint_fee_msat": int(fee),
            "change_msat": int(back),
            "cost_msat": quoted,
            "dust_msat": dust,
        }

    async def withdrawn(self, api_key: str, token_key: str) -> None:
        """What is left on both accounts comes back as tokens and receives at the mint."""
        url = self.world.a.url
        with self.report.step("withdraw", "the rest of both accounts comes back as tokens") as s:
            left = [await self.customer.balance(url, key) for key in (api_key, token_key)]
            wallet, _ = await self.customer.call(
                "POST", f"{url}/v1/wallet/withdraw", headers=bearer(api_key), json={}
            )
            balance, _ = await self.customer.call(
                "POST", f"{url}/v1/balance/refund", headers=bearer(token_key), json={}
            )
            back = [
                await self.customer.take_withdrawal(token)
                for token in (wallet["cashu_token"], balance["token"])
            ]
            # Whole coins again; what is below stays on the account.
            expect("what came back (msat)", back, [m - m % MSAT_PER_SAT for m in left])
            s.detail = " + ".join(sats(amount) for amount in back) + " sat received at the mint"
            s.measured = {"withdrawn_msat": sum(back)}

    async def balanced(self) -> Sheet:
        """Both nodes' books against the customer's own tally, to the msat."""
        with self.report.step("sheet", "sats in = earned + change + withdrawn + open") as step:
            sheet = await eventually(self._balanced, timeout_s=20)
            step.detail = "to the msat"
            step.measured = {f"{name}_msat": amount for name, amount in asdict(sheet).items()}
        return sheet

    async def _balanced(self) -> Sheet:
        books = [await asyncio.to_thread(read_books, node.database) for node in self.world.nodes]
        for node, book in zip(self.world.nodes, books, strict=True):
            expect(f"what does not add up in {node.name}'s books", book.problems(), [])
            expect(f"unfinished operations of {node.name}", book.operations_open, 0)
            expect(f"unfinished requests of {node.name}", book.holds_open, 0)
        tally = self.customer.tally
        expect("what the nodes received (msat)", _sum(books, "received_msat"), tally.paid)
        returned = tally.change + tally.withdrawn
        expect("what the nodes issued (msat)", _sum(books, "issued_msat"), returned)
        uses = {
            "mint_fees": _sum(books, "input_fees_msat"),
            "earned": _sum(books, "revenue_msat"),
            "dust": _sum(books, "dust_msat"),
            "change": tally.change,
            "withdrawn": tally.withdrawn,
            "open": _sum(books, "open_msat"),
        }
        unaccounted = tally.paid - sum(uses.values())
        expect("what is unaccounted for (msat)", unaccounted, 0)
        return Sheet(paid_in=tally.paid, unaccounted=unaccounted, **uses)

    async def funded_key(self) -> str:
        """A key with money on it, for whoever tries the node out."""
        title = f"a key with {NODE_KEY_SAT} sat for you"
        with self.report.step("funded-key", title) as step:
            token = await self.customer.token(NODE_KEY_SAT)
            body, _ = await self.customer.call(
                "POST", f"{self.world.a.url}/v1/wallet/create", json={"cashu_token": token}
            )
            step.detail = f"at {self.world.a.name}"
        return str(body["api_key"])

    def _request(self, node: DemoNode, *, stream: bool = False) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": node.offer.model,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": MAX_TOKENS,
        }
        if stream:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        return request


def _chat(text: str | None, usage: Any) -> Chat:
    """From the parts of an answer, whichever library read them."""
    if not text or usage is None:
        raise DemoFailure("the answer holds no text or no usage")
    if not isinstance(usage, dict):
        usage = usage.model_dump()
    try:
        tokens = Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
        return Chat(text, tokens, int(usage["cost"]))
    except KeyError as missing:
        raise DemoFailure(f"the answer's usage lacks {missing}") from None


def _chat_of_document(body: bytes) -> Chat:
    document = orjson.loads(body)
    return _chat(document["choices"][0]["message"]["content"], document["usage"])


def _chat_of_stream(body: bytes) -> Chat:
    text, usage = "", None
    events = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line]
    expect("the end of the stream", events[-1].strip(), b"[DONE]")
    for chunk in map(orjson.loads, events[:-1]):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
    return _chat(text, usage)


def _words(chat: Chat) -> str:
    return f"{chat.usage.prompt_tokens} + {chat.usage.completion_tokens} tokens"


def _sum(books: list[Books], name: str) -> int:
    return sum(getattr(book, name) for book in books)
