"""`impetus-worker run`: the supervisor and what it starts."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impetus_producer.cli.settings.server_option import redis_urls_option
from impetus_producer.errors import ImpetusError
from impetus_producer.shown import without_password

from .. import logs
from ..allowed import Allowed
from ..fleet.recovery import DeathReports
from ..host.supervisor import Supervisor, worker_name
from ..observing.server import metrics_server
from ..settings import (
    DEFAULT_MAX_BATCH_MS,
    PREFERENCES,
    QUANTIZE_AT_LOAD,
    RECORD_RENEW_S,
    RECORD_TTL_S,
    SPECIAL_TOKENS,
    Role,
    WorkerSettings,
)
from .announcing import announce
from .early_stop import EarlyStop
from .options import check_installed, with_engine_options, with_fitting_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_REPORT_S = 5.0
"""How long a supervisor that ends tries to say which workers died."""


def _address(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter("give a port, or HOST:PORT")
    return f"{host.strip('[]') or '127.0.0.1'}:{port}"


def _concurrent(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """None for `auto`."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter("give a number of at least 1, or auto")
    return int(value)


def _adapters(context: click.Context, parameter: click.Parameter, value: Sequence[str]) -> tuple[str, ...]:
    folders: dict[str, Path] = {}
    for each in value:
        name, _, folder = each.partition("=")
        if not (name.strip() and folder.strip()):
            raise click.BadParameter(f"give NAME=FOLDER, and not {each!r}")
        if name.strip() in folders:
            raise click.BadParameter(f"{name.strip()} is given twice")
        folders[name.strip()] = Path(folder.strip()).expanduser().resolve()
    return tuple(f"{name}={folder}" for name, folder in folders.items())


def _upstream(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if not value:
        return None
    from impetus_backends.errors import BackendUnavailableError
    from impetus_backends.upstream.address import read_address

    try:
        return str(read_address(value))
    except BackendUnavailableError as error:
        raise click.BadParameter(str(error)) from None


def _check_upstream(options: Mapping[str, Any]) -> None:
    """Raises `click.UsageError` unless the backend that forwards and where to come together."""
    forwards = options["generation_backend"] == "openai"
    if forwards and options["upstream"] is None:
        raise click.UsageError("--generation-backend openai needs --upstream URL: the server to forward to")
    if options["upstream"] is not None and not forwards:
        raise click.UsageError("--upstream goes with --generation-backend openai, and with no other")
    if forwards and (options["adapters"] or options["kv_bits"] or options["lookup_tokens"]):
        names = "--adapter, --kv-bits and --prompt-lookup-tokens"
        raise click.UsageError(f"{names} are for models that run here, and openai forwards to others")


@click.command()
@redis_urls_option("The server, or several to take jobs from by turns.  [default: one of its own, in this user's state "
                   "folder]")  # fmt: skip
@click.option("--durable", is_flag=True, envvar="IMPETUS_DURABLE", show_envvar=True,
              help="Have a server of its own write every change to the disk before it answers (appendfsync always): "
              "slower, and no acknowledged job is lost to a kill -9 or when the power fails. Else the disk follows "
              "within a second or two (everysec).")  # fmt: skip
@click.option("--listen", envvar="IMPETUS_LISTEN", metavar="[HOST:]PORT", show_envvar=True, callback=_address,
              help="Have a server of its own listen there too, for other users and machines, with a password that it "
              "makes. Else only this user's programs on this machine reach it.")  # fmt: skip
@with_engine_options
@with_fitting_options
@click.option("--upstream", envvar="IMPETUS_UPSTREAM", metavar="URL", show_envvar=True, callback=_upstream,
              help="With --generation-backend openai: the server that generations are forwarded to, as "
              "http://127.0.0.1:8080/v1. It speaks OpenAI's API; IMPETUS_UPSTREAM_KEY is its key.")  # fmt: skip
@click.option("--max-batch-texts", envvar="IMPETUS_MAX_BATCH_TEXTS", type=click.IntRange(1), show_envvar=True,
              help="The most texts in a batch.  [default: 256, more where many tokens suit the device]")  # fmt: skip
@click.option("--max-batch-tokens", envvar="IMPETUS_MAX_BATCH_TOKENS", type=click.IntRange(1), show_envvar=True,
              help="The most padded tokens in a batch.  [default: 1024 on a CPU and 4096 elsewhere, or more, as the "
              "device's own times say when the model has loaded]  On a CPU it bounds the attention of one longer text "
              "too, which is made by blocks.")  # fmt: skip
@click.option("--max-batch-ms", envvar="IMPETUS_MAX_BATCH_MS", default=DEFAULT_MAX_BATCH_MS, show_default=True,
              show_envvar=True, type=click.FloatRange(0, min_open=True), help="How long a batch may take that is made "
              "larger by that: so long somebody waits behind it.")  # fmt: skip
@click.option("--max-wait-ms", envvar="IMPETUS_MAX_WAIT_MS", default=5.0, show_default=True, show_envvar=True,
              type=click.FloatRange(0), help="How long the first text waits for others to join it.")  # fmt: skip
@click.option("--max-concurrent-generations", envvar="IMPETUS_MAX_CONCURRENT_GENERATIONS", default="16",
              show_envvar=True, show_default=True, callback=_concurrent, metavar="N|auto",
              help="How many generations decode together. 'auto' times a few counts of them when the model has loaded, "
              "up to 48, and takes the one of the most tokens a second whose steps are short.")  # fmt: skip
@click.option("--more-embedding-models", envvar="IMPETUS_MORE_EMBEDDING_MODELS", default="", metavar="NAME,…",
              show_envvar=True, help="Models that jobs may name besides, and no others. Each is loaded when one does; "
              "where memory is short, the one that was used least recently goes first.")  # fmt: skip
@click.option("--more-rerank-models", envvar="IMPETUS_MORE_RERANK_MODELS", default="", metavar="NAME,…",
              show_envvar=True, help="The same for rerankers.")  # fmt: skip
@click.option("--more-generation-models", envvar="IMPETUS_MORE_GENERATION_MODELS", default="", metavar="NAME,…",
              show_envvar=True, help="Models that jobs may name besides; each is loaded when one does.")  # fmt: skip
@click.option("--memory-limit-gb", envvar="IMPETUS_MEMORY_LIMIT_GB", type=click.FloatRange(0, min_open=True),
              show_envvar=True,
              help="What the models of a worker may take, in GiB.  [default: 75 % of the memory]")  # fmt: skip
@click.option("--prefix-cache-mb", envvar="IMPETUS_PREFIX_CACHE_MB", default=512, show_default=True, show_envvar=True,
              type=click.IntRange(0), help="Of that, for the beginnings of prompts that later ones share.")  # fmt: skip
@click.option("--prefix-cache-dir", envvar="IMPETUS_PREFIX_CACHE_DIR", show_envvar=True,
              type=click.Path(file_okay=False, resolve_path=True),
              help="A folder for beginnings that several prompts had, which survive a restart there. It holds what "
              "they said: only this user can read it.  [default: none]")  # fmt: skip
@click.option("--prefix-cache-dir-mb", envvar="IMPETUS_PREFIX_CACHE_DIR_MB", default=4096, show_default=True,
              show_envvar=True, type=click.IntRange(1), help="The most that folder takes.")  # fmt: skip
@click.option("--prefill-tokens", envvar="IMPETUS_PREFILL_TOKENS", type=click.IntRange(1), show_envvar=True,
              help="Prompt tokens read between two steps: fewer pause running streams less, more read long prompts "
              "faster.  [default: 512; on an M5 2048]")  # fmt: skip
@click.option("--served-model-name", "served_names", envvar="IMPETUS_SERVED_MODEL_NAME", default="", metavar="NAME,…",
              show_envvar=True, help="Further names by which jobs may ask for the generation model; results carry the "
              "first.")  # fmt: skip
@click.option(
    "--context-tokens",
    envvar="IMPETUS_CONTEXT_TOKENS",
    type=click.IntRange(2),
    show_envvar=True,
    help="What generation models read at most, prompt and answer together.  [default: what their files say]",
)
@click.option("--max-answer-tokens", envvar="IMPETUS_MAX_ANSWER_TOKENS", default=4096, show_default=True,
              show_envvar=True, type=click.IntRange(1),
              help="The most tokens of an answer whose request does not say: less, where the context or the memory "
              "leaves less.")  # fmt: skip
@click.option("--special-tokens", envvar="IMPETUS_SPECIAL_TOKENS", default="control", show_default=True,
              show_envvar=True, type=click.Choice(SPECIAL_TOKENS),
              help="What a model's special tokens are in messages that do not say: as it knows them, or text like any "
              "other, which cannot close its turn.")  # fmt: skip
@click.option("--generation-quantize", envvar="IMPETUS_GENERATION_QUANTIZE", default="auto", show_default=True,
              show_envvar=True, type=click.Choice(QUANTIZE_AT_LOAD),
              help="What is done, when it loads, to a generation model that comes unquantised. 'auto': on an Apple GPU "
              "4bit, or mixed_4_6 on an M5 (unverified); on a CPU nothing.")  # fmt: skip
@click.option("--adapter", "adapters", multiple=True, envvar="IMPETUS_ADAPTER", metavar="NAME=FOLDER", show_envvar=True,
              callback=_adapters, help="A LoRA adapter of the generation model, as mlx_lm.lora writes it; jobs ask for "
              "it by NAME as for a model. The weights are in memory once, and those of each adapter decode in turn. "
              "May be given several times; in the variable they stand with white space between.")  # fmt: skip
@click.option("--kv-bits", envvar="IMPETUS_KV_BITS", type=click.Choice(["8", "4"]), show_envvar=True,
              help="Keep keys and values in so many bits: about half the memory of a token, or a quarter, and slower. "
              "What it costs the model, in perplexity of a sample, is in the log.  [default: as computed]")  # fmt: skip
@click.option("--prompt-lookup-tokens", "lookup_tokens", envvar="IMPETUS_PROMPT_LOOKUP_TOKENS", default=0,
              metavar="N", type=click.IntRange(0, 64), show_default=True, show_envvar=True,
              help="Draft up to N tokens of what a generation says from what it and its prompt said before, and check "
              "them in one step: for greedy jobs, and only while one runs alone. 8 is a good number where answers "
              "repeat their prompts. The text is the model's own; on a GPU near-ties may fall otherwise.")  # fmt: skip
@click.option("--allow-callbacks", envvar="IMPETUS_ALLOW_CALLBACKS", default="", metavar="NAME,…", show_envvar=True,
              help="Functions that jobs may name as RQ callbacks. No other is ever imported.")  # fmt: skip
@click.option("--allow-webhooks", envvar="IMPETUS_ALLOW_WEBHOOKS", default="", metavar="HOST,…", show_envvar=True,
              help="Hosts that jobs may name for RQ webhooks, by http at port 80 and by https at 443; HOST:PORT allows "
              "another port. No other is ever sent to, and redirects are not followed. A host may be in a private "
              "network (10.0.0.0/8, fc00::/7, …), and not be this machine, unless named by its address, or a cloud's "
              "metadata service.")  # fmt: skip
@click.option("--prefer", envvar="IMPETUS_PREFER", default="auto", show_default=True, show_envvar=True,
              type=click.Choice(PREFERENCES), help="What embeddings are shared out by between workers of one server. "
              "'speed': each takes what it would end sooner than the others, as all have measured. 'energy': a worker "
              "without a Neural Engine leaves them to one that has it, while one serves. 'auto': energy on battery, "
              "else speed.")  # fmt: skip
@click.option("--bulk-from-charge", envvar="IMPETUS_BULK_FROM_CHARGE", default=20, show_default=True, metavar="PERCENT",
              show_envvar=True, type=click.IntRange(0, 100), help="On battery no bulk is taken below so much of its "
              "charge. None is either while the machine is hot; whoever waits is always served.")  # fmt: skip
@click.option("--metrics-port", "metrics_address", envvar="IMPETUS_METRICS_PORT", metavar="[HOST:]PORT",
              show_envvar=True, callback=_address, help="Serve what workers count to Prometheus there, at /metrics, "
              "on loopback unless a host is given. Wants the extra 'metrics'.")  # fmt: skip
@click.option("--log-format", envvar=logs.FORMAT_VARIABLE, default="text", show_default=True, show_envvar=True,
              type=click.Choice(logs.FORMATS), help="What the log on stderr is: a line a message, or a JSON object, "
              "with time, level, logger, message and job_id.")  # fmt: skip
@click.option("--burst", is_flag=True, envvar="IMPETUS_BURST", help="Stop when the queues are empty.")
@click.option("--simulated-a-ms", default=4.0, hidden=True, type=float)
@click.option("--simulated-b-us", default=20.0, hidden=True, type=float)
@click.option("--hardware", hidden=True, type=click.Path(exists=True, dir_okay=False, resolve_path=True),
              help="Run as the machine that this file describes.")  # fmt: skip
@click.option("--record-ttl-s", default=RECORD_TTL_S, hidden=True, type=float)
@click.option("--record-renew-s", default=RECORD_RENEW_S, hidden=True, type=float)
@click.option("--until-stdin-closes", is_flag=True, hidden=True, help="Stop at the end of standard input.")
def run(
    redis_urls: tuple[str, ...],
    durable: bool,
    listen: str | None,
    roles: tuple[Role, ...],
    allow_callbacks: str,
    allow_webhooks: str,
    metrics_address: str | None,
    log_format: str,
    until_stdin_closes: bool,
    **options: Any,
) -> None:
    """Run workers until Ctrl-C: one process a role, each with its engine.

    Without --redis-url the worker brings a server of its own, for this user, whose jobs survive a restart; `impetus`
    commands on this machine find it by themselves. Of several servers it takes jobs by turns; the model is loaded once,
    and one that is away keeps nothing from the others. The first Ctrl-C finishes what runs and puts the rest back, a
    second one puts everything back at once, a third one waits for nobody. SIGTERM, and a terminal that closes, are
    as good as a Ctrl-C; under `nohup` a terminal that closes changes nothing.

    A worker that crashes is started again; one that does so ten times in a row, each within a minute, is given up, and
    when all are, the exit status is 1. It is 3 where a worker cannot run as told, and 0 after a stop.

    \b
    impetus-worker run
    impetus-worker run --durable
    impetus-worker run --redis-url redis://queue.example:6379/0 --roles embedding
    impetus-worker run --redis-url redis://one.example:6379/0 --redis-url redis://two.example:6379/0
    impetus-worker run --generation-model ./my-model --max-concurrent-generations 32
    impetus-worker run --rerank-model BAAI/bge-reranker-v2-m3
    """
    _check_upstream(options)
    if "rerank" in roles and options["rerank_model"] is None and options["rerank_backend"] != "simulated":
        raise click.UsageError("the role rerank needs --rerank-model FOLDER|ID: there is no default")
    os.environ[logs.FORMAT_VARIABLE] = log_format
    logs.set_up()
    early_stop = EarlyStop()
    server = None
    try:
        check_installed("impetus-worker run")
        urls = redis_urls
        if not urls:
            from ..host.embedded_server import EmbeddedServer

            server = EmbeddedServer.start_or_join(durable=durable, listen=listen)
            urls = (server.url,)
            if durable and not server.is_ours:
                _say_whether_durable(server.url)
            if listen and not server.is_ours:
                click.echo("--listen changes nothing: the server runs already", err=True)
        elif durable or listen:
            click.echo("--durable and --listen are for a server of the worker's own, and one was given", err=True)
        stops = " (embedded, stops with this program)" if server is not None and server.is_ours else ""
        for each in urls:
            announce(f"server: {without_password(each)}{stops}")
        if server is not None and server.listens_at:
            from impetus_producer.servers.discovery import state_dir

            from ..host.embedded_server import url_file

            shown = without_password(server.listens_at)
            announce(f"  it listens at {shown}; elsewhere: --redis-url-file {url_file(state_dir())}")
        allowed = Allowed(_names(allow_callbacks), _names(allow_webhooks.lower()))
        workers = [_worker_settings(role, urls, allowed, options) for role in roles]
        lifeline = sys.stdin.fileno() if until_stdin_closes else None
        reports = [death_reports(each, roles) for each in urls]
        try:
            early_stop.check()
            with metrics_server(metrics_address):
                status = Supervisor(workers, server, lifeline, on_death=partial(_report_all, reports)).run()
        finally:
            for report in reports:
                report.close(_REPORT_S)
    except ImpetusError as error:
        raise click.ClickException(str(error)) from None
    finally:
        if server is not None:
            server.stop()  # the last of all
    sys.exit(status)


def _say_whether_durable(url: str) -> None:
    from impetus_producer import connect

    with connect(url) as connection:
        promise = connection.config_get("appendfsync").get("appendfsync")
    if promise != "always":
        click.echo(f"--durable changes nothing: the server that runs already has appendfsync {promise}", err=True)


def _report_all(reports: Sequence[DeathReports], worker: str, begun: Sequence[str]) -> None:
    for each in reports:
        each.report(worker, begun)


def death_reports(url: str, roles: Sequence[Role]) -> DeathReports:
    """Through which a supervisor of these roles says in Redis which workers it saw end; started."""
    reports = DeathReports(url, roles)
    reports.start()
    return reports


def _worker_settings(role: Role, urls: tuple[str, ...], allowed: Allowed, options: dict[str, Any]) -> WorkerSettings:
    return WorkerSettings(
        redis_urls=urls,
        role=role,
        name=worker_name(role),
        model=options[f"{role}_model"],
        more_models=_names(options[f"more_{role}_models"]),
        backend=options[f"{role}_backend"],
        upstream=options["upstream"] if role == "generation" else None,
        memory_limit_gb=options["memory_limit_gb"],
        prefix_cache_mb=options["prefix_cache_mb"],
        prefix_cache_dir=options["prefix_cache_dir"],
        prefix_cache_dir_mb=options["prefix_cache_dir_mb"],
        prefill_tokens=options["prefill_tokens"],
        max_batch_texts=options["max_batch_texts"],
        max_batch_tokens=options["max_batch_tokens"],
        max_batch_ms=options["max_batch_ms"],
        max_wait_ms=options["max_wait_ms"],
        max_concurrent_generations=options["max_concurrent_generations"],
        fit_after_texts=options["fit_after_texts"] if options["fit_shapes"] else None,
        fit_look_s=options["fit_look_s"],
        served_names=_names(options["served_names"]),
        context_tokens=options["context_tokens"],
        max_answer_tokens=options["max_answer_tokens"],
        special_tokens=options["special_tokens"],
        adapters=options["adapters"] if role == "generation" else (),
        kv_bits=int(options["kv_bits"]) if options["kv_bits"] else None,
        lookup_tokens=options["lookup_tokens"],
        generation_quantize=options["generation_quantize"],
        burst=options["burst"],
        allow_callbacks=tuple(allowed.callbacks),
        allow_webhooks=tuple(allowed.webhooks),
        simulated_a_ms=options["simulated_a_ms"],
        simulated_b_us=options["simulated_b_us"],
        hardware=options["hardware"],
        record_ttl_s=options["record_ttl_s"],
        record_renew_s=options["record_renew_s"],
        wired_memory=options["wired_memory"],
        allow_sleep=options["allow_sleep"],
        stay_awake_on_battery=options["stay_awake_on_battery"],
        prefer=options["prefer"],
        bulk_from_charge=options["bulk_from_charge"],
    )


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())
