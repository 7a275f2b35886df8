"""The commands that the pages tell, as they stand there."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from impetus_producer.cli.main import cli as impetus
from impetus_worker.cli.main import main as impetus_worker
from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator


PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    ROOT / "docker" / "README.md",
    ROOT / "benchmarks" / "boards" / "README.md",
]
OWN = re.compile(r"(?:sudo |\.venv/bin/)?(impetus(?:-worker)? \S.*|scripts/[\w.]+(?:/[\w./]+)?(?: .*)?)")
OTHERS = re.compile(r"(?:\w+=\S+ )*(?:brew|docker|pip|pipx|python|uv|launchctl|systemctl) \S.*")
"""Commands of other programs, where they stand alone on a line."""
GROUPS = {"impetus": impetus, "impetus-worker": impetus_worker}
MODULES = {
    "scripts/bench": "benchmarks.__main__",
    "scripts/hardware": "scripts.models.hardware_page",
    "scripts/families": "scripts.models.families",
    "scripts/demo": "scripts.demo",
    **{
        f"scripts/{name}": f"scripts.proofs.{name}" for name in ("batch_proof", "chaos", "fuzz", "interrupted", "scale")
    },
}
"""Whose own parser is asked. The other doors take what pytest or uv takes, or nothing."""


@dataclass(frozen=True)
class Told:
    """A command on a page; `whole` where it is to be typed as it stands, and not only named."""

    page: str
    text: str
    whole: bool

    @property
    def words(self) -> list[str]:
        # What stands two spaces off is said about it.
        words = shlex.split(re.split(r"\s{2,}", self.text)[0], comments=True)
        end = next((at for at, word in enumerate(words) if re.fullmatch(r"[|<>;&]+\d?", word)), len(words))
        return words[:end]

    @property
    def command(self) -> str:
        return shlex.join(self.words)

    def __str__(self) -> str:
        return f"{self.page} {self.text}"


def told() -> Iterator[Told]:
    """Our own."""
    for name, text, typed in _pages():
        for line in typed:
            if found := OWN.fullmatch(line):
                yield Told(name, found[1], whole=True)
        for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
            if found := OWN.fullmatch(span):
                yield Told(name, found[1], whole=False)


def told_of_others() -> Iterator[str]:
    for _, _, typed in _pages():
        yield from filter(OTHERS.fullmatch, typed)


def _pages() -> Iterator[tuple[str, str, list[str]]]:
    """Of each its name, its text, and what is there to be typed."""
    for page in PAGES:
        text, typed, fenced = page.read_text(), list[str](), False
        for line in text.splitlines():
            fenced ^= line.startswith("```")
            if fenced or line.startswith("    "):
                typed.append(line if fenced else line.removeprefix("    "))
        yield str(page.relative_to(ROOT)), text, typed


TOLD = list(dict.fromkeys(told()))
