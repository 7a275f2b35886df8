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
 - Keywords that llguidance does not know how to enforce are refused, never passed over, and so is `minProperties`
   where only the absence of duplicate keys would keep it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from .grammar_trial import CPU_LIMIT_S, LIMITS
from .vocabulary import llguidance_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import mlx.core as mx
    import numpy as np

_CACHED_GRAMMARS = 64
_TRIAL_TIMEOUT_S = 15
"""Of the clock, and only in case the machine is so busy that `CPU_LIMIT_S` of computing take that long."""
_MESSAGE_CHARACTERS = 300
_OPTIONS: Any = {
    "whitespace_pattern": r"\x20|\x0A\x20{0,16}",
    "json_allowed_escapes": 'nrbtf\\"',
    "json_allow_general_unicode_escapes": False,
}
_OWN_OPTIONS = "x-guidance"
"""llguidance reads this key of a schema as options of its own. They are not the requester's to set."""


class JsonConstraint:
    """One request's logits processor, shared with no other: it lets through what goes on towards JSON of its schema.

    Once the JSON is complete it lets only end-of-text tokens through. It has to be the last of its row's processors.
    What goes wrong stays in `error` and the batch goes on: from then on the row is not constrained, nobody will read
    it, and the engine, which looks at `error` after every step, ends that request.
    """

    def __init__(self, matcher: Any, words: int, apply: Callable[[mx.array, np.ndarray], mx.array]) -> None:
        import numpy as np

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
                if not _is_panic(error):
                    raise
                self.error = RequestError(f"llguidance failed at the JSON schema: {_one_line(str(error))}")
        return logits

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
            why = _one_line(message)
            if not message or message.startswith("NoExtension"):
                why = "this model has no tokens for what would have to come next"
            raise RequestError(f"the answer could not be kept to the JSON schema any further: {why}")
        return self._apply(logits, self._allowed)


class Grammars:
    """Makes the constraints of one model. The tokenizer's 150,000 or so tokens are read at the first request.

    `tokenizer`: mlx-lm's `TokenizerWrapper`; `vocab_size`: how many logits the model gives.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._read: tuple[Any, Callable[[mx.array, np.ndarray], mx.array]] | None = None
        # Refusals are remembered too, so that a bad schema sent again and again is looked at once.
        self._grammar: Callable[[str], Any | RequestError] = lru_cache(maxsize=_CACHED_GRAMMARS)(self._compiled)

    def constraint(self, schema: str) -> JsonConstraint:
        """A fresh constraint for one request. `schema`: a JSON schema (draft 2020-12), as JSON.

        A schema not met before takes about 0.15 s, in which nothing else runs, and never much more than twice
        `CPU_LIMIT_S`; one met before, some microseconds. Raises `RequestError` with one sentence for a schema that
        cannot be kept to: not valid, with a keyword that is not supported, without any solution, or too intricate.
        """
        matcher = self._grammar(schema)
        if isinstance(matcher, RequestError):
            raise RequestError(str(matcher))
        tokenizer, apply = self._tokens()
        return JsonConstraint(matcher.deep_copy(), (tokenizer.vocab_size + 31) // 32, apply)

    def _compiled(self, schema: str) -> Any | RequestError:
        """A matcher that has seen nothing yet, for others to be copied from."""
        try:
            tokenizer, _ = self._tokens()
            grammar = _grammar(schema)
            _try(grammar)
            from llguidance import LLMatcher, LLParserLimits

            matcher = LLMatcher(tokenizer, grammar, limits=LLParserLimits(**LIMITS), log_level=0)
            if message := matcher.get_error():
                raise _refusal(message)
        except RequestError as error:
            return error
        except BaseException as error:
            if not _is_panic(error):
                raise
            return _refusal(str(error))
        return matcher

    def _tokens(self) -> tuple[Any, Callable[[mx.array, np.ndarray], mx.array]]:
        if self._read is None:
            try:
                import llguidance  # noqa: F401
            except ImportError:
                raise RequestError(
                    "this worker cannot keep answers to a JSON schema: it lacks llguidance (pip install "
                    "'impetus-batch[mlx]')"
                ) from None
            size = max(self._vocab_size, len(self._tokenizer))
            ends = sorted(token for token in self._tokenizer.eos_token_ids if 0 <= token < self._vocab_size)
            if not ends:
                raise RequestError("this model has no end-of-text token, so no answer of it can be kept to a schema")
            try:
                tokens = llguidance_tokenizer(self._tokenizer, size, ends)
            except Exception as error:  # any of the formats of tokenizers that it cannot read
                raise RequestError(
                    f"this model's answers cannot be kept to a JSON schema: llguidance does not read its tokenizer "
                    f"({_one_line(str(error))})"
                ) from error
            self._read = tokens, _applier()
        return self._read


def _grammar(schema: str) -> str:
    """llguidance's form of a schema."""
    from llguidance import LLMatcher

    try:
        parsed = json.loads(schema)
        if not isinstance(parsed, dict):
            raise RequestError("the JSON schema must be an object")
        if any(_counts_duplicates(part) for part in _parts(parsed)):
            raise RequestError(
                "the JSON schema cannot be kept to: minProperties is supported up to one more than there are "
                "properties in 'required' beside it"
            )
        parsed.pop(_OWN_OPTIONS, None)
        return LLMatcher.grammar_from_json_schema(json.dumps(parsed), overrides=_OPTIONS)
    except (ValueError, RecursionError) as error:
        raise _refusal(str(error)) from None


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a schema."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _counts_duplicates(schema: dict[str, Any]) -> bool:
    least, required = schema.get("minProperties"), schema.get("required")
    return isinstance(least, int) and least > 1 + (len(set(map(str, required))) if isinstance(required, list) else 0)


def _try(grammar: str) -> None:
    """Prepares the grammar in a process of its own first, which a hostile one can only kill: see `grammar_trial`."""
    # -P: nothing that lies in the current folder is imported.
    command = [sys.executable, "-P", "-m", f"{__package__}.grammar_trial"]
    try:
        trial = subprocess.run(
            command, input=grammar, capture_output=True, text=True, encoding="utf-8", timeout=_TRIAL_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        code, said, complaint = -1, "", ""
    except OSError as error:
        code, said, complaint = 1, "", str(error)
    else:
        code, said, complaint = trial.returncode, trial.stdout, trial.stderr
    if code < 0:
        raise RequestError(f"the JSON schema is too intricate: preparing it takes more than {CPU_LIMIT_S:g} s")
    if code > 0:
        raise RequestError(f"the JSON schema could not be tried out: {_one_line(complaint[-_MESSAGE_CHARACTERS:])}")
    if said:
        raise _refusal(said)


def _applier() -> Callable[[mx.array, np.ndarray], mx.array]:
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


def _is_panic(error: BaseException) -> bool:
    """Whether it is what a library written in Rust raises in place of ending the process: no `Exception`."""
    return type(error).__name__ == "PanicException"


def _refusal(message: str) -> RequestError:
    return RequestError(f"the JSON schema cannot be kept to: {_one_line(message)}")


def _one_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("<")]
    # Of a regular expression it shows the text and a caret first, and what is wrong with it last.
    wrong = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if wrong:
        return f"a pattern is no regular expression that is supported here: {wrong[-1]}"[:_MESSAGE_CHARACTERS]
    # The option that it may recommend is not to be had here.
    text = " ".join(lines).partition(". Enable ")[0]
    return text.rstrip(".")[:_MESSAGE_CHARACTERS] or "no reason given"
