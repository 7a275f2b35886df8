"""The one list of commands on pages that no test runs here, each with why, and who looks at it instead.

Their options are asked of their parsers all the same, where they are our own (`test_understood`).
"""

from __future__ import annotations

import re

NOT_HERE = {
    r"(brew|launchctl) .*": "no Mac is here; tests/test_packaging.py holds the formula to pyproject.toml",
    r"(pip|pipx|uv tool) install .*": "the package is on no index and has no public address yet; "
    "tests/test_packaging.py holds the extras to pyproject.toml",
    r"(\w+=\S+ )*docker compose .*": "its images are fetched; tests/test_docker.py runs what goes into them",
    r"python overnight\.py .*": "tests/examples/test_by_night.py runs it",
    r"(\w+=\S+ )*python your_program\.py": "it is the reader's own",
    r"impetus-worker verify --submit": "only a Mac's board is sent; tests/worker/cli/test_submit.py plays one",
    r"impetus-worker service (install|uninstall|status) --system.*": "only root installs it; "
    "tests/worker/host/test_service.py installs one into a folder",
    r"impetus top": "it wants a terminal; tests/producer/cli/test_cli.py gives it one",
    r"scripts/(setup|pin|frameworks).*": "it fetches packages",
    r"scripts/(test|check).*": "it runs these very tests, or what CI runs beside them",
    r"scripts/(chaos|fuzz).*": "tests/test_chaos.py and tests/test_fuzz.py run it for a short while",
    r"scripts/(interrupted|batch_proof|scale|demo).*": "it takes minutes, on whole models or many processes; "
    "tests/producer/bulk/test_resume.py and tests/producer/batches kill the same commands",
    r"scripts/(families|deterministic).*": "it loads whole models, or wants a GPU",
    r"scripts/recording/.*": "it needs torch, and writes the truth that other tests go by",
    r"scripts/bench( (?!.*--help).*)?": "it measures for minutes, on whole models or many processes",
}
"""Patterns of whole commands."""


def why_not(command: str) -> str | None:
    return next((why for pattern, why in NOT_HERE.items() if re.fullmatch(pattern, command)), None)
