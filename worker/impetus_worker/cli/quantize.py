"""`impetus-worker convert --generation`: a language model with smaller weights, and what that costs it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from impetus_backends.generation.quantization.conversion import Report
    from impetus_backends.generation.quantization.perplexity import Comparison

DEFAULT_LIMIT_PERCENT = 2.0


class Progress(Protocol):
    """Where one step of the work is, from 0 to 1."""

    def __call__(self, step: str, share: float) -> None: ...

    def done(self) -> None:
        """Clears what was shown."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How the loss is measured, and how much of it is borne."""

    text: Path | None
    tokens: int
    limit: float
    accept_loss: bool
    wanted: bool


def convert(
    model: str, recipe: str, output: Path | None, measured: Measured, tell: Progress, *, force: bool, as_json: bool
) -> None:
    """Converts, prints the report and the command that serves the result, or raises what click shows."""
    from impetus_backends import models
    from impetus_backends.errors import BackendError
    from impetus_backends.generation.quantization.conversion import Order, PerplexityError
    from impetus_backends.generation.quantization.conversion import convert as run
    from impetus_backends.generation.quantization.quantize import RECIPES

    try:
        files = models.resolve(model)
        name = files.name.rpartition("/")[2]
        target = output or Path(f"{name}-{recipe}")
        order = Order(
            model=files.name,
            source=files.folder,
            target=target,
            recipe=RECIPES[recipe],
            text=_read(measured.text) if measured.wanted else None,
            max_tokens=measured.tokens,
            limit=measured.limit,
            accept_loss=measured.accept_loss,
            replace=force,
        )
        report = run(order, tell)
    except PerplexityError as error:
        tell.done()
        click.echo(error.report.to_json() if as_json else in_words(error.report, text=measured.text))
        raise click.ClickException(str(error)) from None
    except BackendError as error:
        tell.done()
        raise click.ClickException(str(error)) from None
    except OSError as error:
        tell.done()
        raise click.ClickException(
            f"{error.filename or output or 'the new folder'} cannot be written: {error.strerror}"
        ) from None
    tell.done()
    if as_json:
        click.echo(report.to_json())
        return
    click.echo(in_words(report, text=measured.text))
    click.echo(f"folder      {target}")
    click.echo(f"serve it    impetus-worker run --generation-model {shlex.quote(_typed(target))}")


def in_words(report: Report, *, text: Path | None) -> str:
    """The table, and the verdict under it."""
    rows = [
        ("", "A", "B"),
        ("form", report.a.precision.partition(",")[0], report.b.precision.partition(",")[0]),
        ("weights", f"{report.a.size_bytes / 1e6:.2f} MB", f"{report.b.size_bytes / 1e6:.2f} MB"),
    ]
    comparison = report.comparison
    if comparison is not None:
        rows.append(("perplexity", f"{comparison.a:.3f}", f"{comparison.b:.3f}"))
    width = max(len(cell) for row in rows for cell in row[1:]) + 2
    extra = report.b.precision.partition(", ")[2]
    lines = [
        f"model       {report.model}",
        f"made        {report.recipe}: {report.layers} layers packed"
        + (f" ({extra})" if extra else "")
        + (f", {len(report.left)} left as they were, for their width" if report.left else ""),
        *([_measured_on(comparison, text)] if comparison else ["measured    not at all: --no-measure"]),
        "",
        *(f"{name:<12}{a:>{width}}{b:>{width}}".rstrip() for name, a, b in rows),
    ]
    if comparison is not None:
        lines += [
            f"{'size':<12}{report.b.size_bytes / report.a.size_bytes:.2f} of A's",
            f"{'change':<12}{comparison.change:+.2%} (standard error {comparison.error:.2%})",
            f"{'agreement':<12}{comparison.agreement:.1%} of tokens: the same one held most likely",
            f"{'verdict':<12}{_verdict(report, comparison)}",
        ]
    return "\n".join([*lines, ""])


def _measured_on(comparison: Comparison, text: Path | None) -> str:
    what = text or "the small text that comes with Impetus (one of your own kind tells more: --text FILE)"
    return f"measured    on {comparison.tokens} tokens of {what}"


def _verdict(report: Report, comparison: Comparison) -> str:
    if not report.judged:
        return (
            f"none: on this text the original does worse than guessing among its {comparison.vocabulary} tokens; "
            "measure on a text of its own kind with --text"
        )
    return f"{'within' if report.passed else 'beyond'} the limit of {report.limit:.2%}"


def _read(file: Path | None) -> str:
    from impetus_backends.generation.quantization.perplexity import sample_text

    if file is None:
        return sample_text()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file} cannot be read as UTF-8 text: {error}") from None


def _typed(folder: Path) -> str:
    """A folder as `--generation-model` takes it: a bare name could be a Hugging Face id."""
    return str(folder) if folder.is_absolute() or str(folder).startswith((".", "~")) else f"./{folder}"
