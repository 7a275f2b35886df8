"""Faults of the server itself, one at a time."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from scripts.proofs.faults.fault import Fault
from tests.patience import awaited

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis
    from scripts.proofs.faults.scene import Scene


def _spell(scene: Scene, for_s: float, begin: Callable[[], Any], end: Callable[[], Any]) -> bool:
    return scene.spell("server", for_s, begin, end)


def _kill(scene: Scene) -> bool:
    return _spell(scene, scene.random.uniform(0, 3), lambda: scene.server.kill(), lambda: scene.server.start())


def _stop(scene: Scene) -> bool:
    for_s = scene.lease_s * scene.random.uniform(0.2, 1.6)
    return _spell(scene, for_s, lambda: scene.server.freeze(), lambda: scene.server.thaw())


def _at_once(scene: Scene, action: Callable[[Redis], Any]) -> bool:
    """What is done in a moment, to a server that is whole."""

    def act() -> None:
        with suppress(RedisError), scene.server.client() as client:
            action(client)

    return _spell(scene, 0.0, act, lambda: None)


def _cut_connections(scene: Scene) -> bool:
    def cut(client: Redis) -> None:
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind)  # type: ignore[no-untyped-call]

    return _at_once(scene, cut)


def _starve(scene: Scene) -> bool:
    for_s = scene.lease_s * scene.random.uniform(0.2, 1.5)
    return _spell(
        scene,
        for_s,
        lambda: _set(scene, **{"maxmemory-policy": "noeviction", "maxmemory": "1mb"}),
        lambda: _set(scene, maxmemory="0"),
    )


def _evict(scene: Scene) -> bool:
    """Everything that may be evicted is, and then there is no memory."""
    for_s = scene.lease_s * scene.random.uniform(0.2, 1.0)
    return _spell(
        scene,
        for_s,
        lambda: _set(scene, **{"maxmemory-policy": "volatile-lru", "maxmemory": "1mb"}),
        lambda: _set(scene, maxmemory="0"),
    )


def _evict_anything(scene: Scene) -> bool:
    """A tenth of what is there goes, and more as it grows. What went is noted."""

    def begin() -> None:
        # Every event that is evicted is told, as long as this thread listens.
        with scene.server.client() as client:
            client.config_set("notify-keyspace-events", "Ee")
        listens, ended = threading.Event(), threading.Event()
        threading.Thread(target=_note_evicted, args=(scene, listens, ended), name="evictions", daemon=True).start()
        listens.wait(5)
        ends.append(ended)
        with scene.server.client() as client:
            used: Any = client.info("memory")["used_memory"]
        _set(scene, **{"maxmemory-policy": "allkeys-lru", "maxmemory": str(used * 9 // 10)})

    def end() -> None:
        _set(scene, maxmemory="0")
        for each in ends:
            each.set()

    ends: list[threading.Event] = []
    return _spell(scene, scene.lease_s * scene.random.uniform(0.2, 1.0), begin, end)


def _note_evicted(scene: Scene, listens: threading.Event, ended: threading.Event) -> None:
    with scene.server.client() as client, client.pubsub() as listener:
        listener.subscribe("__keyevent@0__:evicted")
        quiet_since = time.monotonic()
        while not ended.is_set() or time.monotonic() - quiet_since < 1:
            if (message := listener.get_message(timeout=0.2)) is None:
                continue
            quiet_since = time.monotonic()
            if message["type"] == "message":
                scene.evicted.add(message["data"].decode())
            else:
                listens.set()


def _set(scene: Scene, **values: str) -> None:
    def told() -> bool:
        with suppress(RedisError), scene.server.client() as client:
            for name, value in values.items():
                client.config_set(name, value)
            return True
        return False

    if not awaited(told, 20):
        scene.complain("the server could not be told", str(values))


def _refuse_writes(scene: Scene, begin: Callable[[], None]) -> bool:
    for_s = scene.lease_s * scene.random.uniform(0.2, 1.5)
    return _spell(scene, for_s, begin, lambda: scene.server.accept_writes())


def _misconfigure(scene: Scene) -> bool:
    return _refuse_writes(scene, lambda: scene.server.refuse_writes_as_misconfigured())


def _want_replicas(scene: Scene) -> bool:
    return _refuse_writes(scene, lambda: scene.server.refuse_writes_for_want_of_replicas())


def _be_busy(scene: Scene) -> bool:
    for_s = scene.lease_s * scene.random.uniform(0.2, 1.2)
    return _spell(scene, for_s, lambda: scene.server.be_busy(), lambda: scene.server.be_free())


def _fail_over(scene: Scene) -> bool:
    return _spell(scene, 1.0, scene.fail_over, lambda: None)


def _forget_scripts(scene: Scene) -> bool:
    return _at_once(scene, lambda client: client.script_flush())


FAULTS = (
    Fault("server-killed", "kill -9 of the server, which comes back within 3 s", _kill, 1),
    Fault("server-stopped", "SIGSTOP of the server for up to 1.6 leases", _stop, 1),
    Fault("connections-cut", "the server closes all connections", _cut_connections, 2),
    Fault("out-of-memory", "the server refuses writes for want of memory", _starve, 1),
    Fault("misconf", "the server answers MISCONF to writes: a snapshot could not be saved", _misconfigure, 1),
    Fault("noreplicas", "the server answers NOREPLICAS to writes", _want_replicas, 1),
    Fault("busy", "the server answers BUSY to all: somebody's script runs on", _be_busy, 1),
    Fault(
        "failover", "another server becomes the primary behind the same address, the first its replica", _fail_over, 1
    ),
    Fault("script-flush", "the server forgets all scripts", _forget_scripts, 1),
    Fault("eviction", "the server evicts all that has a time to live (volatile-lru)", _evict, 1),
    Fault("eviction-of-anything", "allkeys-lru: jobs go, which is the server's own doing", _evict_anything, 0),
)
