"""`impetus serve`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impetus_producer.cli.settings.gathering import gathered
from impetus_producer.cli.settings.server import open_session, patience_option, redis_urls_option
from impetus_producer.errors import ImpetusError
from impetus_producer.servers.discovery import state_dir
from impetus_producer.shown import printable

from ..address import Address
from ..settings import Settings
from .extra import require_extra

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_producer.batches.store import BatchStore

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DEFAULTS = Settings()


class _Megabytes(click.FloatRange):
    """As bytes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return int(super().convert(value, param, ctx) * 1e6)


def _number(name: str, kind: click.ParamType[Any], default: float, metavar: str, text: str, to: str = "") -> Any:
    names = (name, to) if to else (name,)
    return click.option(*names, type=kind, default=default, show_default=True, metavar=metavar, help=text)


def _address_options(command: Callable[..., Any]) -> Any:
    """Gives a command `address`, an `Address`."""
    return gathered(
        command,
        "address",
        Address,
        click.option(
            "--host",
            default="127.0.0.1",
            show_default=True,
            envvar="IMPETUS_HOST",
            metavar="HOST",
            help="Where to listen. Another address than this machine's own needs --keys.",
        ),
        click.option(
            "--port",
            type=click.IntRange(0, 65535),
            default=8000,
            show_default=True,
            envvar="IMPETUS_PORT",
            metavar="PORT",
            help="0: any that is free.",
        ),
        click.option("--certfile", type=_FILE, metavar="FILE", help="Speak TLS with this certificate (PEM)."),
        click.option(
            "--keyfile", type=_FILE, metavar="FILE", help="The certificate's key (PEM), if it is not in its file."
        ),
    )


def _settings_options(command: Callable[..., Any]) -> Any:
    """Gives a command `settings`, which `Settings` are."""
    return gathered(
        command,
        "settings",
        Settings,
        click.option(
            "--allow-origin",
            "origins",
            multiple=True,
            metavar="ORIGIN",
            help="Let pages from there ask, such as https://app.example. May be given several times.",
        ),
        click.option(
            "--allow-host",
            "hosts",
            multiple=True,
            metavar="NAME",
            help="A name that browsers may call this gateway by, where no keys are asked for.",
        ),
        _number("--max-body-mb", _Megabytes(min=0.001), _DEFAULTS.max_body_bytes / 1e6, "MB",
                "The largest body of a request.", to="max_body_bytes"),
        _number("--max-backlog", click.IntRange(min=1), _DEFAULTS.max_backlog_jobs, "JOBS",
                "Refuse requests (429) while so many jobs wait.", to="max_backlog_jobs"),
        _number("--max-wait", click.FloatRange(min=0.1), _DEFAULTS.max_wait_s, "SECONDS",
                "Refuse requests (429) while the first that waits has waited for so long.", to="max_wait_s"),
        _number("--timeout", click.FloatRange(min=0.1), _DEFAULTS.request_timeout_s, "SECONDS",
                "Give a request up (504) after so long, and cancel its job.", to="request_timeout_s"),
        _number("--drain", click.FloatRange(min=1), _DEFAULTS.drain_s, "SECONDS",
                "After SIGTERM or Ctrl-C, how long what is being answered may take.", to="drain_s"),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Listed:
    """Whom the operator listed, and where files are kept."""

    keys_file: Path | None
    webhooks_file: Path | None
    files: str | None

    def store(self) -> BatchStore:
        from impetus_producer.batches.store import BatchStore

        here = state_dir() / "files"
        try:
            if self.files is None or "://" not in self.files:
                return BatchStore(self.files or here)
            return BatchStore(here, self.files)
        except OSError as error:
            raise ImpetusError(f"--files: {error.filename or self.files}: {error.strerror or error}") from None


def _listed_options(command: Callable[..., Any]) -> Any:
    """Gives a command `listed`, a `_Listed`."""
    return gathered(
        command,
        "listed",
        _Listed,
        click.option(
            "--keys",
            "keys_file",
            type=_FILE,
            envvar="IMPETUS_KEYS",
            metavar="FILE",
            help="Let in only those whose keys FILE has the hashes of; `impetus serve-key` makes them.",
        ),
        click.option(
            "--webhooks",
            "webhooks_file",
            type=_FILE,
            envvar="IMPETUS_WEBHOOKS",
            metavar="FILE",
            help="Tell the URLs in FILE when a batch ends; `impetus serve-webhook` adds one.",
        ),
        click.option(
            "--files",
            envvar="IMPETUS_FILES",
            metavar="FOLDER|URL",
            help="Where files and batches are kept. Several gateways may share a folder. Of a URL, such as "
            "s3://bucket/path (extra: remote), it is the files' contents.  [default: in the state folder]",
        ),
    )


@click.command(short_help="Serve OpenAI's HTTP API in front of the queues.")
@_address_options
@_listed_options
@click.option("--without-keys", is_flag=True, help="Let in whoever reaches HOST, also from other machines.")
@_settings_options
@click.option(
    "--store",
    "answers_store",
    metavar="FILE|URL",
    envvar="IMPETUS_STORE",
    help="Embed no text that is in this store, and put there what is embedded: an SQLite file, or a server, "
    "redis://host/1?ttl_s=604800&max_bytes=256000000. `impetus embed --store` shares it.",
)
@click.option("--access-log", is_flag=True, help="A line on stderr for each request.")
@click.argument("worker_options", nargs=-1, metavar="[-- WORKER-OPTION...]")
@patience_option
@redis_urls_option
def serve(
    address: Address,
    listed: _Listed,
    without_keys: bool,
    settings: Settings,
    answers_store: str | None,
    access_log: bool,
    worker_options: tuple[str, ...],
    patience_s: float,
    redis_urls: tuple[str, ...],
) -> None:
    """Serve embeddings, chats and completions over HTTP, so that any client for OpenAI's API can use the queues.

    Where no server is given or found, one is started, with a worker, for as long as this runs; what comes after `--`
    are that worker's options (`impetus-worker run --help`).

    \b
    Examples:
        impetus serve
        impetus serve --port 8080 -- --generation-model mlx-community/Qwen3-4B-4bit
        impetus serve-key shop --keys keys.toml
        impetus serve --host 0.0.0.0 --keys keys.toml --certfile cert.pem --keyfile key.pem
        impetus serve-webhook https://app.example/batches --webhooks hooks.toml
        impetus serve --webhooks hooks.toml

    \b
    Then:
        curl http://127.0.0.1:8000/v1/embeddings -H 'Content-Type: application/json' -d '{"input": "hello"}'
        OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none python -c \\
            'import openai; print(openai.OpenAI().models.list())'

    \b
    Paths:
        /v1/embeddings  /v1/chat/completions  /v1/completions  /v1/models  /v1/jobs/ID
        /v1/rerank  /v1/files  /v1/batches  /api/embed  /api/embeddings  /health  /ready  /metrics  /openapi.json
    A request with the header `Prefer: respond-async` is answered at once with a job to look for at /v1/jobs/ID.
    """
    require_extra()
    from impetus_producer.asynchronous import for_tasks
    from impetus_producer.bulk.kept.stores import open_store
    from impetus_producer.bulk.recall import Recall

    from ..entry.callers import Keys
    from ..gateway import Gateway
    from ..serving import serve as serve_until_signalled
    from ..webhooks import read_receivers

    keys = Keys.read(listed.keys_file) if listed.keys_file is not None else Keys()
    receivers = read_receivers(listed.webhooks_file) if listed.webhooks_file is not None else []
    address.check(keys_needed=keys.needed, without_keys=without_keys)
    settings = replace(settings, hosts=(*settings.hosts, "*" if without_keys else address.host))
    store = listed.store()
    with (
        open_session(redis_urls, patience_s, None, worker_options) as session,
        nullcontext() if answers_store is None else open_store(answers_store, patience_s=0) as answers,
    ):
        producer = for_tasks(session.producer, patience_s=patience_s)
        recall = None if answers is None else Recall(answers)
        serve_until_signalled(
            Gateway(settings, keys, producer, session.producer, store, receivers, recall),
            address,
            access_log=access_log,
            on_start=_say_where,
            check=session.check,
        )


def _say_where(url: str) -> None:
    click.echo(printable(f"Serving at {url}; Ctrl-C ends it."), err=True)
