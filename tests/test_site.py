"""`docs/` as a site: it builds strictly, and a link to nothing keeps it from being built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def build(checkout: Path, site: Path) -> subprocess.CompletedProcess[str]:
    # Material tells of its successor, which is no fault of a page. With --quiet, mkdocs would count no warnings.
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=checkout,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_page_is_in_the_site_and_security_too(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert {page.stem for page in site.glob("*.html")} == {*pages, "security", "404"}


def test_links_out_of_docs_lead_to_the_repository(site: Path) -> None:
    text = (site / "recipes.html").read_text()
    assert f'href="{REPOSITORY}/blob/main/examples/README.md"' in text
    assert 'href="security.html"' in (site / "index.html").read_text()


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="([^"]+)"', page.read_text())
        assert loaded, page.name
        assert not [url for url in loaded if "://" in url], page.name


def test_links_to_no_page_no_file_and_no_heading_are_refused(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[a](nothing.md), [b](../nothing.py), [c](#none)\n")
    for name in ("pyproject.toml", "SECURITY.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "site.py", tmp_path / "scripts")
    settings = (ROOT / "mkdocs.yml").read_text().partition("nav:\n  - index.md")[0]
    (tmp_path / "mkdocs.yml").write_text(f"{settings}nav:\n  - index.md\n  - security.md\n")
    refused = build(tmp_path, tmp_path / "site")
    assert refused.returncode != 0
    told = [line for line in refused.stderr.splitlines() if line.startswith("WARNING") and "index.md" in line]
    assert len(told) == 3
    assert all(any(link in line for line in told) for link in ("'nothing.md'", "'../nothing.py'", "'#none'"))
