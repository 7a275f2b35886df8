"""The file that options can come from: what is typed counts first, then the environment, then the file.

    redis-url-file = "/etc/impetus/server"   # for every command that has it

    [impetus-worker.run]                     # `impetus-worker run`; a command's options by their long names
    roles = ["embedding"]
    max-batch-texts = 128

TOML 1.0 (https://toml.io). No folder that somebody happens to stand in is looked at: what is read there could send
jobs elsewhere.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ...shown import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONFIG_VARIABLE = "IMPETUS_CONFIG"
_PROGRAMS = ("impetus", "impetus-worker")
_OF_EVERY_COMMAND = ("redis-url", "redis-url-file")
_FILE = f"{__name__}.file"


def default_file() -> Path:
    """Where the file is looked for that nobody named."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "impetus" / "impetus.toml"


def file_in_use(context: click.Context) -> Path | None:
    """The file that options come from, if there is one."""
    path: Path | None = context.meta.get(_FILE)
    return path


def with_config_file(program: str, group: click.Group) -> None:
    """Gives a program's group `--config` and the command `config show`."""
    group.params.append(
        click.Option(
            ["--config"],
            envvar=CONFIG_VARIABLE,
            show_envvar=True,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=lambda context, _, path: _read(program, group, context, path),
            help="A TOML file that options come from which are neither typed nor in the environment; "
            f"`{program} config show` shows its form.  [default: ~/.config/impetus/impetus.toml]",
        )
    )
    group.add_command(_config(program, group))


def _config(program: str, group: click.Group) -> click.Group:
    @click.group()
    def config() -> None:
        """What the commands' options come to: from the environment, the file or by default."""

    assert config.help is not None
    config.help += f"\n\n\b\nExamples:\n    {program} config show\n    {program} --config FILE config show"

    @config.command()
    @click.pass_context
    def show(context: click.Context) -> None:
        """Print every option's value, and where it comes from, in the form that the file has."""
        root, path = context.find_root(), file_in_use(context)
        click.echo(f"# {path}" if path else f"# no file: {default_file()} would be read")
        for line in _shown_group(program, group, root):
            click.echo(line)

    return config


def _shown_group(path: str, group: click.Group, context: click.Context) -> Iterator[str]:
    for name in sorted(group.list_commands(context)):
        command, place = _command(group, context, name), f"{path}.{name}"
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _shown_group(place, command, inner)
        elif not command.hidden and any(_options(command)):
            yield f"\n[{place}]"
            yield from _shown(inner)


def _shown(context: click.Context) -> Iterator[str]:
    for option in _options(context.command):
        value, source = option.consume_value(context, {})
        key = _key(option)
        if source is ParameterSource.DEFAULT and (value is None or not isinstance(value, str | int | float | tuple)):
            yield f"# {key}"
            continue
        where = {
            ParameterSource.ENVIRONMENT: f"  # {option.envvar}",
            ParameterSource.DEFAULT_MAP: "  # the file",
        }.get(source, "")
        yield f"{key} = {_toml(value)}{where}"


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    shown = without_password(value) if isinstance(value, str) and "://" in value else value
    return json.dumps(shown, ensure_ascii=False)


def _read(program: str, group: click.Group, context: click.Context, path: Path | None) -> None:
    named = path is not None
    path = path or default_file()
    try:
        if not named and not path.is_file():
            return
        said = tomllib.loads(path.read_text(encoding="utf-8"))
        context.default_map = dict(_defaults(said, program, group, context))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{path}: {error}") from None
    context.meta[_FILE] = path


def _defaults(
    said: Mapping[str, Any], program: str, group: click.Group, context: click.Context
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each command what the file says of its parameters. Raises `ValueError`."""
    for key in said:
        if key not in (*_PROGRAMS, *_OF_EVERY_COMMAND):
            raise ValueError(f"{key!r} is not known: {_advice(key, (*_PROGRAMS, *_OF_EVERY_COMMAND))}")
    general = {key: said[key] for key in _OF_EVERY_COMMAND if key in said}
    yield from _of_group(_table(said.get(program, {}), program), general, program, group, context)


def _of_group(
    tables: Mapping[str, Any], general: Mapping[str, Any], path: str, group: click.Group, context: click.Context
) -> Iterator[tuple[str, dict[str, Any]]]:
    names, words = group.list_commands(context), path.replace(".", " ")
    for name in tables:
        if name not in names:
            raise ValueError(f"there is no command `{words} {name}`: {_advice(name, names)}")
    for name in names if general else tables:
        command, place = _command(group, context, name), f"{path}.{name}"
        table = _table(tables.get(name, {}), place)
        if isinstance(command, click.Group):
            yield name, dict(_of_group(table, general, place, command, context))
            continue
        options = {_key(option): option for option in _options(command)}
        for key in table:
            if key not in options:
                raise ValueError(f"`{words} {name}` has no option {key!r}: {_advice(key, options)}")
        values = {key: value for key, value in {**general, **table}.items() if key in options}
        yield name, {str(options[key].name): _value(options[key], value) for key, value in values.items()}


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"[{name}] should be a table")
    return value


def _value(option: click.Option, value: Any) -> Any:
    """What click makes the parameter's value of."""
    key = _key(option)
    if option.is_flag != isinstance(value, bool):
        raise ValueError(f"{key!r} should be {'true or false' if option.is_flag else 'no truth value'}")
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value if option.multiple else ",".join(value)
    if not isinstance(value, str | int | float):
        raise ValueError(f"{key!r} should be a string or a number, or a list of strings")
    return [value] if option.multiple else value


def _command(group: click.Group, context: click.Context, name: str) -> click.Command:
    command = group.get_command(context, name)
    assert command is not None, name
    return command


def _options(command: click.Command) -> Iterator[click.Option]:
    """Those that a file may set."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield parameter


def _key(option: click.Option) -> str:
    return max(option.opts, key=len).lstrip("-")


def _advice(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"
