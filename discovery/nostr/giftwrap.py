"""Gift wraps (NIP-59): a rumor, sealed by its author, wrapped under a key used once."""

from __future__ import annotations

import secrets
import time
from typing import Final

import orjson

from discovery.errors import InvalidEvent
from discovery.nostr import nip44
from discovery.nostr.event import Event, Rumor
from discovery.nostr.keys import Keys

SEAL: Final = 13
GIFT_WRAP: Final = 1059
"""Stored by relays; backdated."""
EPHEMERAL_GIFT_WRAP: Final = 21059
"""Passed on by relays but not stored; dated now, as relays drop older ones."""
MAX_BACKDATE_S: Final = 2 * 86_400
"""How far seal and wrap of a stored gift wrap may lie in the past."""
STORED_LIFETIME_S: Final = 7 * 86_400
"""Expiration of a stored gift wrap when the caller names none."""


def wrap(
    rumor: Rumor,
    sender: Keys,
    recipient_pubkey: str,
    *,
    kind: int = EPHEMERAL_GIFT_WRAP,
    expiration: int | None = None,
    backdate: bool | None = None,
    now: int | None = None,
) -> Event:
    """Seal ``rumor`` for ``recipient_pubkey`` (hex) and wrap it under a fresh key.

    Args:
        sender: signs the seal; must be the rumor's author.
        kind: 21059 or 1059.
        expiration: unix seconds, put on seal and wrap; a 1059 without one gets seven days.
        backdate: date seal and wrap, each on its own, up to two days back; None: 1059 only.
        now: unix seconds; the clock when omitted.

    Raises ValueError for another kind or author, InvalidKey for a recipient that is no key,
    EncryptError when the rumor is longer than 40,960 bytes of JSON.
    """
    if kind not in (GIFT_WRAP, EPHEMERAL_GIFT_WRAP):
        raise ValueError(f"kind {kind} is no gift wrap")
    if rumor.pubkey != sender.pubkey:
        raise ValueError("a rumor is sealed by its author")
    when = int(time.time()) if now is None else now
    if backdate is None:
        backdate = kind == GIFT_WRAP
    if expiration is None and kind == GIFT_WRAP:
        expiration = when + STORED_LIFETIME_S
    expires = [] if expiration is None else [["expiration", str(expiration)]]

    def stamp() -> int:
        return when - secrets.randbelow(MAX_BACKDATE_S) if backdate else when

    shared = sender.conversation_key(recipient_pubkey, keep=True)
    sealed = nip44.encrypt(rumor.to_json(), shared)
    seal = sender.sign(SEAL, sealed, expires, stamp())
    once = Keys.generate()
    wrapped = nip44.encrypt(seal.to_json(), once.conversation_key(recipient_pubkey))
    return once.sign(kind, wrapped, [["p", recipient_pubkey], *expires], stamp())


def unwrap(event: Event, keys: Keys) -> Rumor:
    """The rumor in a gift wrap for ``keys``; its ``pubkey`` is the proven author.

    Verifies the wrap (free when verified before), the seal's signature and kind, that the
    rumor names the seal's author, and the rumor's id.

    Raises DecryptError when it is not for us or was tampered with, InvalidEvent when a layer
    is not what it claims to be.
    """
    if event.kind not in (GIFT_WRAP, EPHEMERAL_GIFT_WRAP):
        raise InvalidEvent(f"kind {event.kind} is no gift wrap")
    event.verify()
    seal = Event.parse(_decode(nip44.decrypt(event.content, keys.conversation_key(event.pubkey))))
    if seal.kind != SEAL:
        raise InvalidEvent(f"a gift wrap holds a seal, not kind {seal.kind}")
    shared = keys.conversation_key(seal.pubkey, keep=True)
    rumor = Rumor.parse(_decode(nip44.decrypt(seal.content, shared)))
    if rumor.pubkey != seal.pubkey:
        raise InvalidEvent("the rumor's author did not seal it")
    return rumor


def _decode(text: str) -> object:
    try:
        decoded: object = orjson.loads(text)
    except ValueError:
        raise InvalidEvent("a layer of the gift wrap is not JSON") from None
    return decoded
