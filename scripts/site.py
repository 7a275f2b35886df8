"""What the site (mkdocs.yml) needs of the repository around `docs/`.

Links that lead out of `docs/` lead to the repository's pages there, and a link to nothing is left for mkdocs to refuse.
SECURITY.md is a page of the site too: it lies where GitHub looks for it.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FROM_ROOT = {"SECURITY.md": "security.md"}
"""Files beside `docs/` that are pages, and by what name."""
_LINK = re.compile(r"(?<=\]\()(?!#)([^)\s:#]+)(#[^)]*)?(?=\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.repo_url = project["urls"]["Repository"]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for source, name in FROM_ROOT.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    name = page.file.src_uri
    folder = "" if name in FROM_ROOT.values() else posixpath.join("docs", posixpath.dirname(name))

    def led(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        anchor = link[2] or ""
        if target in FROM_ROOT:
            return FROM_ROOT[target] + anchor
        if target.startswith("docs/"):
            return posixpath.relpath(target, "docs") + anchor
        if (ROOT / target).exists():
            return f"{config.repo_url}/blob/main/{target}{anchor}"
        return link[0]

    return _LINK.sub(led, markdown)
