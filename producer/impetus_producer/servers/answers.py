"""What servers' answers mean: what passes by itself, what somebody has to change, and what is about the data.

What servers, and what stands before them, may say is an open set. All of it is taken to pass, but for two kinds that
are told by their words. Only somebody who changes the configuration can mend authentication, access rights, cluster
mode, and commands and databases that a server has not. A key of another type, or a value that is no number, stays so.
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
ACCESS = re.compile(r"NOPERM|ACL failure|has no permissions|No permissions to access|user executing the script")
UNKNOWN_COMMAND = re.compile(r"unknown (?:redis |valkey )?(?:sub)?command(?:\s+'[^']{1,40}')?", re.IGNORECASE)
DATABASE = re.compile(r"DB index")
CERTIFICATE = re.compile(r"CERTIFICATE_VERIFY_FAILED")
TLS = re.compile(r"\[SSL|_ssl\.c|in violation of protocol|WRONG_VERSION_NUMBER")
TLS_FILES = re.compile(r"Error (?:2|13|21) connecting to [^/ ]|\[X509|PEM lib|No cipher can be selected")
"""What redis-py says where the files that a URL names for TLS are not there, are no certificates, or do not belong
together. A TCP connection is never refused by these numbers, a unix socket is."""
_AUTHENTICATION = re.compile(r"NOAUTH|WRONGPASS|Authentication required|invalid username-password|invalid password")
_CODE = re.compile(r"([A-Z]{3,}) ")
"""What a server says of its own state begins so. redis-py takes ERR off, which means nothing."""
_ABOUT_DATA = re.compile(
    "WRONGTYPE|not an integer|not a valid float|not a float|out of range|overflow|NaN or Infinity|last possible ID|"
    "wrong number of arguments|syntax error|invalid expire time|Invalid stream ID|attempt to "
)
# Holds the command's own words, which anybody may have chosen.
_IN_PIPELINE = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
_IN_SCRIPT = re.compile(r"^Error running script \(call to \w+\): (?:@\w+: ?\d+: )+-?(?:ERR )?")
"""Of Redis before 7, where scripts hide the code of what ended them."""
NO_PRIMARY = re.compile(r"No master found for ")
_CLIENT = re.compile(r"<redis\.client\.Redis\(.*?\bhost=([^,]*),port=(\d+).*?\)>\)>\)>")
"""How redis-py names a Sentinel: by its client with all its settings."""


class Trouble(StrEnum):
    PASSING = "passing"
    """Wait and try again: the server restarts, loads, fails over, or its disk or memory is full."""
    CONFIGURATION = "configuration"
    """Waiting does not help: somebody has to change the address, the password, the rights or the server."""
    DATA = "data"
    """Waiting does not help: the server serves, and what lies there does not go with what it was asked."""


def server_words(error: BaseException) -> str:
    """What the server said, without redis-py's words for commands and clients, and without where in a script it was."""
    return _CLIENT.sub(r"\1:\2", _IN_SCRIPT.sub("", _IN_PIPELINE.sub("", str(error))))


def code(error: BaseException) -> str:
    """The code of what a server answered, also where redis-py has made a class of it; empty for none."""
    from redis import exceptions

    classes = {
        "OOM": exceptions.OutOfMemoryError,
        "LOADING": exceptions.BusyLoadingError,
        "READONLY": exceptions.ReadOnlyError,
        "MASTERDOWN": exceptions.MasterDownError,
    }
    for name, kind in classes.items():
        if isinstance(error, kind):
            return name
    said = _CODE.match(server_words(error)) if isinstance(error, exceptions.ResponseError) else None
    return said[1] if said else ""


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
        # First: what follows may be the command's own words.
        if said.startswith("WRONGTYPE"):
            return Trouble.DATA
        if any(words.search(said) for words in (CLUSTER, ACCESS, _AUTHENTICATION, UNKNOWN_COMMAND, DATABASE)):
            return Trouble.CONFIGURATION
        if not _CODE.match(said) and _ABOUT_DATA.search(said):
            return Trouble.DATA
    if isinstance(error, exceptions.ConnectionError) and TLS_FILES.search(str(error)):
        return Trouble.CONFIGURATION
    # What redis-py itself refuses to send.
    return Trouble.DATA if isinstance(error, exceptions.DataError) else Trouble.PASSING


def is_denied(error: BaseException) -> bool:
    """Whether this command is refused and others need not be: by a right that is missing, or as it is not there."""
    from redis import exceptions

    return isinstance(error, exceptions.NoPermissionError) or (
        isinstance(error, exceptions.ResponseError) and UNKNOWN_COMMAND.match(server_words(error)) is not None
    )


def known_answers(answers: Sequence[Any]) -> list[Any]:
    """What a server answered to a pipeline, None for a key of another type. Raises any other error."""
    for answer in answers:
        if isinstance(answer, Exception) and trouble(answer) is not Trouble.DATA:
            raise answer
    return [None if isinstance(answer, Exception) else answer for answer in answers]
