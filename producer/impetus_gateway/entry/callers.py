"""Who asks, and what they may: keys by their hashes, roles, and how much at once.

A file of keys is TOML; a key itself is in nobody's file but its owner's:

    [[keys]]
    name = "shop"
    sha256 = "…"                  # of the key; `impetus serve-key shop --keys FILE` makes both
    roles = ["submit", "read"]
    max_concurrent = 32
    requests_per_minute = 600
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from impetus_producer.enqueueing.parsing import first_sentence
from impetus_producer.errors import InvalidRequestError

from ..listed import read_listed
from .errors import HttpError

if TYPE_CHECKING:
    from pathlib import Path

_PREFIX = "imp-"


class Role(StrEnum):
    """What a key may do."""

    SUBMIT = "submit"
    """Put jobs on the queues and have their answers."""
    READ = "read"
    """Look at its own jobs by their ids, and cancel them."""
    OPERATE = "operate"
    """See, cancel and retry everybody's, suspend the workers, read metrics."""


class Caller(BaseModel):
    """The owner of a key. `name` is what jobs remember."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")]
    roles: frozenset[Role] = frozenset({Role.SUBMIT, Role.READ})
    max_concurrent: Annotated[int, Field(gt=0)] | None = None
    """Requests at once; none: as many as the gateway takes."""
    requests_per_minute: Annotated[int, Field(gt=0)] | None = None


ANYONE = Caller(name="anyone", roles=frozenset(Role))
"""Whoever asks a gateway without keys."""


class _Entry(Caller):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[_Entry]


class Keys:
    """Those of one file. Without a file everybody is `ANYONE`."""

    def __init__(self, entries: list[_Entry] | None = None) -> None:
        self._callers = None if entries is None else [(each.sha256.encode(), _caller(each)) for each in entries]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Raises `InvalidRequestError` for a file that is none of keys."""
        entries = read_listed(path, _File, "keys").keys
        if len({each.name for each in entries}) < len(entries):
            raise InvalidRequestError(f"{path}: two keys have the same name, and would read each other's jobs")
        return cls(entries)

    @property
    def needed(self) -> bool:
        return self._callers is not None

    def caller(self, authorization: str) -> Caller:
        """Who sent this `Authorization` header. Raises `HttpError` 401."""
        if self._callers is None:
            return ANYONE
        scheme, _, key = authorization.partition(" ")
        shown = hashlib.sha256(key.strip().encode("utf-8", "surrogatepass")).hexdigest().encode()
        # All are looked at, so that the time it takes says nothing of which.
        found = [caller for hashed, caller in self._callers if hmac.compare_digest(hashed, shown)]
        if scheme.lower() != "bearer" or not found:
            raise HttpError(
                401,
                "a key is needed: send it as 'Authorization: Bearer …'" if not key else "there is no such key",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found[0]


def _caller(entry: _Entry) -> Caller:
    return Caller.model_validate(entry.model_dump(exclude={"sha256"}))


def new_key(name: str, roles: list[Role]) -> tuple[str, str]:
    """A key, and the lines of a file of keys that let it in. Raises `InvalidRequestError` for a name that is none."""
    key = _PREFIX + secrets.token_urlsafe(32)
    try:
        Caller(name=name)
    except ValidationError as error:
        raise InvalidRequestError(first_sentence(error)) from None
    said = ", ".join(f'"{role}"' for role in roles)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return key, f'[[keys]]\nname = "{name}"\nsha256 = "{digest}"\nroles = [{said}]\n'
