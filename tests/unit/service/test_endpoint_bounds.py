"""No call can cost more than is set aside for it, and what nobody counted is estimated within."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.core.catalog import Backend, Catalog, Model
from node.core.exchange import Request
from node.core.money import Msat
from node.core.pricing import Price
from node.core.usage import Usage
from node.errors import ContextLengthExceeded, InvalidValue, RequestTooLarge
from node.service.inference.call import PreparedCall
from node.service.inference.completions import prepare_completion
from node.service.inference.embeddings import prepare_embeddings
from node.service.inference.images import prepare_image
from node.service.inference.moderations import prepare_moderation
from node.service.inference.rerank import prepare_rerank
from node.service.inference.speech import prepare_speech

PRICE = Price(
    Msat(3_000_000),
    Msat(7_000_000),
    Msat(11),
    per_image=Msat(500),
    per_audio_minute=Msat(60_000),
    per_mchar=Msat(2_000_000),
)
MODEL = Model(
    id="m",
    backends=(Backend("u", PRICE, "vendor/m"),),
    context_length=2_000,
    max_output_tokens=400,
    endpoints=("completions", "embeddings", "images", "moderations", "rerank", "speech"),
)
CATALOG = Catalog([MODEL])
TEXTS = st.text(max_size=60)
TOKENS = st.lists(st.integers(0, 200_000), min_size=1, max_size=60)
SPECIAL = 8
"""More tokens than any known tokeniser puts around a text."""
Prepare = Callable[[Request, Catalog], PreparedCall]


def prepare(how: Prepare, **fields: Any) -> PreparedCall:
    body = orjson.dumps({"model": "m", **fields})
    return how(Request("r", "POST", "/v1/x", {}, body), CATALOG)


def within(call: PreparedCall, real: Usage) -> bool:
    return PRICE.cost(real) <= PRICE.most(call.most)


def worst(item: Any) -> int:
    """The tokens of an input for a tokeniser that makes one of each byte."""
    if isinstance(item, dict):
        return sum(len(str(value).encode()) for value in item.values()) + SPECIAL
    if isinstance(item, list):
        return len(item) + SPECIAL
    return len(item.encode()) + SPECIAL


def estimated(call: PreparedCall, answer: bytes = b"{}") -> Usage:
    meter = call.make_meter(call)
    meter.feed(answer)
    meter.feed(b"")
    return meter.usage()


@given(
    st.lists(TEXTS | TOKENS, min_size=1, max_size=5) | TEXTS,
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 999),
    st.booleans(),
    TEXTS,
)
@example("x" * 1_500, 1, 4, 0, True, "")
def test_completions(
    prompt: Any, n: int, best_of: int, max_tokens: int, echo: bool, suffix: str
) -> None:
    call = prepare(
        prepare_completion,
        prompt=prompt, n=n, best_of=best_of, max_tokens=max_tokens, echo=echo, suffix=suffix,
    )  # fmt: skip
    prompts = prompt if isinstance(prompt, list) else [prompt]
    read = sum(min(worst(item) + worst(suffix), 2_000) for item in prompts)
    sent = orjson.loads(call.payload.encode("vendor/m"))
    assert sent["max_tokens"] <= 400
    written = sent["max_tokens"] * max(n, best_of) * len(prompts)
    assert within(call, Usage(read, written + (read * max(n, best_of) if echo else 0)))
    assert within(call, estimated(call, b'{"choices":[{"text":"%s"}]}' % (b"x" * 9999)))


@given(
    st.lists(TEXTS | TOKENS, min_size=1, max_size=6) | TEXTS | TOKENS,
    st.none() | TEXTS,
    st.sampled_from([prepare_embeddings, prepare_moderation]),
)
def test_what_reads_inputs(inputs: Any, instruction: str | None, how: Prepare) -> None:
    call = prepare(how, input=inputs, instruction=instruction)
    several = isinstance(inputs, list) and not isinstance(inputs[0], int)
    items = inputs if several else [inputs]
    beside = worst(instruction) if instruction is not None else 0
    assert within(call, Usage(sum(min(worst(item) + beside, 2_000) for item in items)))
    usage = estimated(call)
    assert usage.source == "estimated"
    assert within(call, usage)


@example("q" * 24, ["x" * 2_000, "y" * 3_000], 64)
@given(
    TEXTS,
    st.lists(TEXTS | st.fixed_dictionaries({"title": TEXTS, "text": TEXTS}), min_size=1),
    st.sampled_from([64, 256, 512, 2_000]),
)
def test_rerank_of_documents_in_pieces(query: str, documents: list[Any], context: int) -> None:
    """The query is read with every piece of every document."""
    call = prepare(prepare_rerank, query=query, documents=documents)
    asked = min(worst(query), context // 2)
    real = 0
    for item in documents:
        left = worst(item) + (len("title: \ntext: ") if isinstance(item, dict) else 0)
        while left > 0:
            piece = min(left, context - asked)
            real += piece + asked
            left -= piece
    assert within(call, Usage(real))
    assert within(call, estimated(call))


@given(
    TEXTS.filter(bool),
    st.integers(1, 10),
    st.integers(0, 3),
    st.sampled_from(["low", "medium", "high", "auto", "hd", None]),
    st.sampled_from(["1024x1024", "256x256", "9999999x9999999", "x", "auto", None]),
    st.integers(0, 30),
    st.booleans(),
)
def test_images(
    prompt: str,
    n: int,
    partials: int,
    quality: str | None,
    size: str | None,
    made: int,
    stream: bool,
) -> None:
    call = prepare(
        prepare_image,
        prompt=prompt, n=n, partial_images=partials, quality=quality, size=size, stream=stream,
    )  # fmt: skip
    tokens = (400 + 100 * partials) * n
    assert within(call, Usage(worst(prompt), tokens, images=n))
    answer = orjson.dumps({"data": [{"b64_json": "x"}] * made})
    if stream:
        event = b'data: {"type":"image_generation.completed","b64_json":"x"}\n\n'
        assert within(call, estimated(call, event * made))
    usage = estimated(call, answer)
    assert usage.images == min(made, n)
    assert within(call, usage)


@given(TEXTS.filter(bool), st.none() | st.floats(0.25, 4.0), TEXTS)
def test_speech(text: str, speed: float | None, instructions: str) -> None:
    call = prepare(prepare_speech, input=text, speed=speed, instructions=instructions)
    slowest_ms = int(len(text) * 2_000 / (speed or 1.0))
    real = Usage(worst(text) + worst(instructions), 400, audio_ms=slowest_ms, characters=len(text))
    assert within(call, real)
    for answer in (b"", b"RIFF", b"x" * 100_000):
        usage = estimated(call, answer)
        assert usage.characters == len(text)
        assert within(call, usage)


def test_an_input_longer_than_the_context_is_refused_when_it_is_certain() -> None:
    with pytest.raises(ContextLengthExceeded):
        prepare(prepare_embeddings, input=["x", "y" * 256 * 2_001])
    with pytest.raises(ContextLengthExceeded):
        prepare(prepare_completion, prompt=[[1] * 2_001])
    assert prepare(prepare_embeddings, input="y" * 100_000).most.prompt_tokens == 2_000
    assert prepare(prepare_embeddings, input=[1] * 2_001, truncate=True).most.prompt_tokens == 2_000


def test_what_an_image_holds_is_bounded_by_the_context() -> None:
    call = prepare(prepare_embeddings, input=[{"image": "https://example.com/a.png"}, "x"])
    assert 2_000 < call.most.prompt_tokens < 4_000


def test_three_hundred_thousand_tokens_are_read_and_more_are_not() -> None:
    model = Model("m", MODEL.backends, 8_192, 1, endpoints=("embeddings",))
    body = orjson.dumps({"model": "m", "input": [[7] * 8_000] * 37})
    call = prepare_embeddings(Request("r", "POST", "/", {}, body), Catalog([model]))
    assert call.typical.prompt_tokens == 37 * 8_000
    body = orjson.dumps({"model": "m", "input": [[7] * 8_000] * 60})
    with pytest.raises(RequestTooLarge):
        prepare_embeddings(Request("r", "POST", "/", {}, body), Catalog([model]))


def test_a_model_is_only_sold_for_what_it_is_sold_for() -> None:
    chat = Catalog([Model("m", MODEL.backends, 10, 10)])
    for how in (prepare_embeddings, prepare_moderation, prepare_rerank, prepare_image):
        with pytest.raises(InvalidValue) as refused:
            how(Request("r", "POST", "/", {}, b'{"model":"m"}'), chat)
        assert refused.value.param == "model"
    with pytest.raises(InvalidValue):
        prepare_moderation(Request("r", "POST", "/", {}, b'{"input":"x"}'), chat)


@given(st.dictionaries(st.text("abcxyz_", min_size=1), st.integers() | st.text() | st.none()))
def test_unknown_fields_pass(extra: dict[str, Any]) -> None:
    extra = {f"x_{name}": value for name, value in extra.items() if abs(hash(value)) < 2**63}
    extra = {name: v for name, v in extra.items() if not isinstance(v, int) or abs(v) < 2**63}
    call = prepare(prepare_embeddings, input="x", **extra)
    sent = orjson.loads(call.payload.encode("vendor/m"))
    assert sent == {"model": "vendor/m", "input": "x", **extra}
