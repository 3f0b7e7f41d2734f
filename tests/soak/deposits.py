"""How a client gets money into the node: accounts opened and topped up, invoices."""

from __future__ import annotations

import asyncio

from tests.soak.client import Answer
from tests.soak.notebook import Notebook
from tests.soak.records import Account, Bill, Opening, Topup


class Deposits(Notebook):
    """A client that fills accounts."""

    async def open_account(self) -> None:
        coin = await self._fund(self._dice.randint(30, 400))
        path = self._dice.choice(("/v1/wallet/create", "/v1/balance/create"))
        admin = None
        if path.startswith("/v1/wallet") and self._dice.random() < 0.4:
            admin = f"admin-key-{self.name}-{self._id()}"
        await self.open(Opening(coin, path, admin))

    async def open(self, opening: Opening) -> Answer | None:
        """Open the account; what came to no end is written down."""
        coin = opening.coin
        if not opening.path:
            answer = await self.ask("GET", "/v1/wallet/balance", key=coin.text)
        else:
            name = "cashu_token" if "wallet" in opening.path else "initial_balance_token"
            body = {name: coin.text}
            if opening.admin_key:
                body["admin_key"] = opening.admin_key
            answer = await self.ask("POST", opening.path, body)
        if opening in self.openings:
            self.openings.remove(opening)
        if answer is not None and answer.status == 200:
            key = str(answer.json().get("api_key", coin.text))
            account = Account(key, opening.admin_key or key, [coin.net_msat], opening.charges)
            self.accounts.append(account)
        else:
            self.openings.append(opening)
        return answer

    async def top_up(self) -> None:
        await self._top_up(accounts=1, times=1)

    async def top_up_twice(self) -> None:
        await self._top_up(accounts=1, times=2)

    async def race_two_keys(self) -> None:
        await self._top_up(accounts=2, times=2)

    async def spend_twice(self) -> None:
        """Offer a token and spend it at the mint at the same time."""
        await self._top_up(accounts=1, times=1, spend=True)

    async def _top_up(self, accounts: int, times: int, *, spend: bool = False) -> None:
        chosen = [self._account() for _ in range(accounts)]
        mine = [account for account in chosen if account is not None]
        if not mine:
            return
        topup = Topup(await self._fund(self._dice.randint(2, 60)), mine)
        self.topups.append(topup)
        offers = [self.offer(topup, mine[n % len(mine)]) for n in range(times)]
        if spend:
            await asyncio.gather(*offers, self._snatch(topup))
        else:
            await asyncio.gather(*offers)

    async def _snatch(self, topup: Topup) -> None:
        await asyncio.sleep(self._dice.uniform(0, 0.02))
        topup.taken_back = await self.pocket.take_back(topup.coin)

    async def offer(self, topup: Topup, account: Account) -> Answer | None:
        """Top ``account`` up; once that has worked it is not on the list any more."""
        path = self._dice.choice(("/v1/wallet/topup", "/v1/balance/topup"))
        answer = await self.ask("POST", path, {"cashu_token": topup.coin.text}, key=account.key)
        if answer is not None and answer.status == 200:
            added = answer.json().get("amount_added_msat", answer.json().get("msats"))
            if added != topup.coin.net_msat:
                self.problem(f"topped up by {added} msat, not {topup.coin.net_msat}")
            if not topup.settled:
                topup.settled = True
                account.funds.append(topup.coin.net_msat)
                if topup.taken_back:
                    self.problem(f"credited {added} msat for coins we had spent")
        return answer

    async def invoice(self) -> None:
        account = self._account() if self._dice.random() < 0.6 else None
        amount = self._dice.randint(5, 120)
        body = {"amount_sats": amount, "purpose": "create" if account is None else "topup"}
        path = self._dice.choice(("/lightning/invoice", "/v1/balance/lightning/invoice"))
        answer = await self.ask("POST", path, body, key=account.key if account else "")
        if answer is None:
            self.bills_lost += 1
        elif answer.status == 200:
            self.bills.append(Bill(answer.json()["invoice_id"], amount, account))
