"""What more than one command of `impetus-worker` asks for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import click

from impetus_producer.errors import MissingExtraError

from ..settings import EMBEDDING_BACKENDS, GENERATION_BACKENDS, RERANK_BACKENDS, ROLES, Role

_NEEDED = ("numpy", "tokenizers", "safetensors", "huggingface_hub")


def _roles(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[Role, ...]:
    """Where nothing is said all those that have a model; rerankers have none unless one is named."""
    if value is None:
        return tuple(role for role in ROLES if role != "rerank" or context.params.get("rerank_model"))
    wanted = [role.strip() for role in value.split(",") if role.strip()]
    if not wanted or any(role not in ROLES for role in wanted):
        raise click.BadParameter(f"give one or more of {', '.join(ROLES)}, separated by commas")
    return tuple(role for role in ROLES if role in wanted)


_engine_options = [
    click.option("--rerank-model", envvar="IMPETUS_RERANK_MODEL", metavar="FOLDER|ID", show_envvar=True, is_eager=True,
                 help="A cross-encoder, such as BAAI/bge-reranker-v2-m3, to order documents by their relevance with. "
                 "It is a worker of its own. Without one nobody reranks."),
    click.option("--roles", envvar="IMPETUS_ROLES", callback=_roles, show_envvar=True, metavar="ROLE,…",
                 help=f"What to work on: {', '.join(ROLES)}.  [default: embedding,generation, and with --rerank-model "
                 "rerank]"),
    click.option("--embedding-model", envvar="IMPETUS_EMBEDDING_MODEL", metavar="FOLDER|ID", show_envvar=True,
                 help="A folder or a Hugging Face id.  [default: sentence-transformers/all-MiniLM-L6-v2]"),
    click.option("--generation-model", envvar="IMPETUS_GENERATION_MODEL", metavar="FOLDER|ID", show_envvar=True,
                 help="A folder or a Hugging Face id.  [default: mlx-community/Qwen2.5-0.5B-Instruct-4bit]"),
    click.option("--embedding-backend", envvar="IMPETUS_EMBEDDING_BACKEND", default="auto", show_default=True,
                 type=click.Choice(EMBEDDING_BACKENDS), show_envvar=True, help="'auto' takes the first that serves."),
    click.option("--generation-backend", envvar="IMPETUS_GENERATION_BACKEND", default="auto", show_default=True,
                 type=click.Choice(GENERATION_BACKENDS), show_envvar=True),
    click.option("--rerank-backend", envvar="IMPETUS_RERANK_BACKEND", default="auto", show_default=True,
                 type=click.Choice(RERANK_BACKENDS), show_envvar=True, help="Core ML runs no rerankers."),
    click.option("--wired-memory", envvar="IMPETUS_WIRED_MEMORY", is_flag=True, show_envvar=True,
                 help="Let MLX wire memory for the GPU. Off unless asked, because in public reports it is what makes "
                 "whole Macs panic (ml-explore/mlx#3186); without it the system may page weights out between jobs."),
    click.option("--allow-sleep", envvar="IMPETUS_ALLOW_SLEEP", is_flag=True, show_envvar=True,
                 help="Let this Mac fall asleep by itself while jobs run. Else it is kept awake for as long as they "
                 "do, while it has mains power (unverified)."),
    click.option("--stay-awake-on-battery", envvar="IMPETUS_STAY_AWAKE_ON_BATTERY", is_flag=True, show_envvar=True,
                 help="Keep this Mac awake while jobs run on battery too."),
]  # fmt: skip


_fitting_options = [
    click.option("--fit-shapes/--keep-shapes", envvar="IMPETUS_FIT_SHAPES", default=True, show_default=True,
                 show_envvar=True, help="Where embeddings run in fixed shapes (Core ML, Core AI): when shapes for the "
                 "texts that came would save a tenth of the padded work, convert the model to them in the background, "
                 "at most once a day and not on battery, and take over what passes every check."),
    click.option("--fit-after-texts", default=5000, hidden=True, type=click.IntRange(1)),
    click.option("--fit-look-s", default=60.0, hidden=True, type=float),
]  # fmt: skip


def with_fitting_options(command: Any) -> Any:
    for option in reversed(_fitting_options):
        command = option(command)
    return command


def with_engine_options(command: Any) -> Any:
    for option in reversed(_engine_options):
        command = option(command)
    return command


def check_installed(what: str) -> None:
    """Raises `MissingExtraError` where the packages of a worker are missing."""
    if any(find_spec(package) is None for package in _NEEDED):
        raise MissingExtraError(what, "worker")
