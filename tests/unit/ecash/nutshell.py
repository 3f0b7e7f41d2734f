"""Asks nutshell, in a process of its own because its import changes the one it runs in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_PROGRAM = """
import asyncio, json, sys
from bip32 import BIP32
from cashu.core.base import TokenV3, TokenV4
from cashu.wallet.secrets import WalletSecrets

asked = json.load(sys.stdin)

def plain(token):
    return {
        "mint": token.mint, "unit": token.unit, "memo": token.memo,
        "proofs": [
            [p.id, p.amount, p.secret, p.C, p.witness,
             [p.dleq.e, p.dleq.s, p.dleq.r] if p.dleq else None]
            for p in token.proofs
        ],
    }

def again(text):
    v4 = TokenV4.deserialize(text)
    v3 = TokenV3.parse_obj(json.loads(json.dumps({
        "token": [{"mint": v4.mint, "proofs": [p.to_dict(bool(p.dleq)) for p in v4.proofs]}],
        "unit": v4.unit, "memo": v4.memo,
    })))
    return {
        "read": plain(v4),
        "v4": v4.serialize(include_dleq=True),
        "v3": v3.serialize(include_dleq=all(p.dleq for p in v4.proofs)),
    }

async def derive(seed, keyset_id, counter):
    wallet = object.__new__(WalletSecrets)
    wallet.seed = bytes.fromhex(seed)
    wallet.bip32 = BIP32.from_seed(wallet.seed)
    secret, r, _ = await wallet.generate_determinstic_secret(counter, keyset_id)
    return [secret.hex(), r.hex()]

async def main():
    return {
        "tokens": [again(text) for text in asked["tokens"]],
        "secrets": [await derive(*entry) for entry in asked["secrets"]],
    }

print(json.dumps(asyncio.run(main())))
"""


def ask(
    directory: Path,
    *,
    tokens: list[str] | None = None,
    secrets: list[tuple[str, str, int]] | None = None,
) -> dict[str, Any]:
    """What nutshell reads in ``tokens`` and writes from it, and derives for ``secrets``.

    Args:
        directory: home and working directory of the process.
        secrets: (seed as hex, keyset id, counter).
    """
    asked = json.dumps({"tokens": tokens or [], "secrets": secrets or []})
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=asked,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=directory,
        env={"HOME": str(directory), "PATH": os.environ.get("PATH", os.defpath)},
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
