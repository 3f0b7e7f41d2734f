"""Cashu tokens as text (NUT-00): ``cashuA`` (JSON) and ``cashuB`` (CBOR) in, ``cashuB`` out.

The text comes from strangers, so the reader takes exactly what a payment can be: one mint, a
unit that is money here, a bounded number of well-formed proofs. Only TokenMalformed escapes.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import cbor2
import orjson

from node.core.ecash import Dleq, Proof, Token
from node.core.money import UNIT_MSAT
from node.ecash import cbor
from node.ecash.crypto import is_keyset_id, is_point, is_scalar
from node.errors import TokenMalformed

MAX_TOKEN_BYTES = 100_000
MAX_PROOFS = 100
MAX_SECRET_CHARS = 1024
MAX_WITNESS_CHARS = 1024
MAX_URL_CHARS = 512
AMOUNT_LIMIT = 1 << 53
"""Amounts, and their sum, are below this: any JSON reader keeps them exact."""

_BASE64 = re.compile(r"[A-Za-z0-9_-]+={0,2}")
_SHORT_ID = re.compile(r"01[0-9a-f]{14}")
_SHORT_ID_BYTES = 8
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_SEGMENT = re.compile(r"[A-Za-z0-9_~!$'()*+,;=:@-][A-Za-z0-9._~!$'()*+,;=:@-]*")
_DEFAULT_PORT = {"http": 80, "https": 443}


def normalize_mint_url(url: str) -> str:
    """The one spelling of a mint's URL by which mints are compared.

    Scheme and host in lower case, no default port, no trailing slash; the path keeps its case.
    Raises ValueError for anything but a plain http(s) URL: credentials, query, fragment,
    escapes, dot segments and characters beyond ASCII are refused.
    """
    if not isinstance(url, str) or len(url) > MAX_URL_CHARS:
        raise ValueError("not a mint URL")
    if re.search(r"[^!-~]|[\\?#%]", url):
        raise ValueError("the mint URL has characters it may not have")
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORT:
        raise ValueError("the mint URL is not http or https")
    if "@" in parts.netloc:
        raise ValueError("the mint URL carries credentials")
    host = _normal_host(parts.hostname or "")
    port = parts.port  # raises ValueError when it is no port
    if port == 0:
        raise ValueError("the mint URL has no usable port")
    path = parts.path.rstrip("/")
    if path and not all(_SEGMENT.fullmatch(segment) for segment in path[1:].split("/")):
        raise ValueError("the mint URL has a path it may not have")
    suffix = "" if port is None or port == _DEFAULT_PORT[scheme] else f":{port}"
    return f"{scheme}://{host}{suffix}{path}"


def _normal_host(host: str) -> str:
    if ":" in host:
        return f"[{ipaddress.IPv6Address(host).compressed}]"
    if not _HOST.fullmatch(host):
        raise ValueError("the mint URL has no usable host")
    return host


def parse_token(
    text: str, *, max_bytes: int = MAX_TOKEN_BYTES, max_proofs: int = MAX_PROOFS
) -> Token:
    """Read a token, with or without ``cashu:`` in front and white space around.

    Keyset ids are full ids, or in a ``cashuB`` token also the short form of version 01 ids:
    see ``expand_keyset_ids``. Signatures are checked to be points, nothing else: whether the
    proofs are good only the mint or their DLEQ can tell.

    Raises TokenMalformed and nothing else.
    """
    if not isinstance(text, str) or len(text) > max_bytes:
        raise TokenMalformed(f"a Cashu token has at most {max_bytes} characters")
    bare = text.strip().removeprefix("cashu:")
    version, body = bare[:6], bare[6:]
    if version not in {"cashuA", "cashuB"}:
        raise TokenMalformed("a Cashu token begins with cashuA or cashuB")
    raw = _base64_decode(body)
    return _parse_v3(raw, max_proofs) if version == "cashuA" else _parse_v4(raw, max_proofs)


def _base64_decode(text: str) -> bytes:
    if not _BASE64.fullmatch(text):
        raise TokenMalformed("the token is not url-safe base64")
    bare = text.rstrip("=")
    try:
        return base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
    except binascii.Error:
        raise TokenMalformed("the token is not url-safe base64") from None


def _parse_v3(raw: bytes, max_proofs: int) -> Token:
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise TokenMalformed("the token does not hold JSON") from None
    top = _dict(document)
    entries = [_dict(entry) for entry in _list(top.get("token"))]
    mints = {_mint(entry.get("mint")) for entry in entries}
    if len(mints) != 1:
        raise TokenMalformed("a token must come from exactly one mint")
    coins = [coin for entry in entries for coin in _list(entry.get("proofs"))]
    _count(coins, max_proofs)
    proofs = []
    for coin in map(_dict, coins):
        keyset_id = _hex(coin.get("id"))
        if not is_keyset_id(keyset_id):
            raise TokenMalformed("a proof has no valid keyset id")
        proofs.append(
            _proof(
                keyset_id,
                coin.get("amount"),
                coin.get("secret"),
                _hex(coin.get("C")),
                coin.get("witness"),
                _dleq(coin.get("dleq"), _hex),
            )
        )
    unit = top.get("unit")
    return _token(mints.pop(), "sat" if unit is None else unit, proofs, top.get("memo"))


def _parse_v4(raw: bytes, max_proofs: int) -> Token:
    try:
        document = cbor.loads(raw)
    except cbor.CborError:
        raise TokenMalformed("the token does not hold CBOR") from None
    top = _dict(document)
    mint = _mint(top.get("m"))
    groups = [(_dict(group), _list(_dict(group).get("p"))) for group in _list(top.get("t"))]
    _count([coin for _, coins in groups for coin in coins], max_proofs)
    proofs = []
    for group, coins in groups:
        keyset_id = _bytes_hex(group.get("i"))
        if not is_keyset_id(keyset_id) and not _SHORT_ID.fullmatch(keyset_id):
            raise TokenMalformed("a proof has no valid keyset id")
        proofs += [
            _proof(
                keyset_id,
                coin.get("a"),
                coin.get("s"),
                _bytes_hex(coin.get("c")),
                coin.get("w"),
                _dleq(coin.get("d"), _bytes_hex),
            )
            for coin in map(_dict, coins)
        ]
    return _token(mint, top.get("u"), proofs, top.get("d"))


def _token(mint: str, unit: object, proofs: list[Proof], memo: object) -> Token:
    if not isinstance(unit, str) or unit not in UNIT_MSAT:
        raise TokenMalformed(f"the token's unit must be one of {', '.join(UNIT_MSAT)}")
    if memo is not None and not isinstance(memo, str):
        raise TokenMalformed("the token's memo is not text")
    if len({proof.secret for proof in proofs}) != len(proofs):
        raise TokenMalformed("the token holds a proof twice")
    token = Token(mint, unit, tuple(proofs), memo or "")
    if token.amount >= AMOUNT_LIMIT:
        raise TokenMalformed("the token's amount is too large")
    return token


def _count(coins: Sequence[object], max_proofs: int) -> None:
    if not coins:
        raise TokenMalformed("the token holds no proofs")
    if len(coins) > max_proofs:
        raise TokenMalformed(f"a token holds at most {max_proofs} proofs")


def _proof(
    keyset_id: str, amount: object, secret: object, c: str, witness: object, dleq: Dleq | None
) -> Proof:
    if type(amount) is not int or not 0 < amount < AMOUNT_LIMIT:
        raise TokenMalformed("a proof has no valid amount")
    if not isinstance(secret, str) or not 0 < len(secret) <= MAX_SECRET_CHARS:
        raise TokenMalformed("a proof has no valid secret")
    if not is_point(c):
        raise TokenMalformed("a proof has no valid signature")
    if witness is not None and (not isinstance(witness, str) or len(witness) > MAX_WITNESS_CHARS):
        raise TokenMalformed("a proof has no valid witness")
    return Proof(keyset_id, amount, secret, c, witness or None, dleq)


def _dleq(value: object, decode: Any) -> Dleq | None:
    """A proof without ``r`` proves nothing to a receiver (NUT-12) and counts as absent."""
    if value is None:
        return None
    fields = _dict(value)
    if fields.get("r") is None:
        return None
    e, s, r = (decode(fields.get(name)) for name in "esr")
    if not (is_scalar(e) and is_scalar(s) and is_scalar(r)):
        raise TokenMalformed("a proof has no valid DLEQ")
    return Dleq(e, s, r)


def _mint(value: object) -> str:
    try:
        return normalize_mint_url(value)  # type: ignore[arg-type]
    except ValueError:
        raise TokenMalformed("the token names no valid mint URL") from None


def _dict(value: object) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TokenMalformed("the token does not have the shape of a Cashu token")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TokenMalformed("the token does not have the shape of a Cashu token")
    return value


def _hex(value: object) -> str:
    return value.lower() if isinstance(value, str) else ""


def _bytes_hex(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else ""


def expand_keyset_ids(token: Token, keyset_ids: Iterable[str]) -> Token:
    """``token`` with short keyset ids (NUT-00) replaced by the full ids of its mint.

    Args:
        keyset_ids: all full ids the mint lists (NUT-02), inactive ones included.

    Raises TokenMalformed for an id, short or full, that the mint does not list, and for a short
    one that fits two keysets.
    """
    known = list(dict.fromkeys(keyset_ids))
    full: dict[str, str] = {}
    for wanted in {proof.keyset_id for proof in token.proofs}:
        if _SHORT_ID.fullmatch(wanted):
            matches = [keyset_id for keyset_id in known if keyset_id.startswith(wanted)]
        else:
            matches = [wanted] if wanted in known else []
        if len(matches) != 1:
            raise TokenMalformed("the token's mint has no such keyset")
        full[wanted] = matches[0]
    proofs = tuple(replace(proof, keyset_id=full[proof.keyset_id]) for proof in token.proofs)
    if proofs == token.proofs:
        return token
    return replace(token, proofs=proofs)


def serialize_token(mint: str, unit: str, proofs: Sequence[Proof], memo: str = "") -> str:
    """A ``cashuB`` token of ``proofs``, which keep their order within each keyset.

    Version 01 keyset ids go out in their short form (NUT-00); DLEQ proofs and witnesses go
    along where there are any. Raises ValueError without proofs or for a bad mint URL.
    """
    if not proofs:
        raise ValueError("a token needs proofs")
    groups: dict[str, list[dict[str, Any]]] = {}
    for proof in proofs:
        groups.setdefault(proof.keyset_id, []).append(_v4_proof(proof))
    document: dict[str, Any] = {
        "t": [
            {"i": bytes.fromhex(keyset_id)[:_SHORT_ID_BYTES], "p": coins}
            for keyset_id, coins in groups.items()
        ],
    }
    if memo:
        document["d"] = memo
    document |= {"m": normalize_mint_url(mint), "u": unit}
    body = base64.urlsafe_b64encode(cbor2.dumps(document)).decode().rstrip("=")
    return f"cashuB{body}"


def _v4_proof(proof: Proof) -> dict[str, Any]:
    coin: dict[str, Any] = {"a": proof.amount, "s": proof.secret, "c": bytes.fromhex(proof.c)}
    if proof.dleq is not None and proof.dleq.r:
        coin["d"] = {
            name: bytes.fromhex(value)
            for name, value in (("e", proof.dleq.e), ("s", proof.dleq.s), ("r", proof.dleq.r))
        }
    if proof.witness:
        coin["w"] = proof.witness
    return coin
