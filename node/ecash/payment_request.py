"""Payment requests (NUT-18, ``creqA…``) as a 402 answer carries them (NUT-24)."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cbor2


def payment_request(amount: int, unit: str, mints: Sequence[str]) -> str:
    """Ask for ``amount`` of ``unit``, paid in band with a token of one of ``mints``.

    Without a transport: the client sends the token in ``X-Cashu``.
    """
    document = {"a": amount, "u": unit, "m": list(mints)}
    encoded = base64.urlsafe_b64encode(cbor2.dumps(document)).decode().rstrip("=")
    return f"creqA{encoded}"
