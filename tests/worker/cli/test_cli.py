"""`impetus-worker` on the command line."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from impetus_worker.cli.main import main
from impetus_worker.settings import WorkerSettings


def test_a_role_that_does_not_exist_is_a_usage_error() -> None:
    said = CliRunner().invoke(main, ["doctor", "--roles", "embedding,cooking"])
    assert said.exit_code == 2
    assert "embedding, generation" in said.output


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_without_the_worker_extra_a_command_says_what_to_install(command: str) -> None:
    said = _without("numpy", [command])
    assert said.returncode == 1
    assert "pip install 'impetus-batch[worker]'" in said.stderr
    assert "Traceback" not in said.stderr


def test_help_needs_no_extra() -> None:
    said = _without("numpy", ["run", "--help"])
    assert said.returncode == 0
    assert "--max-wait-ms" in said.stdout


def test_every_new_option_of_run_has_a_variable_and_settings_carry_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from impetus_worker.allowed import Allowed
    from impetus_worker.cli.run import _worker_settings, run
    from impetus_worker.roles import engine_config

    for name in ("IMPETUS_WIRED_MEMORY", "IMPETUS_ALLOW_SLEEP", "IMPETUS_STAY_AWAKE_ON_BATTERY", "IMPETUS_DURABLE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("IMPETUS_SPECIAL_TOKENS", "text")
    monkeypatch.setenv("IMPETUS_MAX_ANSWER_TOKENS", "99")
    monkeypatch.setenv("IMPETUS_SERVED_MODEL_NAME", "a, b")
    monkeypatch.setenv("IMPETUS_CONTEXT_TOKENS", "500")
    monkeypatch.setenv("IMPETUS_KV_BITS", "8")
    monkeypatch.setenv("IMPETUS_PROMPT_LOOKUP_TOKENS", "6")
    monkeypatch.setenv("IMPETUS_MAX_CONCURRENT_GENERATIONS", "auto")
    monkeypatch.setenv("IMPETUS_MAX_BATCH_TOKENS", "321")
    options = run.make_context("run", ["--prefix-cache-dir", "/p", "--adapter", "a=/x y", "--adapter", "b=/z"]).params
    assert options["durable"] is True
    settings = _worker_settings("generation", ("redis://",), Allowed(("a.b",), ("hooks.example",)), options)
    assert (settings.wired_memory, settings.allow_sleep, settings.stay_awake_on_battery) == (True, True, True)
    config = engine_config(settings)
    assert (config.special_tokens, config.max_answer_tokens) == ("text", 99)
    assert (config.served_names, config.context_tokens) == (("a", "b"), 500)
    assert (config.prefix_cache_dir, config.prefix_cache_dir_bytes) == ("/p", 4 * 2**30)
    assert (config.measure_rows, config.max_concurrent) == (True, 16)
    assert (config.kv_bits, config.adapters) == (8, (("a", "/x y"), ("b", "/z")))
    assert (config.lookup_tokens, config.most_batch_tokens) == (6, 321)
    assert type(settings).from_json(settings.to_json()) == settings
    assert settings.allowed == Allowed(("a.b",), ("hooks.example",))


def test_the_upstream_comes_with_its_backend_and_no_other_and_reaches_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from impetus_worker.allowed import Allowed
    from impetus_worker.cli.run import _worker_settings, run
    from impetus_worker.roles import engine_config

    for arguments, words in (
        (["--generation-backend", "openai"], "needs --upstream URL"),
        (["--upstream", "http://127.0.0.1:1/v1"], "goes with --generation-backend openai"),
        (["--generation-backend", "openai", "--upstream", "http://u:s3cret@h/v1"], "IMPETUS_UPSTREAM_KEY"),
        (["--generation-backend", "openai", "--upstream", "127.0.0.1"], "http://HOST:PORT/v1"),
    ):
        said = CliRunner().invoke(main, ["run", *arguments])
        assert said.exit_code == 2
        assert words in " ".join(said.output.split())
        assert "s3cret" not in said.output
    monkeypatch.setenv("IMPETUS_UPSTREAM", "http://127.0.0.1:1/v1/")
    options = run.make_context("run", ["--generation-backend", "openai"]).params
    settings = _worker_settings("generation", ("redis://",), Allowed(), options)
    assert type(settings).from_json(settings.to_json()) == settings
    assert engine_config(settings).upstream == "http://127.0.0.1:1/v1"
    assert _worker_settings("embedding", ("redis://",), Allowed(), options).upstream is None


_CAUGHT = """
import contextlib, os, signal, sys
from impetus_worker.cli import run

def told_to_stop_where_whatever_comes_is_caught(url, roles):
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), int(sys.argv[1]))
    return reports(url, roles)

reports, run.death_reports = run.death_reports, told_to_stop_where_whatever_comes_is_caught
run.run.main(["--redis-url", "redis://127.0.0.1:1/0", "--embedding-backend", "simulated", "--roles", "embedding"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_before_the_start_is_heard_though_what_it_raises_is_caught(number: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CAUGHT, str(int(number))], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "starting" not in done.stderr


def test_every_option_that_run_shows_can_be_given_by_a_variable() -> None:
    from impetus_worker.cli.run import run

    shown = [option for option in run.params if isinstance(option, click.Option) and not option.hidden]
    assert len(shown) > 20
    assert [option.name for option in shown if not option.envvar] == []


_BROKEN = """
import impetus_producer
import impetus_worker.worker
class Broken:
    def __init__(self, *rest, **more): pass
    def run(self): raise {error}
impetus_producer.connect = lambda url: None
impetus_worker.worker.QueueWorker = Broken
from impetus_producer.errors import ImpetusError
from impetus_worker.errors import ConfigurationError
from impetus_worker.host.worker_process import main
main()
"""


@pytest.mark.parametrize(
    ("error", "status", "traceback"),
    [("KeyError('a bug')", 1, True), ("ImpetusError('a bug')", 1, False), ("ConfigurationError('a bug')", 3, False)],
)
def test_a_workers_bug_shows_by_its_traceback_and_an_error_on_purpose_by_its_sentence(
    error: str, status: int, traceback: bool
) -> None:
    settings = WorkerSettings(("redis://",), "embedding", "name").to_json()
    said = subprocess.run(
        [sys.executable, "-c", _BROKEN.format(error=error)],
        input=settings + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == status
    assert "a bug" in said.stderr
    assert ("Traceback" in said.stderr) is traceback


def _without(package: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs the command where a package cannot be found."""
    hide = (
        "import importlib.util as u, sys; find = u.find_spec; "
        f"u.find_spec = lambda name, *rest: None if name == {package!r} else find(name, *rest); "
        f"sys.modules[{package!r}] = None; "
        f"from impetus_worker.cli.main import main; main({arguments!r})"
    )
    return subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False, cwd=Path.cwd())
