"""`impetus-worker convert`: a model in another form, smaller if wanted, and measured before it is kept.

Here an embedding model becomes a Core ML package; what becomes of a generation model is `quantize`'s.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..settings import GENERATION_RECIPES
from .from_torch import convert_from_torch
from .quantize import DEFAULT_LIMIT_PERCENT, Measured
from .quantize import convert as convert_generation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from impetus_backends.embedding.devices.packages.buckets import Bucket
    from impetus_backends.embedding.devices.packages.convert import Report
    from impetus_backends.embedding.devices.packages.device import Device
    from impetus_backends.embedding.folder.config import EmbeddingConfig

_MODES = ("none", "fp32", "int8", "palette6", "w8a8")
_AUTO = {"queries": ("palette6", "int8", "none"), "bulk": ("w8a8", "none")}
"""What `auto` tries, by what the package is for. A short text alone waits for its weights to be read: the fewer bytes
the better. Large batches wait for their products, which int8 weights alone make no faster."""
_CALIBRATION_TEXTS = 64
_EMBEDDING_OPTIONS = ("for_", "lane", "buckets", "calibration", "documents")
_GENERATION_OPTIONS = ("text", "tokens", "no_measure", "force")


@click.command()
@click.argument("model")
@click.option("--generation", is_flag=True, help="MODEL generates text, and becomes a smaller model folder for MLX.")
@click.option("--for", "for_", default="coreml", show_default=True, type=click.Choice(("coreml", "coreai")),
              help="Embeddings: what the package is for. Core AI is macOS 27's; off a Mac its float16 is emulated, a "
              "minute a text.")  # fmt: skip
@click.option("--from-torch", is_flag=True, help="MODEL is a folder whose weights are in files of torch's, and gets "
              "them as safetensors.")  # fmt: skip
@click.option("--quantize", default="none", show_default=True, metavar="FORM",
              type=click.Choice(("auto", *_MODES, *GENERATION_RECIPES)), help="See the forms below.")  # fmt: skip
@click.option("--lane", default="bulk", show_default=True, type=click.Choice(tuple(_AUTO)), help="Embeddings, with "
              "--quantize auto: what the package is for.")  # fmt: skip
@click.option("--output", "--out", type=click.Path(path_type=Path), metavar="DIR",
              help="Of embeddings: also put a copy of the package and its report there, into a new folder. Of "
              "generation: the new model folder.  [default: ./MODEL-FORM]")  # fmt: skip
@click.option("--limit", "limit_percent", type=click.FloatRange(0, 100), metavar="PERCENT",
              help="The most that may be lost.  [default: 1 of embeddings, 2 of generation]")  # fmt: skip
@click.option("--accept-loss", is_flag=True, help="Keep the result whatever it loses.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--buckets", metavar="COUNT|LIST", help="Embeddings: how many shapes to choose for texts like "
              "docstrings, or the shapes themselves, as texts x tokens: 1x32,8x96,1x256; 4x256/32 lays up to 32 texts "
              "in a row. Longer texts get one a doubling beyond 512 tokens besides COUNT.  [default: 6]")  # fmt: skip
@click.option("--calibration", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help='Embeddings: texts to calibrate w8a8 on, one a line, or .jsonl with "text".  '
              "[default: docstrings]")  # fmt: skip
@click.option("--documents", default=200, show_default=True, type=click.IntRange(11),
              help="Embeddings: how many docstrings of Python's standard library to measure with.")  # fmt: skip
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="Generation: measure on this UTF-8 text.  [default: 5 KB of English that come with Impetus: little, "
              "and no match for a text of the kind that you generate]")  # fmt: skip
@click.option("--tokens", default=8192, show_default=True, type=click.IntRange(32),
              help="Generation: how many tokens of the text to measure on, at most.")  # fmt: skip
@click.option("--no-measure", is_flag=True,
              help="Generation: do not measure, as where the original does not fit the memory.")  # fmt: skip
@click.option("--force", is_flag=True, help="Generation: replace a model that lies in the new folder's place.")
@click.pass_context
def convert(
    context: click.Context,
    model: str,
    generation: bool,
    from_torch: bool,
    for_: str,
    quantize: str,
    lane: str,
    output: Path | None,
    limit_percent: float | None,
    accept_loss: bool,
    as_json: bool,
    buckets: str | None,
    calibration: Path | None,
    documents: int,
    text: Path | None,
    tokens: int,
    no_measure: bool,
    force: bool,
) -> None:
    """Make MODEL (a folder or a Hugging Face id) ready for a device, or smaller, and measure what it loses.

    Beyond the limit nothing is kept, and the exit status is 1.

    EMBEDDINGS become a Core ML package, or a Core AI asset. Workers do this by themselves for plain float16. Convert by
    hand to have it done beforehand, to choose other shapes, or to have the weights smaller; from then on workers here
    serve the model with that package. The report compares the float16 package (A) and the one asked for (B) with the
    float32 reference. The loss is the larger of two: 1 minus the mean cosine, and what a search over the documents
    would give away, in similarity to the query, by taking B's ten nearest for the true ten.

    \b
    fp32        float32 (Core AI alone)
    int8        int8 weights
    palette6    palettes of 64 values (6 bits)
    w8a8        int8 weights and activations: twice the products a second on an M4 and later (unverified)
    auto        the first within the limit: for --lane bulk w8a8 or none, for queries palette6, int8 or none

    GENERATION models (--generation) become a smaller model folder, with the same tokenizer and chat template. The
    report compares the perplexity of the original (A) and the result (B) over a text; the loss is by how much it
    rises. They are loaded one after the other. A worker on an Apple GPU quantises what comes unquantised by itself,
    but anew at each start, from files of full size, and unmeasured.

    \b
    4bit        4-bit affine, groups of 64: what the standard loader does
    8bit        8-bit affine: twice the size, nearly lossless
    mixed_4_6   4-bit affine, and 6 bits for the layers that feel it most: what the M5 loader does (unverified)
    mxfp4       4-bit floats with an 8-bit power of two for each 32 weights
    nvfp4       4-bit floats with an 8-bit float for each 16 weights

    FILES OF TORCH'S (--from-torch), pytorch_model.bin and its like, are pickles, which workers never read. They become
    safetensors beside them, or in the new folder --output, exactly as they are. Nothing that they name is run.

    \b
    impetus-worker convert all-MiniLM-L6-v2
    impetus-worker convert all-MiniLM-L6-v2 --quantize int8 --output ./packages
    impetus-worker convert ./my-model --buckets 1x64,16x64,1x512
    impetus-worker convert --generation ./my-model --quantize 4bit --text letters.txt
    impetus-worker convert --from-torch ./my-old-model
    """
    if from_torch:
        _refuse_others(context, ("model", "from_torch", "output"), "--from-torch")
        convert_from_torch(model, output, _Progress())
        return
    _check_options(context, quantize, generation=generation)
    if generation:
        limit = DEFAULT_LIMIT_PERCENT if limit_percent is None else limit_percent
        terms = Measured(text, tokens, limit / 100, accept_loss=accept_loss, wanted=not no_measure)
        convert_generation(model, quantize, output, terms, _Progress(), force=force, as_json=as_json)
        return
    limit_percent = 1.0 if limit_percent is None else limit_percent
    from impetus_backends import models
    from impetus_backends.embedding.devices.backends import open_reference
    from impetus_backends.embedding.devices.coreai.device import CoreAIDevice
    from impetus_backends.embedding.devices.coreai.form import COREAI
    from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
    from impetus_backends.embedding.devices.coreml.form import COREML
    from impetus_backends.embedding.devices.coreml.macos import CoreMLDevice
    from impetus_backends.embedding.devices.packages.buckets import GUESSED_CALL_TOKENS, STEP
    from impetus_backends.embedding.devices.packages.cache import PackageCache
    from impetus_backends.embedding.devices.packages.convert import AccuracyError, Order, convert_first, export
    from impetus_backends.embedding.docstrings import sample
    from impetus_backends.embedding.folder.config import read_config
    from impetus_backends.embedding.folder.weights import fingerprint
    from impetus_backends.embedding.texts.tokens import TextEncoder
    from impetus_backends.errors import BackendError

    on_mac = platform.system() == "Darwin"
    form = COREML if for_ == "coreml" else COREAI
    forms = [mode for mode in _AUTO[lane] if mode in form.modes] if quantize == "auto" else [quantize]
    if not set(forms) <= set(form.modes):
        raise click.ClickException(f"a {form.title} package has no {quantize}; it has {', '.join(form.modes)}")
    tell = _Progress()
    try:
        files = models.resolve(model, listed=True)
        config, encoder = read_config(files.folder), TextEncoder.load(files.folder)
        cache = PackageCache(form)
        known = cache.served(fingerprint(config), config.text.max_tokens).call_tokens
        shapes = _buckets(buckets, config, GUESSED_CALL_TOKENS if known is None else known)
        target = output / f"{files.name.rpartition('/')[2]}-{quantize}" if output else None
        if target is not None and target.exists():
            raise click.ClickException(f"{target} exists already")
        tell("reading docstrings", 0)
        texts = sample(documents + _CALIBRATION_TEXTS)
        measured, others = texts[:documents], texts[documents:]
        calibrate_on = _texts(calibration) if calibration else others
        order = Order(
            model=files.name,
            config=config,
            mode=forms[0],
            buckets=shapes,
            rows=[text.ids for text in encoder.encode(measured)],
            calibration=[text.ids for text in encoder.encode(calibrate_on)],
            limit=limit_percent / 100,
            accept_loss=accept_loss,
        )
        device: Device = CoreAIDevice() if form is COREAI else CoreMLDevice() if on_mac else EmulatedDevice()
        entry, report, refused = convert_first(order, forms, device, open_reference(config), cache, tell)
        if target is not None:
            export(cache.package(entry), target)
            entry = target
    except AccuracyError as error:
        tell.done()
        click.echo(error.report.to_json() if as_json else _in_words(error.report))
        raise click.ClickException(str(error)) from None
    except BackendError as error:
        tell.done()
        raise click.ClickException(str(error)) from None
    tell.done()
    for bucket in shapes:
        if not bucket.aligned:
            click.echo(
                f"warning: {bucket} costs what the next multiple of {STEP} does: the model reads no more", err=True
            )
    for macos in ("26.0", "27.0"):
        if warning := form.too_large(report.b.size_bytes, macos):
            click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps({**json.loads(report.to_json()), "folder": str(entry)}, indent=2))
    else:
        for each in refused:
            click.echo(f"not {each.mode}: it loses {each.loss:.2%}, and {each.limit:.2%} is allowed")
        click.echo(_in_words(report))
        if not report.passed:
            click.echo(f"kept although it loses more than {report.limit:.2%}")
        click.echo(f"needs       {form.needs}\npackage     {entry}")


def _check_options(context: click.Context, quantize: str, *, generation: bool) -> None:
    """Refuses what belongs to the other kind of model, rather than leave it out in silence."""
    kind, forms = ("generation", tuple(GENERATION_RECIPES)) if generation else ("embeddings", (*_MODES, "auto"))
    if quantize not in forms:
        hint = "" if generation else ", or say --generation"
        if quantize == "none":
            raise click.UsageError(f"say what to make of it: --quantize {'|'.join(forms)}")
        raise click.UsageError(f"--quantize {quantize} is not for {kind}: take one of {', '.join(forms)}{hint}")
    others = _EMBEDDING_OPTIONS if generation else _GENERATION_OPTIONS
    _refuse_others(context, set(context.params) - set(others), kind)


def _refuse_others(context: click.Context, allowed: Collection[str], kind: str) -> None:
    for name in context.params:
        if name not in allowed and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.rstrip('_').replace('_', '-')} is not for {kind}")


def _buckets(wanted: str | None, config: EmbeddingConfig, call_tokens: float) -> tuple[Bucket, ...]:
    from impetus_backends.embedding.devices.packages.backend import buckets_for
    from impetus_backends.embedding.devices.packages.buckets import DEFAULT_COUNT, STEP, Bucket
    from impetus_backends.embedding.encoder import packable

    longest = config.text.max_tokens

    if wanted is None or wanted.strip().isdecimal():
        count = int(wanted or DEFAULT_COUNT)
        if count < 1:
            raise click.BadParameter("at least one bucket is needed", param_hint="--buckets")
        return buckets_for(config, count, call_tokens=call_tokens)
    try:
        shapes = [part.strip().lower().partition("/") for part in wanted.split(",")]
        pairs = [(*map(int, shape.split("x")), int(texts or 1)) for shape, _, texts in shapes]
        found = tuple(dict.fromkeys(Bucket(batch, length, texts) for batch, length, texts in pairs))
    except ValueError:
        raise click.BadParameter(
            "write 1x32,8x96,1x256,4x256/32: rows x tokens, or rows x tokens / texts a row", param_hint="--buckets"
        ) from None
    if any(bucket.packed for bucket in found) and not packable(config):
        raise click.BadParameter("this model's rows hold one text each", param_hint="--buckets")
    if any(not 1 <= bucket.texts <= bucket.length for bucket in found):
        raise click.BadParameter("a row holds one text or more, and no more than tokens", param_hint="--buckets")
    if any(bucket.batch < 1 or not 1 <= bucket.length <= longest for bucket in found):
        raise click.BadParameter(f"lengths are from 1 to {longest}, as this model reads", param_hint="--buckets")
    for bucket in found:
        # The Neural Engine computes the last axis in steps: any other length costs what the next step would.
        if not bucket.aligned and bucket.length != longest:
            wider = replace(bucket, length=min(-(-bucket.length // STEP) * STEP, longest))
            raise click.BadParameter(
                f"{bucket} costs what {wider} does: lengths are multiples of {STEP}, but for the model's longest",
                param_hint="--buckets",
            )
    if max((bucket.length for bucket in found if not bucket.packed), default=0) < longest:
        raise click.BadParameter(
            f"one must take the longest text that the model reads: add 1x{longest}", param_hint="--buckets"
        )
    return found


def _texts(file: Path) -> list[str]:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if file.suffix == ".jsonl":
        try:
            lines = [str(json.loads(line)["text"]) for line in lines]
        except (ValueError, KeyError, TypeError):
            raise click.ClickException(f'{file}: every line must be a JSON object with a "text"') from None
    if not lines:
        raise click.ClickException(f"{file} holds no texts")
    return lines


def _in_words(report: Report) -> str:
    shapes = ", ".join(map(str, report.buckets))
    rows = [
        ("", "A", "B"),
        ("form", report.a.mode.replace("none", "float16"), report.b.mode.replace("none", "float16")),
    ]
    figures: list[tuple[str, Callable[[Any], str]]] = [
        ("size", lambda side: f"{side.size_bytes / 1e6:.1f} MB"),
        ("least cosine", lambda side: f"{side.agreement.least_cosine:.6f}"),
        ("mean cosine", lambda side: f"{side.agreement.mean_cosine:.6f}"),
        ("top-10 kept", lambda side: f"{side.agreement.top10:.1%}"),
        ("given away", lambda side: f"{side.agreement.given_away:.3%}"),
        ("loss", lambda side: f"{side.agreement.loss:.3%}"),
    ]
    rows += [(name, tell(report.a), tell(report.b)) for name, tell in figures]
    lines = [
        f"model       {report.model}",
        f"buckets     {shapes} (texts x tokens)",
        f"padding     {report.padding.in_bulk:.0%} more tokens in bulk, {report.padding.alone:.0%} one text at a time",
        f"measured    on {report.a.agreement.texts} docstrings against the float32 reference, "
        + ("emulated in numpy with float16 rounding" if report.device == "emulated" else f"on {report.device}"),
        "",
        *(f"{name:<12}{a:>12}{b:>12}".rstrip() for name, a, b in rows),
        "",
    ]
    return "\n".join(lines)


class _Progress:
    """One line on standard error that is written over, or a line a step where nobody watches."""

    def __init__(self) -> None:
        self._step = ""
        self._live = sys.stderr.isatty()

    def __call__(self, step: str, share: float) -> None:
        if self._live:
            click.echo(f"\r\033[K{share:4.0%}  {step}", nl=False, err=True)
        elif step != self._step:
            click.echo(step, err=True)
        self._step = step

    def done(self) -> None:
        if self._live:
            click.echo("\r\033[K", nl=False, err=True)
