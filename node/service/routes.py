"""Every endpoint of the node, for both carriages, in one table.

A new plain endpoint is a function ``(Request, params) -> Reply`` and a line here; a new paid one
is a ``prepare`` function (``node.service.inference.chat``) and a line here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping

from discovery.snapshot import DirectorySnapshot
from node.core.catalog import Catalog
from node.core.exchange import ReplyEvent, Request
from node.core.identity import NodeInfo
from node.service.dispatch import Reply, Route
from node.service.endpoints.catalogue import info_document, model_document, models_document
from node.service.endpoints.lightning import LightningEndpoints
from node.service.endpoints.market import market
from node.service.endpoints.provider_stream import Followed, ProviderStream
from node.service.endpoints.providers import Pages, etag, get_provider, list_providers
from node.service.endpoints.wallet import WalletEndpoints
from node.service.inference.audio import prepare_transcription, prepare_translation
from node.service.inference.call import Prepare
from node.service.inference.chat import prepare_chat
from node.service.inference.completions import prepare_completion
from node.service.inference.embeddings import prepare_embeddings
from node.service.inference.images import prepare_image
from node.service.inference.messages import prepare_messages
from node.service.inference.moderations import prepare_moderation
from node.service.inference.rerank import prepare_rerank
from node.service.inference.responses import prepare_responses
from node.service.inference.speech import prepare_speech
from node.service.openapi import openapi_document
from node.service.pipeline import Pipeline

PAID: tuple[tuple[str, str, Prepare, bool], ...] = (
    ("/v1/completions", "Text that goes on where a prompt ends", prepare_completion, True),
    ("/v1/embeddings", "Vectors of texts", prepare_embeddings, True),
    ("/v1/images/generations", "Images", prepare_image, True),
    ("/v1/audio/transcriptions", "A recording written down", prepare_transcription, True),
    ("/v1/audio/translations", "A recording written down in English", prepare_translation, False),
    ("/v1/audio/speech", "A text read aloud", prepare_speech, False),
    ("/v1/responses", "A model's response (OpenAI)", prepare_responses, False),
    ("/v1/messages", "A message (Anthropic)", prepare_messages, False),
    ("/v1/moderations", "Whether texts are harmful", prepare_moderation, False),
    ("/v1/rerank", "Documents in the order of their relevance", prepare_rerank, False),
)
"""Path, summary, how it is read, and whether it also answers without ``/v1``."""


def _has_tag(if_none_match: str, tag: str) -> bool:
    """Whether the client has this version; proxies weaken tags to ``W/"…"`` (RFC 9110)."""
    tags = {given.strip().removeprefix("W/") for given in if_none_match.split(",")}
    return tag in tags or "*" in tags


def routes(
    pipeline: Pipeline,
    wallet: WalletEndpoints,
    catalog: Catalog,
    info: Callable[[], NodeInfo],
    snapshot: Callable[[], DirectorySnapshot],
    lightning: LightningEndpoints,
    directory: Followed | None = None,
) -> list[Route]:
    """All routes.

    Args:
        info: what the node says about itself now.
        snapshot: the other nodes as known now.
        directory: where their changes can be followed.
    """
    pages = Pages()

    async def models(_request: Request, _params: Mapping[str, str]) -> Reply:
        return Reply(models_document(catalog))

    async def model(_request: Request, params: Mapping[str, str]) -> Reply:
        return Reply(model_document(catalog.get(params["id"])))

    async def node_info(_request: Request, _params: Mapping[str, str]) -> Reply:
        return Reply(info_document(info()))

    async def providers(request: Request, _params: Mapping[str, str]) -> Reply:
        now = snapshot()
        tag = etag(now, request.query)
        if _has_tag(request.headers.get("if-none-match", ""), tag):
            return Reply(None, status=304, headers={"etag": tag})
        page = pages.get(now, tag, lambda: list_providers(now, request.query, pages.item))
        return Reply(page, headers={"etag": tag})

    async def book(request: Request, params: Mapping[str, str]) -> Reply:
        now, model = snapshot(), params["model"]
        tag = etag(now, {**request.query, "/model": model})
        if _has_tag(request.headers.get("if-none-match", ""), tag):
            return Reply(None, status=304, headers={"etag": tag})
        page = pages.get(now, tag, lambda: market(now, model, request.query))
        return Reply(page, headers={"etag": tag})

    async def provider(_request: Request, params: Mapping[str, str]) -> Reply:
        return Reply(get_provider(snapshot(), params["name"]))

    def paid(prepare: Prepare) -> Callable[[Request], AsyncGenerator[ReplyEvent, None]]:
        return lambda request: pipeline.run(request, prepare)

    async def openapi(_request: Request, _params: Mapping[str, str]) -> Reply:
        return Reply(openapi_document(table, info()))

    table = [
        Route(
            "POST",
            "/v1/chat/completions",
            "Chat completion, streamed or whole",
            streaming=paid(prepare_chat),
            bare=True,
        ),
        *(
            Route("POST", path, summary, streaming=paid(prepare), bare=bare)
            for path, summary, prepare, bare in PAID
        ),
        Route("GET", "/v1/models", "Models for sale with prices", models, open=True),
        Route("GET", "/v1/models/{id:path}", "One model", model, open=True),
        Route("GET", "/v1/info", "Who this node is", node_info, open=True),
        Route(
            "POST", "/v1/wallet/create", "Open an account with a token", wallet.create, open=True
        ),
        Route("GET", "/v1/wallet/balance", "Balance in sat", wallet.balance),
        Route("POST", "/v1/wallet/topup", "Add a token to the account", wallet.topup),
        Route("POST", "/v1/wallet/withdraw", "Take money out as a token", wallet.withdraw),
        Route(
            "GET", "/v1/wallet/transactions", "What happened on the account", wallet.transactions
        ),
        Route(
            "GET",
            "/v1/wallet/change/{request_id}",
            "The change of a request paid with a token",
            wallet.change,
        ),
        Route(
            "GET",
            "/v1/balance/create",
            "Open an account (token in query)",
            wallet.create_balance,
            open=True,
        ),
        Route("POST", "/v1/balance/create", "Open an account", wallet.create_balance, open=True),
        Route("GET", "/v1/balance/info", "Balance in msat", wallet.balance_info),
        Route("POST", "/v1/balance/topup", "Add a token to the account", wallet.topup_balance),
        Route(
            "POST",
            "/v1/balance/refund",
            "Take everything out, or look up a request's change",
            wallet.refund,
        ),
        Route("POST", "/v1/balance/child-key", "Make child keys", wallet.create_child_keys),
        Route("DELETE", "/v1/balance/child-key", "Revoke a child key", wallet.revoke_child_key),
        Route(
            "POST",
            "/v1/balance/child-key/reset",
            "Let a child key's limit begin anew",
            wallet.reset_child_key,
        ),
        *(
            route
            for prefix in ("/v1/balance/lightning", "/lightning")
            for route in (
                Route(
                    "POST",
                    f"{prefix}/invoice",
                    "Fill an account: an invoice",
                    lightning.create,
                ),
                Route(
                    "GET",
                    f"{prefix}/invoice/{{secret}}/status",
                    "What became of an invoice",
                    lightning.status,
                    open=True,
                ),
            )
        ),
        Route("GET", "/v1/providers", "The other nodes of the network", providers, open=True),
        Route(
            "GET",
            "/v1/providers/stream",
            "What changes among the other nodes",
            streaming=ProviderStream(directory, pages.item).stream,
            open=True,
        ),
        Route(
            "GET", "/v1/market/{model:path}", "Who sells a model, and for how much", book, open=True
        ),
        Route(
            "GET",
            "/v1/providers/{name}",
            "One node by name, npub or public key",
            provider,
            open=True,
        ),
        Route("GET", "/openapi.json", "This interface as an OpenAPI document", openapi, open=True),
    ]
    return table
