"""What servers' answers mean: what passes by itself, what somebody has to change, and what is about the data.

What servers say of their own state is an open set, and each begins with a word of its own (LOADING, MISCONF): all of it
is taken to pass, but for what only somebody who changes the configuration can mend: authentication, access rights, and
cluster mode. What has no such word (ERR), and WRONGTYPE, is about the command and what lies there: it does not pass.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ..errors import ImpetusError, ServerConfigurationError, ServerDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

# In a script an ACL's refusal and a cluster's come as an ordinary error with these words.
CLUSTER = re.compile(r"MOVED |ASK |CROSSSLOT|hash to the same slot|non local key|in cluster mode")
ACCESS = re.compile(r"NOPERM|ACL failure|has no permissions|No permissions to access")
_AUTHENTICATION = re.compile(r"NOAUTH|WRONGPASS|Authentication required|invalid username-password|invalid password")
# redis-py takes ERR off. Redis before 7 reports what a script ran into within a sentence of its own.
_STATE = re.compile(
    r"^[A-Z]{4,}\b|\b(?:OOM|BUSY|LOADING|READONLY|MASTERDOWN|MISCONF|NOREPLICAS|UNBLOCKED|TRYAGAIN|CLUSTERDOWN)\b"
    r"|max number of clients"
)
# Holds the command's own words, which anybody may have chosen.
_IN_PIPELINE = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)


class Trouble(StrEnum):
    PASSING = "passing"
    """Wait and try again: the server restarts, loads, fails over, or its disk or memory is full."""
    CONFIGURATION = "configuration"
    """Waiting does not help: somebody has to change the address, the password, the rights or the server."""
    DATA = "data"
    """Waiting does not help: the server serves, and what lies there does not go with what it was asked."""


def server_words(error: BaseException) -> str:
    """What the server said, without what redis-py says of the command."""
    return _IN_PIPELINE.sub("", str(error))


def trouble(error: BaseException) -> Trouble:
    """Whether what a server answered, or that it did not answer, passes by itself. Ours and redis-py's errors alike."""
    from redis import exceptions

    if isinstance(error, ServerConfigurationError):
        return Trouble.CONFIGURATION
    if isinstance(error, ServerDataError):
        return Trouble.DATA
    if isinstance(error, ImpetusError):
        return Trouble.PASSING
    refused = (
        exceptions.AuthenticationError,
        exceptions.AuthorizationError,
        exceptions.AuthenticationWrongNumberOfArgsError,
        exceptions.NoPermissionError,
        exceptions.ClusterCrossSlotError,
        exceptions.AskError,
    )
    if isinstance(error, refused):
        return Trouble.CONFIGURATION
    if isinstance(error, exceptions.ResponseError):
        said = server_words(error)
        if said.startswith("WRONGTYPE"):
            return Trouble.DATA
        if any(words.search(said) for words in (CLUSTER, ACCESS, _AUTHENTICATION)):
            return Trouble.CONFIGURATION
        # Those that redis-py has a class for are all of the server's state.
        if type(error) is exceptions.ResponseError and ("WRONGTYPE" in said or not _STATE.search(said)):
            return Trouble.DATA
    return Trouble.PASSING


def known_answers(answers: Sequence[Any]) -> list[Any]:
    """What a server answered to a pipeline, None for a key of another type. Raises any other error."""
    for answer in answers:
        if isinstance(answer, Exception) and trouble(answer) is not Trouble.DATA:
            raise answer
    return [None if isinstance(answer, Exception) else answer for answer in answers]
