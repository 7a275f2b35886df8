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

import concurrent.futures
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from .grammar_trial import CPU_LIMIT_S, LIMITS
from .json_schemas import keepable, repeats_items, subschemas
from .vocabulary import llguidance_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    import mlx.core as mx
    import numpy as np

_CACHED_GRAMMARS = 64
_TRIALS_AT_ONCE = 2
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
                if not _is_panic(error):
                    raise
                self.error = RequestError(f"llguidance failed at the JSON schema: {_one_line(str(error))}")
        return logits

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
            why = _one_line(message)
            if not message or message.startswith("NoExtension"):
                why = "this model has no tokens for what would have to come next"
            raise RequestError(f"the answer could not be kept to the JSON schema any further: {why}")
        return self._apply(logits, self._allowed)


class Grammars:
    """Makes the constraints of one model. The tokenizer's 150,000 or so tokens are read at the first request.

    `tokenizer`: mlx-lm's `TokenizerWrapper`; `vocab_size`: how many logits the model gives.

    A schema not met before takes about 0.15 s to prepare, and never much more than twice `CPU_LIMIT_S`. That is done by
    threads beside the one that drives the engine, each of which mostly waits for a process of its own (see `_try`).
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._reading = threading.Lock()
        self._read: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._prepared: OrderedDict[str, Future[_Grammar]] = OrderedDict()
        """By schema, the one used last at the end. Refusals too: a bad schema sent often is looked at once."""

    def is_ready(self, schema: str) -> bool:
        """Whether `constraint` has its answer at once. If not, it is being prepared from now on."""
        return self._preparing(schema).done()

    def wait(self, timeout_s: float) -> None:
        """Returns when one that is being prepared is ready, or after this long."""
        waiting = [each for each in self._prepared.values() if not each.done()]
        concurrent.futures.wait(waiting, timeout_s, concurrent.futures.FIRST_COMPLETED)

    def constraint(self, schema: str) -> JsonConstraint:
        """A fresh constraint for one request. `schema`: a JSON schema (draft 2020-12), as JSON.

        Waits for a schema that is not ready. Raises `RequestError` with one sentence for a schema that cannot be kept
        to: not valid, with a keyword that is not supported, without any solution or end, or too intricate.
        """
        try:
            grammar = self._preparing(schema).result()
        except RequestError as error:
            raise RequestError(str(error)) from None  # each request gets its own
        except Exception as error:
            raise RequestError(f"the JSON schema could not be tried out: {_one_line(str(error))}") from error
        words = (grammar.tokenizer.vocab_size + 31) // 32
        return JsonConstraint(grammar.matcher.deep_copy(), words, _applier(), grammar.schema)

    def close(self) -> None:
        """Gives up what is being prepared."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._prepared.clear()

    def _preparing(self, schema: str) -> Future[_Grammar]:
        if schema in self._prepared:
            self._prepared.move_to_end(schema)
        else:
            self._pool = self._pool or ThreadPoolExecutor(_TRIALS_AT_ONCE, thread_name_prefix="schema")
            self._prepared[schema] = self._pool.submit(self._compiled, schema)
            done = [known for known, each in self._prepared.items() if each.done()]
            for known in done[: max(0, len(self._prepared) - _CACHED_GRAMMARS)]:
                del self._prepared[known]
        return self._prepared[schema]

    def _compiled(self, schema: str) -> _Grammar:
        """A matcher that has seen nothing yet, for others to be copied from."""
        try:
            tokenizer = self._tokens()
            parsed, grammar = _grammar(schema)
            _try(grammar)
            from llguidance import LLMatcher, LLParserLimits

            matcher = LLMatcher(tokenizer, grammar, limits=LLParserLimits(**LIMITS), log_level=0)
            if message := matcher.get_error():
                raise _refusal(message)
        except BaseException as error:
            if _is_panic(error):
                raise _refusal(str(error)) from None
            raise
        return _Grammar(matcher, tokenizer, parsed)

    def _tokens(self) -> Any:
        with self._reading:
            if self._read is None:
                self._read = self._read_tokens()
            return self._read

    def _read_tokens(self) -> Any:
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
            return llguidance_tokenizer(self._tokenizer, size, ends)
        except Exception as error:  # any of the formats of tokenizers that it cannot read
            raise RequestError(
                f"this model's answers cannot be kept to a JSON schema: llguidance does not read its tokenizer "
                f"({_one_line(str(error))})"
            ) from error


@dataclass(frozen=True, slots=True)
class _Grammar:
    """A schema, ready for requests."""

    matcher: Any
    tokenizer: Any
    schema: dict[str, Any]


def _grammar(schema: str) -> tuple[dict[str, Any], str]:
    """A schema, and llguidance's form of it."""
    from llguidance import LLMatcher

    try:
        parsed = json.loads(schema)
        if not isinstance(parsed, dict):
            raise RequestError("the JSON schema must be an object")
        if any(_counts_duplicates(part) for part in subschemas(parsed)):
            raise RequestError(
                "the JSON schema cannot be kept to: minProperties is supported up to one more than there are "
                "properties in 'required' beside it"
            )
        kept = keepable(parsed)
        kept.pop(_OWN_OPTIONS, None)
        return parsed, LLMatcher.grammar_from_json_schema(json.dumps(kept), overrides=_OPTIONS)
    except (ValueError, TypeError, RecursionError) as error:
        raise _refusal(str(error)) from None


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
