"""Hypothesis strategies for proofs and tokens."""

from __future__ import annotations

from cashu.core.crypto.secp import PrivateKey
from hypothesis import strategies as st

from node.core.ecash import Dleq, Proof

POINTS = tuple(PrivateKey(bytes([n]) * 32).public_key.format().hex() for n in range(1, 9))

hex_scalars = st.binary(min_size=32, max_size=32).map(bytes.hex)
v1_ids = st.binary(min_size=7, max_size=7).map(lambda raw: "00" + raw.hex())
v2_ids = st.binary(min_size=32, max_size=32).map(lambda raw: "01" + raw.hex())
keyset_ids = v1_ids | v2_ids
memos = st.text(st.characters(codec="utf-8"), max_size=200)

proofs = st.builds(
    Proof,
    keyset_id=keyset_ids,
    amount=st.integers(1, 2**46),
    secret=st.text(st.characters(codec="utf-8"), min_size=1, max_size=80),
    c=st.sampled_from(POINTS),
    witness=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=80),
    dleq=st.none() | st.builds(Dleq, hex_scalars, hex_scalars, hex_scalars),
)
purses = st.lists(proofs, min_size=1, max_size=12, unique_by=lambda proof: proof.secret)
