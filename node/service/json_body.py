"""A request's body as a JSON object: declared as JSON, bounded before it is parsed."""

from __future__ import annotations

import re
from typing import Any

import orjson

from node.core.exchange import Request
from node.errors import InvalidJson, RequestTooLarge, UnsupportedMedia

MAX_STRUCTURE = 100_000
"""Most ``[``, ``{`` and ``,`` outside of strings. Each can become an object in memory and costs up
to a microsecond to look at; the event loop waits for all of them. A conversation needs about ten
for a message."""
_JSON_TYPE = re.compile(r"application/(?:[a-z0-9!#$&^_.+-]+\+)?json")
_STRUCTURE = b"[{,"


def json_object(request: Request, *, max_structure: int | None = None) -> dict[str, Any]:
    """The object that the body holds.

    Args:
        max_structure: another bound in the place of MAX_STRUCTURE, for what is cheap to look at.

    Raises:
        UnsupportedMedia: the content type is neither absent nor JSON in UTF-8.
        RequestTooLarge: more structural characters than that.
        InvalidJson: not JSON, or not an object.
    """
    _check_content_type(request.headers.get("content-type", ""))
    if _too_structured(request.body, max_structure or MAX_STRUCTURE):
        raise RequestTooLarge("the request body has too many lists, objects and items")
    try:
        document = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        raise InvalidJson from None
    if not isinstance(document, dict):
        raise InvalidJson("the request body must be a JSON object")
    return document


def _check_content_type(value: str) -> None:
    media_type, *parameters = (part.strip().lower() for part in value.split(";"))
    if media_type and not _JSON_TYPE.fullmatch(media_type):
        raise UnsupportedMedia(
            "the body must be JSON: send the header Content-Type: application/json"
            " (curl -d sends another one unless told: -H 'Content-Type: application/json')",
            param="content-type",
        )
    for parameter in parameters:
        name, _, charset = parameter.partition("=")
        if name.strip() == "charset" and charset.strip().strip('"') not in ("utf-8", "utf8"):
            raise UnsupportedMedia("the body must be JSON in UTF-8", param="content-type")


def _too_structured(body: bytes, most: int) -> bool:
    """Whether the body has too much structure. Only passes over the bytes at C speed."""
    if _count_structure(body) <= most:
        return False
    # A prompt of code or of tables is full of these characters, inside of its strings.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 4 * (most + 1):  # a key and a value for each item at most
        return True
    return _count_structure(b"".join(plain.split(b'"')[::2])) > most


def _count_structure(text: bytes) -> int:
    return len(text) - len(text.translate(None, _STRUCTURE))
