"""`impetus serve` and `impetus serve-key`. Imports what serving needs only when it serves."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import click

from impetus_producer.cli.server import open_session, patience_option, redis_url_option
from impetus_producer.errors import MissingExtraError
from impetus_producer.servers.discovery import state_dir
from impetus_producer.shown import printable

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(short_help="Serve OpenAI's HTTP API in front of the queues.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    envvar="IMPETUS_HOST",
    metavar="HOST",
    help="Where to listen. Another address than this machine's own needs --keys.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    envvar="IMPETUS_PORT",
    metavar="PORT",
    help="0: any that is free.",
)
@click.option(
    "--keys",
    "keys_file",
    type=_FILE,
    envvar="IMPETUS_KEYS",
    metavar="FILE",
    help="Let in only those whose keys FILE has the hashes of; `impetus serve-key` makes them.",
)
@click.option("--without-keys", is_flag=True, help="Let in whoever reaches HOST, also from other machines.")
@click.option("--certfile", type=_FILE, metavar="FILE", help="Speak TLS with this certificate (PEM).")
@click.option("--keyfile", type=_FILE, metavar="FILE", help="The certificate's key (PEM), if it is not in its file.")
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages from there ask, such as https://app.example. May be given several times.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name that browsers may call this gateway by, where no keys are asked for.",
)
@click.option(
    "--max-body-mb",
    type=click.FloatRange(min=0.001),
    default=16,
    show_default=True,
    metavar="MB",
    help="The largest body of a request.",
)
@click.option(
    "--max-backlog",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="JOBS",
    help="Refuse requests (429) while so many jobs wait.",
)
@click.option(
    "--max-wait",
    type=click.FloatRange(min=0.1),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Refuse requests (429) while the first that waits has waited for so long.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.1),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="Give a request up (504) after so long, and cancel its job.",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.FloatRange(min=1),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="After SIGTERM or Ctrl-C, how long what is being answered may take.",
)
@click.option(
    "--files",
    "files_folder",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="IMPETUS_FILES",
    metavar="FOLDER",
    help="Where files and batches are kept. Several gateways may share it.  [default: in the state folder]",
)
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
@redis_url_option
def serve(
    host: str,
    port: int,
    keys_file: Path | None,
    without_keys: bool,
    certfile: Path | None,
    keyfile: Path | None,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
    max_body_mb: float,
    max_backlog: int,
    max_wait: float,
    timeout_s: float,
    drain_s: float,
    files_folder: Path | None,
    answers_store: str | None,
    access_log: bool,
    worker_options: tuple[str, ...],
    patience_s: float,
    redis_url: str | None,
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

    \b
    Then:
        curl http://127.0.0.1:8000/v1/embeddings -H 'Content-Type: application/json' -d '{"input": "hello"}'
        OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none python -c \\
            'import openai; print(openai.OpenAI().models.list())'

    \b
    Paths:
        /v1/embeddings  /v1/chat/completions  /v1/completions  /v1/models  /v1/jobs/ID
        /v1/files  /v1/batches  /api/embed  /api/embeddings  /health  /ready  /metrics  /openapi.json
    A request with the header `Prefer: respond-async` is answered at once with a job to look for at /v1/jobs/ID.
    """
    _require_extra()
    from impetus_producer.asynchronous import AsyncProducer
    from impetus_producer.batches.store import BatchStore
    from impetus_producer.bulk.kept.stores import open_store
    from impetus_producer.bulk.recall import Recall

    from .entry.callers import Keys
    from .gateway import Gateway
    from .serving import Address, check_address
    from .serving import serve as serve_until_signalled
    from .settings import Settings

    address = Address(host, port, certfile, keyfile)
    keys = Keys.read(keys_file) if keys_file is not None else Keys()
    check_address(address, keys_needed=keys.needed, without_keys=without_keys)
    settings = Settings(
        max_body_bytes=int(max_body_mb * 1e6),
        max_backlog_jobs=max_backlog,
        max_wait_s=max_wait,
        request_timeout_s=timeout_s,
        drain_s=drain_s,
        origins=origins,
        hosts=(*hosts, "*") if without_keys else (*hosts, host),
    )
    store = BatchStore(files_folder or state_dir() / "files")
    with (
        open_session(redis_url, patience_s, None, worker_options) as session,
        nullcontext() if answers_store is None else open_store(answers_store, patience_s=0) as answers,
    ):
        producer = AsyncProducer(connection=session.producer.connection, patience_s=patience_s)
        recall = None if answers is None else Recall(answers)
        serve_until_signalled(
            Gateway(settings, keys, producer, session.producer.connection, store, recall),
            address,
            access_log=access_log,
            on_start=_say_where,
            check=session.check,
        )


@click.command("serve-key", short_help="Make a key for `impetus serve --keys`.")
@click.argument("name")
@click.option(
    "--keys",
    "keys_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The file that the key's hash is added to.",
)
@click.option(
    "--role",
    "roles",
    type=click.Choice(["submit", "read", "operate"]),
    multiple=True,
    default=("submit", "read"),
    show_default=True,
    help="submit: requests; read: its own jobs by their ids; operate: everybody's, metrics, the dashboard.",
)
def serve_key(name: str, keys_file: Path, roles: tuple[str, ...]) -> None:
    """Make a key called NAME, print it, and add its hash to FILE. Whoever has the key is NAME; FILE does not have it.

    \b
    Examples:
        impetus serve-key shop --keys keys.toml
        impetus serve-key me --keys keys.toml --role submit --role read --role operate
    """
    from .entry.callers import Keys, Role, new_key

    key, entry = new_key(name, [Role(role) for role in roles])
    before = keys_file.read_text() if keys_file.exists() else ""
    draft = keys_file.with_name(keys_file.name + ".new")
    draft.touch(mode=0o600)
    draft.write_text(f"{before.rstrip()}\n\n{entry}".lstrip())
    try:
        Keys.read(draft)
        draft.replace(keys_file)
    finally:
        draft.unlink(missing_ok=True)
    click.echo(key)


def _say_where(url: str) -> None:
    click.echo(printable(f"Serving at {url}; Ctrl-C ends it."), err=True)


def _require_extra() -> None:
    if any(find_spec(name) is None for name in ("httptools", "multipart", "prometheus_client", "starlette", "uvicorn")):
        raise MissingExtraError("serving HTTP", "gateway")
