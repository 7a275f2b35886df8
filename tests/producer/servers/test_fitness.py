"""What is said of a server before it is relied on. All with real servers."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from impetus_producer import NoServerError, ServerNotReadyError, connect
from impetus_producer.enqueueing.scripts import CANCEL_SCRIPT, ENQUEUE_SCRIPT, WITHDRAW_SCRIPT, digest
from impetus_producer.servers.fitness import Fitness, Level, look
from impetus_producer.servers.rights import WORKER_RIGHTS, missing_rights
from tests.paths import ROOT
from tests.patience import eventually
from tests.users import rules_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_producer.servers.fitness import Role

    from .valkey import Valkey

    MakeValkey = Callable[..., Valkey]

README_RIGHTS = ("~rq:*", "~impetus:*", "&rq:*", "+@all", "-@dangerous", "-@admin")


def url_of(server: Valkey, *rights: str) -> str:
    server.ask("ACL", "SETUSER", "svc", "reset", "on", ">pw", *rights)
    return server.url.replace("//", "//svc:pw@")


def said(fitness: Fitness, level: Level) -> str:
    return "\n".join(finding.sentence for finding in fitness.findings if finding.level is level)


def test_a_durable_server_is_fit_and_says_what_it_promises(valkey: MakeValkey) -> None:
    server = valkey("--appendonly", "yes", "--appendfsync", "always")
    fitness = look(connect(server.url))
    assert fitness.refusal is None
    assert fitness.warnings == ()
    assert "appendfsync is always" in said(fitness, Level.NOTE)
    server.ask("CONFIG", "SET", "appendfsync", "everysec")
    assert "jobs of the last second may be lost" in said(look(connect(server.url)), Level.NOTE)


def test_a_server_that_keeps_nothing_is_warned_of(connection: Redis) -> None:
    assert "is lost when it ends, all of it: CONFIG SET appendonly yes" in "".join(look(connection).warnings)
    assert connection.keys() == []


@pytest.mark.parametrize(
    ("policy", "first"), [("allkeys-lru", "any of them"), ("volatile-ttl", "leases and the records of workers first")]
)
def test_a_server_that_evicts_is_warned_of_loudly_and_how_to_mend_it(
    valkey: MakeValkey, policy: str, first: str
) -> None:
    server = valkey("--maxmemory", "100mb", "--maxmemory-policy", policy)
    warning = next(each for each in look(connect(server.url)).warnings if "VANISH" in each)
    assert first in warning
    server.ask(*re.findall(r"CONFIG SET maxmemory-policy noeviction", warning)[0].split())
    assert not any("VANISH" in each for each in look(connect(server.url)).warnings)


@pytest.mark.parametrize("options", [("--maxmemory-policy", "allkeys-lru"), ("--maxmemory", "100mb")])
def test_a_server_without_a_limit_or_that_refuses_rather_is_not(valkey: MakeValkey, options: tuple[str, ...]) -> None:
    assert not any("VANISH" in each for each in look(connect(valkey(*options).url)).warnings)


def full_memory(server: Valkey) -> None:
    server.ask("SET", "x", "y" * 3_000_000)
    server.ask("CONFIG", "SET", "maxmemory", "2mb", "maxmemory-policy", "noeviction")


def no_snapshot(server: Valkey) -> None:
    server.ask("CONFIG", "SET", "save", "3600 1")
    shutil.rmtree(server.folder)
    server.ask("BGSAVE")


def full_disk(server: Valkey) -> None:
    """As its append-only file sees it."""
    files = server.folder / "appendonlydir"
    files.mkdir()
    (files / "temp-appendonly.aof.incr").symlink_to("/dev/full")
    server.ask("CONFIG", "SET", "appendonly", "yes")
    with suppress(RedisError):
        server.ask("SET", "x", "y")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (full_memory, "its memory is full"),
        (no_snapshot, "it could not save its snapshot"),
        pytest.param(
            full_disk,
            "it could not write its append-only file",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is full is Linux's"),
        ),
    ],
)
def test_a_server_that_answers_and_takes_nothing_is_warned_of(
    valkey: MakeValkey, fault: Callable[[Valkey], None], reason: str
) -> None:
    server = valkey()
    assert "takes neither" not in "".join(look(connect(server.url)).warnings)
    fault(server)
    expected = f"the server takes neither jobs nor results for now: {reason}"
    eventually(lambda: expected in "".join(look(connect(server.url)).warnings))


def test_cluster_mode_is_a_refusal(valkey: MakeValkey) -> None:
    with Redis(port=valkey("--cluster-enabled", "yes").port) as client:
        assert "cluster mode" in str(look(client).refusal)


@pytest.mark.parametrize(
    ("greeting", "refused"),
    [
        ([b"server", b"redis", b"version", b"6.0.16", b"mode", b"standalone"], True),
        ([b"server", b"redis", b"version", b"6.2.0", b"mode", b"standalone"], False),
        ([b"server", b"redis", b"version", b"10.0.1", b"mode", b"standalone"], False),
        ([b"server", b"valkey", b"version", b"1.0", b"mode", b"standalone"], False),
    ],
)
def test_a_redis_without_blmove_is_a_refusal(
    connection: Redis, monkeypatch: pytest.MonkeyPatch, greeting: list[bytes], refused: bool
) -> None:
    execute: Any = connection.execute_command

    def answer(*words: Any, **options: Any) -> Any:
        return greeting if words == ("HELLO",) else execute(*words, **options)

    monkeypatch.setattr(connection, "execute_command", answer)
    assert ("BLMOVE needs 6.2" in str(look(connection).refusal)) is refused


def test_a_replica_is_warned_of(valkey: MakeValkey) -> None:
    server = valkey()
    server.ask("REPLICAOF", "127.0.0.1", "1")
    assert any("is a replica" in each for each in look(connect(server.url)).warnings)


def test_a_server_that_does_not_answer_or_not_yet_is_an_error(valkey: MakeValkey) -> None:
    server = valkey()
    connection = connect(server.url)
    server.ask("CONFIG", "SET", "maxclients", "1")
    server.kill()
    with pytest.raises((NoServerError, ServerNotReadyError)):
        look(connection)


@pytest.mark.parametrize("role", ["worker", "producer"])
def test_the_rights_that_are_recommended_are_enough_and_the_rest_is_unknown(valkey: MakeValkey, role: Role) -> None:
    fitness = look(connect(url_of(valkey(), *README_RIGHTS)), role)
    assert fitness.refusal is None
    assert fitness.warnings == ()
    assert said(fitness, Level.NOTE).count("is unknown, as it does not show its configuration") == 2


def test_a_producer_needs_no_more_than_its_own_keys_and_a_worker_does(valkey: MakeValkey) -> None:
    url = url_of(valkey(), *rules_of("producer"))
    assert missing_rights(connect(url), "producer") == []
    missing = said(look(connect(url), "worker"), Level.REFUSE)
    assert "EVALSHA: ACL SETUSER svc +evalsha" in missing
    for key in ("tokens", "leases", "deaths", "recovery", "worker", "stream"):
        assert f"impetus:{key}:*" in missing


@pytest.mark.parametrize("key", ["rq:queue:*", "rq:job:*", "rq:results:*", "rq:workers:*", "impetus:tokens:*"])
def test_each_key_that_is_denied_is_named_with_its_commands(valkey: MakeValkey, key: str) -> None:
    url = url_of(valkey(), *(f"~{pattern}" for pattern in WORKER_RIGHTS if pattern not in ("", key)), "&rq:*", "+@all")
    (right,) = missing_rights(connect(url), "worker")
    assert right.needed
    assert f"may not use the keys {key} (" in right.sentence
    assert right.sentence.endswith(f"ACL SETUSER svc ~{key}")


@pytest.mark.parametrize("command", ["blmove", "evalsha", "hgetall", "xadd"])
def test_each_command_that_is_denied_is_named_and_how_to_grant_it(valkey: MakeValkey, command: str) -> None:
    server = valkey()
    url = url_of(server, "~*", "&*", "+@all", f"-{command}")
    (right,) = missing_rights(connect(url), "worker")
    assert right.sentence == f"the server's user svc may not use {command.upper()}: ACL SETUSER svc +{command}"
    server.ask(*right.sentence.partition(": ")[2].split())
    assert missing_rights(connect(url), "worker") == []


@pytest.mark.parametrize("command", ["BLMOVE", "ZADD", "SUBSCRIBE", "MULTI"])
def test_a_command_that_was_renamed_is_named_and_refused_where_nothing_works_without(
    valkey: MakeValkey, command: str
) -> None:
    fitness = look(connect(valkey("--rename-command", command, "").url))
    sentence = f"the server does not know the command {command}"
    if command == "SUBSCRIBE":
        assert fitness.refusal is None
        assert sentence in "".join(fitness.warnings)
    else:
        assert sentence in (fitness.refusal or "")


def test_a_channel_that_is_denied_only_makes_a_worker_slower_and_is_not_a_producers(valkey: MakeValkey) -> None:
    connection = connect(url_of(valkey(), "~*", "resetchannels", "+@all"))
    (right,) = missing_rights(connection, "worker")
    assert not right.needed
    assert right.sentence.endswith("ACL SETUSER svc &rq:pubsub:*")
    assert missing_rights(connection, "producer") == []


@pytest.mark.parametrize("script", [ENQUEUE_SCRIPT, CANCEL_SCRIPT, WITHDRAW_SCRIPT])
def test_a_producers_script_that_is_denied_is_named_by_its_digest(valkey: MakeValkey, script: str) -> None:
    server = valkey()
    rules = [rule for rule in rules_of("producer") if rule != f"+evalsha|{digest(script)}"]
    url = url_of(server, *rules)
    (right,) = missing_rights(connect(url), "producer")
    assert right.needed
    assert right.sentence.endswith(f": ACL SETUSER svc +evalsha|{digest(script)}")
    server.ask(*right.sentence.partition(": ")[2].split())
    assert missing_rights(connect(url), "producer") == []


def test_a_right_to_keys_or_scripts_is_named_no_wider_than_it_is_needed(valkey: MakeValkey) -> None:
    server = valkey()
    url = url_of(server, *(rule for rule in rules_of("producer") if rule not in ("%R~rq:*", "+script|load")))
    missing = [right.sentence.partition(": ")[2] for right in missing_rights(connect(url), "producer")]
    assert set(missing) == {
        "ACL SETUSER svc +script|load",
        *(f"ACL SETUSER svc %R~rq:{key}" for key in ("wip:*", "suspended", "workers", "worker:*")),
    }
    for each in missing:
        server.ask(*each.split())
    assert missing_rights(connect(url), "producer") == []


def test_trying_rights_out_changes_nothing(valkey: MakeValkey) -> None:
    server = valkey()
    connection = connect(server.url)
    assert missing_rights(connection, "worker") == missing_rights(connection, "producer") == []
    assert server.ask("DBSIZE") == 0
    assert connection.set("a", 1)


def test_every_command_of_the_workers_scripts_is_among_its_rights() -> None:
    scripts = ROOT / "worker" / "impetus_worker"
    used = set()
    for script in scripts.rglob("*.lua"):
        used |= set(re.findall(r"\b(?:call|read|write)\('([A-Z]+)'", script.read_text()))
    assert used
    assert used - set(" ".join(WORKER_RIGHTS.values()).split()) == set()
