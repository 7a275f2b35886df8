"""A model folder made into a smaller one, measured against the first before it is kept.

The new folder is made beside its place under another name, loaded from there and measured, and then renamed: whatever
goes wrong, there is a whole model in its place or what was there before.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ...errors import BackendError, ModelError
from ..models.libraries import import_libraries, one_line
from ..models.loader import load, read_config
from .perplexity import MAX_TOKENS, compare, score, text_tokens
from .quantize import QuantizationError, evaluate, packed_bytes, quantization_of, quantize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .perplexity import Comparison, Score
    from .quantize import Packed, Recipe

    Progress = Callable[[str, float], None]

DEFAULT_LIMIT = 0.02
"""By what share the perplexity may rise."""
REPORT = "impetus-quantization.json"
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*")
"""Tokenizer, templates and terms: data, and never code that came with a model."""
_NOT_COPIED = ("config.json", "model.safetensors.index.json", REPORT)


class PerplexityError(BackendError):
    """A model lost more than the limit allows. Carries the report."""

    def __init__(self, report: Report) -> None:
        assert report.comparison is not None
        super().__init__(
            f"{report.recipe} makes the perplexity {report.comparison.change:.2%} worse and {report.limit:.2%} is "
            "allowed: nothing was kept. 8bit loses least; or allow more with --limit, or take it with --accept-loss"
        )
        self.report = report


@dataclass(frozen=True, slots=True)
class Order:
    """What to convert, and what to ask of it."""

    model: str
    source: Path
    target: Path
    recipe: Recipe
    text: str | None
    """What both models are measured on; none leaves the measuring out."""
    max_tokens: int = MAX_TOKENS
    limit: float = DEFAULT_LIMIT
    accept_loss: bool = False
    replace: bool = False
    """Whether a model that lies in `target` makes way."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models compared; sizes are of the weights' files."""

    precision: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """What was converted and how it did: A is the model as it came, B the one made of it."""

    model: str
    recipe: str
    a: Side
    b: Side
    layers: int
    left: tuple[str, ...]
    """Layers that could not be packed, and stay as they were."""
    comparison: Comparison | None
    limit: float

    @property
    def judged(self) -> bool:
        """Whether there is a verdict: both were measured, on a text of which the original knows something."""
        return self.comparison is not None and self.comparison.telling

    @property
    def passed(self) -> bool:
        return self.comparison is None or not self.comparison.telling or self.comparison.change <= self.limit

    def to_json(self) -> str:
        content = asdict(self)
        if self.comparison is not None:
            content["comparison"]["change"] = self.comparison.change
        return json.dumps({**content, "judged": self.judged, "passed": self.passed}, indent=2)


def convert(order: Order, progress: Progress = lambda step, share: None) -> Report:
    """Makes the folder `order.target` and returns its report, which lies in it too.

    Raises `QuantizationError` for a model that cannot be quantised or is already, `PerplexityError` where it loses
    more than the limit and that is not accepted, `BackendError` where the target is taken. Then nothing is changed.
    The two models are never in memory together.
    """
    config = read_config(order.source)
    if (already := quantization_of(config, order.source)) is not None:
        raise QuantizationError(
            f"{order.model} is quantised already ({already}), and doing it twice would lose twice: "
            "give the original, unquantised model"
        )
    _check_place(order)
    stored = _weights_bytes(order.source)
    needed, free = packed_bytes(stored, config, order.recipe), shutil.disk_usage(_existing(order.target)).free
    if needed > free:
        raise BackendError(f"{order.target} may need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")
    tokens: list[int] = []
    before: Score | None = None
    with _removed_if_unfinished(order.target) as folder:
        if order.text is not None:
            progress("loading the original", 0)
            tokens, before, precision = _measure(order, tokens, order.source, _part(progress, "measuring the original"))
        else:
            precision = str(config.get("torch_dtype") or config.get("dtype") or "not known")
        packed = _write(order, folder, progress)
        after: Score | None = None
        if before is not None:
            label = f"measuring {order.recipe.name}"
            _, after, smaller = _measure(order, tokens, folder, _part(progress, label))
        else:
            smaller = load(folder).precision
        report = Report(
            model=order.model,
            recipe=order.recipe.name,
            a=Side(precision, stored),
            b=Side(smaller, _weights_bytes(folder)),
            layers=packed.layers,
            left=packed.left,
            comparison=compare(before, after) if before is not None and after is not None else None,
            limit=order.limit,
        )
        if not report.passed and not order.accept_loss:
            raise PerplexityError(report)
        (folder / REPORT).write_text(report.to_json() + "\n", encoding="utf-8")
        _put_in_place(folder, order.target)
    return report


def _check_place(order: Order) -> None:
    source, target = order.source.resolve(), order.target.resolve()
    if target == source or target in source.parents:
        raise BackendError(f"{order.target} holds the model that is to be converted: give another folder with --out")
    if not target.exists():
        return
    if not order.replace:
        raise BackendError(f"{order.target} exists already: give another folder with --out, or replace it with --force")
    # A mistyped --out must not cost anybody a folder of something else.
    if not (target / "config.json").is_file() and (target.is_file() or any(target.iterdir())):
        raise BackendError(f"{order.target} is no model, and is not replaced: give another folder with --out")


def _measure(
    order: Order, tokens: list[int], folder: Path, progress: Callable[[float], None]
) -> tuple[list[int], Score, str]:
    """The tokens of the text (made by the first model to be measured), their score, and the model's precision."""
    mx, _ = import_libraries()
    loaded = load(folder)
    tokens = tokens or text_tokens(loaded.tokenizer, order.text or "", order.max_tokens)
    result, precision = score(loaded, tokens, progress=progress), loaded.precision
    del loaded
    gc.collect()
    mx.clear_cache()
    return tokens, result, precision


def _write(order: Order, folder: Path, progress: Progress) -> Packed:
    """The converted model, into an empty folder: weights, configuration, and all that its tokenizer needs."""
    mx, _ = import_libraries()
    from mlx_lm.utils import load_model, save_config, save_model

    step = f"quantising to {order.recipe.name}"
    progress(step, 0)
    try:
        model, config = load_model(order.source, lazy=True, trust_remote_code=False)
        packed = quantize(model, config, order.recipe)
        evaluate(model, _part(progress, step))
    except QuantizationError:
        raise
    except Exception as error:  # mlx-lm raises whatever its parsers raise; all of it means this folder
        raise ModelError(f"mlx-lm cannot load the model in {order.source}: {one_line(error)}") from error
    progress("writing", 0)
    save_model(folder, model, donate_model=True)
    save_config(packed.config, folder / "config.json")
    for pattern in _COPIED:
        for file in order.source.glob(pattern):
            if file.is_file() and file.name not in _NOT_COPIED:
                shutil.copyfile(file, folder / file.name)
    del model
    gc.collect()
    mx.clear_cache()
    return packed


@contextlib.contextmanager
def _removed_if_unfinished(target: Path) -> Iterator[Path]:
    folder = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(folder: Path, target: Path) -> None:
    """Renames, the old one out of the way first: between the two renames a crash leaves it under its other name."""
    replaced = target.with_name(f".{target.name}.{os.getpid()}.replaced")
    if target.exists():
        target.rename(replaced)
    folder.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))


def _existing(path: Path) -> Path:
    return next(parent for parent in path.resolve().parents if parent.exists())


def _part(progress: Progress, step: str) -> Callable[[float], None]:
    return lambda share: progress(step, share)
