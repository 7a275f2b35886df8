"""The pages in `docs/` stay true: what they name exists, and their numbers are the code's."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

ROOTS = [ROOT, *(ROOT / each / f"impetus_{each}" for each in ("producer", "worker", "backends"))]
PAGES = [ROOT / "docs" / name for name in ("guarantees.md", "hardware-rules.md", "life-of-a-job.md")]
ALL_PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
NAMED = re.compile(r"`([A-Za-z_][\w.]*)`\s+\(`([\w/]+\.py)`\)(?: = (\d+))?")


def found(path: str) -> list[Path]:
    return [root / path for root in ROOTS if (root / path).is_file()]


@cache
def names(path: Path) -> dict[str, object]:
    """Everything that a module defines at its top or in its classes, constants with their values."""
    defined: dict[str, object] = {}

    def look(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    defined[prefix + name] = None
                case ast.ClassDef(name=name, body=inner):
                    defined[name] = None
                    look(inner, f"{name}.")
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    defined[prefix + name] = _value(value)
                case ast.AnnAssign(target=ast.Name(id=name), value=value):
                    defined[prefix + name] = _value(value)

    look(ast.parse(path.read_text()).body, "")
    return defined


def _value(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    paths = set(re.findall(r"`([\w/]+\.(?:py|lua))`", page.read_text()))
    assert paths
    assert not [path for path in paths if not found(path)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_is_in_the_file_it_is_said_to_be_in(page: Path) -> None:
    said = NAMED.findall(page.read_text())
    assert said
    assert not [(name, path) for name, path, _ in said if not any(name in names(file) for file in found(path))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_number_of_a_constant_is_the_codes(page: Path) -> None:
    for name, path, number in NAMED.findall(page.read_text()):
        if number:
            assert int(number) in [names(file).get(name) for file in found(path)], name


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_of_ours_leads_to_it(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_life_of_a_job_is_a_page_and_no_book() -> None:
    assert len((ROOT / "docs/life-of-a-job.md").read_text().splitlines()) <= 75
