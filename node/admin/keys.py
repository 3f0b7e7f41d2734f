"""A new key for the node: written where the old one is kept, in use from the next start on."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog

from discovery.errors import InvalidKey
from discovery.nostr.keys import Keys
from node.admin.exchange import AdminRequest, AdminRoute
from node.admin.parts import DeskParts
from node.admin.query import text_of
from node.errors import InvalidValue, NotConfigured
from node.settings import SettingsError

log = structlog.get_logger()

MEANS = (
    "the node goes on with the old key until it is restarted",
    "tokens that clients lock to the old key (NUT-11, pubkey_lock) cannot be redeemed with the new"
    " one: restart when no payment is under way; whoever locked one later has it back when its"
    " lock ends",
    "messages over Nostr to the old key are not answered after the restart",
    "the directory of other nodes has the node as a new one, without its reviews; the entry of the"
    " old key ends by itself within a week, or at once when node.retract_on_stop is true as the"
    " node stops",
    "accounts, API keys, balances and coins stay as they are",
    "to go back, put the backup in the place of the file before a start",
)
"""For the operator to read before and after."""


class KeysSection:
    """``/keys`` and ``/keys/rotate``."""

    def __init__(self, parts: DeskParts) -> None:
        self._parts = parts

    def routes(self) -> Iterable[AdminRoute]:
        yield AdminRoute("GET", "/keys", answer=self._show)
        yield AdminRoute("POST", "/keys/rotate", answer=self._rotate)

    async def _show(self, request: AdminRequest) -> dict[str, Any]:
        del request
        reference = self._parts.settings().node.secret_key
        return {
            "npub": self._parts.npub,
            "reference": str(reference),
            "can_rotate": reference.scheme == "file",
            "means": list(MEANS),
        }

    async def _rotate(self, request: AdminRequest) -> dict[str, Any]:
        """Write a new key. ``confirm`` must be the npub that the node has now."""
        reference = self._parts.settings().node.secret_key
        if text_of(request.document, "confirm", most=100) != self._parts.npub:
            raise InvalidValue("confirm must be the npub of this node", param="confirm")
        if reference.scheme != "file":
            raise NotConfigured(
                f"node.secret_key is {reference}, which this program cannot write: make a key with"
                " 'nodestr keys generate', put it there and restart"
            )
        try:
            stored = Keys.parse(reference.resolve())
        except (SettingsError, InvalidKey):
            raise NotConfigured(f"{reference} holds no key any more: put it back first") from None
        if stored.npub != self._parts.npub:
            raise NotConfigured(
                f"{reference} has another key already, {stored.npub}: restart to use it"
            )
        new = Keys.generate()
        path = Path(reference.name)
        try:
            backup = replace_key(path, new.nsec())
        except OSError as error:
            raise NotConfigured(f"{path} cannot be replaced: {error.strerror}") from None
        log.warning("node_key_rotated", old=stored.npub, new=new.npub, backup=str(backup))
        return {
            "npub": new.npub,
            "old_npub": stored.npub,
            "file": str(path),
            "backup": str(backup),
            "needs_restart": True,
            "means": list(MEANS),
        }


def replace_key(path: Path, text: str) -> Path:
    """Put ``text`` in the place of the file, and keep the file; both mode 0600.

    Returns where the old one is: ``NAME.DATE.bak`` beside it, never over another file. A crash
    leaves the old file or the new one, whole. Raises OSError.
    """
    path = path.resolve(strict=True)  # a link stays one
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    backup = path.with_name(f"{path.name}.{moment}.bak")
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    owner = path.stat()
    try:
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            if os.geteuid() == 0:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(text + "\n")
            file.flush()
            os.fsync(descriptor)
        os.link(path, backup)
        backup.chmod(0o600)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return backup


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
