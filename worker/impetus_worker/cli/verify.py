"""`impetus-worker verify`: what only this machine can tell, checked and told line by line."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from impetus_producer.errors import ImpetusError

from .options import check_installed
from .submit import submit

_MARKS = {"pass": "ok  ", "fail": "FAIL", "not applicable": "n/a "}


@click.command()
@click.option("--embedding-model", "model", envvar="IMPETUS_EMBEDDING_MODEL", metavar="FOLDER|ID", show_envvar=True,
              help="A folder or a Hugging Face id.  [default: sentence-transformers/all-MiniLM-L6-v2]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For programs: all of it, with this machine's own names.")
@click.option("--submit", "to_submit", is_flag=True,
              help="Write a report that names no person, host or folder, and open the page to send it on.")  # fmt: skip
def verify(model: str | None, as_json: bool, to_submit: bool) -> None:
    """Check on this machine what was built without it: conversion, placement, accuracy, speed, and on an M5 its loader.

    On a Mac it converts and compiles the embedding model, asks Core ML where it would run, compares its vectors with
    the reference and its speed with the targets, the GPU and the CPU, and remembers which was faster: workers go by
    it. It takes some minutes the first time. Elsewhere the package is run by numpy, and what needs a Mac is told to be
    not applicable. The exit status is 1 if any line fails.

    With --submit the report lies in the current folder too, impetus-board-….json: look at it before you send it. What
    came in is told in docs/hardware.md.

    \b
    impetus-worker verify
    impetus-worker verify --json > my-mac-verified.json
    impetus-worker verify --submit
    """
    try:
        check_installed("impetus-worker verify")
    except ImpetusError as error:
        raise click.ClickException(str(error)) from None
    from impetus_backends import models
    from impetus_backends.errors import BackendError
    from impetus_backends.machine.hardware import detect
    from impetus_backends.verified.board import require_mac
    from impetus_backends.verified.check import Check, Verdict
    from impetus_backends.verified.verifier import Verifier

    machine = detect()
    checks: list[Check] = []
    try:
        if to_submit:
            require_mac(machine)
        for check in Verifier(machine, model or models.DEFAULT_EMBEDDING_MODEL).checks():
            checks.append(check)
            # As they come, for the whole takes minutes; on standard error where the report goes to a program.
            click.echo(_in_words(check), err=as_json)
    except BackendError as error:
        raise click.ClickException(str(error)) from None
    for check in (_remember(model, mac=machine.system == "Darwin"), _sleep(mac=machine.system == "Darwin")):
        checks.append(check)
        click.echo(_in_words(check), err=as_json)
    own = _rows()
    for check in own:
        click.echo(_in_words(check), err=as_json)
    if as_json:
        click.echo(json.dumps(_report(machine, [*checks, *own]), indent=2))
    if to_submit:
        name = models.resolve(model or models.DEFAULT_EMBEDDING_MODEL).name
        submit(machine, name, _versions(), checks)
    sys.exit(any(check.verdict is Verdict.FAIL for check in checks))


def _remember(model: str | None, *, mac: bool) -> Any:
    """The measurement by which workers here choose from now on."""
    from impetus_backends.dispatcher import measure_embedding
    from impetus_backends.errors import BackendError
    from impetus_backends.verified.check import Check, Verdict

    name = "measurement for workers"
    if not mac:
        return Check(name, Verdict.NOT_APPLICABLE, "nothing is to be chosen here: embeddings run on the CPU")
    try:
        return Check(name, Verdict.PASS, str(measure_embedding(model)))
    except (BackendError, OSError) as error:
        return Check(name, Verdict.FAIL, str(error))


def _rows() -> list[Any]:
    """How many generations decode together, for each model that a worker has measured. Its name may be a folder's, so
    that this is told here and never sent on."""
    from impetus_backends.generation.row_curves import remembered
    from impetus_backends.verified.check import Check, Verdict

    name = "generations together"
    found = [Check(name, Verdict.PASS, f"{each['model']}, {each['at'][:10]}: {each['words']}") for each in remembered()]
    missing = "no worker with --max-concurrent-generations auto has measured a model here"
    return found or [Check(name, Verdict.NOT_APPLICABLE, missing)]


def _sleep(*, mac: bool) -> Any:
    """Whether workers can keep this machine awake while jobs run, and hear that it is about to sleep."""
    from impetus_backends.verified.check import Check, Verdict

    from ..host.power import try_power

    name = "idle sleep"
    if not mac:
        return Check(name, Verdict.NOT_APPLICABLE, "only macOS is asked to stay awake while jobs run")
    try:
        return Check(name, Verdict.PASS, try_power())
    except OSError as error:
        return Check(name, Verdict.FAIL, f"{error}; a worker serves all the same, and this Mac may sleep meanwhile")


def _report(machine: Any, checks: list[Any]) -> dict[str, Any]:
    from dataclasses import asdict

    return {"machine": asdict(machine), "versions": _versions(), "checks": [asdict(check) for check in checks]}


def _versions() -> dict[str, str]:
    from importlib import metadata

    versions = {}
    for package in ("impetus-batch", "coremltools", "coreai-core", "mlx", "mlx-lm", "onnxruntime", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _in_words(check: Any) -> str:
    return f"{_MARKS[check.verdict]}  {check.name:<49} {check.detail}"
