"""What docker/ promises, read from its files: no engine is needed, and no image is built."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from typing import TYPE_CHECKING, Any

import click
import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from rq.serializers import DefaultSerializer

from impetus_producer.servers.discovery import REDIS_URL_VARIABLE
from impetus_producer.watching.fleet import Fleet, WorkerState
from impetus_worker.cli.run import run
from impetus_worker.host.supervisor import worker_name
from impetus_worker.settings import ROLES
from tests.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKER_IMAGE = (DOCKER / "worker.Dockerfile").read_text()
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
PINS = [
    ROOT / "requirements.txt",
    ROOT / "weights.txt",
    ROOT / "frameworks.txt",
    *sorted(DOCKER.glob("*.requirements.txt")),
    ROOT / "packaging" / "homebrew" / "requirements.txt",
]


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


def test_whoever_knocks_at_valkey_has_a_password_of_its_own_that_must_be_given() -> None:
    environment = SERVICES["valkey"]["environment"]
    for name in ("REDIS_PASSWORD", "REDIS_WORKER_PASSWORD", "REDIS_PRODUCER_PASSWORD", "REDIS_DASHBOARD_PASSWORD"):
        assert environment[name].startswith(f"${{{name}:?")
        assert f'"$${name}"' in SERVICES["valkey"]["command"][2], "it is refused where it would be misread"
        assert name in (DOCKER / "README.md").read_text()
    assert environment["VALKEYCLI_AUTH"] == "${REDIS_PASSWORD}"
    worker, dashboard = SERVICES["worker"]["environment"], SERVICES["rq-dashboard"]["environment"]
    assert worker[REDIS_URL_VARIABLE] == "redis://worker:${REDIS_WORKER_PASSWORD}@valkey:6379/0"
    assert dashboard["RQ_DASHBOARD_REDIS_URL"] == "redis://dashboard:${REDIS_DASHBOARD_PASSWORD}@valkey:6379/0"
    assert dashboard["RQ_DASHBOARD_PASSWORD"].startswith("${DASHBOARD_PASSWORD:?")


def test_valkey_keeps_its_jobs_on_a_volume() -> None:
    (mount,) = SERVICES["valkey"]["volumes"]
    assert mount == "valkey:/data"
    assert "valkey" in COMPOSE["volumes"]


def test_every_image_that_is_fetched_is_pinned_by_its_digest() -> None:
    built = {service["image"] for service in SERVICES.values() if "build" in service}
    fetched = [service["image"] for service in SERVICES.values() if service["image"] not in built]
    for dockerfile in DOCKERFILES:
        fetched += re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE)
    assert len(fetched) == 4
    for image in fetched:
        assert re.fullmatch(r"[\w/.-]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image


@pytest.mark.parametrize("file", PINS, ids=lambda path: path.name)
def test_every_pin_has_its_hashes_and_the_images_have_the_versions_that_were_tested(file: Path) -> None:
    text = file.read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)(?=.*\\\n)", text, re.MULTILINE))
    assert pinned
    for entry in re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry, entry.split()[0]
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert {name: tested[name] for name in pinned if name in tested} == {
        name: version for name, version in pinned.items() if name in tested
    }
    assert "://" not in text, "no file names a registry"


def test_what_is_installed_is_what_was_pinned() -> None:
    texts = [*(each.read_text() for each in DOCKERFILES), (ROOT / "scripts" / "setup").read_text()]
    lines = [line for text in texts for line in text.splitlines() if "pip install" in line and "-r " in line]
    assert len(lines) == 5
    for line in lines:
        assert "--require-hashes" in line
    others = [line for text in texts for line in text.splitlines() if "pip install" in line and line not in lines]
    assert others
    for line in others:  # the checkout itself, for which nothing is fetched
        assert "--no-deps --no-build-isolation" in line


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"] <= 512
    assert service["logging"]["options"]["max-size"]
    assert any(place.partition(":")[0] == "/tmp" for place in service["tmpfs"])
    assert not service.get("privileged")
    if "build" not in service:
        assert service["user"] not in ("0", "root", "0:0")


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


def test_the_image_has_what_the_extras_for_a_cpu_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(each for name in ("worker", "cpu", "mlx")
              for each in project["optional-dependencies"][name])]  # fmt: skip
    pinned = re.findall(r"^([\w.-]+)==", (DOCKER / "worker.requirements.txt").read_text(), re.MULTILINE)
    assert {re.split(r"[^\w.-]", each)[0] for each in wanted} <= set(pinned)


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
