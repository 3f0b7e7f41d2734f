"""Coins locked to a public key (NUT-10, NUT-11): which ones are ours to spend, and the signature.

A lock is trusted only when nobody but the node can spend the coin until long after it is swapped:

| tag             | trusted lock                                                                |
|-----------------|-----------------------------------------------------------------------------|
| kind, data      | ``P2PK``, the node's key                                                    |
| `sigflag`       | absent or ``SIG_INPUTS``                                                    |
| `n_sigs`        | absent or 1                                                                 |
| `pubkeys`       | absent: each of them could spend it                                         |
| `locktime`      | absent, or at least MIN_LOCK_S from now                                     |
| `refund` …      | only with a `locktime`, before which it means nothing                       |
| any other       | absent: a mint may know what it means                                       |

What is locked to others goes to the mint as it came, if it brings its witness.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from node.core.ecash import Proof, Token
from node.errors import TokenMalformed

MIN_LOCK_S = 3600
"""How far off the end of a lock must be for the lock to be trusted."""

_PUBKEY = re.compile(r"0[23][0-9a-f]{64}")
_NUMBER = re.compile(r"[1-9][0-9]{0,11}")
_FIELDS = frozenset({"nonce", "data", "tags"})
_LATER = frozenset({"refund", "n_sigs_refund"})
_KNOWN = _LATER | {"sigflag", "n_sigs", "locktime"}


class Signer(Protocol):
    """Signs for the node's key."""

    @property
    def pubkey(self) -> str:
        """The x-only public key, 64 hex digits."""
        ...

    def sign_digest(self, digest: bytes) -> str:
        """A BIP-340 signature over 32 bytes, hex; always the same one for the same digest."""
        ...


def lock_key(pubkey: str) -> str:
    """The x-only key ``pubkey`` as tokens are locked to it (NUT-11): a compressed point."""
    return "02" + pubkey


@dataclass(frozen=True, slots=True)
class Condition:
    """A well-known secret (NUT-10)."""

    kind: str
    data: str
    tags: Mapping[str, tuple[str, ...]]
    sound: bool
    """Whether every reader must understand it the same way."""

    def trusted(self, pubkey: str, now: float) -> bool:
        """Whether until ``now + MIN_LOCK_S`` only the owner of ``pubkey`` (x-only) can spend it."""
        data, tags = self.data.lower(), self.tags
        if not self.sound or self.kind != "P2PK" or tags.keys() - _KNOWN:
            return False
        if not _PUBKEY.fullmatch(data) or data[2:] != pubkey:
            return False
        if tags.get("sigflag", ("SIG_INPUTS",)) != ("SIG_INPUTS",):
            return False
        if tags.get("n_sigs", ("1",)) != ("1",):
            return False
        if "locktime" not in tags:
            return not tags.keys() & _LATER
        ends_at = _moment(tags["locktime"])
        return ends_at is not None and ends_at >= now + MIN_LOCK_S

    def over(self, now: float) -> bool:
        """Whether the lock has ended and anybody may spend the coin without a witness."""
        ends_at = _moment(self.tags.get("locktime", ()))
        return ends_at is not None and ends_at < now and "refund" not in self.tags


def read_condition(secret: str) -> Condition | None:
    """The condition that a proof's secret states; None for a secret that states none."""
    if not secret.lstrip().startswith("["):
        return None
    doubled: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            doubled.append("")  # JSON readers differ in which one they take
        return fields

    try:
        document = json.loads(secret, object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, list) or len(document) != 2:
        return None
    kind, fields = document
    if not isinstance(kind, str) or not isinstance(fields, dict):
        return None
    if not isinstance(fields.get("nonce"), str) or not isinstance(fields.get("data"), str):
        return None
    listed = fields.get("tags")
    tags, sound = _tags([] if listed is None else listed)
    sound = sound and not doubled and fields.keys() <= _FIELDS
    return Condition(kind, fields["data"], tags, sound)


def _tags(value: object) -> tuple[dict[str, tuple[str, ...]], bool]:
    """Name → values of the tags, and whether they are all well-formed and there once."""
    found: dict[str, tuple[str, ...]] = {}
    if not isinstance(value, list):
        return found, False
    sound = True
    for tag in value:
        if (
            not isinstance(tag, list)
            or len(tag) < 2
            or not all(isinstance(part, str) and part for part in tag)
            or tag[0] in found
        ):
            sound = False
            continue
        found[tag[0]] = tuple(tag[1:])
    return found, sound


def _moment(values: tuple[str, ...]) -> int | None:
    if len(values) != 1 or not _NUMBER.fullmatch(values[0]):
        return None
    return int(values[0])


def unlock(token: Token, signer: Signer | None, now: float) -> Token:
    """``token`` with our signature as the witness of every coin that is locked to us.

    The same token gives the same witnesses. No I/O.

    Args:
        signer: None for a node that takes no locked coins.
        now: Unix time.

    Raises TokenMalformed for a locked coin that neither brings a witness nor is ours.
    """
    proofs = tuple(_unlocked(proof, signer, now) for proof in token.proofs)
    return token if proofs == token.proofs else replace(token, proofs=proofs)


def _unlocked(proof: Proof, signer: Signer | None, now: float) -> Proof:
    condition = read_condition(proof.secret)
    if condition is None:
        return proof
    if signer is not None and condition.trusted(signer.pubkey, now):
        signature = signer.sign_digest(hashlib.sha256(proof.secret.encode()).digest())
        witness = json.dumps({"signatures": [signature]}, separators=(",", ":"))
        return replace(proof, witness=witness)
    if proof.witness or condition.over(now):
        return proof
    if signer is not None and condition.data.lower()[2:] == signer.pubkey:
        raise TokenMalformed(
            "the token is locked to this node under conditions it does not take: only P2PK with"
            f" SIG_INPUTS, no other keys, and no locktime or one at least {MIN_LOCK_S} s away"
        )
    raise TokenMalformed("the token is locked to another key and brings no witness")


def check_locks(token: Token, signer: Signer | None, now: float) -> None:
    """Raise what ``unlock`` would raise, without signing anything."""
    unlock(token, signer and _Nobody(signer.pubkey), now)


@dataclass(frozen=True, slots=True)
class _Nobody:
    """Has the key's name and not the key."""

    pubkey: str

    def sign_digest(self, digest: bytes) -> str:
        return ""
