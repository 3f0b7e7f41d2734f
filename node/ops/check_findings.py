"""What an operator should know of a report of ``nodestr check``: what it means, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.ops.check_report import MintAnswer, Report


@dataclass(frozen=True, slots=True)
class Finding:
    """Something an operator should know. ``bad``: the money is not as it should be."""

    bad: bool
    what: str
    means: str
    do: str


def find(report: Report) -> list[Finding]:
    """What is wrong or unusual, the books first."""
    return [*_book_findings(report), *_state_findings(report), *_mint_findings(report.mints or ())]


def _book_findings(report: Report) -> list[Finding]:
    books = report.books
    found = [
        Finding(
            True,
            f"the books do not add up: {problem}",
            "a defect of this program, or somebody changed the database; balances cannot be"
            " relied on",
            "stop the node, keep a copy of the database, and report it with this output",
        )
        for problem in report.problems
    ]
    if not books.solvent:
        found.append(
            Finding(
                True,
                f"insolvent: our coins are {-books.equity_msat} msat short of what clients are"
                " owed",
                "not all clients can withdraw; payouts to you have stopped and the node says it is"
                " not ready",
                "put in what is missing with 'nodestr fund', or take no new clients until charges"
                " have made up for it; if a restore did this, a newer backup may not have the loss"
                " (docs/operations.md)",
            )
        )
    if books.loss_msat > 0:
        found.append(
            Finding(
                False,
                f"{books.loss_msat} msat of our coins were spent by somebody else",
                "they were booked as a loss of the node; clients are not charged for it",
                "nothing, after a restore; otherwise somebody else has the wallet's seed: move the"
                " money out and start a new database",
            )
        )
    return found


def _state_findings(report: Report) -> list[Finding]:
    found = []
    if report.books.claims_msat:
        found.append(
            Finding(
                False,
                f"{report.books.claims_msat} msat were found at the mints after a restore, and are"
                " kept for claims",
                "clients paid some of it after the backup, and the node does not know who; payouts"
                " to you do not touch it",
                "credit a client that comes with its invoice or token with 'nodestr credit'; when"
                " you wait for nobody any more, 'nodestr release'",
            )
        )
    if report.watched:
        found.append(
            Finding(
                False,
                f"{report.watched} counters are watched since a restore",
                "coins that a mint signs there late are found, change of a payment that was under"
                " way, say",
                "nothing; it ends by itself",
            )
        )
    if report.unchecked:
        found.append(
            Finding(
                False,
                "restored from a backup, and not yet checked against: "
                + ", ".join(report.unchecked),
                "coins of these mints are out of use: some may have been given out since the"
                " backup",
                "start the node and let it reach them; a mint that is not configured has to be"
                " added under [[mints]]",
            )
        )
    strangers = sorted({h.mint for h in report.holdings if not h.configured})
    if strangers:
        found.append(
            Finding(
                False,
                "coins of mints that are not configured: " + ", ".join(strangers),
                "they count as ours and cannot be spent or paid out",
                "add the mint under [[mints]] again, at least until its coins are used up",
            )
        )
    return found


def _mint_findings(mints: Sequence[MintAnswer]) -> list[Finding]:
    found = []
    for answer in mints:
        if not answer.reachable:
            found.append(
                Finding(
                    False,
                    f"{answer.mint} does not answer: {answer.reason}",
                    "its coins could not be checked; payments with its tokens fail just now",
                    "try again; if it stays away, ask whoever runs it, and take it off [[mints]]"
                    " only when its coins are used up",
                )
            )
        if answer.lost:
            found.append(
                Finding(
                    True,
                    f"{answer.lost} coins worth {answer.lost_msat} msat that we call unspent are"
                    f" spent at {answer.mint}",
                    "the books count money that is gone",
                    "another node or wallet uses the same seed, or an old database was copied over"
                    " by hand: stop the node, then use 'nodestr backup' and 'nodestr restore' on"
                    " this database, which books what is gone",
                )
            )
        if answer.pending:
            found.append(
                Finding(
                    False,
                    f"{answer.pending} coins worth {answer.pending_msat} msat are pending at"
                    f" {answer.mint}",
                    "a payment with them is under way",
                    "wait; the mint frees them or takes them",
                )
            )
        if answer.reachable and not answer.active_keysets:
            found.append(
                Finding(
                    False,
                    f"{answer.mint} has no active keyset",
                    "it makes no new coins: nothing can be received or changed there",
                    "ask whoever runs it",
                )
            )
    return found
