"""The node under soak: two mints, a payout every few seconds, a watchdog that looks often."""

from __future__ import annotations

import json
from pathlib import Path

import node
from node.core.money import Msat
from node.core.pricing import Price
from node.demo.nodes import DemoNode, Offer, Surroundings

OFFER = Offer("demo", Price(Msat(40_000_000), Msat(60_000_000), Msat(700)), max_output_tokens=64)
"""40 msat a prompt token, 60 msat a completion token, 0.7 sat a request."""
CHILD_KEY_COST_MSAT = 100
MINT_TIMEOUT_S = 1.5
SOURCE = Path(node.__file__).resolve().parent.parent


class SoakNode(DemoNode):
    """A DemoNode that takes tokens of two mints and pays its earnings to ``payee``.

    Args:
        mints: as the node is to reach them.
        payee: Lightning address.
        reserve_sat: what of the earnings stays; with 0 clients have to pay for their own swaps.
    """

    def __init__(
        self, mints: tuple[str, str], upstream: str, payee: str, directory: Path, reserve_sat: int
    ) -> None:
        self._mints = mints
        self._payee = payee
        self._reserve_sat = reserve_sat
        super().__init__("node", OFFER, Surroundings(mints[0], "", upstream), directory)

    def _environment(self) -> dict[str, str]:
        """The node that runs is the one that we import."""
        return super()._environment() | {"PYTHONPATH": str(SOURCE)}

    def _config(self, key_file: Path) -> str:
        changes = {
            "retract_on_stop = true": "announce = false",
            'relays = [""]': "relays = []\nrequests = false",
            "[[upstreams]]": "[[upstreams]]\nfirst_byte_timeout_s = 2\nchunk_timeout_s = 2",
            "[[mints]]": f"[[mints]]\ntimeout_s = {MINT_TIMEOUT_S}",
        }
        text = super()._config(key_file)
        for old, new in changes.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        lines = [text]
        lines += [
            "[[mints]]",
            f"url = {json.dumps(self._mints[1])}",
            f"timeout_s = {MINT_TIMEOUT_S}",
            "[payout]",
            f"address = {json.dumps(self._payee)}",
            "floor_sat = 10",
            f"reserve_sat = {self._reserve_sat}",
            "interval_s = 2.0",
            "[ledger]",
            "watchdog_interval_s = 1.0",
            f"child_key_cost_msat = {CHILD_KEY_COST_MSAT}",
            "[lightning]",
            "max_open_per_peer = 1000",
        ]
        return "\n".join(lines) + "\n"
