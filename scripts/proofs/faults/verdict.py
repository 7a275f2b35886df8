"""What an account alone cannot know: what the server threw away, and what the workers' logs say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from tests.worker.faults.account import Account

_OF_A_JOB = re.compile(r"^(?:rq:job:|rq:results:|impetus:stream:|rq:executions?:)([0-9a-f-]+)")
_STILL_PROMISED = ("innocent", "duplicated", "unexpected")


def excuse_evicted(account: Account, evicted: Collection[str]) -> None:
    """Moves what follows from keys that the server evicted, `evicted`, out of the account's problems.

    Where only jobs' own keys went, that is what concerns these jobs, and sums over all jobs; where a queue or another
    key of all jobs went, everything but what holds even then: nobody innocent failed, nothing is there twice, and no
    result is wrong.
    """
    if not evicted:
        return
    of_jobs = {match[1] for key in evicted if (match := _OF_A_JOB.match(key))}
    shared = any(not _OF_A_JOB.match(key) for key in evicted)
    for what in list(account.problems):
        if what.startswith(_STILL_PROMISED):
            continue
        if shared or what.startswith(("rq info", "a worker")):
            account.excuse(what)
            continue
        theirs = [which for which in account.problems[what] if re.split(r"[ :,]", which)[0] in of_jobs]
        left = [which for which in account.problems[what] if which not in theirs]
        account.excuse(what)
        account.excused[what] = theirs
        if left:
            account.problems[what] = left
        if not theirs:
            del account.excused[what]


def tracebacks(log: str) -> list[str]:
    """Where a program died of an exception that nobody foresaw, what it was."""
    found, inside = [], False
    for line in log.splitlines():
        if line.startswith("Traceback "):
            inside = True
        elif inside and not line.startswith((" ", "\t")) and line.strip():
            found.append(line[:200])
            inside = False
    return found
