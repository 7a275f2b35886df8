"""What may be shown to a person: text that others wrote, and URLs, which may hold passwords."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

MAX_NAME_CHARACTERS = 100
"""So much is shown of a name that others chose."""
_NO_SCHEME = re.compile(r"[\w.-]+(:\d+)?(/\d*)?")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HOSTS = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\])?(:\d*)?(,([\w.-]+|\[[\da-fA-F:.]+\])(:\d*)?)*")


def printable(text: str) -> str:
    """The text on one line, with an escape for every character that would move a cursor or is not to be seen."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def shortened(text: str, most: int = MAX_NAME_CHARACTERS) -> str:
    """The text, or as much of it as leaves room for an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def name_shown(name: str) -> str:
    """As `printable`, of a name that others chose, which may be as long as they like."""
    return shortened(printable(shortened(name)))


def printable_lines(text: str) -> str:
    """As `printable`, but lines stay lines; those after the first are indented, so that none looks like ours."""
    return "\n    ".join(map(printable, text.splitlines()))


def for_terminal(text: str) -> str:
    """The text with its lines and tabs, and an escape for every other control character: what a terminal obeys."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def without_password(url: str) -> str:
    """The scheme, host, port, path and database of a URL, and nothing else of it.

    Where it cannot be told for certain what is a password, the scheme alone.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url if _NO_SCHEME.fullmatch(url) else "***"
    try:
        parts = urlsplit(f"redis://{rest}")
    except ValueError:
        parts = None
    # A password may hold the very characters by which a URL is taken apart.
    if parts is None or "@" in parts.path + parts.query + parts.fragment:
        return printable(f"{scheme}://***")
    _, at, hosts = parts.netloc.rpartition("@")
    if not _HOSTS.fullmatch(hosts):
        return printable(f"{scheme}://***")
    database = re.search(r"(?:^|&)(db=\d+)(?:&|$)", parts.query)
    shown = f"{scheme}://{'***@' if at else ''}{hosts}{parts.path}"
    return printable(f"{shown}?{database[1]}" if database else shown)
