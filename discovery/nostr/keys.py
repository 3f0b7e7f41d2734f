"""Nostr keys: reading, writing (NIP-19) and signing. The only module that imports pynostr."""

from __future__ import annotations

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from coincurve import PrivateKey, PublicKeyXOnly
from coincurve._libsecp256k1 import ffi, lib
from coincurve.context import GLOBAL_CONTEXT
from pynostr import bech32

from discovery.errors import InvalidKey
from discovery.nostr import nip44
from discovery.nostr.event import Event, compute_id, freeze_tags

_MAX_KEY_CHARS: Final = 128
_KEY_BYTES: Final = 32
_MAX_CONVERSATIONS: Final = 1_024
_is_hex_key = re.compile(r"[0-9a-fA-F]{64}").fullmatch


class Keys:
    """A key pair. Neither ``str`` nor ``repr`` shows the secret; only ``nsec()`` gives it away."""

    __slots__ = ("_conversations", "_keypair", "_pubkey", "_secret")

    def __init__(self, secret: bytes) -> None:
        """``secret``: 32 bytes. Raises InvalidKey when it is not a secret key."""
        if len(secret) != _KEY_BYTES:
            raise InvalidKey("a secret key has 32 bytes")
        # libsecp256k1's own form of both keys: made once, not for each signature
        self._keypair = ffi.new("secp256k1_keypair *")
        if not lib.secp256k1_keypair_create(GLOBAL_CONTEXT.ctx, self._keypair, secret):
            raise InvalidKey("the secret key is out of range")
        self._secret = secret
        point, x = ffi.new("secp256k1_xonly_pubkey *"), ffi.new("unsigned char [32]")
        lib.secp256k1_keypair_xonly_pub(GLOBAL_CONTEXT.ctx, point, ffi.NULL, self._keypair)
        lib.secp256k1_xonly_pubkey_serialize(GLOBAL_CONTEXT.ctx, x, point)
        self._pubkey: str = bytes(ffi.buffer(x)).hex()
        self._conversations: OrderedDict[str, bytes] = OrderedDict()

    @classmethod
    def generate(cls) -> Keys:
        """A fresh pair from the system's randomness."""
        return cls(secrets.token_bytes(_KEY_BYTES))

    @classmethod
    def parse(cls, secret: str) -> Keys:
        """Read ``nsec1…`` or 64 hex digits; space around it is ignored.

        Raises InvalidKey for anything else, an npub above all; the message never repeats it.
        """
        text = secret.strip()
        if _is_hex_key(text):
            return cls(bytes.fromhex(text))
        return cls(_decode(text, "nsec"))

    @property
    def pubkey(self) -> str:
        """The x-only public key, 64 hex digits."""
        return self._pubkey

    @property
    def npub(self) -> str:
        """The public key as NIP-19 writes it."""
        return hex_to_npub(self._pubkey)

    def nsec(self) -> str:
        """The secret key as NIP-19 writes it. For the operator's eyes only."""
        return _encode(self._secret, "nsec")

    def sign(
        self,
        kind: int,
        content: str,
        tags: Iterable[Iterable[str]] = (),
        created_at: int | None = None,
    ) -> Event:
        """A signed event of now, unless ``created_at`` (unix seconds) says otherwise.

        Raises InvalidEvent for text that has no UTF-8 form.
        """
        when = int(time.time()) if created_at is None else created_at
        frozen = freeze_tags(tags)
        id_ = compute_id(self._pubkey, when, kind, frozen, content)
        return Event(id_, self._pubkey, when, kind, frozen, content, self._sign(bytes.fromhex(id_)))

    def _sign(self, digest: bytes) -> str:
        """A BIP-340 signature with fresh randomness, hex."""
        sig, fresh = ffi.new("unsigned char [64]"), secrets.token_bytes(_KEY_BYTES)
        if not lib.secp256k1_schnorrsig_sign32(
            GLOBAL_CONTEXT.ctx, sig, digest, self._keypair, fresh
        ):
            raise InvalidKey("the key does not sign")
        return bytes(ffi.buffer(sig)).hex()

    def sign_digest(self, digest: bytes) -> str:
        """A BIP-340 signature over 32 bytes, hex; always the same one for the same digest.

        Raises ValueError for another length.
        """
        sig: bytes = PrivateKey(self._secret).sign_schnorr(digest, bytes(_KEY_BYTES))
        return sig.hex()

    def conversation_key(self, pubkey_hex: str, *, keep: bool = False) -> bytes:
        """The NIP-44 key shared with ``pubkey_hex``. Raises InvalidKey when that is no key.

        Args:
            keep: remember it, among so many others, as there will be more to say to each other.
        """
        key = self._conversations.get(pubkey_hex)
        if key is None:
            key = nip44.conversation_key(self._secret, pubkey_hex)
        if keep:
            self._conversations[pubkey_hex] = key
            self._conversations.move_to_end(pubkey_hex)
            if len(self._conversations) > _MAX_CONVERSATIONS:
                self._conversations.popitem(last=False)
        return key

    def __repr__(self) -> str:
        return f"Keys({self.npub})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and other._pubkey == self._pubkey

    def __hash__(self) -> int:
        return hash(self._pubkey)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("keys are not pickled: that would write the secret in the clear")


def parse_pubkey(text: str) -> str:
    """A public key, given as npub or 64 hex digits, as lower-case hex.

    Raises InvalidKey for anything else and for a number that is no point of the curve.
    """
    stripped = text.strip()
    if _is_hex_key(stripped):
        return _checked_point(bytes.fromhex(stripped))
    return npub_to_hex(stripped)


def npub_to_hex(npub: str) -> str:
    """``npub1…`` (NIP-19) as 64 hex digits. Raises InvalidKey."""
    return _checked_point(_decode(npub, "npub"))


def hex_to_npub(pubkey_hex: str) -> str:
    """64 hex digits as ``npub1…``. Raises InvalidKey for text of another shape."""
    if not _is_hex_key(pubkey_hex):
        raise InvalidKey("a public key has 64 hex digits")
    return _encode(bytes.fromhex(pubkey_hex), "npub")


def _checked_point(raw: bytes) -> str:
    try:
        PublicKeyXOnly(raw)
    except ValueError:
        raise InvalidKey("the public key is not a point of the curve") from None
    return raw.hex()


def _encode(raw: bytes, prefix: str) -> str:
    text: str = bech32.bech32_encode(prefix, bech32.convertbits(raw, 8, 5), bech32.Encoding.BECH32)
    return text


def _decode(text: str, prefix: str) -> bytes:
    """The 32 bytes of a bech32 string with exactly this prefix; pynostr's decoder takes any."""
    if len(text) > _MAX_KEY_CHARS:
        raise InvalidKey(f"this is not an {prefix}")
    hrp, words, encoding = bech32.bech32_decode(text)
    if hrp != prefix or encoding is not bech32.Encoding.BECH32:
        raise InvalidKey(f"this is not an {prefix}")
    raw = bech32.convertbits(words, 5, 8, False)
    if raw is None or len(raw) != _KEY_BYTES:
        raise InvalidKey(f"this is not an {prefix}")
    return bytes(raw)
