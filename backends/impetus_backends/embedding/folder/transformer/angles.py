"""The angles by which a configuration has queries and keys turned (arXiv:2104.09864), scaled for longer texts than the
model was trained on: as transformers' modeling_rope_utils.py reads `rope_parameters` and the older `rope_scaling`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.folder.transformer.facts import FAR, NEAR
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.folder.transformer.shapes import Attention

_LONGEST = "original_max_position_embeddings"
_KNOWN: dict[str, tuple[str, ...]] = {
    "default": (),
    "dynamic": ("factor",),
    "linear": ("factor",),
    "llama3": ("factor", _LONGEST, "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", _LONGEST, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
"""The keys that each type goes by."""


def read_angles(
    file: Path,
    raw: dict[str, Any],
    attention: Attention,
    key: str,
    default: float | None = None,
    *,
    kind: str = "",
    scaled: bool = True,
) -> Attention:
    """`attention` with its angles. Raises `ModelError` for a type, or a key of one, that is not known.

    `key` is what the older form calls their base, and `default` the family's. `kind` is of the layers, in families
    where each has angles of its own, and `scaled` whether `rope_scaling` means them too.
    """
    stated, form = _stated(file, raw, kind, scaled=scaled)
    how = stated.get("rope_type", stated.get("type", "default"))
    if how not in _KNOWN:
        raise ModelError(f"{file}: angles of type {how!r} are not supported; supported are {', '.join(_KNOWN)}")
    if stated.get("type", how) != how:
        raise ModelError(f"{file}: {form}'s type {stated['type']!r} contradicts rope_type {how!r}")
    unknown = sorted(stated.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_KNOWN[how]})
    if unknown:
        raise ModelError(f"{file}: angles of type {how!r} know no {', '.join(unknown)}, which {form} states")
    for place in (stated, raw):
        if place.get("partial_rotary_factor") not in (None, 1.0):
            raise ModelError(f"{file}: partial_rotary_factor {place['partial_rotary_factor']!r} is not supported")
    if attention.head_size % 2:
        raise ModelError(f"{file}: heads of {attention.head_size} units do not divide into the pairs that angles turn")
    theta = read_number(file, {key: stated.get("rope_theta", raw.get(key, default))}, key)
    plain = 1 / np.float32(theta) ** (np.arange(0, attention.head_size, 2, dtype=np.float32) / attention.head_size)
    found = replace(attention, theta=theta, frequencies=_tuple(plain), dynamic=how == "dynamic")
    if how in ("default", "dynamic"):  # which are the same, up to the length that the model was made for
        return found
    factor = read_number(file, stated, "factor")
    # A family of one kind of layers takes that from beside the others too, and then first.
    places = [raw, stated, {_LONGEST: raw.get("max_position_embeddings")}]
    original = read_number(file, next(place for place in places[bool(kind) :] if _LONGEST in place), _LONGEST)
    kept, loudness = np.zeros_like(plain), 1.0
    if how == "llama3":
        low, high = (read_number(file, stated, f"{end}_freq_factor") for end in ("low", "high"))
        if low >= high:
            raise ModelError(f"{file}: low_freq_factor {low} is not less than high_freq_factor {high}")
        kept = ((original * plain / (2 * math.pi) - low) / (high - low)).clip(0, 1)
    elif how == "yarn":
        kept = _kept_by_yarn(file, stated, plain, theta, original, truncates=not kind)
        loudness = _loudness(file, stated, factor)
    # Cosine and sine of both sides of a product are that much larger.
    return replace(found, frequencies=_tuple(plain * (kept + (1 - kept) / factor)), scale=found.scale * loudness**2)


def _stated(file: Path, raw: dict[str, Any], kind: str, *, scaled: bool) -> tuple[dict[str, Any], str]:
    """What is stated of these layers, and under which key."""
    parameters, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    if not kind:
        return (scaling, "rope_scaling") if scaling else (parameters, "rope_parameters")
    if parameters and not parameters.keys() <= {NEAR, FAR}:
        raise ModelError(f"{file}: rope_parameters are not of {NEAR} or {FAR}, but {', '.join(sorted(parameters))}")
    own = parameters.get(kind) or {"rope_type": "default"}
    return ({**own, **scaling}, "rope_scaling") if scaled and scaling else (own, "rope_parameters")


def _kept_by_yarn(
    file: Path, stated: dict[str, Any], plain: np.ndarray, theta: float, original: float, *, truncates: bool
) -> np.ndarray:
    """How much of its frequency each pair keeps (arXiv:2309.00071): all of it those that turn often in a text."""
    whole = stated.get("truncate", True)
    if whole is not True and not (truncates and whole is False):
        raise ModelError(f"{file}: truncate {whole!r} is not supported")
    width = 2 * len(plain)

    def pair(rotations: float) -> float:
        return width * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first, last = (pair(read_number(file, stated, f"beta_{end}", of)) for end, of in (("fast", 32), ("slow", 1)))
    if whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last += 0.001 if first == last else 0
    kept: np.ndarray = 1 - ((np.arange(len(plain), dtype=np.float32) - first) / (last - first)).clip(0, 1)
    return kept


def _loudness(file: Path, stated: dict[str, Any], factor: float) -> float:
    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if stated.get("attention_factor") is not None:
        return read_number(file, stated, "attention_factor")
    if stated.get("mscale") is None or stated.get("mscale_all_dim") is None:
        return of(1)
    return of(read_number(file, stated, "mscale")) / of(read_number(file, stated, "mscale_all_dim"))


def read_number(file: Path, stated: dict[str, Any], key: str, default: float | None = None) -> float:
    value = default if stated.get(key) is None else stated[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelError(f"{file}: {key} is {value!r}, not a positive number")
    return float(value)


def _tuple(frequencies: np.ndarray) -> tuple[float, ...]:
    return tuple(frequencies.astype(np.float32).tolist())
