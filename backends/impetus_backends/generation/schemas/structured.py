"""Answers that are JSON of a given schema: at every step, only tokens that the schema allows can be drawn.

The work is llguidance's: a parser that says which tokens may come next, in less than a millisecond of the CPU a token
(0.7 ms of 150,000 tokens, the masking of the logits included), while the device computes the logits. It was chosen over
xgrammar, which brings torch and triton along, and over outlines, which turns the whole schema into an automaton
beforehand. It is MIT-licensed, a 3 MB wheel without dependencies for macOS and Linux, has been stable since 1.0, and is
what vLLM, SGLang and llama.cpp can use as well.
Source of the keywords it knows: https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md

Choices made here:
 - Properties come in the order in which the schema names them.
 - Where JSON allows whitespace there may be one space, or one line break and up to 16 spaces of indentation. So a model
   may write as it has learnt to, and none goes on writing spaces for ever. There is none before or after the JSON.
 - `\\uXXXX` is not written: a property that is not in the schema could pass for one that is, spelt so.
 - Keywords that llguidance does not know how to enforce are put into words that it does know (see `json_schemas`) or
   refused, never passed over, and so is `minProperties` where only the absence of duplicate keys would keep it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...errors import RequestError
from .json_schemas import repeats_items

if TYPE_CHECKING:
    from collections.abc import Callable

    import mlx.core as mx
    import numpy as np

_MESSAGE_CHARACTERS = 300


class JsonConstraint:
    """One request's logits processor, shared with no other: it lets through what goes on towards JSON of its schema.

    Once the JSON is complete it lets only end-of-text tokens through. It has to be the last of its row's processors.
    What goes wrong stays in `error` and the batch goes on: from then on the row is not constrained, nobody will read
    it, and the engine, which looks at `error` after every step, ends that request.
    """

    def __init__(
        self,
        matcher: Any,
        words: int,
        apply: Callable[[mx.array, np.ndarray], mx.array],
        schema: dict[str, Any] | None = None,
    ) -> None:
        import numpy as np

        self._schema = schema or {}

        self._matcher = matcher
        self._allowed = np.zeros((1, words), dtype=np.int32)
        self._apply = apply
        self._begun = False
        self.error: Exception | None = None

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """`tokens`: the prompt and all that was drawn after it; `logits`: (1, vocabulary) or wider."""
        if self.error is None:
            try:
                return self._constrained(tokens, logits)
            except Exception as error:  # noqa: BLE001  # whatever it is, the neighbours' step must go on
                self.error = error
            except BaseException as error:
                if not is_panic(error):
                    raise
                self.error = RequestError(f"llguidance failed at the JSON schema: {one_sentence(str(error))}")
        return logits

    def begin_anew(self) -> None:
        """What was drawn is no part of the answer, though it was allowed: that begins with the next."""
        self._matcher.reset()
        self._begun = False

    def fault(self, text: str) -> str | None:
        """Why a whole answer is not what was asked for all the same: one sentence, or none."""
        try:
            if repeats_items(self._schema, json.loads(text)):
                return "the answer repeats an item where its JSON schema wants all to differ (uniqueItems)"
        except (ValueError, RecursionError):
            pass  # a stop string has ended it
        return None

    def _constrained(self, tokens: mx.array, logits: mx.array) -> mx.array:
        import mlx.core as mx
        from llguidance.numpy import fill_next_token_bitmask

        # The last token is already there, unlike these logits, which the device may compute while the mask is made.
        drawn: Any = tokens[-1].item()
        start: Any = mx.async_eval
        start(logits)
        # Before the first draw it is the prompt's; after the end mlx-lm draws once more and drops that token.
        if self._begun and not self._matcher.is_stopped():
            self._matcher.consume_token(drawn)
        self._begun = True
        fill_next_token_bitmask(self._matcher, self._allowed)
        message = self._matcher.get_error()
        if message or not self._allowed.any():
            why = one_sentence(message)
            if not message or message.startswith("NoExtension"):
                why = "this model has no tokens for what would have to come next"
            raise RequestError(f"the answer could not be kept to the JSON schema any further: {why}")
        return self._apply(logits, self._allowed)


def applier() -> Callable[[mx.array, np.ndarray], mx.array]:
    """What sets the logits of forbidden tokens to minus infinity.

    Where Metal is, that is llguidance's own kernel: unverified, as no Mac has run it here.
    """
    import mlx.core as mx

    if mx.metal.is_available() and mx.default_device().type == mx.DeviceType.gpu:
        from llguidance.mlx import apply_token_bitmask

        return apply_token_bitmask
    return _apply


def _apply(logits: mx.array, allowed: np.ndarray) -> mx.array:
    """`allowed`: (1, words) int32, one bit a token, the lowest first. Logits without a bit are forbidden."""
    import mlx.core as mx
    import numpy as np

    width = logits.shape[-1]
    bits: Any = np.unpackbits(allowed.view(np.uint8)[0], bitorder="little", count=width)
    if bits.size < width:
        bits = np.pad(bits, (0, width - bits.size))
    return mx.where(mx.array(bits.view(np.bool_)), logits, mx.array(-float("inf"), dtype=logits.dtype))


def is_panic(error: BaseException) -> bool:
    """Whether it is what a library written in Rust raises in place of ending the process: no `Exception`."""
    return type(error).__name__ == "PanicException"


def one_sentence(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("<")]
    # Of a regular expression it shows the text and a caret first, and what is wrong with it last.
    wrong = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if wrong:
        return f"a pattern is no regular expression that is supported here: {wrong[-1]}"[:_MESSAGE_CHARACTERS]
    # The option that it may recommend is not to be had here.
    text = " ".join(lines).partition(". Enable ")[0]
    return text.rstrip(".")[:_MESSAGE_CHARACTERS] or "no reason given"
