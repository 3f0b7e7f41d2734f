"""Reads bolt11 invoices. The only importer of the bolt11 library."""

from __future__ import annotations

import bolt11

from node.core.lightning import PayRequest
from node.core.money import Msat

MAX_INVOICE_CHARS = 4096


def read_bolt11(text: str) -> PayRequest:
    """Decode an invoice and verify its signature.

    Raises ValueError when it is not one or names no amount.
    """
    text = text.strip().removeprefix("lightning:").lower()
    if not text.startswith("ln") or len(text) > MAX_INVOICE_CHARS or not text.isascii():
        raise ValueError("not a bolt11 invoice")
    try:
        invoice = bolt11.decode(text)
        amount = int(invoice.amount_msat or 0)
        payment_hash, expires_at = str(invoice.payment_hash), int(invoice.expiry_time)
    except Exception as error:  # the library raises what its parsers raise
        raise ValueError(f"not a bolt11 invoice ({type(error).__name__})") from None
    if amount <= 0:
        raise ValueError("the invoice names no amount")
    return PayRequest(text, Msat(amount), payment_hash, expires_at)
