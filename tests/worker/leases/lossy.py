"""A connection that executes commands and loses the answer, as a network does when it is cut at the wrong moment."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry


class LossyConnection(Connection):
    """Loses the answer to the next command whose name is in `lose`, once for each time it stands there."""

    lose: list[str] = []  # noqa: RUF012 - shared by the connections of a pool: each client has a class of its own
    _last = ""

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        packed = command if isinstance(command, list) else [command]
        whole = b"".join(packed)
        self._last = next((name for name in self.lose if name.encode() in whole), "")
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        if not self._last or self._last not in self.lose:
            return super().read_response(*args, **kwargs)
        if self._last == "EXEC":
            # MULTI and what it queues are answered one by one; the answer to lose is the last.
            answer = super().read_response(*args, **kwargs)
            if not isinstance(answer, list):
                return answer
        else:
            super().read_response(*args, **kwargs)
        self.lose.remove(self._last)
        self._last = ""
        self.disconnect()  # type: ignore[no-untyped-call]
        raise RedisConnectionError("the answer was lost")


def lossy(url: str, retries: int = 3) -> tuple[Redis, list[str]]:
    """A client, and the list of commands whose next answers it is to lose. It tries again as the producer's does."""
    lose: list[str] = []
    connections = type("OneClientsConnections", (LossyConnection,), {"lose": lose})
    pool = ConnectionPool.from_url(url, connection_class=connections, retry=Retry(NoBackoff(), retries))
    return Redis.from_pool(pool), lose
