"""What a run keeps, struck by Ctrl-C at any moment: each in which the interpreter looks for signals is tried."""

from __future__ import annotations

import dis
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from impetus_producer.bulk.kept.journal import Journal
from impetus_producer.bulk.kept.store import Answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import CodeType, FrameType

FILES = ("journal.py", "store.py", "databases.py", "contextlib.py")
KEY = b"k" * 16


@cache
def operations(code: CodeType) -> dict[int, str]:
    return {each.offset: each.opname for each in dis.get_instructions(code)}


def looks_for_signals(operation: str) -> bool:
    """Signals are raised as functions begin and after calls, so that none comes between two that end a `with`."""
    return operation == "RESUME" or operation.startswith(("CALL", "JUMP_BACKWARD"))


def struck(at: int, work: Callable[[], None]) -> bool:
    """Whether moment number `at` of `work` was reached, which then ended there by Ctrl-C."""
    left = at
    last: dict[FrameType, str] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(FILES):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= looks_for_signals(last.get(frame, ""))
            last[frame] = operations(frame.f_code)[frame.f_lasti]
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_what_strikes_while_something_is_kept_leaves_nothing_half_done(tmp_path: Path) -> None:
    at = 1
    while True:
        with Journal(tmp_path) as journal:

            def keep(journal: Journal = journal) -> None:
                journal.sent({"job": [KEY]})
                journal.keep([(KEY, Answer(b"1234", "model", "print"))], [], {"tokens": 1})

            reached = struck(at, keep)
            # What puts things in order keeps what it does, and names the job only where it may have been sent.
            journal.ended(["job"])
            assert not journal.unfinished()
        if not reached:
            break
        at += 1
    assert at > 40
