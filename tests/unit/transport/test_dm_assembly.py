"""Parts and frames in any order and any number of copies give the same bytes, within bounds."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import IdempotencyConflict, InvalidValue, RateLimitExceeded, RequestTooLarge
from node.transport.dm.assembly import (
    AssemblyLimits,
    CompleteRequest,
    ReplyAssembler,
    ReplyChanged,
    ReplyTooLarge,
    RequestAssembler,
)
from node.transport.dm.codec import ReplyPiece, RequestPart, parse_reply, parse_request
from node.transport.dm.cutter import PART_BYTES, FrameCutter
from node.transport.dm.writing import build_reply, build_request

ALICE, BOB = "a" * 64, "b" * 64


def parts_of(body: bytes, message_id: str = "m", url: str = "/v1/x") -> list[RequestPart]:
    parsed = [
        parse_request(content)
        for content in build_request(message_id, "POST", url, {"accept": "*/*"}, body)
    ]
    return [part for part in parsed if isinstance(part, RequestPart)]


def pieces_of(body: bytes, cuts: list[int], trailers: dict[str, str]) -> list[ReplyPiece]:
    cutter = FrameCutter("m", 200, {"content-type": "text/plain"})
    contents, start = [], 0
    for cut in sorted(cuts):
        cutter.feed(body[start:cut])
        start = max(start, cut)
        contents.append(cutter.cut())
    cutter.feed(body[start:])
    while cutter.full:
        contents.append(cutter.cut())
    contents += cutter.finish(trailers)
    return [parse_reply(content) for content in contents]


def feed(assembler: ReplyAssembler, pieces: list[ReplyPiece]) -> None:
    for piece in pieces:
        assembler.add(piece)


# ------------------------------------------------------------------ requests


@settings(max_examples=40)
@given(st.binary(min_size=1, max_size=64), st.integers(1, 5), st.randoms(), st.integers(0, 4))
def test_request_is_the_same_in_any_order_with_copies(
    seed: bytes, parts: int, rng: random.Random, copies: int
) -> None:
    body = (seed * (parts * PART_BYTES // len(seed) + 1))[: (parts - 1) * PART_BYTES + len(seed)]
    sent = parts_of(body)
    sent += rng.choices(sent, k=copies)
    rng.shuffle(sent)
    assembler = RequestAssembler()
    complete: list[CompleteRequest] = []
    seen = set()
    for part in sent:
        seen.add(part.index)
        found = assembler.add(ALICE, part, 0.0)
        if found is not None:
            complete.append(found)
            break
        assert len(seen) < part.parts
    assert [request.body for request in complete] == [body]
    assert complete[0].digest == assembled(body).digest
    assert (len(assembler), assembler.buffered_bytes) == (0, 0)


def assembled(body: bytes, url: str = "/v1/x") -> CompleteRequest:
    assembler = RequestAssembler()
    complete = None
    for part in parts_of(body, url=url):
        complete = assembler.add(ALICE, part, 0.0)
    assert complete is not None
    return complete


def test_digest_covers_all_that_makes_a_request() -> None:
    base = assembled(b"body")
    others = [
        assembled(b"other"),
        assembled(b"body", url="/v1/y"),
        replace(base, head=replace(base.head, method="GET")),
        replace(base, head=replace(base.head, headers={})),
        replace(base, head=replace(base.head, headers={"accept": "*/", "x-cashu": "*"})),
    ]
    assert len({request.digest for request in [base, *others]}) == 6
    assert replace(base, frames=False, relays=("wss://r",), wrap=(1059,)).digest == base.digest


def test_senders_do_not_share_ids() -> None:
    assembler = RequestAssembler()
    first, second = parts_of(b"x" * (PART_BYTES + 1))
    assert assembler.add(ALICE, first, 0.0) is None
    assert assembler.add(BOB, second, 0.0) is None
    assert len(assembler) == 2


def test_same_part_with_other_content_is_a_conflict() -> None:
    assembler = RequestAssembler()
    first, _ = parts_of(b"x" * (PART_BYTES + 1))
    assembler.add(ALICE, first, 0.0)
    with pytest.raises(IdempotencyConflict):
        assembler.add(ALICE, replace(first, body=b"y"), 0.0)
    assert (len(assembler), assembler.buffered_bytes) == (0, 0)


def test_parts_that_disagree_on_their_number_are_refused() -> None:
    assembler = RequestAssembler()
    first, second = parts_of(b"x" * (PART_BYTES + 1))
    assembler.add(ALICE, first, 0.0)
    with pytest.raises(InvalidValue):
        assembler.add(ALICE, replace(second, parts=3), 0.0)
    assert len(assembler) == 0


def test_body_that_is_not_the_one_of_the_digest_is_refused() -> None:
    (part,) = parts_of(b"body")
    with pytest.raises(InvalidValue) as caught:
        RequestAssembler().add(ALICE, replace(part, body=b"ydob"), 0.0)
    assert caught.value.param == "sha256"


def test_part_zero_is_needed_for_a_head() -> None:
    (part,) = parts_of(b"")
    with pytest.raises(InvalidValue):
        RequestAssembler().add(ALICE, replace(part, head=None), 0.0)


def test_missing_parts_expire_at_the_deadline_and_can_be_sent_anew() -> None:
    assembler = RequestAssembler(AssemblyLimits(deadline_s=60))
    first, second = parts_of(b"x" * (PART_BYTES + 1))
    assembler.add(ALICE, first, 100.0)
    assert assembler.expire(159.0) == []
    assert assembler.expire(160.0) == [(ALICE, first)]
    assert (len(assembler), assembler.buffered_bytes) == (0, 0)
    assert assembler.add(ALICE, second, 161.0) is None
    assert assembler.add(ALICE, first, 162.0) is not None


def test_more_parts_or_bytes_than_a_request_may_have() -> None:
    sent = parts_of(b"x" * (3 * PART_BYTES))
    with pytest.raises(RequestTooLarge):
        RequestAssembler(AssemblyLimits(max_parts=2)).add(ALICE, sent[0], 0.0)
    assembler = RequestAssembler(AssemblyLimits(max_request_bytes=2 * PART_BYTES))
    assembler.add(ALICE, sent[0], 0.0)
    assembler.add(ALICE, sent[1], 0.0)
    with pytest.raises(RequestTooLarge):
        assembler.add(ALICE, sent[2], 0.0)
    assert assembler.buffered_bytes == 0


def test_one_sender_has_so_much_unfinished_and_others_do_not_suffer() -> None:
    assembler = RequestAssembler(AssemblyLimits(max_sender_requests=2))
    for number in range(2):
        assembler.add(ALICE, parts_of(b"x" * (PART_BYTES + 1), f"m{number}")[0], 0.0)
    third = parts_of(b"x" * (PART_BYTES + 1), "m2")[0]
    with pytest.raises(RateLimitExceeded):
        assembler.add(ALICE, third, 0.0)
    assert assembler.add(BOB, third, 0.0) is None

    assembler = RequestAssembler(AssemblyLimits(max_sender_bytes=PART_BYTES + 100))
    assembler.add(ALICE, parts_of(b"x" * (2 * PART_BYTES), "m0")[0], 0.0)
    with pytest.raises(RateLimitExceeded):
        assembler.add(ALICE, parts_of(b"x" * (2 * PART_BYTES), "m1")[0], 0.0)


@pytest.mark.parametrize(
    "limits", [AssemblyLimits(max_requests=2), AssemblyLimits(max_bytes=4 * PART_BYTES)]
)
def test_flood_of_beginnings_gives_way_to_who_keeps_sending(limits: AssemblyLimits) -> None:
    assembler = RequestAssembler(limits)
    honest = parts_of(b"x" * (4 * PART_BYTES), "honest")
    assembler.add(ALICE, honest[0], 0.0)
    for number in range(3):
        flood = parts_of(b"y" * (2 * PART_BYTES), "flood")[0]
        assembler.add(f"{number:064}", flood, 0.0)
        assert assembler.buffered_bytes <= limits.max_bytes
        assert len(assembler) <= limits.max_requests
        if number < 2:
            assembler.add(ALICE, honest[number + 1], 0.0)
    evicted = assembler.expire(0.0)
    assert evicted
    assert all(sender != ALICE for sender, _ in evicted)


# ------------------------------------------------------------------ replies


@settings(max_examples=60)
@given(
    body=st.binary(max_size=200),
    cuts=st.lists(st.integers(0, 200), max_size=12),
    rng=st.randoms(),
    copies=st.integers(0, 10),
)
def test_reply_is_the_same_in_any_order_with_copies(
    body: bytes, cuts: list[int], rng: random.Random, copies: int
) -> None:
    pieces = pieces_of(body, cuts, {"x-cashu": "cashuB", "x-cost-msat": "5"})
    sent = pieces + rng.choices(pieces, k=copies)
    rng.shuffle(sent)
    assembler = ReplyAssembler()
    read = b""
    for piece in sent:
        assembler.add(piece)
        read += assembler.take()
        assert body.startswith(read)
    assert assembler.complete
    assert read == body
    assert assembler.restarts == 0
    assert assembler.status == 200
    assert assembler.headers == {"content-type": "text/plain"}
    assert assembler.trailers == {"x-cashu": "cashuB", "x-cost-msat": "5"}


@given(st.integers(1, 3 * PART_BYTES), st.randoms())
@settings(max_examples=20)
def test_plain_reply_is_the_same_in_any_order(size: int, rng: random.Random) -> None:
    body = rng.randbytes(size)
    pieces = [parse_reply(content) for content in build_reply("m", 200, {"a": "b"}, body)]
    rng.shuffle(pieces)
    assembler = ReplyAssembler()
    for piece in pieces:
        assert not assembler.complete
        assembler.add(piece)
    assert assembler.complete
    assert assembler.take() == body
    assert assembler.headers == {"a": "b"}


@given(
    st.lists(st.integers(0, 100), min_size=2, max_size=12), st.sets(st.integers(0, 20), max_size=6)
)
def test_exactly_the_gaps_are_missing(cuts: list[int], lost: set[int]) -> None:
    pieces = pieces_of(bytes(100), cuts, {})
    assembler = ReplyAssembler()
    arrived = {piece.seq for piece in pieces} - lost
    for piece in pieces:
        if piece.seq in arrived:
            assembler.add(piece)
    final_here = pieces[-1].seq in arrived
    end = len(pieces) if final_here else max(arrived, default=-1) + 1
    assert set(assembler.missing()) == set(range(end)) - arrived
    assert assembler.complete == (not lost & {piece.seq for piece in pieces})
    for piece in pieces:
        assembler.add(piece)
    assert assembler.missing() == ()
    assert assembler.complete


def test_second_answer_cut_otherwise_continues_where_the_first_broke_off() -> None:
    body = bytes(range(100))
    first, second = pieces_of(body, [10, 20, 30], {}), pieces_of(body, [15, 45], {"a": "b"})
    assembler = ReplyAssembler()
    assembler.add(first[0])
    assembler.add(first[1])
    read = assembler.take()
    assert read == body[:20]
    for piece in second:
        assembler.add(piece)
        read += assembler.take()
    assert assembler.restarts == 1
    assert assembler.missing() == ()
    assert assembler.complete
    assert read == body
    assert assembler.trailers == {"a": "b"}


def test_second_answer_with_other_bytes_is_an_error_once_some_were_read() -> None:
    assembler = ReplyAssembler()
    assembler.add(pieces_of(b"first answer", [3, 6], {})[0])
    assert assembler.take() == b"fir"
    with pytest.raises(ReplyChanged):
        feed(assembler, pieces_of(b"second answer", [5], {}))


def test_second_answer_may_not_be_shorter_than_what_was_read() -> None:
    assembler = ReplyAssembler()
    assembler.add(pieces_of(b"abcdef", [4], {})[0])
    assert assembler.take() == b"abcd"
    with pytest.raises(ReplyChanged):
        feed(assembler, pieces_of(b"abc", [], {}))


def test_wrong_digest_begins_anew() -> None:
    pieces = pieces_of(b"answer", [3], {})
    forged = replace(pieces[0], body=b"ANS")
    assembler = ReplyAssembler()
    assembler.add(forged)
    assembler.add(pieces[1])
    assert not assembler.complete
    assert (assembler.restarts, assembler.empty) == (1, True)
    for piece in pieces:
        assembler.add(piece)
    assert assembler.take() == b"answer"
    assert assembler.complete


def test_plain_error_replaces_frames_that_broke_off() -> None:
    assembler = ReplyAssembler()
    assembler.add(replace(pieces_of(b"answer", [3], {})[1]))
    (error,) = build_reply("m", 503, {}, b"{}")
    assembler.add(parse_reply(error))
    assert assembler.complete
    assert (assembler.status, assembler.take()) == (503, b"{}")


def test_reply_is_bounded_in_bytes_and_pieces() -> None:
    assembler = ReplyAssembler(max_reply_bytes=5)
    with pytest.raises(ReplyTooLarge):
        feed(assembler, pieces_of(b"answer", [3], {}))
    far = json.dumps({"id": "m", "seq": 10**9, "bodyBase64": ""})
    with pytest.raises(ReplyTooLarge):
        ReplyAssembler(max_pieces=100).add(parse_reply(far))


def test_pieces_after_the_end_change_nothing() -> None:
    pieces = pieces_of(b"answer", [3], {})
    assembler = ReplyAssembler()
    for piece in pieces:
        assembler.add(piece)
    assert not assembler.add(replace(pieces[0], body=b"evil"))
    assert assembler.take() == b"answer"
    assert hashlib.sha256(b"answer").hexdigest() == pieces[-1].sha256
