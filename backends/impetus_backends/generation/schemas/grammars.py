"""JSON schemas made ready for requests, beside the thread that drives the engine."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ...errors import RequestError
from .grammar_trial import CPU_LIMIT_S, LIMITS
from .json_schemas import keepable
from .parts import subschemas
from .structured import JsonConstraint, applier, is_panic, one_sentence
from .vocabulary import llguidance_tokenizer

_CACHED_GRAMMARS = 64
_TRIALS_AT_ONCE = 2
_TRIAL_TIMEOUT_S = 15
"""Of the clock, and only in case the machine is so busy that `CPU_LIMIT_S` of computing take that long."""
_OPTIONS: Any = {
    "whitespace_pattern": r"\x20|\x0A\x20{0,16}",
    "json_allowed_escapes": 'nrbtf\\"',
    "json_allow_general_unicode_escapes": False,
}
_OWN_OPTIONS = "x-guidance"
"""llguidance reads this key of a schema as options of its own. They are not the requester's to set."""


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
            raise RequestError(f"the JSON schema could not be tried out: {one_sentence(str(error))}") from error
        words = (grammar.tokenizer.vocab_size + 31) // 32
        return JsonConstraint(grammar.matcher.deep_copy(), words, applier(), grammar.schema)

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
            if is_panic(error):
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
                f"({one_sentence(str(error))})"
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
        raise RequestError(f"the JSON schema could not be tried out: {one_sentence(complaint[-300:])}")
    if said:
        raise _refusal(said)


def _refusal(message: str) -> RequestError:
    return RequestError(f"the JSON schema cannot be kept to: {one_sentence(message)}")
