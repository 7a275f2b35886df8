"""redis-py clients as this package needs them: made from a URL, or from the settings of somebody else's client.

Every client made here speaks RESP2 and decodes nothing, and every wait of it for the server has an end. Nothing here
talks to a server.
"""

from __future__ import annotations

import inspect
import re
import socket
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from ..errors import ImpetusError, NoServerError
from ..shown import without_password

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import ConnectionPool, Redis
    from redis.asyncio import Redis as AsyncRedis

CONNECT_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 15
"""Longer than any block that is asked for here, so that a connection that a router forgot is noticed."""
FAREWELL_TIMEOUT_S = 2
"""Of who does not wait any more, as after Ctrl-C."""
_RETRIES = 1
"""Of redis-py, for a line that was closed meanwhile. Who waits longer does so by `Patience`, or has ways of its own."""
_SENTINEL_PORT = 26379
_KEEPALIVE = {
    # The first two are one thing under two names: after how many seconds of silence the other side is asked.
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPALIVE": 15,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
}
_SCHEMES = re.compile(r"(?P<kind>redis|valkey)(?P<tls>s?)(?P<sentinel>\+sentinel)?$")
_FIXED = {"protocol": 2, "decode_responses": False, "socket_timeout": ANSWER_TIMEOUT_S}
_TAKEN = re.compile(
    "connection_class|host|port|path|db|username|password|credential_provider|client_name|redis_connect_func|ssl_.*"
)
"""What is taken over from another client: where the server is, who we are to it, and how that is kept secret."""
_OWN = re.compile(
    "protocol|legacy_responses|decode_responses|encoding.*|parser_class|cache.*|retry.*|socket_.*|health_check_interval"
    "|(maint|orig|oss|himport)_.*|event_dispatcher|connection_pool|max_connections|timeout|queue_class"
)
"""What is not taken over from a client whose connections are of a class that redis-py does not bring."""
_FOR_ASYNCIO = ("redis.asyncio", "valkey.asyncio")
_COUNTERPARTS = {
    "UnixDomainSocketConnection": ("redis.asyncio.connection", "UnixDomainSocketConnection"),
    "SSLConnection": ("redis.asyncio.connection", "SSLConnection"),
    "FakeRedisConnection": ("fakeredis.aioredis", "FakeAsyncRedisConnection"),
}
"""Of connections for threads: the modules and names of those for asyncio."""


def from_url(url: str) -> Redis:
    """A client for a URL: redis, rediss, valkey, valkeys and unix, or `redis+sentinel://host:port,host:port/service/db`.

    Raises `NoServerError` for one that is none.
    """
    scheme, separator, rest = url.partition("://")
    kind = _SCHEMES.match(scheme)
    try:
        if not separator or (kind is None and scheme != "unix"):
            raise ValueError
        if kind is not None and kind["sentinel"]:
            return _from_sentinel_url(f"redis://{rest}", tls=bool(kind["tls"]))
        from redis import connection

        parse_url: Any = connection.parse_url
        settings = _known(parse_url(url if kind is None else f"redis{kind['tls']}://{rest}"))
        _check_tls(settings)
    except ValueError:
        raise NoServerError(f"{without_password(url)!r} is no Redis URL such as redis://localhost:6379/0") from None
    return _client(settings.pop("connection_class", None), settings)


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a URL is taken; what is set here for all is passed over. `ValueError` for a name that means nothing."""
    for name in settings:
        if not _TAKEN.fullmatch(name) and not _OWN.fullmatch(name):
            raise ValueError(name)
    return {"db": 0} | {name: value for name, value in settings.items() if _TAKEN.fullmatch(name)}


def _check_tls(settings: Mapping[str, Any]) -> None:
    """`ValueError` for options of TLS that mean nothing, which redis-py finds out when it connects. Reads no file."""
    from ssl import TLSVersion

    from redis.connection import SSLConnection
    from redis.exceptions import RedisError

    if settings.get("connection_class") is not SSLConnection:
        return
    if settings.get("ssl_keyfile") and not settings.get("ssl_certfile"):
        raise ValueError("ssl_keyfile")
    if "ssl_min_version" in settings:
        TLSVersion(int(settings["ssl_min_version"]))
    try:
        SSLConnection(**{name: value for name, value in settings.items() if name != "connection_class"})
    except RedisError as error:
        raise ValueError from error


def like(client: Any, *, asyncio: bool = False) -> Redis:
    """A client of our own for the server of `client`, a redis-py client that somebody else made; `asyncio`: one for
    asyncio will do.

    Raises `ImpetusError` for what is no such client.
    """
    pool: Any = getattr(client, "connection_pool", None)
    is_for_asyncio = any(each.__module__.startswith(_FOR_ASYNCIO) for each in type(client).__mro__)
    _refuse_what_is_none(client, pool, is_for_asyncio, asyncio)
    # A pipeline or a subscription has a pool too, and keeps to itself what it is asked.
    is_plain = (type(client).__module__, type(client).__name__) == ("redis.client", "Redis")
    if is_plain and type(pool).__module__.startswith("redis.") and _FIXED.items() <= pool.connection_kwargs.items():
        return client  # type: ignore[no-any-return]
    return _another(pool)


def hurried(connection: Redis) -> Redis:
    """Another client for the server of one that was made here, which soon gives up on a server that hangs."""
    own = _another(connection.connection_pool)
    waits = own.connection_pool.connection_kwargs
    waits |= {name: FAREWELL_TIMEOUT_S for name in ("socket_timeout", "socket_connect_timeout") if name in waits}
    return own


def _another(pool: Any) -> Redis:
    if hasattr(pool, "sentinel_manager"):
        return _like_sentinel(pool)
    own = _client(*_taken(pool))
    if _runs_no_lua(pool):
        from .lualess import teach

        return teach(own)
    return own


def for_asyncio(model: Redis) -> AsyncRedis:
    """A client for asyncio like `model`, which was made here."""
    from redis.asyncio import Redis

    pool: Any = model.connection_pool
    if not hasattr(pool, "sentinel_manager"):
        own = _asyncio_client(*_taken(pool))
        if _runs_no_lua(pool):
            from .lualess import teach_as

            teach_as(model, own)
        return own
    from redis.asyncio import sentinel

    untyped: Any = sentinel
    manager = untyped.Sentinel([], **_sentinel_settings(pool.sentinel_manager))
    manager.sentinels = [_asyncio_client(*_taken(each.connection_pool)) for each in pool.sentinel_manager.sentinels]
    kind, settings = _taken(pool)
    settings = {**settings, **_waits(tcp=True, asyncio=True)}
    return Redis.from_pool(untyped.SentinelConnectionPool(pool.service_name, manager, ssl=kind is not None, **settings))


def _runs_no_lua(pool: Any) -> bool:
    return pool.connection_class.__module__.startswith("fakeredis") and find_spec("lupa") is None


def _asyncio_client(kind: type | None, settings: Mapping[str, Any]) -> AsyncRedis:
    from redis import asyncio

    own: dict[str, Any] = {**settings, **_waits(tcp="path" not in settings, asyncio=True)}
    if kind is not None:
        module, name = _COUNTERPARTS.get(kind.__name__, (kind.__module__, kind.__name__))
        own["connection_class"] = getattr(import_module(module), name)
    return asyncio.Redis.from_pool(asyncio.ConnectionPool(**own))


def _refuse_what_is_none(client: Any, pool: Any, is_for_asyncio: bool, may_be: bool) -> None:
    kind = type(client)
    if is_for_asyncio and not may_be:
        raise ImpetusError(
            "an asyncio client cannot serve here, as handles wait in threads: give Producer() a redis.Redis, or a URL, "
            "or use AsyncProducer()"
        )
    if any(each.__name__.endswith("Cluster") for each in kind.__mro__):
        raise ImpetusError(
            "a cluster client cannot serve here, as queues need one server: give Producer() a redis.Redis, or a URL"
        )
    execute = getattr(client, "execute_command", None)
    promises = inspect.iscoroutinefunction(execute) and not is_for_asyncio
    if not hasattr(pool, "connection_kwargs") or execute is None or promises:
        raise ImpetusError(
            f"connection= takes a redis-py client, not a {kind.__name__}: give Producer() a redis.Redis, or a URL"
        )


def _taken(pool: ConnectionPool) -> tuple[type | None, dict[str, Any]]:
    """The class of a pool's connections, None for the usual, and the settings of theirs that are taken over."""
    from redis.connection import SSLConnection, UnixDomainSocketConnection

    kind, settings = pool.connection_class, pool.connection_kwargs
    if not kind.__module__.startswith(("redis.", "valkey.")):
        return kind, {name: value for name, value in settings.items() if not _OWN.fullmatch(name)}
    ours = {name: value for name, value in settings.items() if _TAKEN.fullmatch(name) and value is not None}
    if "path" in ours:
        return UnixDomainSocketConnection, ours
    return (SSLConnection if "SSL" in kind.__name__ else None), ours


def _client(kind: type | None, settings: Mapping[str, Any]) -> Redis:
    from redis import ConnectionPool, Redis

    own: dict[str, Any] = {**settings, **_waits(tcp="path" not in settings)}
    return Redis.from_pool(ConnectionPool(**own) if kind is None else ConnectionPool(connection_class=kind, **own))


def _waits(*, tcp: bool, asyncio: bool = False) -> dict[str, Any]:
    """How long to wait for what, and the form of the answers."""
    from redis import exceptions
    from redis.backoff import ExponentialBackoff

    retry: Any = import_module("redis.asyncio.retry" if asyncio else "redis.retry")
    waits: dict[str, Any] = {
        **_FIXED,
        "encoding": "utf-8",
        "retry_on_error": [exceptions.ConnectionError],
        # Not for what took too long: it has waited its time.
        "retry": retry.Retry(ExponentialBackoff(cap=0.5, base=0.05), _RETRIES, (exceptions.ConnectionError,)),
        # As many as there are threads: redis-py would refuse the 101st.
        "max_connections": 2**31,
    }
    if asyncio:
        # Who asks sees to it: with a timeout redis-py writes by `asyncio.wait_for`, which before Python 3.12 may not
        # let its task be cancelled.
        waits["socket_timeout"] = None
    if tcp:
        waits |= {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_keepalive": True}
        waits["socket_keepalive_options"] = {
            getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)
        }
    return waits


def _from_sentinel_url(url: str, *, tls: bool) -> Redis:
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    if not hosts or not service:
        raise ValueError
    options = {name: values[0] for name, values in parse_qs(parts.query).items()}
    own = {name.removeprefix("sentinel_"): options.pop(name) for name in list(options) if name.startswith("sentinel_")}
    if db and "db" not in options:
        options["db"] = db
    name, _, password = user.partition(":")
    settings = _known({**options, "db": int(options.get("db", 0))})
    settings |= {key: unquote(value) for key, value in (("username", name), ("password", password)) if value}
    return _sentinel_client(
        unquote(service), [_client(None, {**own, **_address(host)}) for host in hosts.split(",")], settings, tls
    )


def _address(host: str) -> dict[str, Any]:
    address = urlsplit(f"//{host}")
    if not address.hostname:
        raise ValueError
    return {"host": address.hostname, "port": address.port or _SENTINEL_PORT}


def _like_sentinel(pool: Any) -> Redis:
    if not pool.is_master:
        raise ImpetusError("a Sentinel's slave_for() client only reads: give Producer() that of master_for()")
    kind, settings = _taken(pool)
    manager = pool.sentinel_manager
    sentinels = [_client(*_taken(each.connection_pool)) for each in manager.sentinels]
    for name in ("host", "port"):
        settings.pop(name, None)
    return _sentinel_client(pool.service_name, sentinels, settings, kind is not None, manager)


def _sentinel_client(
    service: str, sentinels: list[Redis], settings: Mapping[str, Any], tls: bool, model: Any = None
) -> Redis:
    from redis import Redis, sentinel

    untyped: Any = sentinel
    manager = untyped.Sentinel([], **_sentinel_settings(model))
    manager.sentinels = sentinels
    pool = untyped.SentinelConnectionPool(service, manager, ssl=tls, **{**settings, **_waits(tcp=True)})
    return Redis.from_pool(pool)


def _sentinel_settings(model: Any) -> dict[str, Any]:
    return {
        "min_other_sentinels": getattr(model, "min_other_sentinels", 0),
        "force_master_ip": getattr(model, "_force_master_ip", None),
    }
