"""`impetus-worker service`: a worker that the system starts at login, and again after a crash."""

from __future__ import annotations

import os
import pwd
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from impetus_producer.cli.settings.config_file import CONFIG_VARIABLE, file_in_use
from impetus_producer.errors import ImpetusError
from impetus_producer.servers.discovery import REDIS_URL_VARIABLE
from impetus_producer.shown import without_password

from ..host.services.manager import service_manager, system_service_manager
from ..host.services.service import Account, Program, ServiceManager
from ..settings import ROLES
from .options import check_installed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_KEPT = re.compile(r"IMPETUS_|HF_|XDG_(CACHE|CONFIG|DATA|STATE)_HOME$|(HTTPS?|NO|ALL)_PROXY$", re.IGNORECASE)
_SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|_KEY$")
_RUN_OPTIONS = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}


@click.group()
def service() -> None:
    """Keep a worker running: from login on, and again after a crash.

    On macOS a LaunchAgent (unverified: nobody has run it on a Mac yet), on Linux a user unit of systemd's. With
    --system, and sudo, from the machine's start on and with nobody logged in, in the name of the user who called sudo:
    a LaunchDaemon, or a system unit. A Mac that is reached by ssh only needs that.
    """


_system = click.option("--system", "of_the_machine", is_flag=True, envvar="IMPETUS_SERVICE_SYSTEM", show_envvar=True,
                       help="The machine's service, and not this user's; needs sudo.")  # fmt: skip


@service.command(context_settings=_RUN_OPTIONS)
@click.option("--print", "only_print", is_flag=True, help="Show the file, secrets hidden, and change nothing.")
@_system
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF RUN]...")
@click.pass_context
def install(context: click.Context, only_print: bool, of_the_machine: bool, options: tuple[str, ...]) -> None:
    """Install and start the service. Takes the options of `impetus-worker run`, and runs with these from then on.

    What IMPETUS_… and HF_… variables are set now is kept with it, in a file that only you can read, and it reads the
    same configuration file. Installing again
    replaces what was installed before.

    \b
    impetus-worker service install --redis-url redis://queue.example:6379/0 --roles embedding
    impetus-worker service install --print
    sudo impetus-worker service install --system --redis-url redis://queue.example:6379/0
    """
    from .run import run

    with _sentences():
        check_installed("impetus-worker service")
        # Whatever `run` would refuse is refused now, and not at the next login.
        defaults = (context.find_root().default_map or {}).get("run")
        run.make_context("impetus-worker run", list(options), default_map=defaults)
        parsed = run.make_context("impetus-worker run", list(options)).params  # the file it will read itself
        manager = _manager(of_the_machine)
        file = file_in_use(context)
        environment = {**os.environ, **({CONFIG_VARIABLE: str(file.absolute())} if file else {})}
        program = make_program(Path(sys.executable), options, parsed, environment)
        if only_print:
            click.echo(f"# {manager.file}\n{manager.text(_hidden(program))}", nl=False)
            return
        manager.install(program)
    click.echo(f"installed and started: {manager.file}")
    click.echo(f"what it says: {manager.logs}")
    if sys.platform != "darwin" and not of_the_machine:
        click.echo("to keep it running while you are logged out: loginctl enable-linger")


@service.command()
@_system
def uninstall(of_the_machine: bool) -> None:
    """Stop the service and remove it. What it has begun is finished, the rest goes back to the queues."""
    with _sentences():
        manager = _manager(of_the_machine)
        found = manager.uninstall()
    click.echo(f"stopped and removed: {manager.file}" if found else "no service is installed")


@service.command()
@_system
@click.pass_context
def status(context: click.Context, of_the_machine: bool) -> None:
    """Say whether the service is installed and runs. The exit status is 0 if it runs."""
    with _sentences():
        manager = _manager(of_the_machine)
        if not manager.file.exists():
            click.echo("no service is installed; `impetus-worker service install` installs one")
            context.exit(1)
        state = manager.state()
    click.echo(f"{'running' if state.running else 'not running'}: {state.words}")
    click.echo(f"file: {manager.file}\nwhat it says: {manager.logs}")
    context.exit(0 if state.running else 1)


def make_program(
    python: Path, options: Sequence[str], parsed: Mapping[str, object], environment: Mapping[str, str]
) -> Program:
    """What the service runs: this Python, these options of `run`, and what of the environment `run` reads.

    The server's URL moves into the environment, because everybody on a machine sees every command line; the folders
    of models become absolute, because a service starts elsewhere.
    """
    kept = {name: value for name, value in sorted(environment.items()) if _KEPT.match(name)}
    if urls := parsed.get("redis_urls"):
        assert isinstance(urls, tuple)
        kept[REDIS_URL_VARIABLE] = " ".join(urls)
    folders = {
        str(name): str(Path(str(name)).expanduser().resolve())
        for role in ROLES
        if (name := parsed.get(f"{role}_model")) and Path(str(name)).expanduser().is_dir()
    }
    arguments = []
    for argument in _without("--redis-url", options):
        option, equals, value = argument.partition("=")
        whole = folders.get(argument, argument)
        arguments.append(f"{option}={folders[value]}" if equals and value in folders else whole)
    return Program(
        (str(python.absolute()), "-P", "-m", "impetus_worker", "run", *arguments),
        {name: folders.get(value, value) if name.endswith("_MODEL") else value for name, value in kept.items()},
    )


def _without(option: str, arguments: Sequence[str]) -> Iterator[str]:
    skip = False
    for argument in arguments:
        if not skip and argument != option and not argument.startswith(f"{option}="):
            yield argument
        skip = argument == option and not skip


def _hidden(program: Program) -> Program:
    shown = {
        name: "***" if _SECRET.search(name) else without_password(value) for name, value in program.environment.items()
    }
    return Program(program.command, shown)


def _manager(of_the_machine: bool) -> ServiceManager:
    if of_the_machine:
        return system_service_manager(sys.platform, os.getuid(), os.environ, _account)
    return service_manager(sys.platform, Path.home(), os.getuid(), os.environ)


def _account(name: str) -> Account:
    entry = pwd.getpwnam(name)
    return Account(entry.pw_name, Path(entry.pw_dir), entry.pw_uid, entry.pw_gid)


@contextmanager
def _sentences() -> Iterator[None]:
    """Errors on purpose become one sentence on standard error."""
    try:
        yield
    except ImpetusError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'the file'} cannot be written: {error.strerror}") from None
