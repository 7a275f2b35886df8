"""Who may ask a gateway, and for what: keys, roles, places, sizes and addresses. Nobody works these queues."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from click.testing import CliRunner

from impetus_gateway.address import Address
from impetus_gateway.entry import heads
from impetus_gateway.entry.callers import Caller, Keys, Role, new_key
from impetus_gateway.entry.errors import HttpError
from impetus_gateway.entry.limits import Limits
from impetus_producer import Producer
from impetus_producer.cli.main import cli
from impetus_producer.errors import ImpetusError, InvalidRequestError
from tests.patience import eventually
from tests.producer.servers.valkey import Valkey
from tests.worker.cli.runs import SIMULATED, runs, tree_below

from .serving import Serving, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import RedisServer

pytestmark = pytest.mark.system
EMBEDDINGS, LATER = "/v1/embeddings", {"Prefer": "respond-async"}
ROLES = {"shop": ["submit", "read"], "blog": ["submit", "read"], "writer": ["submit"], "boss": ["operate", "read"]}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Keys, dict[str, str]]:
    """A file of keys, and the key of each name."""
    made = {name: new_key(name, [Role(role) for role in roles]) for name, roles in ROLES.items()}
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    limited = "max_concurrent = 2\nrequests_per_minute = 3\n"
    path.write_text("\n".join(entry + (limited if name == "writer" else "") for name, (_, entry) in made.items()))
    return Keys.read(path), {name: key for name, (key, _) in made.items()}


@pytest.fixture(scope="module")
def guarded(redis_server: RedisServer, keys: tuple[Keys, dict[str, str]]) -> Iterator[Serving]:
    with Producer(redis_server.url).connection as connection:
        connection.flushall()
    with serving(redis_server.url, keys[0], max_body_bytes=10_000, read_timeout_s=1) as running:
        yield running


@pytest.fixture(scope="module")
def as_(guarded: Serving, keys: tuple[Keys, dict[str, str]]) -> Any:
    """Asks with the key of a name."""

    def ask(name: str, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {keys[1][name]}", **more.pop("headers", {})}
        return guarded.client.request(method, path, headers=headers, **more)

    return ask


def code_of(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer nonsense", "Basic x", "Bearer \u00ff"])
def test_without_a_key_nothing_is_answered_but_that_it_lives(guarded: Serving, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    for method, path in (("POST", EMBEDDINGS), ("GET", "/v1/models"), ("GET", "/v1/jobs/x"), ("GET", "/metrics")):
        refused = guarded.client.request(method, path, headers=headers)  # type: ignore[arg-type]
        assert code_of(refused) == (401, "invalid_api_key")
        assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert guarded.client.get("/health").status_code == 200
    assert guarded.client.get("/ready").status_code == 503


def test_a_key_opens_what_its_roles_say(as_: Any) -> None:
    assert code_of(as_("shop", "GET", "/metrics")) == (403, "missing_role")
    assert code_of(as_("boss", "POST", EMBEDDINGS, json={"input": "x"})) == (403, "missing_role")
    assert as_("boss", "GET", "/metrics").status_code == 200
    assert code_of(as_("writer", "GET", "/v1/jobs/x")) == (403, "missing_role")
    assert as_("shop", "GET", "/v1/models").json() == {"object": "list", "data": []}


def test_nobody_reads_or_cancels_the_jobs_of_another_key(as_: Any) -> None:
    place = as_("shop", "POST", EMBEDDINGS, json={"input": "secret"}, headers=LATER).headers["Location"]
    assert as_("shop", "GET", place).json()["status"] == "queued"
    for method, path in (("GET", place), ("DELETE", place), ("GET", f"{place}/events")):
        assert code_of(as_("blog", method, path)) == (404, "job_not_found")
    assert code_of(as_("shop", "POST", f"{place}/retry")) == (403, "missing_role")
    assert as_("boss", "GET", place).json()["status"] == "queued"
    assert as_("boss", "DELETE", place).json()["status"] == "cancelled"
    # The same word of another key is another job.
    once = LATER | {"Idempotency-Key": "one"}
    ids = {as_(name, "POST", EMBEDDINGS, json={"input": "x"}, headers=once).json()["id"] for name in ("shop", "blog")}
    assert len(ids) == 2


def test_without_a_worker_who_waits_is_told_so(as_: Any) -> None:
    refused = as_("shop", "POST", EMBEDDINGS, json={"input": "x"})
    assert code_of(refused) == (503, "no_worker")
    assert int(refused.headers["Retry-After"]) >= 1


def test_a_keys_requests_a_minute_are_counted(as_: Any) -> None:
    answers = [as_("writer", "POST", EMBEDDINGS, json={"input": "x"}, headers=LATER) for _ in range(4)]
    assert [each.status_code for each in answers] == [202, 202, 202, 429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 20


def test_places_and_requests_come_back() -> None:
    now = [0.0]
    limits = Limits(2, clock=lambda: now[0])
    caller = Caller(name="c", requests_per_minute=60, max_concurrent=1)
    other = Caller(name="o")
    with limits.place(caller):
        with pytest.raises(HttpError, match="1 requests at once"), limits.place(caller):
            pass
        with limits.place(other), pytest.raises(HttpError, match="2 requests are being answered"), limits.place(other):
            pass
    for _ in range(59):
        with limits.place(caller):
            pass
    with pytest.raises(HttpError, match="60 requests a minute"), limits.place(caller):
        pass
    now[0] += 1
    with limits.place(caller):
        pass
    assert limits.running == 0


def test_bodies_are_bounded_in_size_and_time(as_: Any, guarded: Serving, keys: tuple[Keys, dict[str, str]]) -> None:
    assert code_of(as_("shop", "POST", EMBEDDINGS, content=b"x" * 20_000)) == (413, "body_too_large")
    assert code_of(as_("shop", "POST", EMBEDDINGS, content=(b"x" * 1000 for _ in range(20)))) == (413, "body_too_large")
    assert code_of(as_("shop", "POST", EMBEDDINGS, content=b"x", headers={"Content-Encoding": "gzip"}))[0] == 415
    host, port = guarded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        head = f"POST {EMBEDDINGS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {keys[1]['shop']}\r\n"
        slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in slow.recv(100)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b'{"input": NaN}', b'{"input": "\\ud800"}', b'{"input": "\xff"}',
        b"[" * 9000, b'{"input":' + b"1" * 9000 + b"}", b'{"input": 1e999}', b"\xef\xbb\xbf{}",
        b'{"input": "x", "input_type": 1e400}', b'{"input": ["x", {"a": ' + b"[" * 150 + b"]" * 150 + b"}]}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [EMBEDDINGS, "/v1/chat/completions", "/v1/completions", "/api/embed"])
def test_what_is_no_request_is_refused_as_that(as_: Any, path: str, body: bytes) -> None:
    refused = as_("shop", "POST", path, content=body)
    assert refused.status_code == 400
    assert refused.json()["error"]


def _raw(to: Serving, *parts: bytes) -> bytes:
    """What is answered to these bytes, until the connection is closed."""
    with socket.create_connection(("127.0.0.1", int(to.url.rpartition(":")[2])), timeout=60) as line:
        for part in parts:
            try:
                line.sendall(part)
            except ConnectionError:
                break
        heard = b""
        with suppress(ConnectionResetError):
            while more := line.recv(65536):
                heard += more
        return heard


def test_heads_are_bounded_in_size_and_time(guarded: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_WITHIN_S", 0.3)
    assert _raw(guarded) == b""
    assert _raw(guarded, b"GET /health HTTP/1.1\r\nHost: 127") == b""
    whole = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    # The same of a second request on one connection, whose first is answered however late it is sent.
    monkeypatch.setattr(heads, "_WITHIN_S", 3)
    assert _raw(guarded, whole + b"GET /health HT").count(b"HTTP/1.1 200") == 1
    monkeypatch.setattr(heads, "_WITHIN_S", 3600)
    endless = [b"GET /health HTTP/1.1\r\n", *[b"X-%d: %s\r\n" % (at, b"a" * 10_000) for at in range(1000)]]
    # Closed it is in any case; what was said may be lost with what was still on its way.
    assert _raw(guarded, *endless)[:13] in (b"HTTP/1.1 431 ", b"")
    assert httpx.get(f"{guarded.url}/health", headers={"X-Long": "a" * 50_000}, trust_env=False).status_code == 200


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings/", "/V1/embeddings", "/v1/uploads", "/api/chat"])
def test_what_is_not_served_is_said_and_nobody_is_sent_elsewhere(guarded: Serving, path: str) -> None:
    answer = httpx.post(f"{guarded.url}{path}", json={}, trust_env=False)
    assert answer.status_code == 404
    said = answer.json()["error"]
    assert f"there is nothing at '{path}'" in (said if path.startswith("/api/") else said["message"])


def test_bodies_of_no_announced_size_take_no_more_room_than_they_need(redis_server: RedisServer) -> None:
    with serving(redis_server.url, max_body_bytes=1000, max_held_bytes=1500) as small:
        host, port = small.url.removeprefix("http://").split(":")
        body = b'{"input": "x"}'
        refused = small.client.post(EMBEDDINGS, content=iter([body]))
        assert refused.status_code == 503
        assert small.gateway.bodies._held_bytes == 0
        with socket.create_connection((host, int(port)), timeout=30) as waiting:
            head = f"POST {EMBEDDINGS} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
            waiting.sendall(head.encode())
            eventually(lambda: small.gateway.bodies._held_bytes == 1000)
            assert code_of(small.client.post(EMBEDDINGS, content=iter([body]))) == (429, "overloaded")
        eventually(lambda: small.gateway.bodies._held_bytes == 0)


def test_pages_of_others_may_not_have_a_browser_ask(redis_server: RedisServer) -> None:
    origins = ("https://app.example",)
    with serving(redis_server.url, origins=origins, hosts=("gateway.lan",)) as open_to_all:
        ask = open_to_all.client
        own = open_to_all.url
        for headers, status in (
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Host": "evil.example"}, 403),
            ({"Host": "["}, 400),
            ({"Origin": own}, 200),
            ({"Origin": origins[0]}, 200),
            ({"Host": "gateway.lan:80"}, 200),
        ):
            assert ask.get("/v1/models", headers=headers).status_code in (status, 403 if status == 400 else status)
        asked = {"Origin": origins[0], "Access-Control-Request-Method": "POST"}
        assert ask.options(EMBEDDINGS, headers=asked).headers["Access-Control-Allow-Origin"] == origins[0]
        asked["Origin"] = "https://evil.example"
        assert "Access-Control-Allow-Origin" not in ask.options(EMBEDDINGS, headers=asked).headers
    with serving(redis_server.url) as closed:
        answer = closed.client.get("/v1/models", headers={"Origin": closed.url})
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_another_machine_is_let_in_with_keys_or_when_told(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "gateway.lan"):
        with pytest.raises(InvalidRequestError, match="--keys FILE"):
            Address(host).check(keys_needed=False, without_keys=False)
        Address(host).check(keys_needed=True, without_keys=False)
        Address(host).check(keys_needed=False, without_keys=True)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        Address(host).check(keys_needed=False, without_keys=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ImpetusError, match="cannot be listened at: Address already in use"):
            Address(port=taken.getsockname()[1]).open()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--files", "{there}"), "--files: "),
        (("--files", "{there}/below"), "--files: "),
        (("--files", "nothing://x"), "is no place for files: "),
        (("--webhooks", "{there}"), "cannot be read as a file of webhooks"),
        (("--keys", "{there}"), "cannot be read as a file of keys"),
        (("--host", "0.0.0.0"), "can be reached from other machines"),
    ],
)
def test_a_gateway_that_cannot_serve_as_told_says_so_in_one_sentence(
    tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    there = tmp_path / "there"
    there.write_text("not what it should be")
    told = [option.format(there=there) for option in options]
    result = CliRunner().invoke(cli, ["serve", *told], env={"IMPETUS_STATE_DIR": str(tmp_path)})
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_keys_are_made_on_the_command_line_and_a_wrong_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    run = CliRunner().invoke
    made = [run(cli, ["serve-key", name, "--keys", str(path)]) for name in ("a", "b")]
    assert [each.exit_code for each in made] == [0, 0]
    keys = Keys.read(path)
    assert [keys.caller(f"Bearer {each.output.strip()}").name for each in made] == ["a", "b"]
    assert path.stat().st_mode & 0o077 == 0
    assert made[0].output.strip() not in path.read_text()
    again = run(cli, ["serve-key", "a", "--keys", str(path)])
    assert again.exit_code == 1
    assert "two keys have the same name" in again.output
    assert len(path.read_text().split("[[keys]]")) == 3
    assert run(cli, ["serve-key", "no name", "--keys", str(path)]).exit_code == 1
    for wrong in ("[[keys]]\nname = 'x'\n", "x", "keys = 3", "[[keys]]\nname='x'\nsha256='AB'\n", "\x00"):
        path.write_text(wrong)
        with pytest.raises(InvalidRequestError, match="file of keys"):
            Keys.read(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidRequestError, match="file of keys"):
        Keys.read(path)


def test_alone_on_a_machine_it_brings_server_and_worker_speaks_tls_and_ends_in_order(tmp_path: Path) -> None:
    certificate = tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", tmp_path / "key.pem", "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    log = tmp_path / "serve.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IMPETUS_")}
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "impetus_producer", "serve", "--port", "0", "--certfile", certificate,
             "--keyfile", tmp_path / "key.pem", "--", *SIMULATED],
            stderr=written, env={**environment, "IMPETUS_STATE_DIR": str(tmp_path), "TMPDIR": str(tmp_path)},
        )  # fmt: skip
    try:
        eventually(lambda: b"Serving at" in log.read_bytes() or process.poll() is not None)
        url = log.read_text().split("Serving at ")[1].split(";")[0].replace("127.0.0.1", "localhost")
        assert url.startswith("https://")
        tree = tree_below(process.pid)
        assert len(tree) > 2
        trust = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=url, verify=trust, trust_env=False) as client:
            eventually(lambda: client.get("/ready").status_code == 200)
            assert client.post(EMBEDDINGS, json={"input": "x"}).json()["model"]
        process.terminate()
        assert process.wait(30) == 0
        eventually(lambda: not any(map(runs, tree)))
    finally:
        process.kill()
        process.wait()


def test_a_server_that_falls_silent_is_said_and_speaks_again(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impetus_gateway.seeing.watch.STALE_S", 2.0)
    valkey = Valkey(tmp_path)
    try:
        with serving(valkey.url, patience_s=0.2) as running:
            valkey.pause()
            eventually(lambda: code_of(running.post(EMBEDDINGS, {"input": "x"})) == (503, "queue_unavailable"))
            assert "impetus_redis_up 0.0" in running.client.get("/metrics").text
            with running.client.stream("GET", "/v1/fleet/events") as events:
                assert '"reached":false' in next(line for line in events.iter_lines() if line.startswith("data"))
            valkey.resume()
            eventually(lambda: code_of(running.post(EMBEDDINGS, {"input": "x"})) == (503, "no_worker"))
    finally:
        valkey.kill()


def test_a_server_that_goes_away_is_said_and_comes_back(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path)
    try:
        with serving(f"redis://127.0.0.1:{valkey.port}/0", patience_s=0.2) as running:
            assert running.client.get("/ready").status_code == 503
            valkey.kill()
            gone = eventually(
                lambda: (a := running.post(EMBEDDINGS, {"input": "x"})).json()["error"]["code"] != "no_worker" and a
            )
            assert code_of(gone) == (503, "queue_unavailable")
            assert "impetus_redis_up 0.0" in running.client.get("/metrics").text
            assert running.client.get("/health").status_code == 200
            valkey.start()
            eventually(lambda: code_of(running.post(EMBEDDINGS, {"input": "x"})) == (503, "no_worker"))
    finally:
        valkey.kill()


def test_many_who_are_refused_at_once_are_all_told_so(redis_server: RedisServer) -> None:
    with serving(redis_server.url, max_requests=3) as small:
        host, port = small.url.removeprefix("http://").split(":")
        waiting = [socket.create_connection((host, int(port)), timeout=30) for _ in range(3)]
        for each in waiting:
            each.sendall(f"POST {EMBEDDINGS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n".encode())
        eventually(lambda: small.gateway.limits.running == 3)
        seen: list[int] = []

        def ask() -> None:
            with httpx.Client(base_url=small.url, trust_env=False) as client:
                seen.extend(client.post(EMBEDDINGS, json={"input": "x"}).status_code for _ in range(50))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [429] * 200
        for each in waiting:
            each.close()
        eventually(lambda: small.gateway.limits.running == 0)
