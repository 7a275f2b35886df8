"""One thread's way to the server: a client of its own, and the one policy for what goes wrong there.

Whatever a server answers is passing: the worker says so once, waits and tries again. Only what no waiting mends
(authentication, rights, cluster mode) ends it, with one sentence.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from impetus_producer.errors import ServerError
from impetus_producer.servers.answers import code, server_words
from impetus_producer.servers.connections import from_url
from impetus_producer.servers.troubles import Trouble, hang_up, in_a_sentence, trouble

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from ..leases.scripts import Call

T = TypeVar("T")

FIRST_WAIT_S = 0.1
MAX_WAIT_S = 5.0
_CALM_S = 3.0
"""For so long nothing may fail before the trouble is over."""
PASSING = (RedisError, OSError, ServerError)
"""What a call to the server may raise that is the server's or the network's affair."""
_log = logging.getLogger(__name__)


def is_about_data(error: BaseException) -> bool:
    """Whether the server would say the same however long one waits, and another question would be answered."""
    return trouble(error) is Trouble.DATA


class Reachability:
    """Whether the server serves, as all threads of a worker find it: said once when it stops, once when it is back.

    A server that refuses some things and takes others, for want of memory for instance, is one trouble and not many.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, server: str = "Redis") -> None:
        """`server`: as the log calls it."""
        self._clock = clock
        self._server = server
        self._failing: set[str] = set()
        self._trouble_until: float | None = None
        self._losses = 0
        self._clients: list[Redis] = []
        self._lock = threading.Lock()

    def add(self, connection: Redis) -> None:
        with self._lock:
            self._clients.append(connection)

    def hang_up_all(self) -> None:
        """Every connection of the worker is made anew, also those on which somebody waits: they lead to a server that
        has become another one's replica.
        """
        with self._lock:
            connections = list(self._clients)
        for connection in connections:
            hang_up(connection)

    @property
    def losses(self) -> int:
        """How often any thread had no answer so far: a line that was there before may lead nowhere."""
        return self._losses

    def lost(self, who: str, error: Exception) -> None:
        with self._lock:
            self._losses += 1
            if self._trouble_until is None:
                _log.error("%s: %s; waiting for it", self._server, server_words(error) or type(error).__name__)
            self._trouble_until = self._clock() + _CALM_S
            self._failing.add(who)

    def found(self, who: str) -> None:
        if self._trouble_until is None:  # looked at without the lock, because it is asked after every call
            return
        with self._lock:
            self._failing.discard(who)
            if self._trouble_until is not None and not self._failing and self._clock() > self._trouble_until:
                self._trouble_until = None
                _log.info("%s: it answers again", self._server)


def _changed_its_role(error: Exception) -> bool:
    return code(error) in ("READONLY", "MASTERDOWN", "LOADING", "UNBLOCKED")


def client(url: str, answer_s: float) -> Redis:
    """A client that tries nothing twice, and waits so long for an answer and no longer."""
    made = from_url(url)
    made.connection_pool.connection_kwargs |= {"socket_timeout": answer_s, "retry": Retry(NoBackoff(), 0)}
    return made


class Link:
    """For one thread. `connect` makes a client that tries nothing twice and has an end to every wait."""

    def __init__(self, who: str, connect: Callable[[], Redis], reachability: Reachability) -> None:
        self.connection = connect()
        reachability.add(self.connection)
        self._who = who
        self._reachability = reachability
        self._wait_s = 0.0

    def run(self, call: Call[T]) -> T:
        """Runs a script once. Raises what `failed` takes."""
        return self.ask(call.run)

    def ask(self, question: Callable[[Redis], T]) -> T:
        """Whatever `question` asks of the client, once. Raises what `failed` takes."""
        answer = question(self.connection)
        self.worked()
        return answer

    @property
    def losses(self) -> int:
        """Of all threads of the worker."""
        return self._reachability.losses

    def worked(self) -> None:
        """An answer came."""
        self._wait_s = 0.0
        self._reachability.found(self._who)

    def failed(self, error: Exception) -> float:
        """How long to wait before it is tried again. Raises `ConfigurationError` for what waiting does not mend."""
        if trouble(error) is Trouble.CONFIGURATION:
            raise ConfigurationError(str(in_a_sentence(error))) from error
        # A server that answers READONLY keeps the connection: behind the same address may be another one by now.
        if _changed_its_role(error):
            self._reachability.hang_up_all()
        else:
            hang_up(self.connection)
        self._reachability.lost(self._who, error)
        self._wait_s = min(MAX_WAIT_S, self._wait_s * 2 or FIRST_WAIT_S)
        return self._wait_s

    def close(self) -> None:
        self.connection.close()
