"""What is killed: whole journeys of money, in a process of their own that dies on command.

Run as a program it is a zygote: for every line ``{"scenario", "step", "directory", "mint",
"tokens"}`` on standard input it forks; the child plays the scenario and dies at its ``step``-th
resumption of any coroutine. It answers with the exit code. Forking spares the imports.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from node.core.catalog import Backend, Catalog, Model
from node.core.exchange import Failed, Receipt, Request
from node.core.money import Msat
from node.core.pricing import Price
from node.ecash.crypto import mnemonic_to_seed, new_mnemonic
from node.ecash.keysets import AcceptedMint
from node.ecash.mint import MintClient
from node.ecash.token import serialize_token
from node.ecash.wallet import Wallet
from node.errors import InsufficientBalance, NotFound, Pending
from node.ledger.accounts import SqliteLedger
from node.ledger.books import account_discrepancies, stranded_in_transit, sum_books
from node.ledger.database import Database
from node.ledger.wallet import SqliteWalletStore
from node.ops.logging import configure
from node.ports import UpstreamCall, UpstreamReply
from node.service.accounts import Accounts
from node.service.inference.chat import prepare_chat
from node.service.payers import Payer, choose_payer
from node.service.pipeline import Pipeline

KILLED = 9
PRICE = Price(Msat(10_000), Msat(20_000), Msat(1_300))
MODEL = Model("m", (Backend("u", PRICE, "m"),), 1000, 50)
ANSWER = {
    "choices": [{"message": {"content": "yes"}}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 5},
}


class _Reply:
    backend = MODEL.backends[0]
    resumable = False
    status = 200
    content_type = "application/json"

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(0)
        yield json.dumps(ANSWER).encode()

    async def close(self) -> None:
        return


class _Upstream:
    async def open(self, call: UpstreamCall) -> UpstreamReply:
        del call
        await asyncio.sleep(0)
        return _Reply()


@dataclass
class Parts:
    """A node without carriages."""

    directory: Path
    database: Database
    ledger: SqliteLedger
    wallet: Wallet
    accounts: Accounts
    pipeline: Pipeline

    def got(self, token: str | None) -> None:
        """The client has this token now."""
        if token:
            with (self.directory / "got").open("a") as file:
                file.write(token + "\n")

    async def ask(self, headers: dict[str, str]) -> Receipt:
        """A paid chat; its receipt."""
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "?"}]}).encode()
        request = Request("id", "POST", "/v1/chat/completions", headers, body)
        receipt = Receipt()
        async for event in self.pipeline.run(request, prepare_chat):
            if isinstance(event, Failed):
                self.got(event.receipt.change)
                raise event.error
            if isinstance(event, Receipt):
                receipt = event
        self.got(receipt.change)
        return receipt


@asynccontextmanager
async def parts(directory: Path, mint: str) -> AsyncIterator[Parts]:
    """Opened as ``node.app`` does it."""
    database = await Database.open(directory / "node.db")
    connector = aiohttp.TCPConnector(keepalive_timeout=4)
    async with aiohttp.ClientSession(connector=connector) as session:
        ledger = SqliteLedger(database)
        store = SqliteWalletStore(database, serialize_token)
        await ledger.release_all()
        client = MintClient(session, mint, timeout_s=10)
        seed = mnemonic_to_seed(await store.secret("mnemonic", new_mnemonic))
        wallet = Wallet(store, {client.url: AcceptedMint(client)}, seed)
        await wallet.start()
        accounts = Accounts(ledger, wallet, store, b"k" * 32)

        async def payer(request: Request) -> Payer:
            return await choose_payer(request, accounts, ledger, wallet)

        pipeline = Pipeline(Catalog([MODEL]), payer, _Upstream(), wallet.payment_request)
        yield Parts(directory, database, ledger, wallet, accounts, pipeline)
        await wallet.close(1.0)
    await database.close()


async def pay(at: Parts, tokens: list[str]) -> None:
    """Two requests paid by a token each, at the same time."""
    await asyncio.gather(*(at.ask({"x-cashu": token}) for token in tokens[:2]))


async def live(at: Parts, tokens: list[str]) -> None:
    """An account: opened, spent from, topped up, withdrawn from until the mint is needed."""
    headers = {"authorization": f"Bearer {tokens[0]}"}
    await at.ask(headers)
    account = await at.accounts.authenticate(_request(headers))
    await at.accounts.topup(account, tokens[1])
    for amount in (3, 3, 3):
        operation = await at.accounts.withdraw(account, Msat(amount * 1000))
        at.got(operation.token)
        at.accounts.handed_over(operation, True)
    await at.ask(headers)
    operation = await at.accounts.withdraw(account)
    at.got(operation.token)
    at.accounts.handed_over(operation, True)


async def refill(at: Parts, tokens: list[str]) -> None:
    """A refill of the inventory, a call paid right after it, and one more refill."""
    await at.ask({"x-cashu": tokens[1]})
    await at.wallet.refill()
    await at.ask({"x-cashu": tokens[0]})
    await at.wallet.refill()


def _request(headers: dict[str, str]) -> Request:
    return Request("id", "GET", "/v1/wallet/balance", headers)


async def _patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(30):
        while True:
            try:
                return await ask()
            except Pending:
                await asyncio.sleep(0.05)


async def settle_pay(at: Parts, tokens: list[str]) -> list[str]:
    """Each client looks its change up; the tokens the node never saw."""
    unseen = []
    for token in tokens[:2]:
        try:
            account_id = await _patiently(partial(at.accounts.paid_with, token))
            operation = await _patiently(partial(at.accounts.change_of, account_id))
            at.got(operation.token)
        except NotFound:
            unseen.append(token)
    return unseen


async def settle_live(at: Parts, tokens: list[str]) -> list[str]:
    """The client asks with its token and its top-up again, then for everything, until it has it."""
    headers = {"authorization": f"Bearer {tokens[0]}"}
    account = await _patiently(lambda: at.accounts.authenticate(_request(headers)))
    await _patiently(lambda: at.accounts.topup(account, tokens[1]))
    seen: set[str] = set()
    while True:
        try:
            operation = await _patiently(lambda: at.accounts.withdraw(account))
        except InsufficientBalance:
            return []
        at.got(operation.token)
        at.accounts.handed_over(operation, True)
        if operation.id in seen:
            return []
        seen.add(operation.id)
        await at.database.write(lambda conn: None)  # the mark of the delivery is on disk


SCENARIOS = {
    "pay": (pay, settle_pay),
    "live": (live, settle_live),
    "refill": (refill, settle_pay),
}


async def play(task: dict[str, Any]) -> None:
    """The journey, from the start."""
    async with parts(Path(task["directory"]), task["mint"]) as at:
        await SCENARIOS[task["scenario"]][0](at, task["tokens"])


async def settle(task: dict[str, Any]) -> dict[str, Any]:
    """After the kill: start again, recover, let the clients ask; then what there is."""
    async with parts(Path(task["directory"]), task["mint"]) as at:
        async with asyncio.timeout(30):
            while await at.wallet.recover():
                await asyncio.sleep(0.05)
        unseen = await SCENARIOS[task["scenario"]][1](at, task["tokens"])
        books = await at.database.read(sum_books)
        problems = books.problems()
        for look in (account_discrepancies, stranded_in_transit):
            problems += await at.database.read(look)
        coins = await at.database.read(
            lambda conn: [
                row["y"] for row in conn.execute("SELECT y FROM proofs WHERE state = 'unspent'")
            ]
        )
        return {
            "unseen": unseen,
            "problems": problems,
            "issued_msat": books.issued_msat,
            "received_msat": books.received_msat,
            "open_msat": books.open_msat,
            "left_open": books.holds_open + books.operations_open,
            "coins": coins,
        }


class _Dying:
    """A coroutine that counts its resumptions, and dies with all others at the last one."""

    steps = 0
    last = 0

    def __init__(self, inner: Coroutine[Any, Any, Any]) -> None:
        self._inner = inner

    def send(self, value: Any) -> Any:
        self._count()
        return self._inner.send(value)

    def throw(self, *error: Any) -> Any:
        self._count()
        return self._inner.throw(*error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        return self

    __iter__ = __await__

    def __next__(self) -> Any:
        return self.send(None)

    @classmethod
    def _count(cls) -> None:
        cls.steps += 1
        if cls.steps == cls.last:
            os._exit(KILLED)


Coroutine.register(_Dying)


def _die_at(task: dict[str, Any]) -> None:
    _Dying.last = task["step"]
    loop = asyncio.new_event_loop()
    loop.set_task_factory(
        lambda loop, coro, **options: asyncio.Task(_Dying(coro), loop=loop, **options)  # type: ignore[arg-type]
    )
    loop.run_until_complete(play(task))


def main() -> None:
    """The zygote. Standard output is for its answers, so the log goes elsewhere."""
    configure("error", "json")
    for line in sys.stdin:
        task = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if task["step"]:
                    _die_at(task)
                    code = 0
                else:
                    result = asyncio.new_event_loop().run_until_complete(settle(task))
                    os.write(writer, json.dumps(result).encode())
                    code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(writer)
        output = b""
        while chunk := os.read(reader, 65_536):
            output += chunk
        os.close(reader)
        _, status = os.waitpid(child, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "output": output.decode()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
