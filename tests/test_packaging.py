"""The Homebrew formula, and the ways to install in docs/install.md: held to pyproject.toml, for no Mac is here."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from typing import Any

import pytest

from tests.paths import ROOT

FOLDER = ROOT / "packaging" / "homebrew"
FORMULA = (FOLDER / "impetus.rb").read_text()
LINES = FORMULA.splitlines()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALL = (ROOT / "docs" / "install.md").read_text()
ORDER = (
    "include", "desc", "homepage", "url", "license", "head", "depends_on", "def install", "service do", "test do",
)  # fmt: skip
"""Of a formula's parts, as `brew style` wants it: https://docs.brew.sh/Formula-Cookbook."""


def stated(name: str) -> str:
    (found,) = re.findall(rf'^  {name} "([^"]+)"', FORMULA, re.MULTILINE)
    return str(found)


def block(name: str) -> str:
    """What stands between `  name` and its `  end`."""
    (found,) = re.findall(rf"^  {name}\n(.*?)^  end$", FORMULA, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_formula_says_what_pyproject_says() -> None:
    repository = PROJECT["urls"]["Repository"]
    assert stated("homepage") == repository
    assert stated("url") == stated("head") == f"{repository}.git"
    assert stated("license") == PROJECT["license"]
    assert f'tag: "v{PROJECT["version"]}"' in FORMULA
    python = re.findall(r'depends_on "python@(3\.\d+)"', FORMULA)
    assert [tuple(map(int, each.split("."))) >= (3, 11) for each in python] == [True]
    assert set(re.findall(r"python3\.\d+", FORMULA)) == {f"python{python[0]}"}


def test_the_formula_installs_every_command_of_the_package() -> None:
    assert set(re.findall(r'libexec/"bin/([\w-]+)"', block("def install"))) == set(PROJECT["scripts"])


def test_the_formula_installs_what_was_pinned_with_hashes_and_all_that_a_mac_needs() -> None:
    (file,) = re.findall(r'"--require-hashes", "--requirement", "([^"]+)"', FORMULA)
    assert ROOT / file == FOLDER / "requirements.txt"
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / file).read_text(), re.MULTILINE))
    (line,) = re.findall(rf"compile {file} (.+?)--constraint", (ROOT / "scripts/pin").read_text(), re.DOTALL)
    extras = re.findall(r"--extra (\w+)", line)
    assert {"worker", "mlx", "coreml", "cpu"} <= set(extras)
    wanted = [*PROJECT["dependencies"], *(each for name in extras for each in PROJECT["optional-dependencies"][name])]
    assert {re.split(r"[^\w.-]", each)[0] for each in wanted} | {"hatchling"} <= pinned


def test_a_service_of_brew_is_started_again_after_a_crash_and_not_when_it_ended_in_order() -> None:
    service = block("service do")
    assert '"impetus-worker", "run"' in service
    assert "keep_alive successful_exit: false" in service
    assert "log_path" in service
    assert "error_log_path" in service


def test_the_formula_tests_itself_with_commands_that_there_are() -> None:
    commands = re.findall(r'shell_output\("#\{bin\}/([\w-]+) ([^"]+)"\)', block("test do"))
    assert [name for name, _ in commands] == ["impetus", "impetus-worker"]


def test_the_formula_is_written_as_brew_style_wants_it() -> None:
    assert LINES[1] == "class Impetus < Formula"
    parts = [line.strip() for line in LINES if re.match(r"  \w", line) and line != "  end"]
    at = [next(n for n, name in enumerate(ORDER) if part.startswith(name)) for part in parts]
    assert at == sorted(at)
    assert set(at) == set(range(len(ORDER)))
    description = stated("desc")
    assert len(description) < 80
    assert not description.endswith(".")
    assert not re.match(r"(?i)(a|an|the|impetus)\b", description)
    assert FORMULA.endswith("end\n")
    assert not [line for line in LINES if line != line.rstrip() or len(line) > 118 or "\t" in line]
    assert "'" not in FORMULA, "strings are in double quotes"
    opened = len(re.findall(r"^\s*(?:class|def)\b|\bdo$", FORMULA, re.MULTILINE))
    assert opened == len(re.findall(r"^\s*end$", FORMULA, re.MULTILINE))
    assert "://" not in (FOLDER / "requirements.txt").read_text()
    if ruby := shutil.which("ruby"):
        subprocess.run([ruby, "-c", str(FOLDER / "impetus.rb")], check=True, capture_output=True)


@pytest.mark.parametrize("tool", ["uv tool install", "pipx install", "pip install", "brew install"])
def test_each_way_to_install_is_told_with_extras_that_there_are(tool: str) -> None:
    assert f"    {tool} " in INSTALL
    for extras in re.findall(rf"^    {tool} .*\[([\w,-]+)\]", INSTALL, re.MULTILINE):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), extras


def test_every_address_of_the_repository_is_the_one_in_pyproject() -> None:
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", FOLDER / "impetus.rb"]:
        for url in re.findall(r"https://github\.com/impetus-batch/[\w./-]+", page.read_text()):
            assert url.startswith(PROJECT["urls"]["Repository"]), page
