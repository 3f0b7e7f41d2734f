"""The end of a client: it collects what it is owed, and says to the msat what is missing.

It uses what docs/protocol.md gives clients: the change look-up, the same token again, the same
idempotency key again, the statement, the refund.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from node.core.money import MSAT_PER_SAT
from tests.soak.actor import Actor
from tests.soak.client import Answer
from tests.soak.node import CHILD_KEY_COST_MSAT
from tests.soak.prompts import published_price
from tests.soak.records import Account, Bill, Contest, Opening, Payment, Topup

COME_BACK = {425, 429, 503}
"""Answers after which a client is to ask again."""
PAUSE_S = 0.5


def _wait_for_change(answer: Answer) -> bool:
    return answer.status in COME_BACK or answer.code == "mint_liquidity"


class Settlement:
    """Settles one client. ``surcharges``: token of the node → what its mint's fee took of it, msat.

    ``residue_msat``: what stays on its accounts because it is less than a coin. ``gifts``: what
    was credited to its accounts that it never knew of (invoices whose answer was lost), in msat.
    """

    def __init__(
        self, actor: Actor, surcharges: Callable[[], dict[str, int]], timeout_s: float
    ) -> None:
        self.residue_msat = 0
        self.charged_msat = 0
        self.dust_msat = 0
        self.gifts: list[int] = []
        self._actor = actor
        self._surcharges = surcharges
        self._timeout_s = timeout_s

    async def run(self) -> None:
        """Collect everything. What is wrong is noted as the client's problem."""
        actor = self._actor
        for opening in list(actor.openings):
            await self._open(opening)
        for topup in actor.topups:
            if not topup.settled:
                await self._top_up(topup)
        for contest in actor.contests:
            await self._contest(contest)
        for bill in actor.bills:
            await self._bill(bill)
        for payment in actor.payments:
            await self._payment(payment)
        for account in actor.accounts:
            await self._account(account)
        await actor.pocket.redeem()

    async def _definite(
        self,
        ask: Callable[[], Awaitable[Answer | None]],
        what: str,
        again: Callable[[Answer], bool] = lambda answer: answer.status in COME_BACK,
    ) -> Answer:
        """Ask until there is an answer that says something."""
        said = "nothing"
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    answer = await ask()
                    if answer is not None and not again(answer):
                        return answer
                    said = "nothing" if answer is None else f"{answer.status} {answer.code}"
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            raise StuckError(f"{what}: no end after {self._timeout_s} s, last {said}") from None

    # -- money in --------------------------------------------------------------------------

    async def _open(self, opening: Opening) -> None:
        answer = await self._definite(lambda: self._actor.open(opening), "open an account")
        if answer.status != 200:
            self._actor.openings.remove(opening)
            if not await self._actor.pocket.take_back(opening.coin):
                self._problem(f"{answer.code} for a token that is spent: {opening.coin.amount} sat")

    async def _top_up(self, topup: Topup) -> None:
        actor = self._actor
        code = ""
        for account in topup.accounts:
            answer = await self._definite(
                lambda account=account: actor.offer(topup, account),  # type: ignore[misc]
                "top up",
            )
            code = answer.code
            if answer.status == 200:
                return
        if not topup.taken_back and not await actor.pocket.take_back(topup.coin):
            self._problem(f"top-up of {topup.coin.amount} sat is gone, the answer was {code}")

    async def _contest(self, contest: Contest) -> None:
        """One of the three has it, and asking again says which."""
        actor, payment, coin = self._actor, contest.payment, contest.payment.coin
        headers = {"X-Cashu": coin.text}
        paid = await self._definite(
            lambda: actor.ask("POST", "/v1/balance/refund", headers=headers),
            "contest",
            _wait_for_change,
        )
        if paid.status != 404:
            await self._payment(payment)
            return
        if payment.cost_msat is not None:
            self._problem(f"{payment.request_id} was served for a token that did not pay")
        opening = Opening(coin, "/v1/wallet/create")
        if (await self._definite(lambda: actor.open(opening), "contest")).status == 200:
            return
        actor.openings.remove(opening)
        await self._top_up(Topup(coin, [contest.account]))

    async def _bill(self, bill: Bill) -> None:
        path = f"/v1/balance/lightning/invoice/{bill.invoice_id}/status"

        async def ask() -> Answer | None:
            answer = await self._actor.ask("GET", path)
            pending = answer is not None and answer.json().get("status") == "pending"
            return None if pending else answer

        answer = await self._definite(ask, "invoice")
        status = answer.json()
        if status.get("status") != "paid":
            self._problem(f"an invoice over {bill.amount} sat was paid, and is {status}")
            return
        credit = bill.amount * MSAT_PER_SAT
        if bill.account is None:
            key = status["api_key"]
            self._actor.accounts.append(Account(key, key, [credit]))
        else:
            bill.account.funds.append(credit)

    # -- paid requests ---------------------------------------------------------------------

    async def _payment(self, payment: Payment) -> None:
        actor = self._actor
        headers = {"X-Cashu": payment.coin.text}
        answer = await self._definite(
            lambda: actor.ask("POST", "/v1/balance/refund", headers=headers),
            "look change up",
            _wait_for_change,
        )
        if answer.status == 404:
            if payment.cost_msat is not None or payment.change is not None:
                self._problem(f"a request that was answered is not known: {payment.request_id}")
            if not await actor.pocket.take_back(payment.coin):
                self._problem(f"{payment.coin.amount} sat are spent and not known to the node")
            return
        got = 0
        if answer.status == 200:
            token = answer.json()["token"]
            if payment.change not in (None, token):
                self._problem("two tokens of change for one request")
            surcharge = self._surcharges().get(token, 0)
            got = actor.pocket.take(token).amount * MSAT_PER_SAT + surcharge
        elif answer.code == "token_already_spent":  # it was refused, and is spent all the same?
            self._problem(f"{payment.request_id}: change look-up says {answer.code}")
        elif answer.status != 402:
            self._problem(f"change look-up: {answer.status} {answer.code}")
        spent = payment.coin.net_msat - got
        self._dust(payment, spent)

    def _dust(self, payment: Payment, spent: int) -> None:
        cost = payment.cost_msat
        if cost is None:
            if not 0 <= spent < self._actor.max_cost_msat + MSAT_PER_SAT:
                self._problem(f"{payment.request_id} took {spent} msat, price not known")
            self.charged_msat += spent
        else:
            if not 0 <= spent - cost < MSAT_PER_SAT:
                self._problem(f"{payment.request_id} took {spent} msat, it cost {cost}")
            self.charged_msat += cost
            self.dust_msat += spent - cost

    # -- accounts --------------------------------------------------------------------------

    async def _account(self, account: Account) -> None:
        for key, amount in account.withdrawals.items():
            await self._withdraw_again(account, key, amount)
        await self._empty(account)
        await self._compare(account)

    async def _empty(self, account: Account) -> None:
        """Refund; when no mint alone holds so much here, in parts."""
        part = 0
        while (balance := await self._balance(account)) >= MSAT_PER_SAT:
            answer = await self._definite(
                lambda: self._take_out(account, part),  # noqa: B023
                "refund",
            )
            if answer.status == 200:
                document = answer.json()
                self._actor.pocket.take(document.get("token") or document["cashu_token"])
            elif answer.code == "mint_liquidity" and part != 1:
                part = max(1, (part or balance // MSAT_PER_SAT) // 2)
            else:
                if answer.code != "insufficient_balance":
                    self._problem(f"refund: {answer.status} {answer.code} of {balance} msat")
                return

    async def _take_out(self, account: Account, part: int) -> Answer | None:
        """``part`` 0: all."""
        key = account.owner_key
        if not part:
            return await self._actor.ask("POST", "/v1/balance/refund", key=key)
        return await self._actor.ask("POST", "/v1/wallet/withdraw", {"amount": part}, key=key)

    async def _withdraw_again(self, account: Account, key: str, amount: int | None) -> None:
        body = {} if amount is None else {"amount": amount}
        actor = self._actor
        headers = {"Idempotency-Key": key}
        answer = await self._definite(
            lambda: actor.ask(
                "POST", "/v1/wallet/withdraw", body, key=account.owner_key, headers=headers
            ),
            "withdraw again",
        )
        if answer.status == 200:
            actor.pocket.take(answer.json()["cashu_token"])

    async def _balance(self, account: Account) -> int:
        answer = await self._definite(
            lambda: self._actor.ask("GET", "/v1/wallet/balance", key=account.key), "balance"
        )
        return int(answer.json()["balance_msat"])

    async def _statement(self, account: Account) -> list[dict[str, Any]]:
        lines: dict[str, dict[str, Any]] = {}
        path = "/v1/wallet/transactions?limit=200"
        cursor = ""
        while True:
            where = f"{path}&cursor={cursor}" if cursor else path
            answer = await self._definite(
                lambda where=where: self._actor.ask(  # type: ignore[misc]
                    "GET", where, key=account.owner_key
                ),
                "statement",
            )
            page = answer.json()
            lines |= {line["id"]: line for line in page["transactions"]}
            cursor = page["next_cursor"]
            if not cursor:
                return list(lines.values())

    async def _compare(self, account: Account) -> None:
        """The statement against what we wrote down."""
        lines = await self._statement(account)
        balance = await self._balance(account)
        self.residue_msat += balance
        pending = [line for line in lines if line["state"] == "pending"]
        if pending:
            self._problem(f"still pending: {pending}")
        if sum(line["amount_msat"] for line in lines) != balance:
            self._problem(f"a statement does not add up to the balance of {balance} msat")
        kinds: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            kinds.setdefault(line["type"], []).append(line)
        self._funds(account, [*kinds.pop("deposit", []), *kinds.pop("topup", [])])
        self._charges(account, kinds.pop("charge", []))
        fees = kinds.pop("fee", [])
        if len(fees) > account.children_asked or len(fees) < len(account.children):
            self._problem(f"{len(fees)} child keys paid for, {account.children_asked} asked for")
        if any(line["amount_msat"] != -CHILD_KEY_COST_MSAT for line in fees):
            self._problem("a child key at another price")
        self.charged_msat += len(fees) * CHILD_KEY_COST_MSAT
        self._withdrawals(kinds.pop("withdrawal", []), kinds.pop("reversal", []))
        if kinds:
            self._problem(f"unknown lines: {sorted(kinds)}")

    def _funds(self, account: Account, lines: list[dict[str, Any]]) -> None:
        credited = [line["amount_msat"] for line in lines]
        for fund in account.funds:
            if fund in credited:
                credited.remove(fund)
            else:
                self._problem(f"{fund} msat were never credited")
        self.gifts += credited

    def _charges(self, account: Account, lines: list[dict[str, Any]]) -> None:
        charged: set[str] = set()
        for line in lines:
            request_id, cost = line["request_id"], -line["amount_msat"]
            if request_id in charged:
                self._problem(f"{request_id} was charged twice")
            charged.add(request_id)
            if request_id not in account.charges:
                self._problem(f"{request_id} was charged and is not ours")
            known = account.charges.get(request_id)
            if known not in (None, cost):
                self._problem(f"{request_id} was charged {cost} msat and cost {known}")
            price = published_price(line["prompt_tokens"], line["completion_tokens"])
            if cost not in (price, 0) or cost > self._actor.max_cost_msat:
                self._problem(f"{request_id} was charged {cost} msat, its price is {price}")
            self.charged_msat += cost
        free = [r for r, cost in account.charges.items() if cost and r not in charged]
        if free:
            self._problem(f"served, and not charged: {free}")

    def _withdrawals(self, out: list[dict[str, Any]], back: list[dict[str, Any]]) -> None:
        for line in out:
            if line["state"] != "done":
                continue
            if "token" not in line:
                self._problem(f"a withdrawal shows no token: {line['id']}")
                continue
            token = self._actor.pocket.take(line["token"])
            surcharge = self._surcharges().get(line["token"], 0)
            if token.amount * MSAT_PER_SAT + surcharge != -line["amount_msat"]:
                self._problem(f"debited {-line['amount_msat']} msat for {token.amount} sat")
        failed = sum(line["amount_msat"] for line in out if line["state"] == "failed")
        if failed + sum(line["amount_msat"] for line in back):
            self._problem(f"failed withdrawals of {-failed} msat did not come back whole")

    def _problem(self, text: str) -> None:
        self._actor.problem(text)


class StuckError(Exception):
    """Something has no end although nothing is in its way any more."""
