"""What goes on behind the requests: recovery, mints, housekeeping, and how the node feels."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from node.ecash.reconcile import Reconciler
from node.ecash.wallet import Wallet
from node.errors import MintUnreachable, NodeError
from node.ledger.answers import SqliteAnswers
from node.ledger.database import Database
from node.ledger.messages import SqliteMessageLog
from node.ledger.wallet import SqliteWalletStore
from node.settings import Settings

log = structlog.get_logger()

RECOVERY_INTERVAL_S = 10.0
"""How often unfinished operations are driven again."""
REFRESH_INTERVAL_S = 3600.0
"""How often the mints are asked for their keysets; after a failure, the recovery interval."""
IDLE_REQUEST_S = 600
"""After this, a token that was redeemed for a request which never ran becomes change."""
RECONCILE_TIMEOUT_S = 60.0
"""How long the first start after a restore waits for the mints; it goes on without the others."""


def spawn(tasks: list[asyncio.Task[None]], name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Add a task that runs ``run``; what ends with an error starts again."""

    async def forever() -> None:
        while True:
            try:
                await run()
                return
            except Exception:
                log.exception("background_task_failed", task=name)
                task = asyncio.current_task()
                if task is not None and task.cancelling():  # it failed at its end
                    return
                await asyncio.sleep(RECOVERY_INTERVAL_S)

    tasks.append(asyncio.create_task(forever(), name=name))


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel the tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def recover(wallet: Wallet, store: SqliteWalletStore) -> None:
    """Finish what crashed or was left unknown; give back what nobody uses."""
    while True:
        await wallet.recover()
        for account_id in await store.idle_request_accounts(IDLE_REQUEST_S):
            try:
                await wallet.close_idle(account_id)
            except NodeError as error:
                log.info("idle_request_kept", account=account_id, reason=str(error))
        await asyncio.sleep(RECOVERY_INTERVAL_S)


async def refill(wallet: Wallet, interval_s: float) -> None:
    """Make small coins for change of large ones, when nothing else is under way."""
    while True:
        await asyncio.sleep(interval_s)
        await wallet.refill()


async def check_restored(wallet: Wallet, reconciler: Reconciler) -> None:
    """After a restore: ask the mints about our coins before anybody is served."""
    unchecked = await reconciler.begin()
    if not unchecked:
        return
    log.warning("database_restored", unchecked=unchecked)
    try:
        async with asyncio.timeout(RECONCILE_TIMEOUT_S):
            await wallet.recover()
            await reconciler.run()
    except TimeoutError:
        log.warning("mints_not_checked_in_time", hint="those stay out of use until they are")


def unchecked(reconciler: Reconciler) -> str | None:
    """What is wrong while mints are not checked after a restore."""
    return "mints not checked yet" if reconciler.waiting else None


async def reconcile(reconciler: Reconciler) -> None:
    """Check the mints that are not checked, and look for what becomes of coins and counters."""
    while True:
        await reconciler.run()
        await asyncio.sleep(RECOVERY_INTERVAL_S)


async def refresh(wallet: Wallet, mint: str) -> None:
    """Keep the keysets of a mint fresh."""
    while True:
        pause_s = REFRESH_INTERVAL_S
        try:
            await wallet.refresh(mint)
        except MintUnreachable as error:
            pause_s = RECOVERY_INTERVAL_S
            log.warning("mint_unreachable", mint=mint, reason=error.private)
        await asyncio.sleep(pause_s)


async def housekeep(settings: Settings, messages: SqliteMessageLog, answers: SqliteAnswers) -> None:
    """Forget what has been kept long enough."""
    keep_s = int(settings.ledger.reply_keep_s)
    while True:
        await messages.prune(keep_s)
        await answers.prune(keep_s)
        await asyncio.sleep(REFRESH_INTERVAL_S)


async def alive(database: Database) -> str | None:
    """Raises when the database does not answer."""
    await database.read(lambda conn: conn.execute("SELECT 1").fetchone())
    return None
