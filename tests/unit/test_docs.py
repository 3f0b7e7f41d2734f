"""Promise: the documentation names every error, route, setting and command there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from node.admin.desk import sections
from node.admin.settings_api import SettingsApi
from node.cli import app
from node.core.catalog import Catalog
from node.errors import ERRORS
from node.service.routes import routes

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_every_error_is_in_the_table_with_its_status_and_type() -> None:
    rows = {
        (code, int(status), type_)
        for status, code, type_ in re.findall(
            r"^\| (\d{3}) \| `(\w+)` \| `(\w+)` \|", (DOCS / "errors.md").read_text(), re.MULTILINE
        )
    }
    assert rows == {(error.code, error.status, error.type) for error in ERRORS.values()}


def test_every_route_is_documented_and_nothing_else() -> None:
    page = (DOCS / "protocol.md").read_text()
    documented = set(re.findall(r"^\| `(GET|POST|DELETE) (/\S+)` \|", page, re.MULTILINE))
    unused = object()
    table = routes(unused, _Anything(), Catalog([]), unused, unused, _Anything())  # type: ignore[arg-type]
    served = {(route.method, re.sub(r":path\}", "}", route.path)) for route in table}
    assert documented == served | {("GET", "/health/live"), ("GET", "/health/ready")}


def test_every_admin_route_is_documented_and_nothing_else() -> None:
    page = (DOCS / "admin.md").read_text()
    documented = re.findall(r"`(GET|POST|PATCH|DELETE) (/[\w/{}]+)[`?\s]", page)
    table = [*SettingsApi(_Nothing(), _Nothing()).routes(), *sections(_Nothing())]  # type: ignore[arg-type]
    served = {(route.method, route.path) for route in table}
    session = {("POST", "/login"), ("POST", "/logout"), ("GET", "/session")}
    assert set(documented) == served | session


class _Anything:
    """Stands where only the names of methods matter."""

    def __getattr__(self, name: str) -> str:
        return name


class _Nothing:
    """Stands where nothing is called but to be kept."""

    def __getattr__(self, name: str) -> _Nothing:
        return self

    def __call__(self, *args: object, **options: object) -> _Nothing:
        return self


def test_the_readme_shows_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name in re.findall(r"nodestr ([a-z][a-z-]*)", readme):
        assert name in commands or name in {"is", "lives"}, name
    for target in re.findall(r"make ([a-z]+)", readme):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in DOCS.glob("*.md"))])
def test_what_a_page_points_at_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    for path in re.findall(r"`((?:node|discovery|tests|config|systemd|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
