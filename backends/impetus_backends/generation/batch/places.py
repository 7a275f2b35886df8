"""Keys and values of the rows that decode, in places that stay where they are while other rows come and go.

mlx-lm's `BatchKVCache` pads rows on the left, so that all end in one column. There a row that joins has every other
moved, several times over, and a row that leaves has all that stay copied. Here each row begins in the first column of
its place and ends where it ends. A newcomer is written into a free place, however long it is; of those that stay when
one leaves at most one moves, into the gap; and when the longest has left, nobody attends over its columns any more.
(MLX writes in place where nothing that is under way still reads there. When rows join, nothing is: see `decoding`.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..memory import STEP_TOKENS, cache_layers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import mlx.core as mx


def in_places(cache: Iterable[Any]) -> list[Any]:
    """A batch's cache whose `BatchKVCache`s are in places. Windows that slide and recurrent states stay as they are."""
    return [_in_places(layer) for layer in cache]


def bound_places(cache: Iterable[Any], rows: int, tokens: int) -> None:
    """From now on there are to be no more rows than these, and none that comes to more tokens."""
    for layer in cache_layers(cache):
        if isinstance(layer, PlacedKVCache):
            layer.bound(rows, tokens)


def closed_ranks(rows: Sequence[int]) -> list[int]:
    """The same rows, ascending ones, in an order in which few change their places: the last ones fill the gaps."""
    behind = [row for row in rows if row >= len(rows)]
    stay = set(rows)
    return [place if place in stay else behind.pop() for place in range(len(rows))]


def _in_places(layer: Any) -> Any:
    from mlx_lm.models.cache import BatchKVCache

    if type(layer) is BatchKVCache:
        placed = PlacedKVCache()
        placed.extend(layer)
        return placed
    if hasattr(layer, "caches"):
        layer.caches = in_places(layer.caches)
    return layer


class PlacedKVCache:
    """One layer's keys and values, (places, heads, columns, numbers), of rows that decode. It is used as mlx-lm's are.

    Places are made when there are too few or they are too short, and then just as many as are needed and up to
    `STEP_TOKENS` longer; free ones are kept for who comes, within what memory is counted for (`bound`).
    """

    def __init__(self) -> None:
        import mlx.core as mx

        self.keys: Any = None
        self.values: Any = None
        self.offset = mx.array([], dtype=mx.int32)
        """How many tokens each row has, (rows,)."""
        self._lengths: list[int] = []
        """The same, known without asking the device."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Adds to each row as many tokens, and returns what is to be attended over, with whatever is behind a row's
        end."""
        count = keys.shape[2]
        self._reserve(len(self._lengths), max(self._lengths) + count, keys, values)
        if min(self._lengths) == max(self._lengths):
            at = (slice(len(self._lengths)), slice(None), slice(self._lengths[0], self._lengths[0] + count))
            self.keys[at], self.values[at] = keys, values
        else:
            self.keys, self.values = self._added(self.keys, keys), self._added(self.values, values)
        self._lengths = [length + count for length in self._lengths]
        self.offset = self.offset + count
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        at = (slice(len(self._lengths)), slice(None), slice(max(self._lengths)))
        return self.keys[at], self.values[at]

    def make_mask(self, count: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """What the next `count` tokens of each row may attend to."""
        import mlx.core as mx
        from mlx_lm.models.cache import create_attention_mask

        longest = max(self._lengths)
        if min(self._lengths) == longest:
            return create_attention_mask(count, offset=longest, return_array=return_array, window_size=window_size)
        columns = mx.arange(longest + count)
        asking = (self.offset[:, None] + mx.arange(count))[:, None, :, None]
        mask = columns <= asking
        return mask if window_size is None else mask & (asking < columns + window_size)

    def extend(self, other: Any) -> None:
        """Gives the rows of a `BatchKVCache` the places behind these rows."""
        import mlx.core as mx

        lengths: Any = other.offset.tolist()
        first, rows = len(self._lengths), len(self._lengths) + len(lengths)
        if other.keys is not None:
            end = other._idx
            self._reserve(rows, max([*self._lengths, end]), other.keys, other.values)
            columns = (mx.arange(end) + other.left_padding[:, None]) % end
            held = (mx.arange(end) < other.offset[:, None])[:, None, :, None]

            def written(places: Any, padded: mx.array) -> None:
                """Over all of each place: what its last row left there may not be numbers, and no mask hides that."""
                moved = mx.take_along_axis(padded[..., :end, :], columns[:, None, :, None], axis=2)
                beyond = [(0, 0), (0, 0), (0, places.shape[2] - end), (0, 0)]
                places[first:rows] = mx.pad(mx.where(held, moved, 0), beyond)

            written(self.keys, other.keys)
            written(self.values, other.values)
        elif self.keys is not None:
            self._reserve(rows, max(self._lengths), self.keys, self.values)
            self.keys[first:rows] = self.values[first:rows] = 0
        self._lengths += lengths
        self.offset = mx.concatenate([self.offset, other.offset])

    def filter(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order. None of them may come into a place that a later one is in."""
        import mlx.core as mx

        if self.keys is not None:
            for place, row in enumerate(rows):
                if place != row:
                    self.keys[place] = mx.contiguous(self.keys[row])
                    self.values[place] = mx.contiguous(self.values[row])
        self._lengths = [self._lengths[row] for row in rows]
        self.offset = self.offset[mx.array(list(rows))]

    def bound(self, rows: int, tokens: int) -> None:
        """Gives back what rows do not need that are at most so many, and of so many tokens."""
        if self.keys is not None and (
            self.keys.shape[0] > rows or self.keys.shape[2] > max(tokens, *self._lengths) + STEP_TOKENS
        ):
            self._remake(len(self._lengths), max(self._lengths), self.keys, self.values)

    def trim(self, count: int) -> int:
        """Takes back the last tokens of each row."""
        self._lengths = [length - count for length in self._lengths]
        self.offset = self.offset - count
        return count

    def is_trimmable(self) -> bool:
        return True

    def size(self) -> int:
        return max(self._lengths, default=0)

    def empty(self) -> bool:
        return self.keys is None

    @property
    def state(self) -> tuple[Any, ...]:
        return self.keys, self.values, self.offset

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None else int(self.keys.nbytes + self.values.nbytes)

    def _added(self, places: mx.array, new: mx.array) -> mx.array:
        """What is new to each row, behind what it has; free places get something as well, of which nothing comes."""
        import mlx.core as mx

        free = places.shape[0] - len(self._lengths)
        columns = (self.offset[:, None] + mx.arange(new.shape[2]))[:, None, :, None]
        if free:
            new, columns = (mx.pad(each, [(0, free), (0, 0), (0, 0), (0, 0)]) for each in (new, columns))
        return mx.put_along_axis(places, mx.broadcast_to(columns, new.shape), new, axis=2)

    def _reserve(self, rows: int, columns: int, keys: mx.array, values: mx.array) -> None:
        """`keys`, `values`: such as are to be held, whose heads and numbers are taken."""
        if self.keys is not None and rows <= self.keys.shape[0] and columns <= self.keys.shape[2]:
            return
        self._remake(rows, columns, keys, values)

    def _remake(self, rows: int, columns: int, keys: mx.array, values: mx.array) -> None:
        import mlx.core as mx

        columns = -(-columns // STEP_TOKENS) * STEP_TOKENS

        def remade(held: Any, like: mx.array) -> mx.array:
            made = mx.zeros((rows, like.shape[1], columns, like.shape[3]), like.dtype)
            if held is not None:
                at = (slice(len(self._lengths)), slice(None), slice(max(self._lengths)))
                made[at] = held[at]
            return made

        self.keys, self.values = remade(self.keys, keys), remade(self.values, values)
