"""A form reaches the upstream whole, with our model and nothing unclean; noise is refused."""

from __future__ import annotations

import email
import email.policy
from dataclasses import replace
from email.message import EmailMessage
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.core.catalog import Backend, Model
from node.core.exchange import Request
from node.core.pricing import Price
from node.errors import InvalidValue, NodeError, RequestTooLarge, UnsupportedMedia
from node.service.inference import multipart
from node.service.inference.multipart import (
    Form,
    FormPayload,
    clean_file_name,
    form_digest,
    read_form,
)
from node.service.pipeline import _digest

NAMES = st.text("abcdefgh_[]", min_size=1, max_size=12).filter(
    lambda name: name not in ("file", "model", "_charset_")
)
MODEL = Model("m", (Backend("u", Price(), "m"),), 4_000, 500)
KIND = "multipart/form-data; boundary=b"


def request(body: bytes, content_type: str = KIND) -> Request:
    return Request("r", "POST", "/v1/audio/transcriptions", {"content-type": content_type}, body)


def sent(fields: dict[str, Any], file: tuple[Any, ...]) -> Request:
    """A form as a client library writes it."""
    made = httpx.Request("POST", "http://x", data=fields, files={"file": file})
    return request(made.read(), made.headers["content-type"])


def parsed(payload: FormPayload, model: str = "m") -> list[tuple[str, str | None, str, bytes]]:
    """(name, file name, type, bytes) of each part, read by a parser that is not ours."""
    head = f"Content-Type: {payload.content_type}\r\n\r\n".encode()
    message = email.message_from_bytes(head + payload.encode(model), policy=email.policy.HTTP)
    parts = []
    for part in message.iter_parts():
        assert isinstance(part, EmailMessage)
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        parts.append((str(name), part.get_filename(), part.get_content_type(), data))
    return parts


@given(
    st.dictionaries(NAMES, st.text(max_size=40) | st.lists(st.text(max_size=9), max_size=3)),
    st.binary(min_size=1, max_size=2000),
    st.integers(1, 700),
)
async def test_every_field_and_every_byte_arrives(
    fields: dict[str, Any], data: bytes, piece_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multipart, "_PIECE_BYTES", piece_bytes + 100)  # above any boundary
        form = await read_form(sent({"model": "theirs", **fields}, ("a.ogg", data, "audio/ogg")))
    pairs = [
        (name, value)
        for name, given in fields.items()
        for value in (given if isinstance(given, list) else [given])
    ]
    assert sorted(form.fields) == sorted([("model", "theirs"), *pairs])
    assert (form.file.name, form.file.content_type, form.file.data) == ("a.ogg", "audio/ogg", data)
    payload = FormPayload(form, MODEL)
    body = payload.encode("vendor/ours")
    assert body.count(b'name="model"') == 1
    assert b"vendor/ours" in body
    assert b"theirs" not in body.replace(data, b"")
    again = await read_form(request(body, payload.content_type))
    assert sorted(again.fields) == sorted([("model", "vendor/ours"), *pairs])
    assert again.file == form.file


async def test_another_parser_reads_the_same() -> None:
    data = b"\r\n--\x00\xff\r\n--b--\r\nend"
    form = await read_form(sent({"model": "x", "language": "de"}, ("t.wav", data, "audio/wav")))
    assert parsed(FormPayload(form, MODEL, {"stream": "true"})) == [
        ("model", None, "text/plain", b"m"),
        ("stream", None, "text/plain", b"true"),
        ("language", None, "text/plain", b"de"),
        ("file", "t.wav", "audio/wav", data),
    ]


@given(st.binary(max_size=300))
@example(b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx")
@example(b"--b\r\nContent-Type: multipart/mixed\r\n\r\nx\r\n--b--")
@example(b"--b\r\n\r\n\r\n--b--\r\n")
@example(b"--b--\r\n")
async def test_noise_is_refused_and_nothing_else_is_raised(noise: bytes) -> None:
    for body in (noise, b"--b\r\n" + noise, b"--b\r\n\r\n" + noise + b"\r\n--b--\r\n"):
        with pytest.raises(NodeError) as refused:
            await read_form(request(body))
        assert 400 <= refused.value.status < 500


@given(st.data())
async def test_a_damaged_form_is_refused_or_read(data: st.DataObject) -> None:
    whole = sent({"model": "m", "n": "1"}, ("a.wav", b"RIFF", "audio/wav"))
    at = data.draw(st.integers(0, len(whole.body)))
    length = data.draw(st.integers(0, 20))
    body = whole.body[:at] + data.draw(st.binary(max_size=20)) + whole.body[at + length :]
    refused: NodeError | None = None
    try:
        form = await read_form(request(body, whole.headers["content-type"]))
    except NodeError as error:
        refused = error
    assert form.file.data if refused is None else 400 <= refused.status < 500


def part(name: str, data: bytes = b"x", extra: str = "") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + data + b"\r\n"


FILE = part("file", extra='; filename="a.wav"')


@pytest.mark.parametrize(
    ("body", "error", "param"),
    [
        (part("model"), InvalidValue, "file"),
        (FILE + FILE, InvalidValue, "file"),
        (part("file", b""), InvalidValue, "file"),
        (FILE + part("model", extra='; filename="b"'), InvalidValue, "model"),
        (FILE + part("model", b"\xff"), InvalidValue, "model"),
        (FILE + part("prompt", b"x" * 70_000), RequestTooLarge, "prompt"),
        (FILE + part("a") * 64, RequestTooLarge, None),
        (FILE + part(""), InvalidValue, None),
        (FILE + part("a b"), InvalidValue, None),
        (FILE + part("a" * 101), InvalidValue, None),
        (
            FILE + part("a", extra="\r\nContent-Transfer-Encoding: base64"),
            InvalidValue,
            "a",
        ),
    ],
)
async def test_forms_out_of_bounds(body: bytes, error: type[NodeError], param: str | None) -> None:
    with pytest.raises(error) as refused:
        await read_form(request(body + b"--b--\r\n"))
    assert refused.value.param == param


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/mixed; boundary=b", "multipart/form-data",
     "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "b" * 71,
     'multipart/form-data; boundary="b\\"c"'],
)  # fmt: skip
async def test_other_content_types(content_type: str) -> None:
    with pytest.raises(UnsupportedMedia):
        await read_form(request(FILE + b"--b--\r\n", content_type))


async def test_what_is_fixed_refused_or_not_the_clients_is_so_in_a_form_too() -> None:
    wav = ("t.wav", b"x", "audio/wav")
    fixed = replace(MODEL, fixed={"language": "en", "vad": True, "temperature": 0})
    form = await read_form(sent({"vad": "true", "provider": "dear", "prompt": "p"}, wav))
    assert parsed(FormPayload(form, fixed))[1:-1] == [
        ("language", None, "text/plain", b"en"),
        ("vad", None, "text/plain", b"true"),
        ("temperature", None, "text/plain", b"0"),
        ("prompt", None, "text/plain", b"p"),
    ]
    for fields in ({"language": "de"}, {"language": ["en", "de"]}, {"plugins": "web"},
                   {"service_tier": "priority"}):  # fmt: skip
        form = await read_form(sent(fields, wav))
        with pytest.raises(InvalidValue):
            FormPayload(form, fixed)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_form_is_known_again_whatever_its_boundary(one: bytes, other: bytes) -> None:
    def digest(data: bytes) -> str | None:
        made = sent({"model": "m"}, ("a.wav", data, "audio/wav"))
        return form_digest(made.headers["content-type"], made.body)

    def asked(data: bytes) -> str:
        return _digest(sent({"model": "m"}, ("a.wav", data, "audio/wav")))

    assert (asked(one) == asked(other)) is (one == other)
    assert digest(one) is not None
    assert (digest(one) == digest(other)) is (one == other)
    assert form_digest("application/json", one) is None
    assert form_digest("multipart/form-data", one) is None


def test_parts_that_are_cut_elsewhere_are_other_parts() -> None:
    assert form_digest(KIND, b"a--bc--b") != form_digest(KIND, b"ac--b--b")
    assert form_digest(KIND, b"--bab") != form_digest(KIND, b"a--bb")


async def test_a_field_given_twice_is_not_one_value() -> None:
    form = Form((("model", "a"), ("model", "b")), (await read_form(request(FILE + b"--b--"))).file)
    with pytest.raises(InvalidValue):
        form.get("model")


@pytest.mark.parametrize(
    ("given_name", "clean"),
    [
        ("voice memo (1).m4a", "voice memo (1).m4a"),
        ("../../etc/passwd", "passwd"),
        ("C:\\music\\a.mp3", "a.mp3"),
        ('a"; filename="b.wav', "a_ filename_b.wav"),
        ("a\r\nX: y.wav", "a_X_ y.wav"),
        ("Grüße.ogg", "Gr_e.ogg"),
        ("..", "file"),
        (None, "file"),
        ("x" * 500 + ".flac", "x" * 95 + ".flac"),
    ],
)
def test_file_names_keep_their_ending_and_nothing_odd(given_name: str | None, clean: str) -> None:
    assert clean_file_name(given_name) == clean
