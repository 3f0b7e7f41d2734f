"""Promise: docs/configuration.md is what the settings are, and names every one of them."""

from __future__ import annotations

import re

from node.ops.reference import PAGE, page
from node.settings import Settings


def test_the_page_is_not_stale() -> None:
    assert PAGE.read_text() == page(), "run `make docs`"


def test_every_section_and_key_is_on_it() -> None:
    text = page()
    headings = re.findall(r"^## `\[+([\w.]+)\]+`$", text, re.MULTILINE)
    assert set(Settings.model_fields) <= set(headings)
    assert len(headings) == len(set(headings))
    for heading, body in zip(
        headings, re.split(r"^## .*$", text, flags=re.MULTILINE)[1:], strict=True
    ):
        rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+) \|$", body, re.MULTILINE)
        assert rows, heading
        assert all(what.strip() for *_, what in rows), heading
    assert "**required**" in text
