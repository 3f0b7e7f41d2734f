"""An upstream's count is taken only when it can be one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.usage import MAX_TOKENS, Usage, usage_from_openai


def test_a_count_is_read() -> None:
    usage = usage_from_openai({"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7})
    assert usage == Usage(7, 0, "upstream")
    assert usage.total_tokens == 7


def test_reasoning_that_some_leave_out_of_the_completion_is_counted() -> None:
    told = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 110}
    assert usage_from_openai(told) == Usage(7, 103)
    details = {"completion_tokens_details": {"reasoning_tokens": 100}}
    assert usage_from_openai(told | details) == Usage(7, 103, reasoning_tokens=100)
    del told["total_tokens"]
    assert usage_from_openai(told | details) == Usage(7, 103, reasoning_tokens=100)
    within = {"completion_tokens_details": {"reasoning_tokens": 2}}
    assert usage_from_openai(told | within) == Usage(7, 3, reasoning_tokens=2)


def test_cached_and_written_are_parts_of_the_prompt() -> None:
    told = {"prompt_tokens": 10, "completion_tokens": 0}
    details = {"prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 6}}
    assert usage_from_openai(told | details) == Usage(10, 0, cached_tokens=4, cache_write_tokens=6)
    details["prompt_tokens_details"]["cache_write_tokens"] = 7  # more than is left of the prompt
    assert usage_from_openai(told | details) == Usage(10, 0, cached_tokens=4)


@pytest.mark.parametrize(
    "value", [-1, 1.0, 1.5, True, False, "3", None, [], MAX_TOKENS + 1, 10**30, float("inf")]
)
@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
def test_what_is_not_a_count_is_refused(field: str, value: object) -> None:
    good: dict[str, object] = {"prompt_tokens": 1, "completion_tokens": 1}
    assert usage_from_openai(good) is not None
    assert usage_from_openai({**good, field: value}) is None
    good.pop(field)
    assert usage_from_openai(good) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
FIELDS = st.fixed_dictionaries({"prompt_tokens": JSON, "completion_tokens": JSON})


@given(JSON | FIELDS)
def test_any_json_gives_a_believable_count_or_none(value: object) -> None:
    usage = usage_from_openai(value)
    if usage is not None:
        assert 0 <= usage.prompt_tokens <= MAX_TOKENS
        assert 0 <= usage.completion_tokens <= MAX_TOKENS
