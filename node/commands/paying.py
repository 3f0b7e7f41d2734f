"""Paying the node's earnings by hand, with the database of a stopped node."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from discovery.netguard import NetGuard
from node.building import payout_terms
from node.commands.stopped import NodeRuns, NotReady, stopped_node
from node.core.accounts import Operation
from node.core.lightning import OPERATOR, PayoutError
from node.core.money import MSAT_PER_SAT, Msat
from node.ecash.lnurl import LnurlPayee
from node.ecash.wallet import Wallet
from node.errors import NodeError, Pending
from node.ledger.books import sum_books
from node.ledger.wallet import SqliteWalletStore
from node.service.payout import Payouts
from node.settings import Settings

WAIT_S = 120.0
"""How long a payment whose outcome is not known is waited for."""
_POLL_S = 2.0


async def pay_out(settings: Settings, to: str, amount_sat: int | None) -> Operation:
    """Pay earnings to ``to``, or to the configured address; returns the finished payout.

    Args:
        to: Lightning address, LNURL or bolt11 invoice.
        amount_sat: None for all that may be paid, or for the invoice's.

    Raises PayoutError, saying what to do; StorageError when the database cannot be opened.
    """
    destination = to or settings.payout.address
    if not destination:
        raise PayoutError("name a destination with --to, or set payout.address")
    if not settings.node.database.exists():
        raise PayoutError(f"there is no database at {settings.node.database}")
    async with AsyncExitStack() as stack:
        try:
            node = await stack.enter_async_context(stopped_node(settings))
        except NodeRuns:
            raise PayoutError(
                "the node is running and has its database open. It pays by itself when"
                " payout.address is set; to pay by hand, stop it first"
            ) from None
        except NotReady as error:
            raise PayoutError(str(error)) from None
        wallet, store, lightning = node.wallet, node.store, node.lightning
        await wallet.recover()
        problems = (await node.database.read(sum_books)).problems()
        if problems:
            raise PayoutError(f"the books do not add up ({problems[0]}): run 'nodestr check'")
        allow_private = settings.discovery.allow_private_addresses
        guard = NetGuard(allow_private=allow_private)
        stack.callback(guard.close)
        payee = await stack.enter_async_context(LnurlPayee(guard, allow_http=allow_private))
        payouts = Payouts(lightning, payee, payout_terms(settings))
        amount = None if amount_sat is None else Msat(amount_sat * MSAT_PER_SAT)
        try:
            return await payouts.pay(destination, amount)
        except Pending:
            return await _wait(wallet, store)
        except NodeError as error:
            raise PayoutError(error.message) from error


async def _wait(wallet: Wallet, store: SqliteWalletStore) -> Operation:
    """Drive the payout that is under way until its outcome is known."""
    open_melts = [
        operation
        for operation in await store.open_operations()
        if operation.kind == "melt" and operation.account_id == OPERATOR
    ]
    deadline = asyncio.get_running_loop().time() + WAIT_S
    for operation in open_melts:
        while operation.state == "intent" and asyncio.get_running_loop().time() < deadline:
            await wallet.recover()
            operation = await store.operation(operation.id)
            if operation.state == "done":
                return operation
            await asyncio.sleep(_POLL_S)
    raise PayoutError(
        "the payment is under way and its outcome is not known yet; its money stays set aside,"
        " and the node finishes it when it runs"
    )
