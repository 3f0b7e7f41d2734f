"""A new node's configuration: what the operator answered, checked live and written as TOML."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from pydantic import BaseModel

from discovery.nostr.keys import Keys
from node.core.plans import Listed
from node.ops.probes import (
    Finding,
    ask_mint,
    ask_payee,
    ask_relay,
    ask_upstream,
    missing_model,
    passed,
    resolves,
)
from node.settings import load
from node.settings_admin import AdminSettings
from node.settings_market import ModelSettings, UpstreamSettings
from node.settings_sections import (
    HttpSettings,
    MintSettings,
    NodeSettings,
    NostrSettings,
    PayoutSettings,
)
from node.settings_types import SettingsError
from node.upstream.dialects import DialectName
from node.upstream.server import UpstreamServer

UPSTREAM = "main"
"""Name of the [[upstreams]] entry."""
DEFAULT_CONTEXT = 8192
DEFAULT_MAX_OUTPUT = 2048
PRICED: frozenset[DialectName] = frozenset({"openrouter", "routstr"})
"""Dialects whose lists have prices."""
_PRICE = re.compile(r"(\d{1,9}(?:\.\d{1,12})?)(sat|msat|usd)?", re.IGNORECASE)
_MSAT = {"sat": 1000, "msat": 1}


class SetupError(ValueError):
    """An answer cannot be used. The text is one line that says why, and what would do."""


@dataclass(frozen=True, slots=True)
class Sale:
    """A model to sell. Prices are texts as the settings want them, by their keys."""

    id: str
    prices: dict[str, int | str | bool] = field(default_factory=dict)
    """Empty: what the upstream lists, and the markup."""


@dataclass(frozen=True, slots=True)
class Answers:
    """All that ``nodestr init`` asks for."""

    upstream: str
    dialect: DialectName
    key_env: str
    models: tuple[Sale, ...]
    """None: all that the upstream lists with a price."""
    markup_percent: str
    mints: tuple[str, ...]
    relays: tuple[str, ...]
    public_url: str
    lightning_address: str
    data_dir: Path
    port: int


def parse_sale(text: str) -> Sale:
    """``id``, ``id,free`` or ``id,input,output``: prices of a million tokens.

    A price is a number of sat, or ends in msat, sat or usd. Raises SetupError.
    """
    name, *rest = (part.strip() for part in text.split(","))
    if not name:
        raise SetupError("a model needs an id: --model ID[,IN,OUT]")
    if not rest:
        return Sale(name)
    if rest == ["free"]:
        return Sale(name, {"free": True})
    if len(rest) != 2:
        raise SetupError(f"--model {text}: write ID, ID,free or ID,IN,OUT (prices per Mtok)")
    prices: dict[str, int | str | bool] = {}
    for kind, price in zip(("input_per_mtok", "output_per_mtok"), rest, strict=True):
        key, value = _price(price)
        prices[f"{kind}_{key}"] = value
    return Sale(name, prices)


def _price(text: str) -> tuple[str, int | str]:
    """(msat or usd, amount)"""
    match = _PRICE.fullmatch(text)
    if match is None:
        raise SetupError(f'"{text}" is no price: write 400 (sat), 400000msat or 0.60usd')
    number, unit = match[1], (match[2] or "sat").lower()
    if unit == "usd":
        return "usd", number
    msat = Decimal(number) * _MSAT[unit]
    if msat != int(msat):
        raise SetupError(f'"{text}" is finer than a millisatoshi')
    return "msat", int(msat)


def guess_dialect(url: str) -> DialectName:
    """What kind of server listens at ``url``, by its name and port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host.endswith("openrouter.ai"):
        return "openrouter"
    if host.endswith("anthropic.com"):
        return "anthropic"
    if host.endswith((".openai.azure.com", ".services.ai.azure.com")):
        return "azure"
    return "ollama" if parts.port == 11434 else "openai"


async def list_upstream(
    url: str, dialect: DialectName, key_env: str, timeout_s: float
) -> tuple[Finding, list[Listed]]:
    """Ask the model server what it has."""
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if key_env and not key:
        return (
            Finding(
                "upstream",
                "fail",
                f"the environment variable {key_env} is not set",
                f"export {key_env}=… here, and in the environment of the node",
                UPSTREAM,
            ),
            [],
        )
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        server = UpstreamServer(UPSTREAM, session, url, api_key=key or None, dialect=dialect)
        return await ask_upstream(server, timeout_s)


async def check_answers(answers: Answers, keys: Keys, timeout_s: float) -> list[Finding]:
    """Ask everybody who was named. ``keys`` answers relays that want to know who asks."""
    private = os.environ.get("NODESTR_DISCOVERY__ALLOW_PRIVATE_ADDRESSES", "").lower() == "true"
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        questions = [
            *(ask_mint(session, url, ("sat",), timeout_s) for url in answers.mints),
            *(ask_relay(url, keys, timeout_s) for url in answers.relays),
        ]
        if answers.public_url:
            questions.append(resolves(answers.public_url, timeout_s))
        if answers.lightning_address:
            questions.append(
                ask_payee(answers.lightning_address, allow_private=private, timeout_s=timeout_s)
            )
        (finding, listed), others = await asyncio.gather(
            list_upstream(answers.upstream, answers.dialect, answers.key_env, timeout_s),
            asyncio.gather(*questions),
        )
        server = UpstreamServer(UPSTREAM, session, answers.upstream, dialect=answers.dialect)
        missing = [missing_model(server, sale.id, listed) for sale in answers.models]
    return [
        finding,
        *(found for found in missing if found is not None),
        *others,
        check_port(answers.port),
    ]


def check_port(port: int) -> Finding:
    """Whether the node will be able to listen."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
    except OSError as error:
        return Finding(
            "http",
            "fail",
            f"port {port} cannot be listened on: {error.strerror}",
            "choose another one with --port",
        )
    return passed("http", f"port {port} is free")


def make_key(path: Path) -> tuple[Keys, bool]:
    """The node's key in ``path``, made there (mode 0600) if there is none; whether it was made.

    Raises SetupError when there is a file that holds none, OSError.
    """
    from discovery.errors import InvalidKey

    if path.exists():
        try:
            return Keys.parse(path.read_text().strip()), False
        except (InvalidKey, UnicodeDecodeError):
            raise SetupError(f"{path} exists and holds no Nostr key: move it away") from None
    keys = Keys.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(keys.nsec() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return keys, True


def write_config(out: Path, text: str) -> None:
    """Put ``text`` at ``out`` once it loads as settings; never over a file.

    It holds no secret, and the user of the service has to read it: mode 0644.

    Raises SettingsError when it does not, FileExistsError, OSError.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            load(partial).catalog()
        except SettingsError as error:
            shown = (problem.replace(str(partial), str(out)) for problem in error.problems)
            raise SettingsError(*shown) from None
        os.link(partial, out)
    finally:
        partial.unlink()


def render(
    answers: Answers, key_file: Path, listed: Sequence[Listed], admin_hash: Path | None
) -> str:
    """The configuration, every key with what it is.

    Args:
        admin_hash: where the hash of the operator's password is; None: no pages for him.
    """
    sizes = {model.id: model for model in listed}
    upstream: dict[str, object] = {"name": UPSTREAM, "base_url": answers.upstream}
    if answers.dialect != "openai":
        upstream["dialect"] = answers.dialect
    if answers.key_env:
        upstream["api_key"] = f"env:{answers.key_env}"
    if answers.markup_percent != "0":
        upstream["markup_percent"] = answers.markup_percent
    if not answers.models:
        upstream["discover"] = True
    http: dict[str, object] = {"host": "127.0.0.1", "port": answers.port}
    if answers.public_url:
        http["public_urls"] = [answers.public_url]
    parts = [
        "# nodestr: made by `nodestr init`. config/node.example.toml has every key there is.\n"
        "# After a change: nodestr check-config, then restart the node (or reload it).\n",
        *_table(
            "[node]",
            NodeSettings,
            {"secret_key": f"file:{key_file}", "data_dir": str(answers.data_dir)},
        ),
        *_table("[http]", HttpSettings, http),
        *_table("[nostr]", NostrSettings, {"relays": list(answers.relays)}),
        *(
            line
            for url in answers.mints
            for line in _table("[[mints]]", MintSettings, {"url": url})
        ),
        *_table("[[upstreams]]", UpstreamSettings, upstream),
        *(line for sale in answers.models for line in _model(sale, sizes.get(sale.id))),
    ]
    if answers.lightning_address:
        parts += _table("[payout]", PayoutSettings, {"address": answers.lightning_address})
    admin = {"password_hash": f"file:{admin_hash}"} if admin_hash else {"enabled": False}
    parts += _table("[admin]", AdminSettings, dict(admin))
    return "\n".join(parts)


def _model(sale: Sale, listed: Listed | None) -> Iterator[str]:
    context = listed.context_length if listed is not None else 0
    output = listed.max_output_tokens if listed is not None else 0
    values: dict[str, object] = {
        "id": sale.id,
        "upstream": UPSTREAM,
        **sale.prices,
        "context_length": context or DEFAULT_CONTEXT,
        "max_output_tokens": min(output or DEFAULT_MAX_OUTPUT, context or DEFAULT_CONTEXT),
    }
    yield from _table("[[models]]", ModelSettings, values)
    if not context:
        yield "# The server does not say how long its context is: check the last two.\n"


def _table(header: str, section: type[BaseModel], values: dict[str, object]) -> Iterator[str]:
    yield header
    for key, value in values.items():
        description = " ".join((section.model_fields[key].description or "").split())
        yield f"# {description}"
        # JSON writes texts, numbers and lists of them as TOML does
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    yield ""
