"""Drafts of what a row says next, looked up in what it has read and said: prompt lookup.

Answers repeat their prompts (names, code, quotations) and themselves. Where the last few tokens stood before, what came
after them then may come again; a model checks such a draft in one step, which on most devices takes about as long as
one token. What it would not have said itself is dropped, so the text is the model's own. Source of the method:
https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .places import PlacedKVCache
from .sampling import likeliest

if TYPE_CHECKING:
    from collections.abc import Sequence

_ALIKE = 3
"""So many tokens must have stood before."""
_FIRST_DRAFT = 2
_LONGEST_PAUSE = 16
"""In steps."""
_PAUSE = 2
"""Where nothing was found: to look, the step before must have ended, and so this one begins a little later."""


class PromptLookup:
    """Of one row. `most_tokens`: of a draft.

    A draft that is right throughout makes the next one twice as long, one that is wrong shorter; where nothing was
    right it pauses, ever longer, because a draft that is dropped is a step made longer for nothing.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._length = min(_FIRST_DRAFT, most_tokens)
        self._misses = 0
        self._pause = 0
        self._after: dict[tuple[int, ...], int] = {}
        """Where the token stands that last came after these."""
        self._known = 0
        """How many tokens were looked at."""

    def pauses(self) -> bool:
        """Whether it drafts nothing in this step. Called once a step."""
        self._pause -= 1
        return self._pause >= 0

    def draft(self, tokens: Sequence[int], due: int, room: int) -> list[int]:
        """What may come after `tokens`, all that the row has read and said, and the one that is due; at most `room`
        tokens. From call to call `tokens` only grow.
        """
        for place in range(max(self._known, _ALIKE), len(tokens)):
            self._after[tuple(tokens[place - _ALIKE : place])] = place
        self._known = len(tokens)
        at = self._after.get((*tokens[len(tokens) - _ALIKE + 1 :], due))
        found = [] if at is None else [*tokens[at : at + self._length], due][: min(self._length, room)]
        if not found:
            self._pause = _PAUSE
        return found

    def learn(self, drafted: int, right: int) -> None:
        """So many of a draft's tokens were right."""
        if right:
            self._misses = 0
            self._length = min(self._length * 2, self._most_tokens) if right == drafted else right
        else:
            self._length = min(_FIRST_DRAFT, self._most_tokens)
            self._pause = min(2**self._misses, _LONGEST_PAUSE)
            self._misses += 1


class Lookahead:
    """Steps of a batch of one row, a greedy one that nothing steers, in which several tokens may be made."""

    def __init__(self, model: Any, most_tokens: int) -> None:
        self._model = model
        self._most_tokens = most_tokens
        self._lookups: dict[int, PromptLookup] = {}
        """By row, of those that were once alone."""

    def forget(self, row_id: int) -> None:
        self._lookups.pop(row_id, None)

    def step(self, decoding: Any) -> list[tuple[int, Any]] | None:
        """Each token that was made, and the distribution that it was drawn from.

        `decoding`: mlx-lm's `GenerationBatch`, which is left as its own steps would, but that nobody has counted what
        was drawn; None where there is nothing to draft, and it was not touched.
        """
        from mlx_lm.models.cache import KVCache

        if any(type(layer) not in (KVCache, PlacedKVCache) for layer in decoding.prompt_cache):
            return None  # these could not take a wrong draft back
        lookup = self._lookups.setdefault(decoding.uids[0], PromptLookup(self._most_tokens))
        if lookup.pauses():
            return None
        (due,) = decoding._next_tokens.tolist()
        draft = lookup.draft(decoding.tokens[0], due, room=decoding.max_tokens[0] - decoding._num_tokens[0] - 1)
        return self._check(decoding, due, draft, lookup) if draft else None

    def _check(self, decoding: Any, due: int, draft: list[int], lookup: PromptLookup) -> list[tuple[int, Any]]:
        """Runs the model on the token that is due and the draft, and takes as much of that as it says itself."""
        import mlx.core as mx

        logits = self._model(mx.array([[due, *draft]]), cache=decoding.prompt_cache)[0]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        follows = likeliest(logprobs)
        mx.eval(logprobs, follows)
        says: Any = follows.tolist()
        right = next((at for at, token in enumerate(draft) if token != says[at]), len(draft))
        lookup.learn(len(draft), right)
        for layer in decoding.prompt_cache:
            layer.trim(len(draft) - right)
        drawn = [(due, decoding._next_logprobs[0])]
        drawn += [(token, logprobs[at]) for at, token in enumerate(draft[:right])]
        decoding._next_tokens, decoding._next_logprobs = follows[right : right + 1], [logprobs[right]]
        return drawn
