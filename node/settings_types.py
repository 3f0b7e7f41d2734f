"""Value types of the settings: references to secrets, checked URLs, exact integers."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import structlog
from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, PlainSerializer
from pydantic_core import CoreSchema, core_schema

MAX_SECRET_BYTES = 16_384
MAX_RELAY_URL_CHARS = 2048
"""Longer ones are not connected to."""

_HOW = (
    'a secret may not stand here; write a reference to it: "file:/path" (mode 0600), '
    '"env:NAME" or "cred:NAME" (systemd LoadCredential)'
)
_DECIMAL = re.compile(r"\d{1,6}(\.\d{1,12})?")
_NAME = re.compile(r"[A-Za-z0-9_.@-]+")


class SettingsError(Exception):
    """The configuration cannot be used.

    Attributes:
        problems: one clear sentence for each problem, naming the key; never a secret's value.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where a secret is kept: ``env:NAME``, ``file:/path`` or ``cred:NAME``.

    Holds and shows the reference only; :meth:`resolve` reads the secret.
    """

    scheme: Literal["env", "file", "cred"]
    name: str

    @classmethod
    def parse(cls, value: object) -> Self:
        """From its text. Raises ValueError, saying how to reference, for a literal secret."""
        if isinstance(value, cls):
            return value
        scheme, colon, name = value.partition(":") if isinstance(value, str) else ("", "", "")
        match scheme:
            case "file" if name.startswith("/"):
                return cls("file", name)
            case "file" if colon:
                raise ValueError('a "file:" reference needs an absolute path')
            case "env" | "cred" if _NAME.fullmatch(name) and name not in {".", ".."}:
                return cls(scheme, name)
        raise ValueError(_HOW)

    def resolve(self) -> str:
        """The secret, without surrounding white space.

        Raises SettingsError when it is missing, empty or not text. Logs a warning when others
        than its owner may read a ``file:`` secret.
        """
        raw = os.environ.get(self.name, "") if self.scheme == "env" else self._read(self._path())
        if not (text := raw.strip()):
            raise SettingsError(f"the secret {self} is missing or empty")
        return text

    def version(self) -> object:
        """Another value when another file stands in its place, or it was written again; never
        raises."""
        try:
            info = None if self.scheme == "env" else self._path().stat()
        except (OSError, ValueError, SettingsError):
            return None
        return None if info is None else (info.st_ino, info.st_mtime_ns, info.st_ctime_ns)

    def _path(self) -> Path:
        if self.scheme == "file":
            return Path(self.name)
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise SettingsError(
                f"{self} needs $CREDENTIALS_DIRECTORY, which systemd sets for LoadCredential="
            )
        return Path(directory, self.name)

    def _read(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                info = os.fstat(file.fileno())
                raw = file.read(MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise SettingsError(f"{self} cannot be read: {error.strerror}") from None
        if len(raw) > MAX_SECRET_BYTES:
            raise SettingsError(f"{self} is larger than {MAX_SECRET_BYTES} bytes")
        if self.scheme == "file" and stat.S_IMODE(info.st_mode) & 0o077:
            structlog.get_logger().warning(
                "secret_file_open_to_others",
                path=str(path),
                mode=oct(stat.S_IMODE(info.st_mode)),
                advice=f"chmod 600 {path}",
            )
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise SettingsError(f"{self} is not UTF-8 text") from None

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}"

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema()
        )


def _exact(value: object) -> object:
    if isinstance(value, bool | float):
        raise ValueError("must be a whole number")
    return value


def _public_url(value: object) -> str:
    url = _split(value, ("http", "https")).rstrip("/")
    parts = urlsplit(url)
    if parts.path.endswith("/v1"):
        raise ValueError("must be given without /v1: clients append it")
    if parts.scheme == "http" and not _is_local(parts.hostname or ""):
        raise ValueError("must be https (http is taken for loopback addresses only)")
    return url


def _onion_url(value: object) -> str:
    url = _split(value, ("http", "https")).rstrip("/")
    if not (urlsplit(url).hostname or "").endswith(".onion"):
        raise ValueError("must be an address ending in .onion")
    return url


def _relay_url(value: object) -> str:
    url = _split(value, ("ws", "wss")).rstrip("/")
    if len(url) > MAX_RELAY_URL_CHARS:
        raise ValueError(f"must have at most {MAX_RELAY_URL_CHARS} characters")
    return url


def _socks_url(value: object) -> str:
    url = _split(value, ("socks5",)).rstrip("/")
    parts = urlsplit(url)
    if parts.port is None or parts.path:
        raise ValueError("must be socks5://host:port")
    return url


def _public_key(value: object) -> str:
    # Imported here: the command line must not load the curve to print its help.
    from discovery.errors import InvalidKey
    from discovery.nostr.keys import parse_pubkey

    try:
        return parse_pubkey(value if isinstance(value, str) else "")
    except InvalidKey:
        raise ValueError("must be a public key, npub or 64 hex digits") from None


def _base_url(value: object) -> str:
    return _split(value, ("http", "https")).rstrip("/")


def _web_url(value: object) -> str:
    return _split(value, ("http", "https"))


def _mint_url(value: object) -> str:
    # Imported here: the command line must not load the ecash code to print its help.
    from node.ecash.token import normalize_mint_url

    return normalize_mint_url(_split(value, ("http", "https")))


def normal_mint_url(text: str) -> str:
    """The form in which URLs of mints are compared; the text itself when it is none."""
    try:
        return _mint_url(text)
    except ValueError:
        return text


def _split(value: object, schemes: tuple[str, ...]) -> str:
    """``value`` as a URL of one of ``schemes`` without user, query and fragment."""
    allowed = " or ".join(f"{scheme}://" for scheme in schemes)
    if not isinstance(value, str):
        raise ValueError(f"must be a URL beginning with {allowed}")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in schemes or not host:
        raise ValueError(f"must be a URL beginning with {allowed}")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or password")
    if parts.query or parts.fragment or not value.isprintable() or " " in value:
        raise ValueError("must hold no query, fragment or white space")
    return value


def is_loopback(url: str) -> bool:
    """Whether a checked URL leads to this machine by its address or name."""
    return _is_local(urlsplit(url).hostname or "")


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _network(value: object) -> object:
    try:
        return ipaddress.ip_network(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("must be an address or a network such as 10.0.0.0/8") from None


def _words(value: object) -> object:
    # So that several settings can be shown on one line.
    return value if not isinstance(value, str) else " ".join(value.split())


def _decimal(value: object) -> object:
    text = str(value) if isinstance(value, int | Decimal) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text):
        raise ValueError('must be a decimal number in quotes, such as "0.60"')
    return Decimal(text)


Exact = Annotated[Decimal, BeforeValidator(_decimal), PlainSerializer(str, when_used="json")]
"""A decimal number without exponent; text in TOML, where numbers with a point are floats."""
# JSON has no larger ones that every program reads, and SQLite none above 2**63.
_Int = Annotated[int, Field(gt=-(2**53), lt=2**53)]
Whole = Annotated[_Int, BeforeValidator(_exact)]
Count = Annotated[_Int, BeforeValidator(_exact), Field(ge=1)]
AmountMsat = Annotated[int, BeforeValidator(_exact), Field(ge=0, lt=2**53)]
SizeBytes = Annotated[_Int, BeforeValidator(_exact), Field(ge=1024)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, le=31_536_000)]
Line = Annotated[str, BeforeValidator(_words), Field(max_length=1000)]
PublicUrl = Annotated[str, BeforeValidator(_public_url)]
OnionUrl = Annotated[str, BeforeValidator(_onion_url)]
RelayUrl = Annotated[str, BeforeValidator(_relay_url)]
SocksUrl = Annotated[str, BeforeValidator(_socks_url)]
PublicKey = Annotated[str, BeforeValidator(_public_key)]
"""Of Nostr, as hex."""
BaseUrl = Annotated[str, BeforeValidator(_base_url)]
WebUrl = Annotated[str, BeforeValidator(_web_url)]
MintUrl = Annotated[str, BeforeValidator(_mint_url)]
NetworkRange = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network), PlainSerializer(str)
]
FilePath = Annotated[Path, PlainSerializer(str)]
