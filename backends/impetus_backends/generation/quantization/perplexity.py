"""How well a model foretells a text, and what it loses of that when its weights are made smaller.

Perplexity is exp(-1/N * sum of ln p(token | the tokens before it)) over the N tokens that are scored: Jurafsky and
Martin, "Speech and Language Processing", 3rd edition, section 3.3, with the sliding windows of Hugging Face's
"Perplexity of fixed-length models". Windows overlap by half, and every token but the text's first is scored once: with
at least half a window before it, where the text has that much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..models.loader import LoadedModel

    Progress = Callable[[float], None]

MAX_TOKENS = 8192
"""So many tokens of a text are read, if nothing else is asked."""
WINDOW_TOKENS = 512
LEAST_TOKENS = 32
"""A text of fewer tokens tells nothing."""
_CHARACTERS_A_TOKEN = 16
_ROWS = 64
"""Rows of logits turned into probabilities at a time: a large vocabulary takes 600 KB a row in float32."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a model made of a text: one entry for each token scored."""

    losses: np.ndarray
    """-ln p of the token that came, float64."""
    choices: np.ndarray
    """The token that the model held most likely, int64."""
    vocabulary: int
    """How many tokens it chose among: the perplexity of guessing."""

    @property
    def perplexity(self) -> float:
        return math.exp(float(self.losses.mean()))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model (A) and the same with smaller weights (B) over one text."""

    tokens: int
    """Those that were scored."""
    a: float
    b: float
    """The perplexities."""
    error: float
    """The standard error of `change`, taking tokens as independent, which flatters it."""
    agreement: float
    """The share of tokens for which both hold the same one most likely."""
    vocabulary: int
    """The perplexity of a model that guesses."""

    @property
    def telling(self) -> bool:
        """Whether A knows anything of such text. Where it does worse than guessing, no change means anything."""
        return self.a < self.vocabulary

    @property
    def change(self) -> float:
        """By what share B's perplexity is above A's; negative where it is below."""
        return self.b / self.a - 1


def text_tokens(tokenizer: Any, text: str, max_tokens: int = MAX_TOKENS) -> list[int]:
    """The first tokens of a text, as the model would read it in a prompt. Raises `BackendError` for too short a one."""
    tokens: list[int] = tokenizer.encode(text[: max_tokens * _CHARACTERS_A_TOKEN])
    if len(tokens) < LEAST_TOKENS:
        raise BackendError(f"the text has {len(tokens)} tokens, and at least {LEAST_TOKENS} are needed to measure with")
    return tokens[:max_tokens]


def windows(count: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(begin, scored, end): the model reads tokens begin to end, of which those from `scored` on count.

    `length` is at least 2. Over all windows the scored ranges are exactly 1 to `count`.
    """
    scored, step = 1, max(1, length // 2)
    for begin in range(0, count, step):
        end = min(begin + length, count)
        if end > scored:
            yield begin, scored, end
        scored = end
        if end == count:
            return


def score(
    loaded: LoadedModel,
    tokens: Sequence[int],
    *,
    window_tokens: int = WINDOW_TOKENS,
    make_cache: Callable[[], list[Any]] | None = None,
    progress: Progress = lambda share: None,
) -> Score:
    """Runs the model over these tokens, in windows no longer than its context. Takes at least two tokens.

    `make_cache`: makes what keeps keys and values, where attention is to read them as that holds them.
    """
    import mlx.core as mx

    length = max(2, min(window_tokens, loaded.context_tokens))
    losses: list[np.ndarray] = []
    choices: list[np.ndarray] = []
    vocabulary = 0
    for begin, scored, end in windows(len(tokens), length):
        cache = make_cache() if make_cache is not None else None
        logits = loaded.model(mx.array([list(tokens[begin:end])]), cache=cache)[0]
        vocabulary = logits.shape[-1]
        marks = [*range(scored, end, _ROWS), end]
        for first, last in pairwise(marks):
            # The logits at one place are of the token at the next.
            rows = logits[first - 1 - begin : last - 1 - begin].astype(mx.float32)
            came = mx.array(list(tokens[first:last]))[:, None]
            loss = mx.logsumexp(rows, axis=-1) - mx.take_along_axis(rows, came, axis=-1)[:, 0]
            losses.append(np.array(loss, np.float64))
            choices.append(np.array(mx.argmax(rows, axis=-1), np.int64))
        progress(end / len(tokens))
    return Score(np.concatenate(losses), np.concatenate(choices), vocabulary)


def compare(a: Score, b: Score) -> Comparison:
    """What B lost. Both are scores of the same tokens."""
    differences = b.losses - a.losses
    spread = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return Comparison(
        tokens=len(differences),
        a=a.perplexity,
        b=b.perplexity,
        error=b.perplexity / a.perplexity * spread,
        agreement=float((a.choices == b.choices).mean()),
        vocabulary=a.vocabulary,
    )


def sample_text() -> str:
    """A text of our own to measure on where there is no better: 5 KB of English prose, talk, lists and a program."""
    return (Path(__file__).parents[1] / "sample.txt").read_text(encoding="utf-8")
