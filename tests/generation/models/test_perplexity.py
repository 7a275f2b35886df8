"""Perplexity, against the formula worked out by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impetus_backends.errors import BackendError
from impetus_backends.generation.quantization.perplexity import Score, compare, sample_text, score, text_tokens, windows

if TYPE_CHECKING:
    from impetus_backends.generation.models.loader import LoadedModel


def by_hand(model: LoadedModel, before: list[int], token: int) -> float:
    """-ln p(token | before), in float64, from the last logits of a run over `before` alone."""
    import mlx.core as mx

    logits = np.array(model.model(mx.array([before]))[0, -1].astype(mx.float32), np.float64)
    shifted = logits - logits.max()
    return float(np.log(np.exp(shifted).sum()) - shifted[token])


@pytest.mark.system
def test_perplexity_is_the_formula_worked_out_token_by_token(loaded: LoadedModel) -> None:
    tokens = text_tokens(loaded.tokenizer, sample_text(), max_tokens=32)
    expected = [by_hand(loaded, tokens[:place], tokens[place]) for place in range(1, 32)]
    made = score(loaded, tokens)
    np.testing.assert_allclose(made.losses, expected, atol=2e-4)
    assert made.perplexity == pytest.approx(math.exp(sum(expected) / 31), rel=1e-4)
    assert made.vocabulary == loaded.model.args.vocab_size


@pytest.mark.system
def test_in_a_long_text_each_token_is_scored_once_with_what_its_window_holds_before_it(loaded: LoadedModel) -> None:
    tokens = text_tokens(loaded.tokenizer, sample_text(), max_tokens=32)
    shares: list[float] = []
    made = score(loaded, tokens, window_tokens=10, progress=shares.append)
    begins = [0] * 9 + [5] * 5 + [10] * 5 + [15] * 5 + [20] * 5 + [25] * 2
    expected = [by_hand(loaded, tokens[begin:place], tokens[place]) for place, begin in enumerate(begins, start=1)]
    np.testing.assert_allclose(made.losses, expected, atol=2e-4)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.system
def test_a_text_too_short_to_tell_anything_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(BackendError, match=r"the text has \d+ tokens, and at least 32 are needed"):
        text_tokens(loaded.tokenizer, "Too short.")


@given(st.integers(2, 400), st.integers(2, 64))
def test_windows_score_every_token_but_the_first_once_and_with_half_a_window_before_it(count: int, length: int) -> None:
    scored = 1
    for begin, first, end in windows(count, length):
        assert first == scored
        assert first < end <= begin + length
        assert first - begin >= min(first, length // 2)
        scored = end
    assert scored == count


def test_a_comparison_tells_the_change_its_error_and_how_often_both_choose_alike() -> None:
    a = Score(np.array([1.0, 2.0, 3.0, 2.0]), np.array([1, 2, 3, 4]), vocabulary=100)
    b = Score(np.array([1.1, 2.1, 3.1, 2.1]), np.array([1, 2, 3, 5]), vocabulary=100)
    made = compare(a, b)
    assert (made.tokens, made.agreement) == (4, 0.75)
    assert made.a == pytest.approx(math.exp(2))
    assert made.b == pytest.approx(math.exp(2.1))
    assert made.change == pytest.approx(math.exp(0.1) - 1)
    assert made.error == pytest.approx(0, abs=1e-12)  # every token lost the same
    assert made.telling
    assert not compare(Score(a.losses, a.choices, 7), Score(b.losses, b.choices, 7)).telling
