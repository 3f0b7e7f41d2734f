"""``POST /v1/rerank``, in the shape that Cohere, Jina and vLLM share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from node.core.catalog import Catalog
from node.core.exchange import Request
from node.core.usage import Usage, usage_from_input
from node.errors import InvalidValue
from node.service.inference.bodies import DocumentMeter
from node.service.inference.call import JsonPayload, PreparedCall, model_for
from node.service.inference.fields import optional_int
from node.service.inference.inputs import Measured, measure_input, other_fields
from node.service.json_body import json_object

MAX_DOCUMENTS = 2048
CHUNKS = 3
"""A long document is read in pieces, each with the query, which may fill half of the context: the
pieces together have at most twice its tokens, and room for their markers."""

_NOT_INPUT = frozenset({
    "model", "query", "documents", "top_n", "top_k", "return_documents", "max_chunks_per_doc",
    "max_tokens_per_doc", "rank_fields",
})  # fmt: skip


def prepare_rerank(request: Request, catalog: Catalog) -> PreparedCall:
    """Check and bound a rerank request: the query is read once with every document.

    Raises what ``prepare_chat`` raises.
    """
    document = json_object(request)
    model = model_for(catalog, document.get("model"), "rerank")
    if "query" not in document or isinstance(document["query"], list):
        raise InvalidValue("query must be a text", param="query")
    context = model.context_length
    query = measure_input(document["query"], "query").within(context)
    documents = [
        _measure_document(item, f"documents[{index}]", context)
        for index, item in enumerate(_documents(document))
    ]
    optional_int(document, "top_n")
    beside = query.bound + other_fields(document, _NOT_INPUT)
    return PreparedCall(
        model=model,
        endpoint="rerank",
        path="/rerank",
        payload=JsonPayload(document, model),
        stream=False,
        most=Usage(sum(CHUNKS * item.bound + beside for item in documents)),
        typical=Usage(sum(item.typical + query.typical for item in documents), source="estimated"),
        make_meter=partial(DocumentMeter, read=_read, names=("prompt_tokens", None)),
    )


def _documents(document: dict[str, Any]) -> list[Any]:
    documents = document.get("documents")
    if not isinstance(documents, list) or not 1 <= len(documents) <= MAX_DOCUMENTS:
        raise InvalidValue(
            f"documents must be a list of 1 to {MAX_DOCUMENTS} texts", param="documents"
        )
    return documents


def _measure_document(item: object, where: str, context: int) -> Measured:
    if isinstance(item, dict):
        # fields of Cohere's documents are joined; an image or what comes next is not text
        texts = [value for value in item.values() if isinstance(value, str)]
        if len(texts) == len(item) and not item.keys() & {"image", "image_url", "url"}:
            return measure_input("\n".join(f"{name}: {text}" for name, text in item.items()), where)
    elif isinstance(item, list):
        raise InvalidValue("a document must be a text or an object", param=where)
    measured = measure_input(item, where)
    return measured.within(context) if measured.unseen else measured


def _read(call: PreparedCall, document: Mapping[str, Any]) -> Usage:
    """Jina and vLLM have ``usage``, Cohere ``meta.tokens``."""
    meta = document.get("meta")
    tokens = meta.get("tokens") if isinstance(meta, Mapping) else None
    return usage_from_input(document.get("usage")) or usage_from_input(tokens) or call.typical
