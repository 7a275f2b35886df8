"""Keys and values in 8 or 4 bits: twice or nearly four times the tokens in the same memory, at a loss that is measured.

mlx-lm's `QuantizedKVCache` does that for one row, and cannot be in a batch. Here each of the three parts of a quantised
array (`mx.quantize`: packed numbers, scales, biases) has a cache of mlx-lm's as if it were keys and values itself, and
whatever is done to rows is done to all three. Attention over them is mlx-lm's own, which asks a cache for its `bits`.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from ..models.libraries import one_line
from .perplexity import compare, sample_text, score, text_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..models.loader import LoadedModel

_GROUP_SIZES = (64, 32)
"""Numbers that share a scale: the largest that divides a head's."""
_MEASURED_TOKENS = 512


class PackedCache:
    """The keys and values of one layer, of one row or of a batch."""

    def __init__(self, bits: int, parts: Sequence[Any]) -> None:
        self.bits = bits
        self.group_size = _GROUP_SIZES[0]
        self.caches = list(parts)

    @classmethod
    def merge(cls, caches: Sequence[PackedCache]) -> PackedCache:
        """A batch of these rows."""
        kinds = zip(*(each.caches for each in caches), strict=True)
        return caches[0]._with([type(parts[0]).merge(parts) for parts in kinds])

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        self.group_size = _group_size(keys.shape[-1], values.shape[-1])
        packed = zip(*(self._pack(each) for each in (keys, values)), strict=True)
        held = [part.update_and_fetch(*each) for part, each in zip(self.caches, packed, strict=True)]
        return tuple(each for each, _ in held), tuple(each for _, each in held)

    def extend(self, other: PackedCache) -> None:
        for mine, theirs in zip(self.caches, other.caches, strict=True):
            mine.extend(theirs)
        self.group_size = other.group_size

    def extract(self, row: int) -> PackedCache:
        return self._with([part.extract(row) for part in self.caches])

    def filter(self, rows: Any) -> None:
        for part in self.caches:
            part.filter(rows)

    def prepare(self, **paddings: Any) -> None:
        for part in self.caches:
            part.prepare(**paddings)

    def finalize(self) -> None:
        for part in self.caches:
            part.finalize()

    def make_mask(self, *shape: Any, **options: Any) -> Any:
        return self.caches[0].make_mask(*shape, **options)

    def is_trimmable(self) -> bool:
        return True

    def trim(self, count: int) -> int:
        return max(int(part.trim(count)) for part in self.caches)

    def size(self) -> int:
        return int(self.caches[0].size())

    def empty(self) -> bool:
        return bool(self.caches[0].empty())

    @property
    def offset(self) -> Any:
        return self.caches[0].offset

    @property
    def state(self) -> list[Any]:
        return [part.state for part in self.caches]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.caches)

    def _pack(self, numbers: Any) -> tuple[Any, ...]:
        import mlx.core as mx

        return tuple(mx.quantize(numbers, group_size=self.group_size, bits=self.bits))

    def _with(self, parts: Sequence[Any]) -> PackedCache:
        made = PackedCache(self.bits, parts)
        made.group_size = self.group_size
        return made


def pack_keys_and_values(loaded: LoadedModel, bits: int) -> LoadedModel:
    """The same model, whose caches hold keys and values in so many bits; `reasons` say what that costs it.

    Windows that slide and recurrent states stay as they are. Raises `ModelError` for a model of which nothing can be
    packed, or that cannot attend to packed keys.
    """
    from mlx_lm.models.cache import make_prompt_cache

    model = loaded.model
    tokens = text_tokens(loaded.tokenizer, sample_text(), min(_MEASURED_TOKENS, loaded.context_tokens))
    before = score(loaded, tokens)
    token_bytes = _bytes(make_prompt_cache(model), model)
    model.make_cache = _packing(model, bits)
    if not any(isinstance(layer, PackedCache) for layer in make_prompt_cache(model)):
        raise ModelError(f"--kv-bits {bits}: no layer of this model has keys and values that can be packed")
    try:
        after = score(loaded, tokens, make_cache=model.make_cache)
        packed_bytes = _bytes(make_prompt_cache(model), model)
    except Exception as error:  # attention of another kind, sinks, heads that no group divides
        raise ModelError(f"--kv-bits {bits}: this model cannot attend to packed keys: {one_line(error)}") from error
    lost = compare(before, after)
    loss = f"{lost.b:.3f} instead of {lost.a:.3f} ({lost.change:+.2%})"
    if not lost.telling:
        loss += ", which says little, for it does worse than guessing there"
    return replace(
        loaded,
        precision=f"{loaded.precision}, keys and values in {bits} bits",
        fingerprint=hashlib.sha256(f"{loaded.fingerprint} kv{bits}".encode()).hexdigest()[:16],
        reasons=(
            *loaded.reasons,
            f"keys and values are kept in {bits} bits, {packed_bytes / token_bytes:.0%} of their memory: "
            f"the perplexity of a sample is {loss}",
        ),
    )


def _packing(model: Any, bits: int) -> Callable[[], list[Any]]:
    from mlx_lm.models.cache import KVCache

    plain = model.make_cache if hasattr(model, "make_cache") else lambda: [KVCache() for _ in model.layers]

    def make_cache() -> list[Any]:
        return [
            PackedCache(bits, [KVCache() for _ in range(3)]) if type(layer) is KVCache else layer for layer in plain()
        ]

    return make_cache


def _group_size(*head_sizes: int) -> int:
    for size in _GROUP_SIZES:
        if all(each % size == 0 for each in head_sizes):
            return size
    raise ValueError(f"its heads have {min(head_sizes)} numbers, and {_GROUP_SIZES[-1]} must divide that")


def _bytes(cache: list[Any], model: Any) -> int:
    """Of a cache that has read a few tokens."""
    import mlx.core as mx

    mx.eval(model(mx.zeros((1, 2), dtype=mx.int32), cache=cache))
    return sum(layer.nbytes for layer in cache)
