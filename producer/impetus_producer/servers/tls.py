"""Whether a port speaks TLS where its URL does not say so, or the other way round.

Neither side tells the other: one hangs up, or waits for more. So a port that gave no answer is asked once in the other
manner, and nothing is concluded but from its answer to that.
"""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

_ANSWER_S = 2.0


def advice(connection: Redis | AsyncRedis) -> str | None:
    """What to do about the URL of a server that gave no answer; None where it speaks as the URL says, or not at all.

    Blocks for some seconds.
    """
    pool: Any = connection.connection_pool
    host, port = pool.connection_kwargs.get("host"), pool.connection_kwargs.get("port")
    if host is None or port is None:
        return None
    try:
        with closing(socket.create_connection((host, port), _ANSWER_S)) as line:
            line.settimeout(_ANSWER_S)
            if "SSL" in pool.connection_class.__name__:
                if _answers_plainly(line):
                    return "the Redis server speaks no TLS at this port: begin its URL with redis://, or name another"
            elif _speaks_tls(line, host):
                return "the Redis server speaks TLS at this port: begin its URL with rediss://"
    except OSError:
        pass
    return None


def _answers_plainly(line: socket.socket) -> bool:
    line.sendall(b"PING\r\n")
    return line.recv(1) in (b"+", b"-")


def _speaks_tls(line: socket.socket, host: str) -> bool:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is said to it, and so it need not be trusted.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        context.wrap_socket(line, server_hostname=host).close()
    except ssl.SSLError as error:
        # It may want a certificate of ours, which is an answer too.
        return "ALERT" in (error.reason or "")
    return True
