"""The keysets of the accepted mints (NUT-01, NUT-02) and whether we may make coins of them.

Before a keyset is used for the first time in a process, its counters are scanned forward with
NUT-09, so that a database from a backup does not repeat them. What was signed at those that are
skipped is looked for by ``node.ecash.reconcile``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import structlog

from node.core.accounts import Source
from node.core.ecash import BlindedMessage, Keyset
from node.core.money import Msat
from node.ecash.circuit import Circuit
from node.ecash.crypto import blind, derive_secret
from node.ecash.mint import MintClient, MintError, MintRejected
from node.errors import MintUnreachable
from node.ports import WalletStore

log = structlog.get_logger()

RETRY_S = 5
"""What a client is told to wait before it tries a mint again."""
SCAN_WINDOW = 200
"""Counters looked at beyond the last one in use."""
_YIELD_EVERY = 50


@dataclass(frozen=True, slots=True)
class AcceptedMint:
    """A mint of the allowlist, and what is taken from it."""

    client: MintClient
    units: tuple[str, ...] = ("sat",)
    circuit: Circuit = field(default_factory=Circuit)
    """Of ``client``, when it is guarded by one."""
    max_balance: Msat | None = None
    """Most that our coins of it may be worth; what would exceed it is refused."""
    require_dleq: bool = False
    """Refuse coins that do not prove whose they are (NUT-12)."""


class Keysets:
    """What is known of the mints' keysets.

    Args:
        mints: the allowlist, by normalised URL.
        seed: NUT-13 seed of our secrets.
    """

    def __init__(self, store: WalletStore, mints: Mapping[str, AcceptedMint], seed: bytes) -> None:
        self._store = store
        self._mints = mints
        self._seed = seed
        self._keysets: dict[str, dict[str, Keyset]] = {url: {} for url in mints}
        self._scanned: set[str] = set()
        self._scanning = {url: asyncio.Lock() for url in mints}
        self._blocked: set[str] = set()

    async def start(self) -> None:
        """Load what is known of the mints' keysets from the store; asks no mint."""
        for url in self._mints:
            self._keysets[url] = {k.id: k for k in await self._store.keysets(url)}

    def of(self, mint: str) -> Mapping[str, Keyset]:
        """The keysets of a mint as last heard, by id."""
        return self._keysets[mint]

    def fees(self, mint: str) -> dict[str, int]:
        """keyset id → ``input_fee_ppk``."""
        return {keyset.id: keyset.input_fee_ppk for keyset in self._keysets[mint].values()}

    def scan_again(self, keyset_id: str) -> None:
        """A counter turned out to be in use: look before the keyset is used next."""
        self._scanned.discard(keyset_id)

    def block(self, mint: str) -> None:
        """Make and give out no coins of this mint until ``unblock``."""
        self._blocked.add(mint)

    def unblock(self, mint: str) -> None:
        """The mint's coins may be used."""
        self._blocked.discard(mint)

    async def refresh(self, mint: str) -> None:
        """Ask a mint for its keysets and store them. Raises MintUnreachable."""
        client = self._mints[mint].client
        known = self._keysets[mint]
        keysets = []
        try:
            for listed in await client.keysets():
                have = known.get(listed.id)
                if listed.active and (have is None or not have.keys):
                    have = await client.keys(listed.id)
                keysets.append(
                    Keyset(
                        listed.id,
                        listed.unit,
                        listed.active,
                        listed.input_fee_ppk,
                        have.keys if have else {},
                    )
                )
        except MintError as error:
            raise MintUnreachable(retry_after_s=RETRY_S, private=str(error)) from error
        await self._store.save_keysets(mint, keysets)
        gone = {k.id: Keyset(k.id, k.unit, False, k.input_fee_ppk, k.keys) for k in known.values()}
        self._keysets[mint] = gone | {keyset.id: keyset for keyset in keysets}

    async def keys(self, mint: str, keyset_id: str) -> Mapping[int, str]:
        """Amount → public key of a listed keyset, also of one that is no longer active.

        Asks the mint the first time. Empty when the mint does not tell. Raises MintUnreachable.
        """
        listed = self._keysets[mint][keyset_id]
        if listed.keys:
            return listed.keys
        try:
            found = await self._mints[mint].client.keys(keyset_id)
        except MintRejected as error:
            log.warning("keys_withheld", mint=mint, keyset=keyset_id, reason=str(error))
            return {}
        except MintError as error:
            raise MintUnreachable(retry_after_s=RETRY_S, private=str(error)) from error
        now = self._keysets[mint][keyset_id]
        self._keysets[mint][keyset_id] = replace(now, keys=found.keys)
        await self._store.save_keysets(mint, self._keysets[mint].values())
        return found.keys

    async def active(self, mint: str, unit: str) -> Keyset:
        """The keyset for new coins: active, cheapest. Raises MintUnreachable."""
        if mint in self._blocked:
            raise MintUnreachable(
                retry_after_s=RETRY_S,
                private=f"{mint}: our coins are not checked since the restore",
            )
        for attempt in (1, 2):
            usable = [
                k for k in self._keysets[mint].values() if k.active and k.unit == unit and k.keys
            ]
            if usable:
                keyset = min(usable, key=lambda k: (k.input_fee_ppk, k.id))
                await self._scan(mint, keyset.id)
                return keyset
            if attempt == 1:
                await self.refresh(mint)
        raise MintUnreachable(private=f"{mint} has no active keyset for {unit}")

    async def prepare(self, mint: str) -> None:
        """Get ready to make coins of all units of a mint. Raises MintUnreachable."""
        for unit in self._mints[mint].units:
            await self.active(mint, unit)

    async def _scan(self, mint: str, keyset_id: str) -> None:
        """Move the counter beyond all outputs the mint has signed. Raises MintUnreachable."""
        async with self._scanning[mint]:
            if keyset_id in self._scanned:
                return
            first = await self._store.counter(keyset_id)
            clear = first
            while True:
                window = []
                for counter in range(clear, clear + SCAN_WINDOW):
                    secret, blinding = derive_secret(self._seed, keyset_id, counter)
                    window.append(BlindedMessage(1, keyset_id, blind(secret, blinding)))
                    if len(window) % _YIELD_EVERY == 0:
                        await asyncio.sleep(0)  # the loop has others to serve
                try:
                    found = await self._mints[mint].client.restore(window)
                except MintError as error:
                    raise MintUnreachable(retry_after_s=RETRY_S, private=str(error)) from error
                if not found:
                    break
                signed = {message.b_ for message, _ in found}
                clear += 1 + max(i for i, m in enumerate(window) if m.b_ in signed)
            if clear > first:
                log.error("counters_were_behind", mint=mint, keyset=keyset_id, by=clear - first)
                await self._store.skip_counters(mint, keyset_id, clear)
            self._scanned.add(keyset_id)

    def sources(self, only: str | None = None) -> list[Source]:
        """Where tokens may be issued from, in order of preference.

        A mint that does not answer gives what is in the inventory, and swaps nothing.
        """
        found = []
        for url, mint in self._mints.items():
            if url in self._blocked or (only is not None and url != only):
                continue
            known = self._keysets[url].values()
            fees = {k.id: k.input_fee_ppk for k in known}
            for unit in mint.units:
                ready = [
                    k
                    for k in known
                    if k.active
                    and k.unit == unit
                    and k.keys
                    and k.id in self._scanned
                    and mint.circuit.state != "open"
                ]
                keyset = min(ready, key=lambda k: (k.input_fee_ppk, k.id), default=None)
                found.append(Source(url, unit, keyset, fees))
        return found
