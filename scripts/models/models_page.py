"""docs/models.md, of which each part is written by a script of its own."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def write_part(heading: str, text: str, page: Path = PAGE) -> None:
    """Puts `text` below the heading of that name, in place of what was there, and leaves the other parts alone."""
    page.parent.mkdir(exist_ok=True)
    written = page.read_text(encoding="utf-8") if page.exists() else ""
    parts = dict(re.findall(r"^# (.+)\n((?:(?!# ).*\n?)*)", written, flags=re.MULTILINE))
    parts[heading] = f"\n{text.strip()}\n"
    whole = "\n".join(f"# {name}\n\n{part.strip()}\n" for name, part in parts.items())
    page.write_text(whole, encoding="utf-8")
