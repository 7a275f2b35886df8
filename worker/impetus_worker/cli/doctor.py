"""`impetus-worker doctor`: what a machine is, which queues it would claim, with which backend, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impetus_producer.cli.settings.server_option import redis_url_option
from impetus_producer.contract import ROLE_QUEUES
from impetus_producer.errors import ImpetusError
from impetus_producer.servers.discovery import find_redis_url
from impetus_producer.shown import without_password

from ..settings import DEFAULT_MAX_BATCH_MS, ROLES, Role
from .options import check_installed, with_engine_options

if TYPE_CHECKING:
    from impetus_backends.dispatcher import HybridDispatcher
    from impetus_backends.machine.hardware import Hardware
    from impetus_backends.machine.policy import Choice

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@with_engine_options
@redis_url_option("The server to look at.  [default: the one that runs on this machine]")
@click.option("--measure", is_flag=True,
              help="Load the embedding model and time its batches, as a worker does at its start.")  # fmt: skip
@click.option("--hardware", type=_FILE, metavar="FILE", help="Ask about another machine, which wrote FILE.")
@click.option("--record", type=_FILE, metavar="FILE", help="Write this machine's raw answers to FILE, and no more.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(
    roles: tuple[Role, ...],
    embedding_model: str | None,
    generation_model: str | None,
    rerank_model: str | None,
    embedding_backend: str,
    generation_backend: str,
    rerank_backend: str,
    wired_memory: bool,
    allow_sleep: bool,
    stay_awake_on_battery: bool,
    redis_url: str | None,
    measure: bool,
    hardware: Path | None,
    record: Path | None,
    as_json: bool,
) -> None:
    """Say what this machine is, which queues it would claim, with which backend, and why. Loads no model unless asked
    to.

    On a Mac it asks MLX and Core ML which devices they see, which takes a few seconds. With --hardware it answers for
    the machine that wrote the file, as if all was installed there that can be.

    \b
    impetus-worker doctor
    impetus-worker doctor --measure
    impetus-worker doctor --record my-mac.json
    impetus-worker doctor --hardware my-mac.json --json
    """
    try:
        check_installed("impetus-worker doctor")
    except ImpetusError as error:
        raise click.ClickException(str(error)) from None
    if record is not None:
        _record(record)
        return
    if measure and hardware is not None:
        raise click.UsageError("--measure is for this machine, and --hardware for another")
    from impetus_backends.dispatcher import DEFAULT_MODELS, get_compute_dispatcher
    from impetus_backends.generation.models.limits import wired_memory_policy
    from impetus_backends.machine.footprint import used_bytes
    from impetus_backends.machine.hardware import detect, read_machine
    from impetus_backends.machine.measurements import MeasurementCache
    from impetus_backends.machine.policy import not_installable, not_installed
    from impetus_backends.machine.probes import ProbeError

    from ..host.power import sleep_policy

    models: dict[Role, str | None] = {
        "embedding": embedding_model or DEFAULT_MODELS["embedding"],
        "generation": generation_model or DEFAULT_MODELS["generation"],
        "rerank": rerank_model,
    }
    try:
        machine = detect() if hardware is None else read_machine(hardware)
    except ProbeError as error:
        raise click.ClickException(str(error)) from None
    measured = MeasurementCache().latest(machine, [str(models["embedding"])]) if hardware is None else None
    dispatcher = get_compute_dispatcher(
        machine,
        embedding=embedding_backend,
        generation=generation_backend,
        rerank=rerank_backend,
        absence=not_installed if hardware is None else not_installable(machine),
        measured=measured,
    )
    report = _report(dispatcher, roles, models, elsewhere=hardware is not None)
    if report["roles"]["embedding"]["claims"]:
        report["roles"]["embedding"]["reasons"] += _of_folder(models["embedding"] or "")
    if measure and report["roles"]["embedding"]["claims"]:
        report["roles"]["embedding"]["batches"] = _batches(models["embedding"], embedding_backend)
    report["footprint_bytes"] = used_bytes()
    report["wired_memory"] = wired_memory_policy(machine, asked=wired_memory)
    report["sleep"] = sleep_policy(
        allow_sleep=allow_sleep,
        stay_awake_on_battery=stay_awake_on_battery,
        system=machine.system.lower(),
    )
    report["server"] = _server(redis_url)
    click.echo(json.dumps(report, indent=2) if as_json else _in_words(report, dispatcher.hardware))


def _of_folder(model: str) -> list[str]:
    """What there is to say of an embedding model's files, if it is a folder."""
    from impetus_backends.embedding.folder.config import read_config
    from impetus_backends.embedding.texts.prompts import missing_prompts
    from impetus_backends.errors import ModelError

    folder = Path(model).expanduser()
    if not folder.is_dir():
        return []
    try:
        config = read_config(folder)
    except ModelError as error:
        return [f"the model will not load: {error}"]
    advice = missing_prompts([folder.resolve().name], (prompt for _, prompt in config.text.prompts))
    return [advice] if advice else []


def _batches(model: str | None, backend: str) -> dict[str, Any]:
    """What a worker's engine finds out about its batches at its start."""
    from impetus_backends.dispatcher import open_engine
    from impetus_backends.engine_config import EngineConfig
    from impetus_backends.errors import BackendError

    click.echo("loading the embedding model", err=True)
    try:
        engine = open_engine(EngineConfig("embedding", model, backend, longest_batch_s=DEFAULT_MAX_BATCH_MS / 1e3))
    except BackendError as error:
        raise click.ClickException(str(error)) from None
    info = engine.info
    engine.close()
    return {
        "backend": info.backend,
        "note": info.note,
        "tokens": info.batch_tokens,
        "measured": info.measured,
        "curve": [{"tokens": tokens, "seconds": seconds} for tokens, seconds in info.curve],
    }


def _server(redis_url: str | None) -> list[str]:
    """What there is to say of the server that a worker would use, in sentences."""
    from impetus_producer.servers.connections import from_url
    from impetus_producer.servers.fitness import look

    url = find_redis_url(redis_url)
    if url is None:
        return ["none was given or runs here: `impetus-worker run` brings one of its own (see --durable)"]
    try:
        with from_url(url) as connection:
            found = [f"{finding.level}: {finding.sentence}" for finding in look(connection, "worker").findings]
    except ImpetusError as error:
        found = [str(error)]
    return [without_password(url), *found]


def _record(file: Path) -> None:
    from impetus_backends.machine.hardware import record
    from impetus_backends.machine.probes import all_probes

    answers = record(all_probes())
    try:
        file.write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from None
    click.echo(f"{file}: what this machine says of its chip, memory, system and devices; no name, no serial number")
    for name, problem in answers["problems"].items():
        click.echo(f"problem: {name}: {problem}")


def _report(
    dispatcher: HybridDispatcher, roles: tuple[Role, ...], models: dict[Role, str | None], *, elsewhere: bool
) -> dict[str, Any]:
    choices = {
        "embedding": dispatcher.embedding_backend,
        "generation": dispatcher.lm_backend,
        "rerank": dispatcher.rerank_backend,
    }
    report: dict[str, Any] = {
        "machine": asdict(dispatcher.hardware),
        "installed": "assumed: all that this platform can install" if elsewhere else "seen here",
        "memory_limit_bytes": dispatcher.memory_limit_bytes,
        "roles": {},
    }
    for role in ROLES:
        choice = choices[role]
        claims = role in roles and choice.first is not None and models[role] is not None
        report["roles"][role] = {
            "claims": list(ROLE_QUEUES[role]) if claims else [],
            "backend": choice.first if claims else None,
            "then": list(choice.candidates[1:]) if claims else [],
            "gives_way": claims and role == "embedding" and choice.first != "coreml",
            "profile": choice.profile if claims else None,
            "model": models[role],
            "reasons": _reasons(role, choice, models[role], left_out=role not in roles),
        }
    return report


def _reasons(role: Role, choice: Choice, model: str | None, *, left_out: bool) -> list[str]:
    if model is None:
        return [f"no model is named for it: --{role}-model"]
    if left_out:
        return ["left out by --roles"]
    return [*choice.reasons, *(_measured_rows(model) if role == "generation" else ())]


def _measured_rows(model: str) -> list[str]:
    """What a worker with `--max-concurrent-generations auto` last found out here."""
    from impetus_backends.generation.row_curves import remembered

    return [f"on {each['at'][:10]}: {each['words']}" for each in remembered() if each["model"] == model]


def _in_words(report: dict[str, Any], machine: Hardware) -> str:
    lines = [f"machine     {machine.chip} ({', '.join(_traits(machine))})"]
    lines.append(f"            {_cores(machine)}, {machine.memory_bytes / 2**30:.0f} GiB" + _limit(report))
    if machine.apple_silicon:
        lines.append(f"            {_neural_engine(machine)}; GPU {machine.gpu_architecture or 'not known'}")
    lines += [f"            problem: {problem}" for problem in machine.problems]
    if report["installed"].startswith("assumed"):
        lines.append("            taken to have installed all that this platform can install")
    for role, plan in report["roles"].items():
        lines.append("")
        if plan["claims"]:
            lines.append(f"{role:<11} would claim {' and '.join(plan['claims'])} with the {plan['backend']} backend")
            if plan["gives_way"]:
                lines.append("            --prefer energy: not while a Neural Engine's worker serves the same model")
            lines.append(f"            model {plan['model']}")
            if plan["then"]:
                lines.append(f"            should that fail to serve: {', then '.join(plan['then'])}")
            if plan["profile"]:
                lines.append(f"            loader profile {plan['profile']}")
        else:
            lines.append(f"{role:<11} would claim nothing")
        lines += [f"            - {reason}" for reason in plan["reasons"]]
        if "batches" in plan:
            lines += _curve(plan["batches"])
            lines += [f"            note: {plan['batches']['note']}"] if plan["batches"]["note"] else []
    first, *rest = report["server"]
    lines += ["", f"server      {first}", *(f"            - {sentence}" for sentence in rest)]
    lines += ["", f"memory      {report['wired_memory']}", f"            {_footprint(report['footprint_bytes'])}"]
    lines += [f"sleep       {report['sleep']}"]
    return "\n".join(lines)


def _footprint(own: int | None) -> str:
    if own is None:
        return "what a worker's engine has cannot be found out here, and is not watched"
    return (
        "what a worker's engine has is watched, and models leave when it nears the limit "
        f"(this program has {own / 2**20:.0f} MiB)"
    )


def _curve(batches: dict[str, Any]) -> list[str]:
    if not batches["curve"]:
        return [f"            batches of {batches['tokens']:,} padded tokens: {batches['backend']} measures none"]
    lines = [f"            batches of {batches['tokens']:,} padded tokens with the {batches['backend']} backend, of"]
    for point in batches["curve"]:
        tokens, seconds = point["tokens"], point["seconds"]
        lines.append(f"            {tokens:>9,} tokens {1e3 * seconds:>10.1f} ms {tokens / seconds:>11,.0f} tokens/s")
    return lines


def _traits(machine: Hardware) -> list[str]:
    system = f"macOS {machine.macos} {machine.build}".rstrip() if machine.system == "Darwin" else machine.system
    return [
        trait
        for trait in (
            machine.model,
            f"{system}, {machine.machine}",
            "under Rosetta" if machine.rosetta else "",
            "virtual" if machine.virtual else "",
        )
        if trait
    ]


def _cores(machine: Hardware) -> str:
    if machine.performance_cores and machine.efficiency_cores:
        return f"{machine.cores} cores ({machine.performance_cores} fast, {machine.efficiency_cores} thrifty)"
    return f"{machine.cores} cores"


def _limit(report: dict[str, Any]) -> str:
    limit: int | None = report["memory_limit_bytes"]
    return f", of which a model may need {limit / 2**30:.0f}" if limit else ""


def _neural_engine(machine: Hardware) -> str:
    if machine.neural_engine is None:
        return "Neural Engine not asked about (Core ML did not answer)"
    if not machine.neural_engine:
        return "Core ML lists no Neural Engine"
    cores = f" of {machine.neural_engine_cores} cores" if machine.neural_engine_cores else ""
    return f"Core ML lists a Neural Engine{cores}"
