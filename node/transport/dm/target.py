"""Which URLs a request over Nostr may name: paths under ``/v1/`` and relays for the reply."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

from discovery.errors import RelayError
from discovery.nostr.relay import normalize_url
from node.errors import InvalidValue, NotFound

MAX_URL_CHARS = 4096
MAX_QUERY_FIELDS = 32
MAX_RELAYS = 5
MAX_RELAY_URL_CHARS = 256

_RAW = re.compile(r"/v1/[!$&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~%|]*")
_FORBIDDEN = frozenset("%\\?#;")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def parse_target(url: str) -> tuple[str, dict[str, str]]:
    """Split a request's ``url`` into decoded path and query.

    Only a path under ``/v1/`` passes: no scheme, host or fragment, no dot or empty segments, and
    nothing that would become one of those when decoded once more. A query field given twice
    keeps its last value.

    Raises:
        NotFound: anything that is not such a path.
        InvalidValue: a query that cannot be read.
    """
    if len(url) > MAX_URL_CHARS or not _RAW.fullmatch(url) or _BAD_ESCAPE.search(url):
        raise NotFound
    raw_path, _, raw_query = url.partition("?")
    try:
        path = unquote(raw_path, errors="strict")
    except UnicodeDecodeError:
        raise NotFound from None
    # A second '%' would mean one thing here and another to whoever decodes again.
    # ';' and '\' end or separate segments for some servers.
    if not _FORBIDDEN.isdisjoint(path) or not path.isprintable():
        raise NotFound
    segments = path.split("/")[2:]
    if any(segment in ("", ".", "..") for segment in segments):
        raise NotFound
    return path, _parse_query(raw_query)


def _parse_query(raw: str) -> dict[str, str]:
    try:
        fields = parse_qsl(
            raw, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
        )
    except ValueError:
        raise InvalidValue("the query string is not valid", param="url") from None
    return dict(fields)


def relay_url(url: object) -> str:
    """A relay's URL in its one spelling. Raises InvalidValue unless ws:// or wss://.

    Whether its host may be connected to is for the relay pool's guard to decide.
    """
    if not isinstance(url, str) or len(url) > MAX_RELAY_URL_CHARS:
        raise InvalidValue("this is not the URL of a relay", param="relays")
    try:
        return normalize_url(url)
    except RelayError:
        raise InvalidValue("this is not the URL of a relay", param="relays") from None
