"""A ledger with some of everything in it, and with a sentinel in every place that is secret."""

from __future__ import annotations

import sqlite3

from node.ledger.books import Book, transfer

MINT = "https://mint.example.com"
SENTINEL = "SENTINEL"
HASH = "5e17" * 16
"""Stands for every stored hash."""


def seed(conn: sqlite3.Connection, *, now: int) -> None:
    """Two accounts, requests, operations of all kinds; the books are right."""
    run = conn.execute
    run("INSERT INTO meta VALUES ('mnemonic', ?), ('key_secret', ?)", (SENTINEL, SENTINEL))
    for id_, kind, balance in ((100, "key", 400_000), (101, "request", 0)):
        run(
            "INSERT INTO accounts (id, kind, mint, unit, created_at) VALUES (?, ?, ?, 'sat', ?)",
            (id_, kind, MINT, now - 500 + id_),
        )
        run("INSERT INTO api_keys VALUES (?, ?, 'spend')", (f"{id_}{HASH}", id_))
        transfer(conn, Book.IN, id_, balance + 100_000, "op:in")
    run("INSERT INTO api_keys VALUES (?, 100, 'admin')", (f"admin{HASH}",))
    run("INSERT INTO account_terms VALUES (100, ?, ?)", (now + 9, f"{SENTINEL}@example.com"))
    run(
        "INSERT INTO child_keys (id, account_id, name, hash, parent, request_key, period_start,"
        " created_at) VALUES (1, 100, ?, ?, ?, ?, 0, 0)",
        (SENTINEL, HASH, SENTINEL, SENTINEL),
    )
    for id_, account, model, cost in ((1, 100, "m", 100_000), (2, 101, "n", 40_000)):
        run(
            "INSERT INTO holds (id, account_id, request_key, request_digest, request_id, model,"
            " price, max_cost_msat, state, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, '{}', ?, 'held', ?)",
            (id_, account, SENTINEL, HASH, f"request-{id_}", model, cost, now),
        )
        run(
            "UPDATE holds SET state = 'settled', cost_msat = max_cost_msat, prompt_tokens = 7,"
            " completion_tokens = 5, closed_at = ? WHERE id = ?",
            (now - (id_ - 1) * 7200, id_),
        )
        transfer(conn, account, Book.REVENUE, cost, f"hold:{id_}")
    run("UPDATE accounts SET state = 'closed' WHERE id = 101")
    transfer(conn, 101, Book.OUT, 60_000, "op:out")
    transfer(conn, Book.IN, Book.CLAIMS, 0, "release")
    operation = (
        "INSERT INTO operations (id, kind, state, account_id, request_key, mint, unit, amount, fee,"
        " inputs, outputs, token, error, attempts, created_at, unknown_at, quote)"
        " VALUES (?, ?, ?, ?, ?, ?, 'sat', ?, 0, ?, ?, ?, NULL, 2, ?, 0, ?)"
    )
    coins = f'[{{"secret": "{SENTINEL}"}}]'
    token = f"cashuB{SENTINEL}"
    for name, kind, state, account, key, amount in (
        ("in", "receive", "done", 100, None, 600),
        ("out", "send", "done", 101, SENTINEL, 60),
        ("stuck", "receive", "intent", 100, None, 11),
        ("ours", "send", "done", 0, "withdrawal-1", 30),
        ("paid", "melt", "done", 0, None, 20),
    ):
        run(
            operation,
            (name, kind, state, account, key, MINT, amount, coins, coins, token, now, SENTINEL),
        )
    run(
        "INSERT INTO payouts (operation_id, payment_hash, destination, spent)"
        " VALUES ('paid', ?, 'me@example.com', 22)",
        (HASH,),
    )
    transfer(conn, Book.REVENUE, Book.PAYOUT, 30_000, "op:ours")
    transfer(conn, Book.REVENUE, Book.PAYOUT, 20_000, "op:paid")
    transfer(conn, Book.REVENUE, Book.OWN_FEES, 2_000, "op:paid")
    transfer(conn, Book.IN, 100, 5_000, f"credit:{HASH}")
    for y, amount, state in (("aa", 400, "unspent"), ("bb", 93, "reserved"), ("cc", 60, "issued")):
        run(
            "INSERT INTO proofs (y, mint, unit, keyset_id, amount, secret, c, dleq, state,"
            " operation_id, created_at) VALUES (?, ?, 'sat', '00ff', ?, ?, ?, ?, ?, 'in', 0)",
            (f"{y}{HASH}", MINT, amount, SENTINEL, SENTINEL, SENTINEL, state),
        )
    run("INSERT INTO keysets VALUES (?, '00ff', 'sat', 1, 0, '{}')", (MINT,))
    run(
        "INSERT INTO invoices (hash, account_id, purpose, mint, unit, amount, quote, bolt11, peer,"
        " state, created_at, expires_at, watch_until) VALUES (?, 100, 'topup', ?, 'sat', 9, ?, ?,"
        " ?, 'pending', 0, 0, 0)",
        (HASH, MINT, SENTINEL, f"lnbc{SENTINEL}", SENTINEL),
    )
    run(
        "INSERT INTO messages (sender, id, digest, status, headers, body, created_at)"
        " VALUES (?, 'x', ?, 200, ?, ?, 0)",
        (SENTINEL, HASH, SENTINEL, SENTINEL.encode()),
    )
    run(
        "INSERT INTO answers (hold_id, request_key, digest, status, content_type, body, cost_msat,"
        " created_at) VALUES (1, ?, ?, 200, '', ?, 0, 0)",
        (SENTINEL, HASH, SENTINEL.encode()),
    )
