"""Prepares a grammar in a process of its own, with a limit on what it may compute: `python -m ...grammar_trial`.

llguidance bounds most of its work and memory by `LIMITS`, but not all: to intersect 26 patterns, or to count in
multiples of a large prime, it goes on for minutes and cannot be interrupted. So a schema is tried here first. What
computes for no longer than `CPU_LIMIT_S` cannot fill gigabytes either (100 MB a second at most was seen).

Reads the grammar from standard input and prints why it cannot be used, or nothing. A signal kills it at the limit.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from typing import Any

CPU_LIMIT_S = 0.5
"""Schemas of 100 kB take 0.02 to 0.2 s as a rule; 3,000 optional properties in one object take 0.9."""
_WALKS_S = 0.2
"""Of the CPU, for writing answers on trial."""
_WALK_BYTES = 200
_FAVOURED = (b'}]"', b'{["', b'"{,', None, None, None)
"""Which bytes each answer on trial likes best: what ends it, what opens more of it, what goes on; or any."""
_ONES = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]
"""Of each byte of a mask, which bits are set."""
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}
"""llguidance's: of the work to read the patterns (about 10 ms), of one step (7 ms), and of memory (40 MB)."""


def fault(grammar: str) -> str:
    """Why no answer can be kept to this grammar; empty when one can."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    # One token a byte: what a grammar costs to prepare does not depend on the vocabulary.
    matcher = LLMatcher(LLTokenizer("byte"), grammar, limits=LLParserLimits(**LIMITS), log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    message = matcher.get_error()
    if message.startswith("NoExtension"):
        return "there is no JSON that satisfies it"
    return message or _broken_walk(matcher)


def _broken_walk(matcher: Any) -> str:
    """Why an answer that is begun cannot be ended. Some grammars are found out only on the way."""
    end_s = time.process_time() + _WALKS_S
    for number, favoured in enumerate(_FAVOURED):
        walked, dice = matcher.deep_copy(), random.Random(number)
        for _ in range(_WALK_BYTES):
            allowed = _allowed_bytes(walked)
            if (message := walked.get_error()) or walked.is_stopped():
                if message.startswith(("NoExtension", "Parser Error", "Lexer Error")):
                    return f"an answer of it could not be ended ({message.splitlines()[0]})"
                break
            if not allowed or time.process_time() > end_s:
                break
            liked = [byte for byte in favoured or b"" if byte in allowed]
            walked.consume_token(liked[0] if liked else dice.choice(allowed))
    return ""


def _allowed_bytes(matcher: Any) -> list[int]:
    """Those that may come next; none where the answer may end here."""
    mask = matcher.compute_bitmask()
    return [] if any(mask[32:]) else [index * 8 + bit for index in range(32) for bit in _ONES[mask[index]]]


def main() -> None:
    """One grammar, and the end."""
    import llguidance  # noqa: F401  # its import takes longer than most grammars, and does not count

    grammar = sys.stdin.buffer.read().decode()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    sys.stdout.buffer.write(fault(grammar).encode())


if __name__ == "__main__":
    main()
