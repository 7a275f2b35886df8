"""What servers answer, and what becomes of it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis, exceptions

from impetus_producer import (
    AsyncProducer,
    ImpetusError,
    NoServerError,
    Producer,
    ServerConfigurationError,
    ServerDataError,
    ServerFullError,
    ServerNotReadyError,
)
from impetus_producer.servers.connections import from_url
from impetus_producer.servers.fitness import look
from impetus_producer.servers.troubles import Trouble, connect, hang_up, server_errors, trouble
from tests.patience import eventually

from ..stock_worker import vector_of, working

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import RedisServer
    from tests.receiver import Receiver

    from .valkey import Proxy, Valkey

    MakeValkey = Callable[..., Valkey]


PASSING = [
    exceptions.ResponseError("MISCONF Errors writing to the AOF file"),
    exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
    exceptions.ResponseError("BUSY Valkey is busy running a script."),
    exceptions.ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"),
    exceptions.ResponseError("Error running script (call to f_1): @user_script:1: -MISCONF the disk is full"),
    exceptions.ResponseError("SOMEDAY a word that nobody has heard of"),
    exceptions.ResponseError("a sentence that nobody has heard of"),
    exceptions.ResponseError("upstream failure"),  # Envoy's, before a server that is away
    exceptions.ResponseError("Connection timed out"),  # twemproxy's
    exceptions.BusyLoadingError("Valkey is loading the dataset in memory"),
    exceptions.MasterDownError("Link with MASTER is down"),
    exceptions.ClusterDownError("Hash slot not served"),
    exceptions.ReadOnlyError("You can't write against a read only replica."),
    exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
    exceptions.TryAgainError("Multiple keys request during rehashing of slot"),
    exceptions.NoScriptError("No matching script."),
    exceptions.ExecAbortError("Transaction discarded because of previous errors."),
    exceptions.InvalidResponse("Protocol Error: half an answer"),
    exceptions.ConnectionError("Connection closed by server."),
    exceptions.ConnectionError("Error 1 connecting to h:1. [SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired."),
    exceptions.ConnectionError("Error 2 connecting to /tmp/server.sock. No such file or directory."),
    exceptions.TimeoutError("Timeout reading from socket"),
    ConnectionResetError(104, "Connection reset by peer"),
    NoServerError("no server"),
]
CONFIGURATION = [
    exceptions.AuthenticationError("Authentication required."),
    exceptions.AuthenticationError("invalid username-password pair or user is disabled."),
    exceptions.ResponseError("NOAUTH Authentication required."),
    exceptions.NoPermissionError("User svc has no permissions to run the 'xread' command"),
    exceptions.ResponseError("ACL failure in script: No permissions to access a key script: on @user_script:1."),
    exceptions.MovedError("3999 127.0.0.1:6381"),
    exceptions.ClusterCrossSlotError("Keys in request don't hash to the same slot"),
    exceptions.ResponseError("SELECT is not allowed in cluster mode"),
    exceptions.ResponseError("unknown command 'FROB', with args beginning with: 'LOADING' 'WRONGTYPE' "),
    exceptions.ResponseError("Unknown Redis command called from script script: 1, on @user_script:1."),
    exceptions.ResponseError("DB index is out of range"),
    exceptions.ConnectionError("Error 2 connecting to h:1. No such file or directory."),
    exceptions.ConnectionError("Error 116 connecting to h:1. [X509: KEY_VALUES_MISMATCH] key values mismatch."),
    exceptions.ConnectionError("Error 524297 connecting to h:1. [SSL] PEM lib (_ssl.c:3905)."),
    ServerConfigurationError("it is set up wrongly"),
]


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_whatever_a_server_answers_passes_and_is_an_error_of_one_sentence(error: Exception) -> None:
    assert trouble(error) is Trouble.PASSING
    with pytest.raises(ImpetusError) as caught, server_errors():
        raise error
    assert not isinstance(caught.value, ServerConfigurationError)
    assert "\n" not in str(caught.value)


OLD_SCRIPT = "Error running script (call to f_1): @user_script:1: @user_script: 1: "
"""So Redis before 7 begins what ends a script."""
WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
DATA = [
    exceptions.ResponseError(WRONG_TYPE),
    exceptions.ResponseError(f"Command # 2 (HGET rq:job:OOM READONLY) of pipeline caused error: {WRONG_TYPE}"),
    exceptions.ResponseError(f"Command # 2 (HGET rq:job:NOPERM x) of pipeline caused error: {WRONG_TYPE}"),
    exceptions.ResponseError(f"Error running script (call to f_1): @user_script:1: {WRONG_TYPE}"),
    exceptions.ResponseError("hash value is not an integer"),
    exceptions.ResponseError("user_script:1: attempt to compare nil with number script: 1, on @user_script:1."),
    exceptions.ResponseError("value is not an integer or out of range"),
    ServerDataError("it is of another type"),
]


@pytest.mark.parametrize("error", DATA, ids=str)
def test_what_lies_in_the_server_is_no_trouble_of_the_servers_and_is_not_waited_for(error: Exception) -> None:
    assert trouble(error) is Trouble.DATA
    with pytest.raises(ServerDataError), server_errors():
        raise error


@pytest.mark.parametrize("error", CONFIGURATION, ids=str)
def test_authentication_rights_and_cluster_mode_do_not_pass(error: Exception) -> None:
    assert trouble(error) is Trouble.CONFIGURATION
    with pytest.raises(ServerConfigurationError), server_errors():
        raise error


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (exceptions.ResponseError("DB index is out of range"), ServerConfigurationError, "no database of that number"),
        (
            exceptions.ResponseError("unknown command 'FROB', with args beginning with: 'a secret' "),
            ServerConfigurationError,
            r"does not know the command 'FROB':(?!.*secret)",
        ),
        (exceptions.ConnectionError("max number of clients reached"), ServerNotReadyError, "its maxclients"),
        (exceptions.InvalidResponse('Protocol error, got "H" as reply type byte'), NoServerError, "no Redis server"),
        (exceptions.ResponseError(f"{OLD_SCRIPT}-OOM command not allowed"), ServerFullError, "raise its maxmemory"),
        (exceptions.ResponseError(f"{OLD_SCRIPT}-READONLY You can't write"), ServerNotReadyError, "is a replica"),
        (exceptions.ResponseError(f"{OLD_SCRIPT}-MASTERDOWN Link with MASTER"), ServerNotReadyError, "is a replica"),
        (
            exceptions.ResponseError(f"{OLD_SCRIPT}-LOADING Redis is loading"),
            ServerNotReadyError,
            "has loaded its data",
        ),
        (
            exceptions.ResponseError(f"{OLD_SCRIPT}-MISCONF a full disk"),
            ServerNotReadyError,
            r"now \(MISCONF a full disk\)",
        ),
        (
            exceptions.ResponseError(f"{OLD_SCRIPT}-NOPERM this user"),
            ServerConfigurationError,
            "denies its user a right",
        ),
        (
            exceptions.ResponseError(f"{OLD_SCRIPT}The user executing the script can't run this command or subcommand"),
            ServerConfigurationError,
            "denies its user a right",
        ),
        (
            exceptions.ResponseError(f"{OLD_SCRIPT}-ERR value is not an integer"),
            ServerDataError,
            "waiting does not help",
        ),
    ],
    ids=str,
)
def test_the_sentence_says_what_is_so_and_what_to_do(error: Exception, kind: type[ImpetusError], sentence: str) -> None:
    with pytest.raises(kind, match=sentence), server_errors():
        raise error


def test_a_server_that_is_full_of_clients_is_there_and_waited_for(valkey: MakeValkey) -> None:
    full = valkey("--maxclients", "1")
    with Redis.from_url(full.url) as other, other.client():
        producer = Producer(full.url, patience_s=30)
        enqueueing = threading.Thread(target=producer.embed, args=("a",))
        enqueueing.start()
        eventually(lambda: producer.patience.away)
    enqueueing.join(30)
    assert not producer.patience.away


def test_a_database_that_the_server_has_not_is_told_at_once(valkey: MakeValkey) -> None:
    url = valkey("--databases", "1").url.removesuffix("/0")
    with pytest.raises(ServerConfigurationError, match="no database of that number"):
        Producer(f"{url}/3")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made by openssl, which is not here")
@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ("", NoServerError, "a certificate that is not to be trusted"),
        ("ssl_ca_certs={folder}/nothing", ServerConfigurationError, "files for TLS that cannot be used"),
        ("ssl_ca_certs={folder}/key", ServerConfigurationError, "files for TLS that cannot be used"),
    ],
)
def test_what_keeps_tls_from_a_server_is_said(
    receiver: Receiver, tmp_path: Path, options: str, kind: type[ImpetusError], sentence: str
) -> None:
    receiver.speak_tls(tmp_path)
    with pytest.raises(kind, match=sentence):
        Producer(f"rediss://localhost:{receiver.port}/0?{options.format(folder=tmp_path)}")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made by openssl, which is not here")
def test_a_port_that_speaks_tls_where_the_url_does_not_or_the_other_way_round_is_told_at_once(
    receiver: Receiver, redis_server: RedisServer, tmp_path: Path
) -> None:
    receiver.speak_tls(tmp_path)

    async def ask(url: str) -> None:
        async with AsyncProducer(url) as producer:
            await producer.embed("a")

    for url, sentence in (
        (f"redis://127.0.0.1:{receiver.port}/0", "begin its URL with rediss://"),
        (f"rediss://127.0.0.1:{redis_server.port}/0", "begin its URL with redis://"),
    ):
        with pytest.raises(ServerConfigurationError, match=sentence):
            Producer(url)
        with pytest.raises(ServerConfigurationError, match=sentence):
            asyncio.run(ask(url))
        with from_url(url) as client:
            refusal = look(client, "worker").refusal
        assert refusal is not None
        assert sentence in refusal


def test_what_is_no_answer_of_a_server_is_left_as_it_is() -> None:
    with pytest.raises(KeyError), server_errors():
        raise KeyError("a bug")


def test_a_full_server_says_that_it_is_full(valkey: MakeValkey) -> None:
    producer = Producer(valkey("--maxmemory", "1").url, patience_s=0)
    with pytest.raises(ServerFullError, match="maxmemory"):
        producer.embed("a")


def test_a_server_that_cannot_write_is_there_and_not_ready(valkey: MakeValkey) -> None:
    server = valkey("--min-replicas-to-write", "1")
    producer = Producer(server.url, patience_s=0)
    with pytest.raises(ServerNotReadyError, match="NOREPLICAS"):
        producer.embed("a")
    server.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    producer.embed("a")


def test_a_password_that_is_wrong_and_one_that_is_missing_are_told_at_once(valkey: MakeValkey) -> None:
    server = valkey("--requirepass", "secret")
    for url in (server.url, server.url.replace("//", "//:wrong@")):
        with pytest.raises(ServerConfigurationError, match="user or password"):
            Producer(url)
    Producer(server.url.replace("//", "//:secret@")).embed("a")


def test_a_right_that_is_missing_is_told_at_once_wherever_it_is_missed(valkey: MakeValkey) -> None:
    server = valkey()
    server.ask("ACL", "SETUSER", "svc", "on", ">pw", "~rq:queue*", "&*", "+@all")
    with pytest.raises(ServerConfigurationError, match=r"denies its user a right .*`impetus status` says"):
        Producer(server.url.replace("//", "//svc:pw@")).embed("a")


def test_a_server_in_cluster_mode_is_refused_in_one_sentence(valkey: MakeValkey) -> None:
    server = valkey("--cluster-enabled", "yes")
    with pytest.raises(ServerConfigurationError, match="cluster mode"):
        Producer(server.url)
    with Redis(port=server.port) as client, pytest.raises(ServerConfigurationError, match="cluster mode"):
        Producer(connection=client)


def blocked(connection: Redis) -> set[str]:
    clients: Any = connection.client_list()
    return {client["id"] for client in clients if client["cmd"] == "blpop"}


def test_hanging_up_ends_a_wait_of_another_thread_which_then_works_on(redis_url: str) -> None:
    connection = connect(redis_url)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(connection.blpop(["list"], timeout=14)))
    thread.start()
    with Redis.from_url(redis_url) as other:
        eventually(lambda: other.info("clients")["blocked_clients"] == 1)
        (before,) = blocked(other)
        hang_up(connection)
        eventually(lambda: blocked(other) - {before})
        other.rpush("list", "x")
    thread.join(60)
    assert answers == [(b"list", b"x")]


def test_a_producer_made_before_a_failover_behind_one_address_works_after_it(
    proxy: Proxy, redis_url: str, valkey: MakeValkey
) -> None:
    producer = Producer(proxy.url)
    producer.embed("before")
    other = valkey()
    with Redis.from_url(redis_url) as old:
        old.replicaof("127.0.0.1", str(other.port))
        try:
            proxy.target = other.port  # whose name it was answers still, and keeps the line
            with working(other.url):
                assert list(producer.embed("after").result(60).vectors[0]) == vector_of("after")
        finally:
            old.replicaof("NO", "ONE")


def test_a_server_whose_disk_fails_is_there_and_waited_for(valkey: MakeValkey, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    server = valkey("--dir", str(folder), "--save", "3600 1")
    handle = Producer(server.url).embed("a")
    folder.rmdir()
    server.ask("BGSAVE")
    eventually(lambda: server.ask("INFO", "persistence")["rdb_last_bgsave_status"] == "err")
    producer = Producer(server.url, patience_s=0)  # is made although PING itself is refused
    assert producer.handle(handle.job_id).status() == "queued"
    with pytest.raises(ServerNotReadyError, match="MISCONF"):
        producer.embed("b")


def test_a_server_that_runs_a_long_script_is_waited_for(valkey: MakeValkey) -> None:
    server = valkey("--busy-reply-threshold", "10")
    producer = Producer(server.url)
    said = threading.Event()
    producer.patience.say = lambda sentence: said.set()
    script = threading.Thread(target=lambda: suppressed(server, "EVAL", "while true do end", 0))
    script.start()
    try:
        eventually(lambda: "BUSY" in str(suppressed(server, "GET", "x")))
        connect(server.url)
        handles: list[Any] = []
        waiting = threading.Thread(target=lambda: handles.append(producer.embed("a")))
        waiting.start()
        assert said.wait(60)
    finally:
        server.ask("SCRIPT", "KILL")
        script.join(60)
    waiting.join(60)
    assert handles[0].status() == "queued"


def suppressed(server: Valkey, *command: Any) -> Any:
    try:
        return server.ask(*command)
    except exceptions.RedisError as error:
        return error
