"""How large an answer in one piece may become, before it is asked for.

One above MAX_REPLY_BYTES is not passed on, and the model server has worked all the same: a request
that can have no other is refused, before it costs anybody anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.core.catalog import Model
from node.errors import InvalidValue
from node.service.inference.metering import MAX_REPLY_BYTES

TOKEN_BYTES = 8
"""Of a token in JSON, on an average."""
LOGPROB_BYTES = 128
"""Of a token with its probability and its bytes, as chat has them."""
NUMBER_BYTES = 22
"""Of a number of a vector, with its comma."""
BASE64_NUMBER_BYTES = 6
USUAL_DIMENSIONS = 3072
"""Of vectors when a request does not say: the largest in wide use."""


def token_bytes(alternatives: object) -> int:
    """Of a generated token that comes with the probabilities of so many others; None: without any.

    Raises InvalidValue.
    """
    if alternatives is None or alternatives is False:
        return TOKEN_BYTES
    if not isinstance(alternatives, int) or alternatives < 0:
        raise InvalidValue("the number of logprobs must be an integer of at least 0")
    return TOKEN_BYTES + LOGPROB_BYTES * (int(alternatives) + 1)


def fit_chat(document: dict[str, Any], model: Model, choices: int) -> None:
    """Bound the output of a chat answer in one piece by its size, where the client has not.

    Raises InvalidValue when what the client asks for may be too large.
    """
    alternatives = document.get("top_logprobs")
    if alternatives is None and document.get("logprobs"):
        alternatives = 0
    room = MAX_REPLY_BYTES // (token_bytes(alternatives) * choices)
    wanted = [document.get(name) for name in ("max_tokens", "max_completion_tokens")]
    given = [value for value in wanted if type(value) is int and value > 0]
    if min([model.max_output_tokens, *given]) <= room:
        return
    if given or not room:
        raise InvalidValue(
            "n * max_tokens * (top_logprobs + 1) is too much for an answer in one piece:"
            f" max_tokens may be {room} here; ask for less, or for a stream",
            param="max_tokens",
        )
    document["max_tokens"] = room


def check_completion(document: Mapping[str, Any], tokens: int) -> None:
    """Raises InvalidValue when a text of so many tokens, all choices together, may be too large."""
    if tokens * token_bytes(document.get("logprobs")) > MAX_REPLY_BYTES:
        raise InvalidValue(
            "prompts * n * max_tokens * (logprobs + 1) is too much for an answer in one piece;"
            " ask for less, or for a stream",
            param="max_tokens",
        )


def check_vectors(document: Mapping[str, Any], inputs: int) -> None:
    """Raises InvalidValue when so many vectors may be too large."""
    dimensions = document.get("dimensions")
    if dimensions is None:
        dimensions = USUAL_DIMENSIONS
    if type(dimensions) is not int or dimensions < 1:
        raise InvalidValue("dimensions must be an integer of at least 1", param="dimensions")
    base64 = document.get("encoding_format") == "base64"
    vector_bytes = dimensions * (BASE64_NUMBER_BYTES if base64 else NUMBER_BYTES)
    if inputs * vector_bytes > MAX_REPLY_BYTES:
        raise InvalidValue(
            f"so many inputs of {dimensions} dimensions are too much for an answer:"
            f" {MAX_REPLY_BYTES // vector_bytes} fit; ask for fewer, or for base64",
            param="input",
        )
