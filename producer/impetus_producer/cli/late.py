"""Commands whose modules are imported when one of them is asked for: whoever types one does not wait for the others."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class LateGroup(click.Group):
    """`later`: of each command its module, which has it under its own name, with `_` for `-`."""

    def __init__(self, *arguments: Any, later: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._later = later

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *self._later})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (module := self._later.get(cmd_name)) is None:
            return super().get_command(ctx, cmd_name)
        with unswept():
            command: click.Command = getattr(import_module(module), cmd_name.replace("-", "_"))
        return command


@contextmanager
def unswept() -> Iterator[None]:
    """What is imported stays: to look through it for garbage again and again takes a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
