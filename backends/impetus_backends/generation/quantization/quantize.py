"""Weights in fewer bits: the recipes, and what they do to a model that mlx-lm has loaded.

`affine` keeps a scale and an offset for each group of weights; `mxfp4` and `nvfp4` are 4-bit floats with an 8-bit scale
for each 32 or 16 of them (Open Compute Project, "Microscaling Formats", 2023; NVIDIA's NVFP4).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from ..models.libraries import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

AFFINE_GROUPS = (64, 32)
"""Weights that share a scale: the larger group where a layer's width is a multiple of it, else the smaller."""
_STORED_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


class QuantizationError(ModelError):
    """A model cannot be quantised as asked; it may well be loaded as it is."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to make weights smaller. All the layers that cannot be packed stay as they are."""

    name: str
    bits: int
    groups: tuple[int, ...]
    mode: str
    most_bits: float
    """A weight takes at most so many, with its share of the scales if those are float16."""
    about: str
    mixed: bool = False
    """Whether some layers get more bits, by mlx-lm's rule of this name."""


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("4bit", 4, AFFINE_GROUPS, "affine", 5.0, "4-bit affine"),
        Recipe("8bit", 8, AFFINE_GROUPS, "affine", 9.0, "8-bit affine: nearly lossless"),
        Recipe("mixed_4_6", 4, AFFINE_GROUPS, "affine", 7.0, "4-bit affine, 6 where it tells most", mixed=True),
        Recipe("mxfp4", 4, (32,), "mxfp4", 4.25, "4-bit floats, a power of two for each 32"),
        Recipe("nvfp4", 4, (16,), "nvfp4", 4.5, "4-bit floats, an 8-bit float for each 16"),
    )
}


@dataclass(frozen=True, slots=True)
class Packed:
    """What a recipe did to a model."""

    config: dict[str, Any]
    """The model's configuration, which now says how each layer is packed."""
    layers: int
    left: tuple[str, ...]
    """The layers that could have been packed, had their width been a multiple of a group."""


def quantization_of(config: Mapping[str, Any], folder: Path | None = None) -> str | None:
    """How a model's files are quantised already, such as `4-bit affine (groups of 64)`; None where they are not."""
    text_config = config.get("text_config")
    for section in (config, text_config if isinstance(text_config, dict) else {}):
        for key in ("quantization", "quantization_config"):
            if isinstance(found := section.get(key), dict):
                return described(found) or str(found.get("quant_method") or "an own form")
    if folder is not None and (folder / "hf_quant_config.json").is_file():
        return "ModelOpt"
    return None


def described(quantization: Mapping[str, Any]) -> str | None:
    """A `quantization` of a configuration in words; None where it does not say its bits."""
    if "bits" not in quantization:
        return None
    bits, group = quantization["bits"], quantization.get("group_size")
    words = f"{bits}-bit {quantization.get('mode', 'affine')}" + (f" (groups of {group})" if group else "")
    own = (layer.get("bits", bits) for layer in quantization.values() if isinstance(layer, dict))
    others = Counter(found for found in own if found != bits)
    return ", ".join([words, *(f"{count} layers {other}-bit" for other, count in sorted(others.items()))])


def packed_bytes(weights_bytes: int, config: Mapping[str, Any], recipe: Recipe) -> int:
    """About the most that weights take once packed, if `weights_bytes` is what they take in their files.

    Affine scales are of the type that the weights come in. What stays unpacked (norms, odd widths) is not counted.
    """
    stored = _STORED_BITS.get(str(config.get("torch_dtype") or config.get("dtype")), 16)
    bits = recipe.bits + (recipe.most_bits - recipe.bits) * stored / 16
    return int(weights_bytes * min(1.0, bits / stored))


def quantize(model: Any, config: Mapping[str, Any], recipe: Recipe) -> Packed:
    """Packs the layers of a loaded model, in place and lazily; whoever evaluates or saves it does the work.

    A layer that the model's architecture wants to keep, or in other bits (the router of a mixture of experts), is
    treated as it wants. Raises `QuantizationError` where nothing can be packed, or the recipe does not know the
    architecture.
    """
    from mlx import nn

    wanted = _wanted(model, recipe)
    overrides: dict[str, dict[str, Any]] = {}
    packed, left = 0, []

    def choose(path: str, layer: Any) -> bool | dict[str, Any]:
        nonlocal packed
        if not hasattr(layer, "to_quantized") or not (asked := wanted(path, layer)):
            return False
        options = {"group_size": recipe.groups[0], "bits": recipe.bits, "mode": recipe.mode}
        if isinstance(asked, dict):
            options |= {"mode": "affine"} | asked
        group = _group(layer.weight.shape[-1], options, recipe)
        if group is None:
            left.append(path)
            return False
        packed += 1
        options["group_size"] = group
        if (group, options["bits"], options["mode"]) == (recipe.groups[0], recipe.bits, recipe.mode):
            return True
        overrides[path] = options
        return dict(options)

    nn.quantize(model, recipe.groups[0], recipe.bits, mode=recipe.mode, class_predicate=choose)
    if not packed:
        raise QuantizationError(
            f"{recipe.name} can pack none of this model's layers: no width is a multiple of a group"
        )
    quantization = {"group_size": recipe.groups[0], "bits": recipe.bits, "mode": recipe.mode, **overrides}
    config = {**config, "quantization": quantization, "quantization_config": quantization}
    return Packed(config, packed, tuple(left))


def evaluate(model: Any, progress: Callable[[float], None] = lambda share: None) -> None:
    """Computes a lazy model's weights one by one, so that the larger ones they come from are never all in memory."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    weights: Any = tree_flatten(model.parameters())
    for number, (_, weight) in enumerate(weights, start=1):
        mx.eval(weight)
        progress(number / len(weights))


def _wanted(model: Any, recipe: Recipe) -> Callable[[str, Any], bool | dict[str, Any]]:
    """What a layer should become: left alone, by the recipe, or with options of its own. The architecture goes first.

    The mixed rule is mlx-lm's, after llama.cpp's Q4_K_M: more bits for the values and the projections down of the first
    and last eighth of the layers and of every third between, and for an output layer of its own.
    """
    own = getattr(model, "quant_predicate", None) or (lambda path, layer: True)
    if not recipe.mixed:
        return own
    from mlx_lm.convert import mixed_quant_predicate_builder

    try:
        mixed: Any = mixed_quant_predicate_builder(recipe.name, model, recipe.groups[0])
    except (ValueError, AttributeError) as error:
        raise QuantizationError(
            f"{recipe.name} does not know this model's layers ({one_line(error)}); 4bit and 8bit take any model"
        ) from error

    def both(path: str, layer: Any) -> bool | dict[str, Any]:
        asked = own(path, layer)
        return mixed(path, layer) if asked is True else asked

    return both


def _group(width: int, options: Mapping[str, Any], recipe: Recipe) -> int | None:
    """The group for a layer of this width: as asked, or a smaller one of the affine form."""
    asked = options.get("group_size") or recipe.groups[0]
    smaller = [group for group in AFFINE_GROUPS if group < asked] if options["mode"] == "affine" else []
    return next((group for group in (asked, *smaller) if width % group == 0), None)
