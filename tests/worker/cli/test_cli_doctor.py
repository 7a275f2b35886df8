"""`impetus-worker doctor`: what a machine would claim, for this one and for every one that was written down."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_backends.embedding.budget import USUAL
from impetus_worker.cli.main import main
from tests.backends.conftest import small_model
from tests.backends.machine.machines import NAMES, machine_file

if TYPE_CHECKING:
    from pathlib import Path

EMBEDDING, GENERATION = ["embedding", "embedding-bulk"], ["generation", "generation-bulk"]


@pytest.fixture(autouse=True)
def _no_cache_of_mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPETUS_CACHE_DIR", str(tmp_path / "cache"))


def ask(*options: str) -> str:
    said = CliRunner().invoke(main, ["doctor", *options])
    assert said.exit_code == 0, said.output
    return said.stdout


def report(*options: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(ask(*options, "--json"))
    return answer


def test_doctor_says_what_it_would_claim_and_why() -> None:
    said = ask()
    assert "embedding   would claim embedding and embedding-bulk with the " in said
    assert "all-MiniLM-L6-v2" in said


def test_doctor_speaks_json_and_leaves_out_the_role_that_was_not_asked_for() -> None:
    roles = report("--roles", "embedding", "--embedding-backend", "simulated")["roles"]
    assert roles["embedding"]["claims"] == EMBEDDING
    assert roles["embedding"]["backend"] == "simulated"
    assert roles["generation"] == {
        "claims": [],
        "backend": None,
        "then": [],
        "gives_way": False,
        "profile": None,
        "model": "mlx-community/Qwen2.5-0.5B-Instruct-4bit",
        "reasons": ["left out by --roles"],
    }


@pytest.mark.parametrize(
    ("name", "embedding", "then", "generation", "sentence"),
    [
        (
            "m1",
            "mlx",
            ["coreml", "cpu", "numpy"],
            GENERATION,
            "M1 to M3: embeddings run on the GPU until a measurement",
        ),
        ("m1-ultra", "mlx", ["coreml", "cpu", "numpy"], GENERATION, "M1 to M3: embeddings run on the GPU until"),
        ("m2-pro", "mlx", ["coreml", "cpu", "numpy"], GENERATION, "M1 to M3: embeddings run on the GPU until"),
        ("m3-max", "mlx", ["coreml", "cpu", "numpy"], GENERATION, "M1 to M3: embeddings run on the GPU until"),
        ("m4", "coreml", ["mlx", "cpu", "numpy"], GENERATION, "M4 or later: embeddings run on the Neural Engine"),
        ("m4-max", "coreml", ["mlx", "cpu", "numpy"], GENERATION, "M4 or later: embeddings run on the Neural Engine"),
        (
            "m5",
            "coreml",
            ["mlx", "cpu", "numpy"],
            GENERATION,
            "likely has neural accelerators that MLX uses (unverified",
        ),
        (
            "m5-pro",
            "coreml",
            ["mlx", "cpu", "numpy"],
            GENERATION,
            "likely has neural accelerators that MLX uses",
        ),
        (
            "m5-max",
            "coreml",
            ["coreai", "mlx", "cpu", "numpy"],
            GENERATION,
            "likely has neural accelerators that MLX uses",
        ),
        (
            "m5-ultra",
            "coreml",
            ["coreai", "mlx", "cpu", "numpy"],
            GENERATION,
            "likely has neural accelerators that MLX uses",
        ),
        ("m6", "coreml", ["coreai", "mlx", "cpu", "numpy"], GENERATION, "likely has neural accelerators that MLX uses"),
        ("intel", "cpu", ["numpy"], [], "MLX is not made for Intel Macs"),
        ("vm", "mlx", ["cpu", "numpy"], GENERATION, "a virtual machine: its Neural Engine is not to be counted on"),
        ("rosetta", "cpu", ["numpy"], [], "this Python runs under Rosetta"),
        ("linux", "cpu", ["numpy"], GENERATION, "this machine is not Apple silicon; embeddings run on the CPU"),
    ],
)
def test_doctor_answers_for_a_machine_that_is_not_this_one(
    name: str, embedding: str, then: list[str], generation: list[str], sentence: str
) -> None:
    file = str(machine_file(name))
    answer = report("--hardware", file)
    roles = answer["roles"]
    assert roles["embedding"]["claims"] == EMBEDDING
    assert (roles["embedding"]["backend"], roles["embedding"]["then"]) == (embedding, then)
    assert roles["embedding"]["gives_way"] is (embedding != "coreml")
    assert roles["generation"]["claims"] == generation
    assert sentence in " ".join(roles["embedding"]["reasons"] + roles["generation"]["reasons"])
    assert answer["installed"].startswith("assumed")
    assert answer["memory_limit_bytes"] == answer["machine"]["memory_bytes"] * 3 // 4
    said = ask("--hardware", file)
    assert f"would claim embedding and embedding-bulk with the {embedding} backend" in said
    assert sentence in said
    assert ("not while a Neural Engine's worker serves the same model" in said) is (embedding != "coreml")
    assert answer["machine"]["chip"] in said
    assert "taken to have installed all that this platform can install" in said
    assert "None" not in said


def test_every_machine_that_was_written_down_is_asked_about_above() -> None:
    mark = next(mark for mark in test_doctor_answers_for_a_machine_that_is_not_this_one.pytestmark)  # type: ignore[attr-defined]
    assert sorted(case[0] for case in mark.args[1]) == sorted(NAMES)


def test_doctor_says_whether_memory_is_wired_and_why() -> None:
    file = str(machine_file("m4"))
    assert "memory      nothing is wired for the GPU" in ask("--hardware", file)
    assert "ml-explore/mlx#3186" in report("--hardware", file)["wired_memory"]
    assert "--wired-memory was given (unverified)" in ask("--hardware", file, "--wired-memory")
    assert "no Apple GPU here" in ask("--hardware", str(machine_file("intel")), "--wired-memory")


def test_doctor_says_what_is_done_about_sleep() -> None:
    file = str(machine_file("m4"))
    assert "sleep       this Mac is kept from idle sleep while jobs run, not on battery" in ask("--hardware", file)
    assert "on battery too" in report("--hardware", file, "--stay-awake-on-battery")["sleep"]
    assert "may fall asleep" in ask("--hardware", file, "--allow-sleep")
    assert "only macOS" in ask("--hardware", str(machine_file("linux")))


def test_doctor_prints_what_a_probe_failed_at(tmp_path: Path) -> None:
    content = json.loads(machine_file("m4").read_text())
    del content["answers"]["coreml"]
    content["problems"]["coreml"] = "no answer within 30 s"
    file = tmp_path / "m4.json"
    file.write_text(json.dumps(content))
    said = ask("--hardware", str(file))
    assert "problem: coreml: no answer within 30 s" in said
    assert "Neural Engine not asked about" in said
    assert report("--hardware", str(file))["machine"]["problems"] == ["coreml: no answer within 30 s"]


def test_what_doctor_records_it_can_answer_for(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    assert "no serial number" in ask("--record", str(file))
    assert report("--hardware", str(file))["machine"] == report()["machine"]


def test_what_was_measured_here_decides_and_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from impetus_backends.machine import hardware, policy
    from impetus_backends.machine.measurements import Measurement, MeasurementCache, conditions

    m1 = hardware.read_machine(machine_file("m1"))
    monkeypatch.setattr(hardware, "detect", lambda: m1)
    monkeypatch.setattr(policy, "not_installed", lambda name: None)
    assert report()["roles"]["embedding"]["backend"] == "mlx"
    model = "sentence-transformers/all-MiniLM-L6-v2"
    MeasurementCache().keep(
        Measurement(conditions(m1, "f"), model, (("coreml", 0.001), ("mlx", 0.002)), "2026-11-23T10:00:00+00:00")
    )
    plan = report()["roles"]["embedding"]
    assert plan["backend"] == "coreml"
    assert "coreml 1.0 ms, mlx 2.0 ms: coreml is faster than mlx" in plan["reasons"][-1]


def test_a_file_that_describes_no_machine_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "empty.json"
    file.write_text("")
    for path in (file, tmp_path / "missing.json"):
        said = CliRunner().invoke(main, ["doctor", "--hardware", str(path)])
        assert said.exit_code == 1
        assert "is no description of a machine" in said.output
        assert "--record" in said.output


def test_a_recording_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    said = CliRunner().invoke(main, ["doctor", "--record", str(tmp_path / "no" / "such" / "folder")])
    assert said.exit_code == 1
    assert "cannot be written: No such file or directory" in said.output


def test_nobody_reranks_unless_a_model_is_named_for_it() -> None:
    silent = report()["roles"]["rerank"]
    assert (silent["claims"], silent["reasons"]) == ([], ["no model is named for it: --rerank-model"])
    named = report("--rerank-model", "a/reranker", "--hardware", str(machine_file("m4")))["roles"]["rerank"]
    assert named["claims"] == ["rerank", "rerank-bulk"]
    assert (named["backend"], named["then"]) == ("mlx", ["cpu", "numpy"])
    assert "coreml: runs no rerankers" in named["reasons"]
    said = CliRunner().invoke(main, ["run", "--roles", "rerank"])
    assert said.exit_code == 2
    assert "needs --rerank-model" in said.output


@pytest.mark.system
def test_doctor_times_batches_when_it_is_asked_to() -> None:
    options = ("--measure", "--roles", "embedding", "--embedding-model", str(small_model("bge")))
    backend = ("--embedding-backend", "cpu")
    batches = report(*options, *backend)["roles"]["embedding"]["batches"]
    assert batches["backend"] == "cpu"
    assert batches["tokens"] >= USUAL["cpu"]
    assert len(batches["curve"]) >= 2
    assert all(point["tokens"] > 0 and point["seconds"] > 0 for point in batches["curve"])
    assert "padded tokens, by measurement at load" in batches["measured"]
    said = ask(*options, *backend)
    assert "padded tokens with the cpu backend, of" in said
    assert said.count("tokens/s") == len([line for line in said.splitlines() if " ms " in line]) >= 2
    assert f"batches of {USUAL['numpy']:,} padded tokens: numpy measures none" in ask(
        *options, "--embedding-backend", "numpy"
    )


def test_doctor_measures_no_other_machine_and_says_what_it_could_not_load(tmp_path: Path) -> None:
    said = CliRunner().invoke(main, ["doctor", "--measure", "--hardware", str(machine_file(NAMES[0]))])
    assert said.exit_code == 2
    assert "--measure is for this machine, and --hardware for another" in said.output
    gone = ["doctor", "--measure", "--roles", "embedding", "--embedding-model", str(tmp_path)]
    said = CliRunner().invoke(main, gone)
    assert said.exit_code == 1
    assert "is not a folder with a config.json" in said.output


def test_doctor_says_what_is_wrong_with_a_folder_and_which_prompts_it_lacks(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("roberta"), tmp_path / "e5-base")
    options = ("--roles", "embedding", "--embedding-model", str(folder))
    assert 'E5 models were trained with "query: " and "passage: "' in ask(*options)
    (folder / "modules.json").unlink()
    assert f"the model will not load: {folder} has no modules.json" in ask(*options)
