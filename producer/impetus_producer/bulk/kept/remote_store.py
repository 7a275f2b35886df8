"""A store in Redis, for services on several machines: what was computed once is found by all, for a while.

`impetus:answers:<key>:<maker>` holds an answer, `impetus:answers` the order in which they came and how large each is,
`impetus:answers-bytes` how large they are together. The oldest go where there would be more than `max_bytes`, or when
their time is over. Hashes of texts and what was made of them are there, no text.
"""

from __future__ import annotations

from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from ...errors import InvalidRequestError, ServerFullError
from ...servers.patience import Patience
from ...servers.troubles import connect
from ...shown import without_password
from .store import Answer, AnswerStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis import Redis

DEFAULT_TTL_S = 7 * 86_400
DEFAULT_MAX_BYTES = 256_000_000
_PREFIX = "impetus:answers:"
_ORDER = "impetus:answers"
_BYTES = "impetus:answers-bytes"
_OVERHEAD_BYTES = 250
"""What an entry takes beside its value: two names of its key, and what Redis keeps of each."""
_AT_ONCE = 500
_KEEP = f"""
-- ARGV: time to live in s, the most bytes, then name and value of each. Sent again, it is the same.
local now, ttl, most = tonumber(redis.call('TIME')[1]), tonumber(ARGV[1]), tonumber(ARGV[2])
for at = 3, #ARGV, 2 do
  local size = #ARGV[at + 1] + {_OVERHEAD_BYTES}
  if redis.call('ZADD', '{_ORDER}', now, size .. ':' .. ARGV[at]) == 1 then
    redis.call('INCRBY', '{_BYTES}', size)
  end
  redis.call('SET', '{_PREFIX}' .. ARGV[at], ARGV[at + 1], 'EX', ttl)
end
local function drop(member)
  local size, name = string.match(member, '^(%d+):(.*)$')
  redis.call('ZREM', '{_ORDER}', member)
  redis.call('DEL', '{_PREFIX}' .. name)
  return redis.call('DECRBY', '{_BYTES}', size)
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', '{_ORDER}', '-inf', now - ttl, 'LIMIT', 0, 1000)) do
  drop(member)
end
local bytes = tonumber(redis.call('GET', '{_BYTES}') or 0)
while bytes > most do
  local oldest = redis.call('ZRANGE', '{_ORDER}', 0, 0)[1]
  if not oldest then break end
  bytes = drop(oldest)
end
redis.call('EXPIRE', '{_ORDER}', ttl)
redis.call('EXPIRE', '{_BYTES}', ttl)
return bytes
"""


class RedisStore(AnswerStore):
    """A store in the Redis or Valkey server of `url`, which may be the one of the queues. Threads may share it.

    Of a URL's query it takes `ttl_s` (a week) and `max_bytes` (256 MB, what Redis keeps beside values counted in). A
    server that is away is waited for, for `patience_s` at most; one that is full keeps nothing, and that is no error.
    Raises a `ServerError`, and `InvalidRequestError` for options that are none.
    """

    lasts = False

    def __init__(self, url: str, *, patience_s: float | None = None) -> None:
        server, self._ttl_s, self._max_bytes = _options(url)
        self._connection: Redis = connect(server)
        self._patience = Patience(patience_s)
        self._keep = self._connection.register_script(_KEEP)

    def __len__(self) -> int:
        return int(self._ask(lambda: self._connection.zcard(_ORDER)))

    def __bool__(self) -> bool:
        return bool(self._ask(lambda: self._connection.exists(_ORDER)))

    def find(self, keys: Sequence[bytes], fingerprints: Iterable[str]) -> dict[bytes, Answer]:
        found: dict[bytes, Answer] = {}
        for fingerprint in fingerprints:
            wanted = [key for key in keys if key not in found]
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                names = [_PREFIX + _name(key, fingerprint) for key in part]
                values = self._ask(lambda names=names: self._connection.mget(names))  # type: ignore[misc]
                for key, value in zip(part, values, strict=True):
                    if value is not None and (answer := _read(value, fingerprint)) is not None:
                        found[key] = answer
        return found

    def keep(self, answers: Iterable[tuple[bytes, Answer]]) -> None:
        kept = list(answers)
        for start in range(0, len(kept), _AT_ONCE):
            words: list[Any] = [self._ttl_s, self._max_bytes]
            for key, answer in kept[start : start + _AT_ONCE]:
                words += [_name(key, answer.fingerprint), f"{answer.model}\0".encode() + answer.value]
            with suppress(ServerFullError):
                self._ask(lambda words=words: self._keep(args=words), never_for=ServerFullError)  # type: ignore[misc]

    def close(self) -> None:
        self._connection.close()

    def _ask(self, question: Callable[[], Any], **how: Any) -> Any:
        return self._patience.ask(self._connection, question, **how)


def _name(key: bytes, fingerprint: str) -> str:
    return f"{key.hex()}:{blake2b(fingerprint.encode(), digest_size=8).hexdigest()}"


def _read(value: bytes, fingerprint: str) -> Answer | None:
    model, separator, made = value.partition(b"\0")
    return Answer(made, model.decode(errors="replace"), fingerprint) if separator else None


def _options(url: str) -> tuple[str, int, int]:
    """The server's URL without what is ours, the time to live and the most bytes."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    numbers = []
    for name, default in (("ttl_s", DEFAULT_TTL_S), ("max_bytes", DEFAULT_MAX_BYTES)):
        written = query.pop(name, str(default))
        if not (written.isascii() and written.isdecimal() and 0 < int(written) < 1 << 53):
            raise InvalidRequestError(f"{without_password(url)!r}: {name} is to be a whole number above 0")
        numbers.append(int(written))
    return parts._replace(query=urlencode(query)).geturl(), numbers[0], numbers[1]
