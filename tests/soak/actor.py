"""A client that does what clients do, at random, and writes down what it must get back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.soak.client import CHAT, Answer
from tests.soak.deposits import Deposits
from tests.soak.prompts import chat_body
from tests.soak.records import Account, Contest, Opening, Payment


class Actor(Deposits):
    """One client. Arguments as for Notebook."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._deeds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (10, self.pay),
            (6, self.pay_and_hang_up),
            (3, self.pay_twice_with_one_token),
            (4, self.open_account),
            (2, self.open_by_bearer),
            (14, self.chat),
            (4, self.chat_and_hang_up),
            (4, self.chat_once),
            (3, self.make_child),
            (4, self.top_up),
            (3, self.top_up_twice),
            (3, self.race_two_keys),
            (3, self.spend_twice),
            (3, self.offer_everywhere),
            (8, self.withdraw),
            (4, self.withdraw_once),
            (2, self.refund),
            (3, self.invoice),
            (4, self.look_up),
            (3, self.read),
            (2, self.rush),
        ]

    async def run(self, more: Callable[[], bool]) -> None:
        """Act as long as there is ``more`` to do."""
        weights = [weight for weight, _ in self._deeds]
        while more():
            await self._up.wait()
            _, deed = self._dice.choices(self._deeds, weights)[0]
            await deed()
            self.done[deed.__name__] += 1
            if self._dice.random() < 0.15:
                await self.pocket.redeem()

    # -- pay per request -------------------------------------------------------------------

    async def pay(self) -> None:
        await self._pay(timeout_s=20)

    async def pay_and_hang_up(self) -> None:
        await self._pay(timeout_s=self._dice.expovariate(1 / 0.05) + 0.001)

    async def pay_twice_with_one_token(self) -> None:
        payment = await self._new_payment()
        await asyncio.gather(
            *(
                self._send(
                    payment, chat_body(self._dice), {"X-Request-Id": f"{payment.request_id}-{n}"}
                )
                for n in range(2)
            )
        )

    async def _new_payment(self) -> Payment:
        floor = self.max_cost_msat // 1000 + 8
        payment = Payment(await self._fund(self._dice.randint(floor, 4 * floor)), self._id())
        self.payments.append(payment)
        return payment

    async def _pay(self, timeout_s: float) -> None:
        payment = await self._new_payment()
        headers = {"X-Request-Id": payment.request_id}
        body = chat_body(self._dice)
        if body["stream"] and self._dice.random() < 0.7:
            headers["X-Cashu-Change"] = "event"
        await self._send(payment, body, headers, timeout_s)

    async def _send(
        self, payment: Payment, body: dict[str, Any], headers: dict[str, str], timeout_s: float = 20
    ) -> None:
        headers = {**headers, "X-Cashu": payment.coin.text}
        answer = await self.ask("POST", CHAT, body, headers=headers, timeout_s=timeout_s)
        if answer is None:
            return
        if answer.whole:
            payment.cost_msat = self._cost(answer)
        if answer.change:
            payment.change = answer.change
            self.pocket.take(answer.change)

    # -- accounts --------------------------------------------------------------------------

    async def open_by_bearer(self) -> None:
        opening = Opening(await self._fund(self._dice.randint(40, 200)), "")
        request_id = self._id()
        opening.charges[request_id] = None
        answer = await self.ask(
            "POST",
            CHAT,
            chat_body(self._dice),
            key=opening.coin.text,
            headers={"X-Request-Id": request_id},
            timeout_s=self._dice.choice((20.0, 0.1)),
        )
        if answer is not None and answer.whole:
            opening.charges[request_id] = self._cost(answer)
        await self.open(opening)

    async def chat(self) -> None:
        account = self._account()
        if account is not None:
            await self._chat(account)

    async def chat_and_hang_up(self) -> None:
        account = self._account()
        if account is not None:
            await self._chat(account, timeout_s=self._dice.expovariate(1 / 0.03) + 0.001)

    async def chat_once(self) -> None:
        """Under an idempotency key: asked again when no answer came, it is charged once."""
        account = self._account()
        if account is None:
            return
        headers = {"Idempotency-Key": self._id(), "X-Request-Id": self._id()}
        account.charges[headers["X-Request-Id"]] = None
        body = chat_body(self._dice)
        for timeout_s in (0.03, 20.0, 20.0):
            answer = await self.ask(
                "POST", CHAT, body, key=account.key, headers=headers, timeout_s=timeout_s
            )
            if answer is not None:
                self._note(account, headers["X-Request-Id"], answer)
                break

    async def _chat(self, account: Account, timeout_s: float = 20) -> None:
        request_id = self._id()
        account.charges[request_id] = None
        key = self._dice.choice([account.key, *account.children])
        headers = {"X-Request-Id": request_id}
        answer = await self.ask(
            "POST", CHAT, chat_body(self._dice), key=key, headers=headers, timeout_s=timeout_s
        )
        if answer is not None:
            self._note(account, request_id, answer)

    def _note(self, account: Account, request_id: str, answer: Answer) -> None:
        if answer.whole:
            account.charges[request_id] = self._cost(answer)

    async def make_child(self) -> None:
        account = self._account()
        if account is None:
            return
        account.children_asked += 1
        body = {"count": 1, "balance_limit": self._dice.randint(1, 60) * 1000}
        answer = await self.ask("POST", "/v1/balance/child-key", body, key=account.key)
        if answer is not None and answer.status == 200:
            account.children += answer.json()["api_keys"]

    async def read(self) -> None:
        account = self._account()
        if account is not None:
            path = self._dice.choice(("/v1/balance/info", "/v1/wallet/balance"))
            await self.ask("GET", path, key=account.key)

    # -- money into an account -------------------------------------------------------------

    async def offer_everywhere(self) -> None:
        """The same token pays for a request, tops up one account and opens another."""
        account = self._account()
        if account is None:
            return
        payment = Payment(await self._fund(self._dice.randint(20, 60)), self._id())
        contest = Contest(payment, account)
        self.contests.append(contest)
        text = payment.coin.text
        headers = {"X-Request-Id": payment.request_id}
        deeds: list[Awaitable[Any]] = [
            self._send(payment, chat_body(self._dice), headers),
            self.ask("POST", "/v1/wallet/topup", {"cashu_token": text}, key=account.key),
            self.ask("POST", "/v1/wallet/create", {"cashu_token": text}),
        ]
        self._dice.shuffle(deeds)
        await asyncio.gather(*deeds)

    # -- money out of an account -----------------------------------------------------------

    async def withdraw(self) -> None:
        account = self._account()
        if account is not None:
            timeout_s = self._dice.choice((20.0, 20.0, 0.02))
            await self._withdraw(account, self._some(), "", timeout_s)

    async def withdraw_once(self) -> None:
        account = self._account()
        if account is None:
            return
        key, amount = self._id(), self._some()
        account.withdrawals[key] = amount
        if self._dice.random() < 0.3:
            both = [self._withdraw(account, amount, key, 20) for _ in range(2)]
            answers = [a for a in await asyncio.gather(*both) if a is not None]
            tokens = {a.json()["cashu_token"] for a in answers if a.status == 200}
            if len(tokens) > 1:
                self.problem("two tokens under one idempotency key")
            return
        for timeout_s in (self._dice.choice((20.0, 0.02)), 20.0):
            if await self._withdraw(account, amount, key, timeout_s) is not None:
                return

    async def refund(self) -> None:
        account = self._account()
        if account is None:
            return
        answer = await self.ask("POST", "/v1/balance/refund", key=account.owner_key)
        if answer is not None and answer.status == 200:
            self.pocket.take(answer.json()["token"])

    async def rush(self) -> None:
        """Much at once on one key."""
        account = self._account()
        if account is None:
            return
        deeds: list[Awaitable[Any]] = []
        for _ in range(5):
            deeds.append(self._chat(account))
            deeds.append(self._withdraw(account, self._dice.randint(1, 9), "", 20))
        await asyncio.gather(*deeds, self._top_up(accounts=1, times=1))

    async def _withdraw(
        self, account: Account, amount: int | None, key: str, timeout_s: float
    ) -> Answer | None:
        body: dict[str, Any] = {} if amount is None else {"amount": amount}
        if self._dice.random() < 0.2:
            body["mint"] = self._dice.choice(self._sides).node_url
        answer = await self.ask(
            "POST",
            "/v1/wallet/withdraw",
            body,
            key=account.owner_key,
            headers={"Idempotency-Key": key} if key else {},
            timeout_s=timeout_s,
        )
        if answer is not None and answer.status == 200:
            token = self.pocket.take(answer.json()["cashu_token"])
            if amount not in (None, token.amount):
                self.problem(f"withdrew {token.amount} sat instead of {amount}")
        return answer

    async def look_up(self) -> None:
        """The change of an earlier request, in the middle of everything."""
        if not self.payments:
            return
        payment = self._dice.choice(self.payments)
        answer = await self.ask(
            "GET",
            f"/v1/wallet/change/{payment.request_id}",
            headers={"X-Cashu": payment.coin.text},
        )
        if answer is not None and answer.status == 200:
            token = answer.json()["token"]
            self.pocket.take(token)
            if payment.change not in (None, token):
                self.problem("two tokens of change for one request")
            payment.change = token
