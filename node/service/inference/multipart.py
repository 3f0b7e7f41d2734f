"""``multipart/form-data``: a form with one file, read within bounds and written anew.

The upstream gets a form of our own making with another boundary: however the client's was put
together, there is one way to read ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import BodyPartReader, MultipartReader, StreamReader
from aiohttp.base_protocol import BaseProtocol

from node.core.catalog import Model
from node.core.exchange import Request
from node.errors import InvalidValue, NodeError, RequestTooLarge, UnsupportedMedia
from node.service.inference.call import sold
from node.service.inference.checks import check_fixed, form_value

MAX_PARTS = 64
MAX_FIELD_BYTES = 64 << 10
"""Of one field that is not the file."""
MAX_PART_HEADERS = 16
MAX_HEADER_BYTES = 8 << 10
MAX_NAME_CHARS = 100
MAX_FILE_NAME_CHARS = 100
_PIECE_BYTES = 256 << 10
"""What is looked at at once; other requests have their turn in between."""

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]+")
_UNSAFE = re.compile(r"[^A-Za-z0-9._ ()-]+")
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,60}/[a-z0-9!#$&^_.+-]{1,60}(;\s*codecs=[a-z0-9.]+)?")
_PLAIN_ENCODINGS = frozenset({"", "7bit", "8bit", "binary"})
_OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file of a form; name and type cleaned of what they need not have."""

    part: str
    """Name of its field."""
    name: str
    content_type: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Form:
    """A form: fields in their order, repeated ones repeated, and its only file."""

    fields: tuple[tuple[str, str], ...] = field(repr=False)
    file: FormFile

    def get(self, name: str) -> str | None:
        """The only value of a field; None when absent. Raises InvalidValue for more than one."""
        values = [value for given, value in self.fields if given == name]
        if len(values) > 1:
            raise InvalidValue(f"{name} may be given once", param=name)
        return values[0] if values else None


async def read_form(request: Request, file_field: str = "file") -> Form:
    """The form in the body.

    Raises:
        UnsupportedMedia: the content type is another, or has no usable boundary.
        InvalidValue: not a form, no file or more than one; with ``param`` where one part is wrong.
        RequestTooLarge: more than MAX_PARTS, or a field above MAX_FIELD_BYTES.
    """
    content_type = _check_content_type(request.headers.get("content-type", ""))
    try:
        reader = MultipartReader(
            {"Content-Type": content_type},
            _stream(request.body),
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_PART_HEADERS,
        )
        return await _read_parts(reader, file_field)
    except NodeError:
        raise
    except Exception:  # the library has no error of its own for what is not a form
        raise InvalidValue("the body is not a multipart form") from None


async def _read_parts(reader: MultipartReader, file_field: str) -> Form:
    fields: list[tuple[str, str]] = []
    file: FormFile | None = None
    count = 0
    while (part := await reader.next()) is not None:
        count += 1
        if count > MAX_PARTS:
            raise RequestTooLarge(f"a form may have {MAX_PARTS} parts")
        if not isinstance(part, BodyPartReader):
            raise InvalidValue("a form inside of a form is not taken")
        name = part.name or ""
        if not _FIELD_NAME.fullmatch(name) or len(name) > MAX_NAME_CHARS:
            raise InvalidValue("every part of a form must have a name")
        encoding = part.headers.get("Content-Transfer-Encoding", "").strip().lower()
        if encoding not in _PLAIN_ENCODINGS:
            raise InvalidValue("a part must be sent as it is, not encoded", param=name)
        if name == file_field:
            if file is not None:
                raise InvalidValue("one file at a time", param=name)
            file = FormFile(
                name,
                clean_file_name(part.filename),
                clean_media_type(part.headers.get("Content-Type", "")),
                await _read_file(part),
            )
        else:
            fields.append((name, await _read_field(part, name)))
    if file is None:
        raise InvalidValue(f"the form has no {file_field}", param=file_field)
    if not file.data:
        raise InvalidValue("the file is empty", param=file_field)
    return Form(tuple(fields), file)


async def _read_file(part: BodyPartReader) -> bytes:
    pieces = []
    while not part.at_eof():
        pieces.append(await part.read_chunk(_PIECE_BYTES))
        await asyncio.sleep(0)
    return b"".join(pieces)


async def _read_field(part: BodyPartReader, name: str) -> str:
    if part.filename is not None:
        raise InvalidValue("this field does not take a file", param=name)
    value = bytearray()
    while not part.at_eof():
        value += await part.read_chunk(_PIECE_BYTES)
        if len(value) > MAX_FIELD_BYTES:
            raise RequestTooLarge(f"a field may have {MAX_FIELD_BYTES} bytes", param=name)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidValue("a field must be UTF-8", param=name) from None


def form_digest(content_type: str, body: bytes) -> str | None:
    """A digest of the parts of a form, in hexadecimal: clients choose another boundary each time.

    None for what is not a form.
    """
    try:
        checked = _check_content_type(content_type)
    except UnsupportedMedia:
        return None
    digest = hashlib.sha256()
    for part in body.split(b"--" + checked.partition('"')[2][:-1].encode()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _check_content_type(value: str) -> str:
    """The content type in one spelling; its boundary is checked."""
    media_type, *parameters = value.split(";")
    if media_type.strip().lower() != "multipart/form-data":
        raise UnsupportedMedia(
            "the body must be a form with a file: Content-Type: multipart/form-data; boundary=…"
            " (curl -F does it)",
            param="content-type",
        )
    for parameter in parameters:
        name, _, boundary = parameter.partition("=")
        boundary = boundary.strip().strip('"')
        if name.strip().lower() == "boundary" and _BOUNDARY.fullmatch(boundary):
            return f'multipart/form-data; boundary="{boundary}"'
    raise UnsupportedMedia("the form's content type has no boundary", param="content-type")


def _stream(body: bytes) -> StreamReader:
    """``body`` as aiohttp's reader wants it: in pieces, since it copies what it puts back."""
    loop = asyncio.get_running_loop()
    stream = StreamReader(BaseProtocol(loop), len(body) + 1, loop=loop)
    for start in range(0, len(body), _PIECE_BYTES):
        stream.feed_data(body[start : start + _PIECE_BYTES])
    stream.feed_eof()
    return stream


def clean_file_name(name: str | None) -> str:
    """The last part of a path, of harmless characters; its ending is what servers go by."""
    base = re.split(r"[/\\]", name or "")[-1]
    base = _UNSAFE.sub("_", base).strip(" .")
    return base[-MAX_FILE_NAME_CHARS:] or "file"


def clean_media_type(value: str) -> str:
    """A media type as it is when it is one, else the one that says nothing."""
    value = value.strip().lower()
    return value if _MEDIA_TYPE.fullmatch(value) else _OCTETS


class FormPayload:
    """A form for the upstream; implements ports.Payload.

    Args:
        replaced: fields that are ours to say, in the place of the client's.

    Raises what ``call.sold`` and ``checks.check_fixed`` raise.
    """

    def __init__(self, form: Form, model: Model, replaced: Mapping[str, str] | None = None) -> None:
        self._file = form.file
        fixed = {name: form_value(value) for name, value in model.fixed.items()}
        self._replaced = fixed | dict(replaced or {})
        kept: set[str] = set()
        for name, value in form.fields:  # one by one, for a field may be given more than once
            check_fixed({name: value}, model)
            kept |= sold({name: value}).keys()
        self._fields = tuple(
            (name, value)
            for name, value in form.fields
            if name in kept and name != "model" and name not in self._replaced
        )
        self._boundary = secrets.token_hex(16)

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self._boundary}"

    def encode(self, upstream_id: str) -> bytes:
        """The body for an upstream that calls the model so. Not kept: a file is large."""
        pieces = [
            self._part(name, value.encode())
            for name, value in (("model", upstream_id), *self._replaced.items(), *self._fields)
        ]
        file = self._file
        head = (
            f'--{self._boundary}\r\nContent-Disposition: form-data; name="{file.part}"; '
            f'filename="{file.name}"\r\nContent-Type: {file.content_type}\r\n\r\n'
        )
        end = f"\r\n--{self._boundary}--\r\n"
        return b"".join([*pieces, head.encode(), file.data, end.encode()])

    def _part(self, name: str, value: bytes) -> bytes:
        head = f'--{self._boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        return head.encode() + value + b"\r\n"
