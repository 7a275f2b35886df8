"""Finds out how a model may be batched: whether it answers alike alone and beside others.

Rows of unequal length are padded when they run together, and some architectures let the padding leak into the answer
or cannot merge their caches at all. That goes unseen in the text, so it is measured before any work is claimed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError
from .batch.row import Row
from .batch.running import RunningBatch
from .batch.sampling import Draws, Sampling
from .memory import cache_layers
from .prefixes import PrefixCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .models.loader import LoadedModel


class Batching(enum.Enum):
    """How requests for one model run."""

    TOGETHER = "together"
    READ_APART = "read apart"
    """Each prompt is read by itself, without padding, and then its row decodes with the others."""
    ONE_AT_A_TIME = "one at a time"


@dataclass(frozen=True, slots=True)
class BatchingFinding:
    """The least restrained way in which a model answers as it does alone."""

    batching: Batching
    reason: str | None = None
    """One sentence on why it is not `TOGETHER`."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """A row of the self-test: the tokens of the sample that it reads, when it comes, and when it goes."""

    spans: tuple[tuple[int, int], ...]
    """Parts of the sample, put together: (first, end)."""
    answer_tokens: int
    joins_at_step: int = 0

    @property
    def prompt_tokens(self) -> int:
        return sum(end - start for start, end in self.spans)


_PIECE_TOKENS = 160
_REMEMBERED_BYTES = 1 << 30
_MOST_WINDOW_TOKENS = 1024
"""To go beyond a longer window takes too long, each time that a model is loaded."""
_SAMPLE = Path(__file__).with_name("sample.txt")
_TRIALS = (
    # Read together, with much padding, and two of them go while the third goes on.
    _Trial(((0, 3),), 12),
    _Trial(((40, 59),), 2),
    _Trial(((80, 127),), 8),
    # Read in two pieces beside rows that decode.
    _Trial(((150, 350),), 7, joins_at_step=1),
    # Begins as that one does, so it finds that in memory, and is read together with others that have no such history.
    _Trial(((150, 330), (400, 412)), 4, joins_at_step=5),
    _Trial(((420, 451),), 5, joins_at_step=5),
    _Trial(((460, 467),), 3, joins_at_step=5),
)
_EQUAL_ROWS = 3
_ROUNDING = {"float32": (1e-4, 1e-2), "float16": (2e-3, 5e-2), "bfloat16": (1.6e-2, 1e-1)}
"""How far rounding alone moves a distribution (total variation, 0 to 1): what is always allowed, and the most that is
ever taken for it. Devices that multiply float32 in fewer bits are why its second number is so large."""


def find_batching(loaded: LoadedModel) -> BatchingFinding:
    """Decodes different texts alone and together: rows that join and leave, pieces, memories, and beyond the window.

    What is allowed for rounding is what a batch of equal rows, which is not padded, shows of it. Raises `ModelError`
    for a model that cannot decode at all, or whose probabilities are not numbers.
    """
    try:
        trials = [
            each
            for each in (*_TRIALS, *_beyond_windows(loaded))
            if each.prompt_tokens + each.answer_tokens <= loaded.context_tokens
        ]
        prompts = [_prompt(loaded, each) for each in trials]
        answers = [each.answer_tokens for each in trials]
        alone = [_decode(loaded, [each], [tokens])[0] for each, tokens in zip(prompts, answers, strict=True)]
    except Exception as error:  # whatever the model raises, it cannot serve
        raise ModelError(f"the model loads and cannot generate: {error}") from error
    if any(np.isnan(float(each.sum())) for row in alone for _, each in row):
        raise ModelError("the model loads, and its probabilities are not numbers (NaN)")
    faults: list[str] = []
    for batching in (Batching.TOGETHER, Batching.READ_APART):
        try:
            limit = _rounding(loaded, prompts, alone)
            made = _decode(
                loaded,
                prompts,
                answers,
                joins=[each.joins_at_step for each in trials],
                read_apart=batching is Batching.READ_APART,
            )
            moved = max((_distance(one, other) for one, other in zip(alone, made, strict=True)), default=0.0)
        except Exception as error:  # noqa: BLE001  # alone it works, so it serves that way
            faults.append(f"this model cannot decode a batch ({error})")
            continue
        if moved <= limit:
            return BatchingFinding(batching, _APART.format(*faults) if faults else None)
        faults.append(f"in a padded batch this model's probabilities move by {moved:.2g}")
    return BatchingFinding(Batching.ONE_AT_A_TIME, f"requests run one at a time: {faults[-1]}")


_APART = "prompts are read one by one, and answers made together: {}"


def _prompt(loaded: LoadedModel, trial: _Trial) -> list[int]:
    sample = list(loaded.tokenizer.encode(_SAMPLE.read_text(encoding="utf-8")))
    longest = max(end for _, end in trial.spans)
    sample *= -(-longest // len(sample))
    return [token for start, end in trial.spans for token in sample[start:end]]


def _beyond_windows(loaded: LoadedModel) -> list[_Trial]:
    """A row longer than the shortest window that slides, and one that slides out of it while it decodes."""
    from mlx_lm.models.cache import make_prompt_cache

    windows = [getattr(layer, "max_size", None) for layer in cache_layers(make_prompt_cache(loaded.model))]
    known = [window for window in windows if isinstance(window, int) and 0 < window <= _MOST_WINDOW_TOKENS]
    if not known:
        return []
    window = min(known)
    return [_Trial(((7, 7 + window + 20),), 4, 2), _Trial(((90, 90 + max(1, window - 2)),), 6, 3)]


def _rounding(loaded: LoadedModel, prompts: list[list[int]], alone: list[_Steps]) -> float:
    """How far equal rows move each other's distributions, several times over."""
    at = max(range(len(prompts)), key=lambda at: len(prompts[at]) if len(prompts[at]) <= _PIECE_TOKENS else 0)
    steps = len(alone[at])
    equal = _decode(loaded, [prompts[at]] * _EQUAL_ROWS, [steps] * _EQUAL_ROWS)
    shown = max(_distance(alone[at], each) for each in equal)
    precision = str(alone[at][0][1].dtype).rpartition(".")[2]
    least, most = _ROUNDING.get(precision, _ROUNDING["bfloat16"])
    return min(max(least, 4 * shown), most)


_Steps = list[tuple[int, Any]]
"""Of one row: each token it chose, and the probabilities over the vocabulary that it was chosen by."""


def _decode(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    answers: Sequence[int],
    *,
    joins: Sequence[int] | None = None,
    read_apart: bool = False,
) -> list[_Steps]:
    """For each prompt its greedy continuation. Without `joins` all come at once, and each is read in one piece."""
    batch = RunningBatch(
        loaded.model,
        (),
        prefill_tokens=_PIECE_TOKENS if joins else _EQUAL_ROWS * max(map(len, prompts)),
        prefixes=PrefixCache(_REMEMBERED_BYTES if joins else 0),
        solo=len(prompts) == 1,
        read_apart=read_apart,
    )
    made: list[_Steps] = [[] for _ in prompts]
    coming = sorted(range(len(prompts)), key=lambda at: joins[at] if joins else 0)
    step = 0
    try:
        while coming or len(batch):
            while coming and (not joins or joins[coming[0]] <= step):
                at = coming.pop(0)
                tokens = np.asarray(prompts[at], dtype=np.int64)
                batch.add(Row(at, tokens, answers[at], Draws(Sampling(temperature=0)), streamed=at % 2 == 1))
            for token in batch.step():
                made[token.id].append((token.token, token.logprobs))
            step += 1
    finally:
        batch.close()
    return made


def _distance(one: _Steps, other: _Steps) -> float:
    """The largest total variation between two rows' distributions, for as long as both chose the same tokens."""
    import mlx.core as mx

    largest = 0.0
    for (token, logprobs), (other_token, other_logprobs) in zip(one, other, strict=True):
        first, second = (mx.exp(each.astype(mx.float32)) for each in (logprobs, other_logprobs))
        moved = float(mx.abs(first - second).sum()) / 2
        largest = max(largest, moved if moved == moved else 1.0)  # what is not a number has moved out of all bounds
        if token != other_token:
            break  # from here on the two read different texts
    return largest
