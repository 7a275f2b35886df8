"""The check that decides on a GPU whether `deterministic` holds sees a device that rounds by its rows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from scripts.models.deterministic import count_parted

if TYPE_CHECKING:
    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system


class RoundsByRows:
    """The tiny model on a device that takes another token for the likeliest where several rows are in a step."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, tokens: Any, **options: Any) -> Any:
        import mlx.core as mx

        return mx.roll(self._model(tokens, **options), tokens.shape[0] - 1, -1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def test_texts_that_part_beside_strangers_are_counted_and_of_deterministic_ones_there_are_none(
    make_engine: Any, loaded: LoadedModel
) -> None:
    engine = make_engine(4, dataclasses.replace(loaded, model=RoundsByRows(loaded.model)))
    assert count_parted(engine, 3, 5, 2, deterministic=False) > 3
    assert count_parted(engine, 3, 5, 2, deterministic=True) == 0
