"""Every command on the pages is run, as it stands there, but for those that `elsewhere` lists."""

from __future__ import annotations

import functools
import importlib
import itertools
import re
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from click.testing import CliRunner
from redis import Redis

from impetus_backends.embedding.docstrings import docstrings
from impetus_producer.cli.main import cli as impetus
from impetus_producer.servers.discovery import ServerNote
from impetus_worker.cli.main import main as impetus_worker
from impetus_worker.host.services.manager import service_manager
from impetus_worker.host.services.service import Answer
from tests.gateway.serving import workers
from tests.paths import ROOT
from tests.patience import eventually
from tests.worker.cli.runs import tree_below
from tests.worker.host.services import System

from .elsewhere import NOT_HERE, why_not
from .stage import ANSWERS, Stage
from .told import GROUPS, MODULES, TOLD, told_of_others

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.conftest import RedisServer

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
HISTORY = "CHANGELOG.md"
STANDS_FOR_SOMETHING = re.compile(r"…|\b[A-Z]{3,}\b|\|")
UNFINISHED = re.compile(r"Missing (argument|parameter|option)|requires an argument|Usage: .*COMMAND \[ARGS\]")
"""What is only named may lack what it takes, or be a group."""
TAKE_MORE = ("--store", "--certfile")
"""Where these end what is only named, they lack a file."""
MADE_BY = {
    "keys.toml": ("serve-key", "shop", "--keys"),
    "webhooks.toml": ("serve-webhook", "https://app.example/batches", "--webhooks"),
}
"""Files that one command writes for another."""
READ_ONCE = functools.cache(docstrings)
"""Reading the library takes seconds, and several commands measure with it."""


def commands() -> dict[str, bool]:
    """Those to be run, and whether a page has them to be typed, and not only named."""
    found: dict[str, bool] = {}
    for each in TOLD:
        named = STANDS_FOR_SOMETHING.search(each.command) and not each.whole
        if each.page != HISTORY and not named and why_not(each.command) is None:
            found[each.command] = found.get(each.command, False) or each.whole
    return found


COMMANDS = commands()


def is_served(command: str) -> bool:
    """Whether it goes on until it is told to end."""
    if not re.match(r"impetus serve( |$)|impetus-worker run( |$)", command) or "--help" in command:
        return False
    return COMMANDS[command] or not command.endswith(TAKE_MORE)


@pytest.fixture(scope="module")
def stage(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), redis_server.url)


@pytest.fixture(scope="module")
def server(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With a worker of all roles, who works at a second one too."""
    options = (*ANSWERS, "--redis-url", stage.second)
    folder = tmp_path_factory.mktemp("workers")
    with workers(stage.server, folder, *options, roles="embedding,generation,rerank") as fleet:
        yield fleet.url


@pytest.fixture
def here(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """The current folder, and the environment, are the stage's."""
    for name, value in stage.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("IMPETUS_REDIS_URL", raising=False)
    monkeypatch.chdir(stage.folder)
    monkeypatch.setattr("impetus_backends.embedding.docstrings.docstrings", READ_ONCE)
    manage = service_manager
    system = System(lambda told: Answer(0, "ActiveState=active\nMainPID=12") if " show " in told else None)
    monkeypatch.setattr(
        "impetus_worker.cli.service.service_manager",
        lambda platform, home, uid, environment: manage("linux", home, uid, environment, system),
    )
    return stage


@pytest.mark.parametrize("command", [each for each in COMMANDS if not is_served(each)])
def test_a_command_on_a_page_does_what_it_is_there_for(
    command: str, here: Stage, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if command == "impetus-worker service status":
        assert CliRunner().invoke(impetus_worker, ["service", "install"]).exit_code == 0
    if "postgresql://" in command:
        here.postgres = request.getfixturevalue("postgres")
    program, *arguments = here.words(shlex.split(command))
    if program == "impetus" and "redis-url" not in command:
        monkeypatch.setenv("IMPETUS_REDIS_URL", request.getfixturevalue("server"))
    elif program == "impetus":
        request.getfixturevalue("server")
    main = GROUPS.get(program) or importlib.import_module(MODULES[program]).main
    ran = CliRunner().invoke(main, arguments, prog_name=program)
    if ran.exit_code == 2 and not COMMANDS[command] and UNFINISHED.search(ran.output):
        return
    assert ran.exit_code == 0, f"{ran.output}\n{ran.exception!r}"
    assert ran.output
    for option, file in itertools.pairwise(arguments):
        if option in ("-o", "--output") and "://" not in file:
            assert Path(file.partition("#")[0]).stat().st_size


@pytest.mark.parametrize("command", [each for each in COMMANDS if is_served(each)])
def test_what_serves_is_seen_serving_and_ends_when_it_is_told_to(command: str, stage: Stage, tmp_path: Path) -> None:
    words, log = stage.words(shlex.split(command)), tmp_path / "log"
    for missing in [file for file in MADE_BY if file in words and not (stage.folder / file).exists()]:
        ran = CliRunner().invoke(impetus, [*MADE_BY[missing], str(stage.folder / missing)])
        assert ran.exit_code == 0, ran.output
    process = stage.start(words, log)
    try:
        if words[0] == "impetus":
            eventually(lambda: runs(process, log) and re.search(r"https?://127\.0\.0\.1:\d+", log.read_text()))
            (url,) = set(re.findall(r"https?://127\.0\.0\.1:\d+", log.read_text()))
            with httpx.Client(verify=False, trust_env=False) as client:
                eventually(lambda: runs(process, log) and client.get(f"{url}/health").is_success)
        else:
            eventually(lambda: runs(process, log) and is_in_the_books(process, words, stage))
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    assert status == 0, log.read_text()


def runs(process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    return True


def is_in_the_books(process: subprocess.Popen[bytes], words: list[str], stage: Stage) -> bool:
    """Of every server that it is given, or of its own."""
    urls = [url for option, url in itertools.pairwise(words) if option == "--redis-url"]
    if not urls and (note := ServerNote.read(stage.state)) is not None:
        urls = [note.url]
    return bool(urls) and all(_workers_at(url) & set(tree_below(process.pid)) for url in urls)


def _workers_at(url: str) -> set[int]:
    """Their processes."""
    with Redis.from_url(url) as connection:
        return {int(connection.hget(key, "pid") or 0) for key in connection.smembers("rq:workers")}


def test_what_is_run_elsewhere_is_on_a_page_and_has_a_reason_that_names_what_there_is() -> None:
    told = [*(each.command for each in TOLD), *told_of_others()]
    for pattern, why in NOT_HERE.items():
        assert any(re.fullmatch(pattern, command) for command in told), pattern
        assert all((ROOT / name).exists() for name in re.findall(r"tests/[\w/.]*\w", why)), why
    assert not [command for command in told_of_others() if why_not(command) is None]


def test_commands_to_be_run_are_found() -> None:
    assert len(COMMANDS) > 50
    assert sum(map(is_served, COMMANDS)) > 10
