"""Options that come to a command as one object."""

from __future__ import annotations

from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def gathered(command: Callable[..., Any], name: str, kind: type[Any], *options: Callable[[Any], Any]) -> Any:
    """The command with these options, each a field of the dataclass `kind`, of which it gets one as `name`."""
    names = [each.name for each in fields(kind)]

    @wraps(command)
    def gathering(*arguments: Any, **values: Any) -> Any:
        made = kind(**{each: values.pop(each) for each in names if each in values})
        return command(*arguments, **values, **{name: made})

    for option in reversed(options):
        option(gathering)
    return gathering
