"""The Redis users that README.md makes, by its own lines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.paths import ROOT

if TYPE_CHECKING:
    from redis import Redis

README = ROOT / "README.md"


def rules_of(name: str) -> list[str]:
    """What README's lines grant to the user, in their order."""
    lines = re.findall(rf"ACL SETUSER {name} (?:(?:reset )?on >\S+ ?)?(.*)", README.read_text())
    return [str(rule) for line in lines for rule in line.split()]


def make_user(connection: Redis, name: str, password: str) -> None:
    """The server has that user from now on, and nothing is left of one that it had before."""
    execute: Any = connection.execute_command
    execute("ACL", "SETUSER", name, "reset", "on", f">{password}", *rules_of(name))
