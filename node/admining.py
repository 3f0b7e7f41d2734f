"""The admin pages of a node, put together from its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from discovery.announcer import Announcer
from discovery.nostr.pool import RelayHealth, RelayPool
from node.admin.auth import Auth
from node.admin.desk import DeskParts, sections
from node.admin.exchange import AdminRoute
from node.admin.feed import Feed
from node.admin.lockout import Lockout, LockoutTerms
from node.admin.log_tail import LogTail
from node.admin.password import Password, PasswordCheck
from node.admin.sessions import Sessions, SessionTerms
from node.admin.settings_api import SettingsApi
from node.core.catalog import Catalog
from node.ecash.wallet import Wallet
from node.ledger.admin_sessions import SqliteAdminSessions
from node.ledger.database import Database
from node.ledger.reports import Reader
from node.living import Identity
from node.market import Market
from node.ops import logging
from node.ops.health import Health
from node.ops.watchdog import Watchdog
from node.reload import Reloader
from node.service.dispatch import Dispatcher
from node.service.payout import Payouts
from node.settings import Settings
from node.settings_layers import Layers
from node.transport.http.admin import AdminDoor
from node.transport.http.admin_events import StreamTerms


def open_admin(
    settings: Settings, database: Database, stack: AsyncExitStack, identity: Identity
) -> AdminDoor:
    """The door to the admin endpoints, which has none yet; closed with ``stack``."""
    wanted = settings.admin
    reference = settings.admin_hash
    password = Password(reference.resolve, reference.version)
    auth = Auth(
        password,
        Sessions(
            SqliteAdminSessions(database),
            lambda: password.fingerprint,
            SessionTerms(wanted.session_idle_s, wanted.session_max_s, wanted.max_sessions),
        ),
        Lockout(
            LockoutTerms(
                free_tries=wanted.free_tries,
                first_delay_s=wanted.first_delay_s,
                max_tries=wanted.max_tries,
                lockout_s=wanted.lockout_s,
                max_tries_overall=wanted.max_tries_overall,
            )
        ),
        PasswordCheck(),
        enabled=wanted.enabled,
    )
    stack.callback(auth.close)

    def origins() -> list[str]:
        info = identity.info
        onion = (info.onion_url,) if info.onion_url else ()
        return [*info.http_urls, *onion, *(f"https://{host}" for host in wanted.hosts)]

    return AdminDoor(
        auth,
        origins=origins,
        streams=StreamTerms(
            max_streams=wanted.max_streams, keepalive_s=settings.http.stream_keepalive_s
        ),
        body_timeout_s=settings.http.body_timeout_s,
    )


def endpoints(
    reloader: Reloader,
    sources: Callable[[], Layers],
    stack: AsyncExitStack,
    *,
    npub: str,
    dispatcher: Dispatcher,
    health: Health,
    watchdog: Watchdog,
    catalog: Catalog,
    market: Market,
    providers: Callable[[], int],
    wallet: Wallet,
    payouts: Payouts,
    pool: RelayPool | None,
    announcer: Announcer | None,
    learnt: Callable[[], Mapping[str, RelayHealth]] = dict,
) -> list[AdminRoute]:
    """All endpoints but those of the session; what they remember is remembered from now on, until
    ``stack`` ends.

    Args:
        sources: gives what the settings are made of, anew.
        learnt: relays that are read because verified nodes name them.
    """
    feed, tail = Feed(), LogTail()
    dispatcher.observers.append(feed)
    logging.taps.append(tail.add)
    stack.callback(logging.taps.remove, tail.add)
    settings = SettingsApi(sources, reloader)
    reader = Reader(reloader.settings.node.database)
    parts = DeskParts(
        settings=lambda: reloader.settings,
        npub=npub,
        reader=reader,
        health=health,
        solvency=watchdog.problem,
        active=lambda: dispatcher.active,
        draining=lambda: dispatcher.draining,
        catalog=catalog,
        stock=market.shelf,
        upstreams=market.router.states,
        providers=providers,
        circuits=wallet.circuits(),
        wallet=wallet,
        payouts=payouts,
        pool=pool,
        announcer=lambda: announcer,
        learnt=learnt,
        feed=feed,
        log=tail,
        change_settings=settings.change,
        overridden_models=settings.overridden_models,
    )
    return [*settings.routes(), *sections(parts)]
