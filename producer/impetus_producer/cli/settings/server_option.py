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
    return _options("redis_url", help, several=False)


def redis_urls_option(help: str) -> Callable[[CommandT], CommandT]:  # noqa: A002 - as above
    """Gives a command the argument `redis_urls`, a tuple: each option may be given several times."""
    return _options(
        "redis_urls", f"{help} May be given several times; in the variable with white space between.", several=True
    )


def _options(name: str, help: str, *, several: bool) -> Callable[[CommandT], CommandT]:  # noqa: A002 - as above
    url = click.option(
        "--redis-url",
        name,
        envvar=REDIS_URL_VARIABLE,
        show_envvar=True,
        metavar="URL",
        multiple=several,
        callback=_choose_several if several else _choose,
        help=help,
    )
    file = click.option(
        "--redis-url-file",
        envvar=REDIS_URL_FILE_VARIABLE,
        show_envvar=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        multiple=several,
        is_eager=True,
        expose_value=False,
        callback=_read_several if several else _read,
        help="A file whose first line is the server's URL: what a password is best kept in.",
    )
    return lambda command: url(file(command))


def _read(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    _read_several(context, parameter, () if path is None else (path,))


def _read_several(context: click.Context, parameter: click.Parameter, paths: Sequence[Path]) -> None:
    if paths:
        context.meta[_FROM_FILE] = (tuple(map(_first_line, paths)), _rank(context, parameter))


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text().split("\n", 1)
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} cannot be read: {error}") from None
    if not (url := lines[0].strip()):
        raise click.BadParameter(f"the first line of {path} is empty, and should be a URL")
    return url


def _choose(context: click.Context, parameter: click.Parameter, url: str | None) -> str | None:
    return next(iter(_choose_several(context, parameter, () if url is None else (url,))), None)


def _choose_several(context: click.Context, parameter: click.Parameter, urls: Sequence[str]) -> tuple[str, ...]:
    """What is typed counts before what the environment says, that before a configuration file, and a URL before a file
    that holds one.
    """
    rank = _rank(context, parameter)
    in_file, file_rank = context.meta.get(_FROM_FILE, ((), len(_SOURCES)))
    if rank == file_rank == 0:
        raise click.UsageError("--redis-url and --redis-url-file: give one of the two")
    if in_file and (not urls or file_rank < rank):
        return tuple(in_file)
    if len(set(urls)) < len(urls):
        raise click.BadParameter("a server is named twice")
    if rank == 0 and any(without_password(url) != url for url in urls):
        _begin_again_without(urls)
    return tuple(urls)


def _rank(context: click.Context, parameter: click.Parameter) -> int:
    source = context.get_parameter_source(parameter.name or "")
    return _SOURCES.index(source) if source in _SOURCES else len(_SOURCES)


def _begin_again_without(urls: Sequence[str]) -> None:
    """Becomes the same program with the URLs in its environment, unless they are not on our command line at all."""
    arguments = without_urls(sys.orig_argv[1:], urls)
    if len(arguments) < len(sys.orig_argv) - 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *arguments], os.environ | {REDIS_URL_VARIABLE: " ".join(urls)})


def without_urls(arguments: Sequence[str], urls: Sequence[str]) -> list[str]:
    """The arguments without the options that say these URLs."""
    kept: list[str] = []
    for argument in arguments:
        if any(argument == f"--redis-url={url}" for url in urls):
            continue
        if argument in urls and kept and kept[-1] == "--redis-url":
            kept.pop()
            continue
        kept.append(argument)
    return kept
