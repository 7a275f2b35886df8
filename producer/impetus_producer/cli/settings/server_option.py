"""How a command is told its server: by an option, the environment or a file; and how its password is kept from view.

Everybody on a machine may read every command line, so a URL with a password does not stay on ours.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ...servers.discovery import REDIS_URL_VARIABLE
from ...shown import without_password

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CommandT = TypeVar("CommandT", bound="Callable[..., Any]")

REDIS_URL_FILE_VARIABLE = "IMPETUS_REDIS_URL_FILE"
_FROM_FILE = f"{__name__}.from_file"
_SOURCES = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)
"""The first counts most."""


def redis_url_option(help: str) -> Callable[[CommandT], CommandT]:  # noqa: A002 - click's name for it
    """Gives a command the argument `redis_url`: what `--redis-url` or the first line of `--redis-url-file` says."""
    url = click.option(
        "--redis-url", envvar=REDIS_URL_VARIABLE, show_envvar=True, metavar="URL", callback=_choose, help=help
    )
    file = click.option(
        "--redis-url-file",
        envvar=REDIS_URL_FILE_VARIABLE,
        show_envvar=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="A file whose first line is the server's URL: what a password is best kept in.",
    )
    return lambda command: url(file(command))


def _read(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        lines = path.read_text().split("\n", 1)
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} cannot be read: {error}") from None
    if not (url := lines[0].strip()):
        raise click.BadParameter(f"the first line of {path} is empty, and should be a URL")
    context.meta[_FROM_FILE] = (url, _rank(context, parameter))


def _choose(context: click.Context, parameter: click.Parameter, url: str | None) -> str | None:
    """What is typed counts before what the environment says, that before a configuration file, and a URL before a file
    that holds one.
    """
    rank = _rank(context, parameter)
    in_file, file_rank = context.meta.get(_FROM_FILE, (None, len(_SOURCES)))
    if rank == file_rank == 0:
        raise click.UsageError("--redis-url and --redis-url-file: give one of the two")
    if in_file is not None and (url is None or file_rank < rank):
        return str(in_file)
    if rank == 0 and url is not None and without_password(url) != url:
        _begin_again_without(url)
    return url


def _rank(context: click.Context, parameter: click.Parameter) -> int:
    source = context.get_parameter_source(parameter.name or "")
    return _SOURCES.index(source) if source in _SOURCES else len(_SOURCES)


def _begin_again_without(url: str) -> None:
    """Becomes the same program with the URL in its environment, unless it is not on our command line at all."""
    arguments = without_url(sys.orig_argv[1:], url)
    if len(arguments) < len(sys.orig_argv) - 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *arguments], os.environ | {REDIS_URL_VARIABLE: url})


def without_url(arguments: Sequence[str], url: str) -> list[str]:
    """The arguments without the option that says this URL."""
    kept: list[str] = []
    for argument in arguments:
        if argument == f"--redis-url={url}":
            continue
        if argument == url and kept and kept[-1] == "--redis-url":
            kept.pop()
            continue
        kept.append(argument)
    return kept
