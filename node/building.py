"""Parts made from settings: what the operator wrote, as each part takes it."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import structlog

from discovery.aggregator import choose_probe, registry
from discovery.announcer import AnnouncementSource
from discovery.directory import Directory
from discovery.netguard import NetGuard
from discovery.nostr.keys import Keys
from discovery.nostr.limits import STRANGERS
from discovery.nostr.pool import RelayPool
from discovery.offers import ModelOffer, OtherPrices
from discovery.probe import Prober
from discovery.store import DirectoryStore
from node import __version__
from node.core.catalog import Catalog, Model
from node.core.identity import NodeInfo
from node.core.lightning import FeeLimit
from node.core.money import Msat, to_msat
from node.ecash.circuit import Circuit, GuardedMint
from node.ecash.keysets import AcceptedMint
from node.ecash.locks import lock_key
from node.nostr_probe import NostrProber
from node.service.invoices import InvoiceLimits
from node.service.limits import RateLimits
from node.service.payout import PayoutTerms
from node.service.refunds import RefundTerms
from node.settings import Settings
from node.settings_sections import DiscoverySettings, MintSettings
from node.transport.dm.assembly import AssemblyLimits
from node.transport.dm.limits import DmLimits

log = structlog.get_logger()

_ONION = re.compile(r"[a-z2-7]{56}\.onion")
DIRECTORY_FILE = "directory.db"
"""In the data directory: what is known of the other nodes. Losing it loses nothing of value."""


def accepted_mint(mint: MintSettings, session: aiohttp.ClientSession) -> AcceptedMint:
    """A mint of the allowlist with its client, limits and circuit."""
    client = GuardedMint(session, mint.url, timeout_s=mint.timeout_s)
    return AcceptedMint(
        client,
        mint.units,
        circuit=client.circuit,
        max_balance=to_msat(mint.max_balance_sat, "sat") if mint.max_balance_sat else None,
        require_dleq=mint.require_dleq,
    )


def invoice_limits(settings: Settings) -> InvoiceLimits:
    """Bounds of Lightning invoices."""
    wanted = settings.lightning
    return InvoiceLimits(
        min_sat=wanted.min_sat,
        max_sat=wanted.max_sat,
        max_open=wanted.max_open,
        max_open_per_peer=wanted.max_open_per_peer,
        expiry_s=int(wanted.expiry_s),
        grace_s=int(wanted.grace_s),
    )


def rate_limits(settings: Settings) -> RateLimits:
    """How much one account, sender or address may ask for."""
    wanted = settings.limits
    return RateLimits(
        per_minute=wanted.requests_per_minute,
        per_hour=wanted.requests_per_hour,
        per_day=wanted.requests_per_day,
        max_concurrent=wanted.max_concurrent_per_account,
    )


def payout_terms(settings: Settings) -> PayoutTerms:
    """When and how much is paid out."""
    wanted = settings.payout
    return PayoutTerms(
        address=wanted.address or None,
        floor=to_msat(wanted.floor_sat, "sat"),
        cap=to_msat(wanted.cap_sat, "sat"),
        reserve=to_msat(wanted.reserve_sat, "sat"),
        max_fee=FeeLimit(wanted.max_fee_ppm, to_msat(wanted.max_fee_base_sat, "sat")),
        interval_s=wanted.interval_s,
    )


def refund_terms(settings: Settings) -> RefundTerms:
    """When and how expired keys are refunded."""
    wanted = settings.refund
    return RefundTerms(
        floor=to_msat(wanted.floor_sat, "sat"),
        max_fee=FeeLimit(wanted.max_fee_ppm, to_msat(wanted.max_fee_base_sat, "sat")),
        interval_s=wanted.interval_s,
        retry_s=wanted.retry_s,
        max_retry_s=wanted.max_retry_s,
    )


def trouble(circuit: Circuit) -> str | None:
    """What is wrong with a mint, in a few words."""
    return None if circuit.state == "closed" else "does not answer"


def no_mint(circuits: Collection[Circuit]) -> str | None:
    """Without any mint no client can pay with a token. A node may have none at all."""
    return "no mint answers" if circuits and all(map(trouble, circuits)) else None


def relay_pool(settings: Settings, keys: Keys, guard: NetGuard) -> RelayPool:
    """The operator's relays; others, named by clients, go through the guard."""

    async def check(url: str) -> list[str] | None:
        return None if url in pool.urls else await guard.check_relay_url(url)

    pool = RelayPool(
        settings.nostr.relays,
        keys=keys,
        guard=check,
        connect_timeout_s=settings.nostr.connect_timeout_s,
        ok_timeout_s=settings.nostr.ok_timeout_s,
    )
    return pool


async def open_directory(
    wanted: DiscoverySettings,
    file: Path,
    guard: NetGuard,
    pool: RelayPool,
    stack: AsyncExitStack,
    *,
    own_pubkey: str | None = None,
) -> Directory:
    """The directory of the other nodes with what ``file`` has of them; closed with ``stack``."""
    probe, list_models = None, None
    if wanted.probe:
        timeout_s = wanted.probe_timeout_s
        prober = await stack.enter_async_context(
            Prober(guard, timeout_s=timeout_s, socks_proxy=wanted.socks_proxy)
        )
        relayed = NostrProber(guard.check_relay_url, timeout_s=timeout_s)
        probe, list_models = choose_probe(prober, relayed.probe), prober.models
    store = None
    try:
        store = await DirectoryStore.open(file)
        await stack.enter_async_context(store)
    except OSError as error:
        # it runs without as well
        log.warning("directory_not_stored", reason=str(error))
    readers = None
    if wanted.max_learnt_relays:
        # to strangers' relays nobody says who reads them
        readers = await stack.enter_async_context(
            RelayPool([], guard=guard.check_relay_url, limits=STRANGERS)
        )
    directory = Directory(
        pool,
        readers=readers,
        max_learnt_relays=wanted.max_learnt_relays,
        operator=wanted.operator_pubkey,
        trust_distance=wanted.trust_distance,
        probe=probe,
        list_models=list_models,
        own_pubkey=own_pubkey,
        registry=registry(wanted.max_providers),
        store=store,
        poll_s=(wanted.poll_interval_s, 2 * wanted.poll_interval_s),
        reprobe_s=wanted.probe_interval_s,
        probe_concurrency=wanted.probe_concurrency,
    )
    await directory.load()
    return directory


def onion_of(hostname_file: Path | None) -> str | None:
    """The address in the file that Tor writes for an onion service; None without one."""
    if hostname_file is None:
        return None
    try:
        host = hostname_file.read_text("ascii")[:200].strip()
    except (OSError, ValueError) as error:
        log.warning("onion_hostname_unreadable", file=str(hostname_file), reason=str(error))
        return None
    if not _ONION.fullmatch(host):
        log.warning("onion_hostname_unusable", file=str(hostname_file))
        return None
    return f"http://{host}"


def node_info(settings: Settings, keys: Keys) -> NodeInfo:
    """What the node says about itself."""
    nostr = settings.nostr
    return NodeInfo(
        name=settings.node.name,
        about=settings.node.about,
        version=__version__,
        npub=keys.npub,
        mints=tuple(mint.url for mint in settings.mints),
        pubkey_lock=lock_key(keys.pubkey),
        http_urls=settings.http.public_urls,
        onion_url=settings.http.onion_url or onion_of(settings.http.onion_hostname_file),
        relays=nostr.relays if nostr.requests else (),
    )


def announcement(
    settings: Settings, info: NodeInfo, catalog: Catalog, pool: RelayPool
) -> AnnouncementSource:
    """What the node announces at this moment."""
    onion = (info.onion_url,) if info.onion_url else ()
    return AnnouncementSource(
        name=info.name,
        about=info.about,
        urls=(*info.http_urls, *onion),
        mints=info.mints,
        pubkey_lock=info.pubkey_lock,
        version=info.version,
        relays=pool.urls if settings.nostr.requests else (),
        wraps=info.wraps,
        http=("80", "81", "frames-v1") if settings.nostr.requests else (),
        offers=tuple(offer_of(model) for model in catalog),
        d=settings.node.d,
    )


def offer_of(model: Model) -> ModelOffer:
    """The model as it is announced: for what it is charged at most."""
    price = model.price
    return ModelOffer(
        id=model.id,
        name=model.name,
        input_per_mtok=price.input_per_mtok,
        output_per_mtok=price.output_per_mtok,
        per_request=price.per_request,
        context=model.context_length,
        max_output=model.max_output_tokens,
        modalities=model.modalities,
        endpoints=model.endpoints,
        other=OtherPrices(
            _apart(price.cached_per_mtok, price.input_per_mtok),
            _apart(price.cache_write_per_mtok, price.input_per_mtok),
            _apart(price.reasoning_per_mtok, price.output_per_mtok),
            price.per_image,
            price.per_audio_minute,
            price.per_mchar,
        ),
    )


def _apart(price: Msat | None, usual: Msat) -> Msat | None:
    """None when it is priced like others of its kind."""
    return None if price == usual else price


def dm_limits(settings: Settings) -> DmLimits:
    """Bounds of the Nostr carriage."""
    nostr = settings.nostr
    return DmLimits(
        assembly=AssemblyLimits(
            max_request_bytes=nostr.max_body_bytes,
            max_sender_requests=nostr.assembly_max_per_sender,
            max_sender_bytes=nostr.assembly_max_bytes_per_sender,
            max_bytes=nostr.assembly_max_bytes,
            deadline_s=nostr.assembly_timeout_s,
        ),
        max_running=nostr.max_concurrent_requests,
        max_running_per_sender=nostr.max_concurrent_per_sender,
        unpaid_per_minute=nostr.free_requests_per_minute,
        stored_change=nostr.stored_change,
    )
