"""URLs of servers, clients that somebody else made, and the clients of our own that either becomes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest
import redis
import redis.asyncio
from redis import Redis
from redis.cluster import RedisCluster
from redis.sentinel import Sentinel

from impetus_producer import (
    ImpetusError,
    NoServerError,
    Producer,
    ServerConfigurationError,
    SpreadProducer,
)
from impetus_producer.servers.connections import FAREWELL_TIMEOUT_S, from_url, hurried
from impetus_producer.servers.troubles import adopt, connect
from tests.patience import eventually

from ..stock_worker import StockWorker, embedding_of, finish, vector_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .valkey import Valkey

    MakeValkey = Callable[..., Valkey]


def settings(client: Redis) -> dict[str, Any]:
    return dict(client.connection_pool.connection_kwargs)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://u:p%40@h:1/2", {"host": "h", "port": 1, "db": 2, "username": "u", "password": "p@"}),
        ("valkey://h/3", {"host": "h", "db": 3}),
        ("unix:///tmp/server.sock?db=4", {"path": "/tmp/server.sock", "db": 4}),
        ("redis://h:1/0?protocol=3&socket_timeout=60&max_connections=1", {"protocol": 2, "decode_responses": False}),
        ("rediss://h:1/0?ssl_ca_certs=ca.pem", {"ssl_ca_certs": "ca.pem"}),
    ],
)
def test_urls_say_where_the_server_is_and_not_how_it_is_spoken_to(url: str, expected: dict[str, Any]) -> None:
    said = settings(from_url(url))
    assert expected.items() <= said.items()
    assert (said["protocol"], said["decode_responses"], said["socket_timeout"]) == (2, False, 15)
    if "path" not in expected:
        assert said["socket_keepalive"] is True
        assert set(said["socket_keepalive_options"].values()) == {15, 5, 3}


@pytest.mark.parametrize("url", ["rediss://h/0", "valkeys://h/0"])
def test_an_s_in_the_scheme_is_tls(url: str) -> None:
    assert from_url(url).connection_pool.connection_class is redis.SSLConnection


@pytest.mark.parametrize(
    "url",
    ["http://h", "h:6379", "redis://h?datbase=1", "redis+sentinel://h", "redis+sentinel:///service", "valkeyss://h"]
    + [f"rediss://h?{tls}" for tls in ("ssl_cert_reqs=maybe", "ssl_min_version=9", "ssl_keyfile=key.pem")],
)
def test_what_is_no_url_is_one_sentence(url: str) -> None:
    with pytest.raises(NoServerError, match="no Redis URL"):
        connect(url)


def test_keepalive_is_on_for_the_line_itself(redis_url: str) -> None:
    connection: Any = connect(redis_url)
    with connection.client() as client:
        line = client.connection._sock
        assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3


@pytest.mark.parametrize(
    "options",
    [{"decode_responses": True}, {"protocol": 3}, {"protocol": 3, "decode_responses": True, "encoding": "latin-1"}],
    ids=str,
)
def test_results_are_read_whatever_the_client_given_was_made_for(
    redis_url: str, worker: StockWorker, options: dict[str, Any]
) -> None:
    with Redis.from_url(redis_url, **options) as client:
        producer = Producer(connection=client)
        assert list(producer.embed("ü").result(60).vectors[0]) == vector_of("ü")
        assert list(producer.generate("hello", stream=True).stream(60)) == ["hello"]
        assert options.items() <= settings(client).items()


def test_who_we_are_and_which_database_are_taken_over(valkey: MakeValkey) -> None:
    server = valkey("--requirepass", "secret")
    pool: Any = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
        port=server.port, password="secret", db=5, timeout=1, max_connections=1
    )
    with Redis.from_pool(pool) as client:
        own = adopt(client)
        own.set("here", 1)
        assert client.get("here") == b"1"
        assert own.connection_pool is not pool
    provider = redis.UsernamePasswordCredentialProvider("default", "secret")
    with Redis(port=server.port, credential_provider=provider) as client:
        assert adopt(client).ping()


def test_a_client_of_valkeys_own_library_serves_too(redis_url: str) -> None:
    import valkey

    with valkey.Valkey.from_url(redis_url.replace("redis:", "valkey:"), decode_responses=True) as client:
        assert Producer(connection=client).embed("a").status() == "queued"


def test_a_unix_socket_is_taken_over(valkey: MakeValkey, tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    valkey("--unixsocket", path)
    with Redis(unix_socket_path=path, decode_responses=True) as client:
        assert adopt(client).set("a", "b")
    assert connect(f"unix://{path}").get("a") == b"b"


def test_what_secures_a_line_is_taken_over() -> None:
    said = settings(adopt(Redis(host="127.0.0.1", port=1, ssl=True, ssl_ca_certs="ca.pem", ssl_check_hostname=False)))
    assert (said["ssl_ca_certs"], said["ssl_check_hostname"]) == ("ca.pem", False)


def test_our_own_client_is_used_as_it_is(redis_url: str) -> None:
    producer = Producer(redis_url)
    assert Producer(connection=producer.connection).connection is producer.connection


def test_what_only_collects_or_listens_is_taken_for_its_server_alone(redis_url: str) -> None:
    own: Any = connect(redis_url)
    for of_own in (own.pipeline(), own.pubsub()):
        assert type(adopt(of_own)) is Redis
        assert adopt(of_own).ping() is True


def test_who_does_not_wait_any_more_has_a_client_of_their_own_that_soon_gives_up(
    valkey: MakeValkey, tmp_path: Any, redis_url: str
) -> None:
    path = tmp_path / "s"
    valkey("--unixsocket", str(path))
    for url in (redis_url, f"unix://{path}?db=2"):
        with from_url(url) as patient, hurried(patient) as own:
            patient.set("x", "1")
            assert own.get("x") == b"1"
            waits, patient_waits = settings(own), settings(patient)
        assert waits["socket_timeout"] == FAREWELL_TIMEOUT_S < patient_waits["socket_timeout"]
        connecting = {FAREWELL_TIMEOUT_S} if "socket_connect_timeout" in patient_waits else set()
        assert {value for name, value in waits.items() if name == "socket_connect_timeout"} == connecting


class NoClient:
    pass


@pytest.mark.parametrize(
    ("client", "sentence"),
    [
        (redis.asyncio.Redis(), "asyncio"),
        (fakeredis.FakeAsyncRedis(), "asyncio"),
        (RedisCluster.__new__(RedisCluster), "cluster"),
        ("redis://localhost", "not a str"),
        (NoClient(), "not a NoClient"),
    ],
)
def test_what_cannot_serve_is_refused_in_one_sentence(client: Any, sentence: str) -> None:
    with pytest.raises(ImpetusError, match=sentence):
        Producer(connection=client)


@pytest.mark.parametrize("decode_responses", [False, True])
def test_a_fake_server_is_used_through_a_client_of_our_own(decode_responses: bool) -> None:
    with fakeredis.FakeRedis(decode_responses=decode_responses) as fake:
        own = adopt(fake)
        fake.set("a", "b")
        assert own.get("a") == b"b"


@pytest.fixture
def sentinel(valkey: MakeValkey) -> Valkey:
    """One that watches a server by the name of `jobs`."""
    watched = valkey()
    watching = valkey(sentinel=True)
    watching.ask("SENTINEL", "MONITOR", "jobs", "127.0.0.1", str(watched.port), "1")
    return watching


def test_a_server_is_found_through_its_sentinel(sentinel: Valkey) -> None:
    producer = Producer(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/jobs/2", patience_s=0)
    handle = producer.embed("a")
    finish(producer.connection, handle.job_id, embedding_of(["a"]))
    assert list(handle.result(60).vectors[0]) == vector_of("a")
    assert settings(producer.connection)["db"] == 2
    manager: Any = Sentinel(  # type: ignore[no-untyped-call]
        [("127.0.0.1", sentinel.port)], decode_responses=True, protocol=3, db=2
    )
    other = Producer(connection=manager.master_for("jobs"))
    assert other.handle(handle.job_id).status() == "finished"
    with pytest.raises(ImpetusError, match=r"slave_for\(\) client only reads"):
        Producer(connection=manager.slave_for("jobs"))
    with pytest.raises(ServerConfigurationError, match=r"redis\+sentinel://host"):
        Producer(sentinel.url)


def test_what_sentinels_do_not_name_is_one_sentence(sentinel: Valkey) -> None:
    for sentinels, said in (
        (f"127.0.0.1:{sentinel.port}", r"'others'"),
        ("127.0.0.1:1,127.0.0.1:2", r"'others' : 127\.0\.0\.1:1 - [^<>]*, 127\.0\.0\.1:2 - [^<>]*"),
    ):
        with pytest.raises(NoServerError, match=rf"^no Sentinel names a primary \(No master found for {said}\)"):
            Producer(f"redis+sentinel://:secret@{sentinels}/others", patience_s=0)


def test_a_producer_that_is_closed_has_no_connections_and_its_handles_make_new_ones(
    connection: Redis, redis_url: str
) -> None:
    def connected() -> int:
        return int(connection.info("clients")["connected_clients"])

    before = connected()
    with Producer(redis_url) as producer, SpreadProducer([redis_url]) as spread:
        handles = [each.embed("a") for each in (producer, spread)]
        assert connected() > before
    eventually(lambda: connected() == before)
    assert [handle.status() for handle in handles] == ["queued", "queued"]
    producer.close()
    spread.close()
