"""`impetus generate`, `impetus result` and `impetus cancel`: one job each."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import contract
from ..contract import EmbeddingResult, GenerationRequest, GenerationResult, RerankResult
from ..errors import ImpetusError, InvalidRequestError, ResultTimeoutError, ServerError, StreamRestartedError
from ..handles import GenerationHandle
from ..parsing import parse_request
from ..shown import for_terminal, name_shown
from .server import open_session, patience_option, patient_producer, redis_url_option

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from ..handles import EmbeddingHandle, RerankHandle

_CHECK_EVERY_S = 1.0


@click.command(short_help="Answer a prompt and print the text.")
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="Instructions that stand before the conversation.")
@click.option(
    "--messages",
    "messages_file",
    type=click.File(),
    metavar="FILE",
    help='A conversation to go on with: a JSON list of {"role", "content"}. PROMPT, if given, comes last.',
)
@click.option("--raw", is_flag=True, help="Continue PROMPT as it stands, without the model's chat template.")
@click.option("--max-tokens", type=int, metavar="N", help="Stop after so many tokens. [default: 256]")
@click.option("--temperature", type=float, metavar="T", help="0 always takes the likeliest token. [default: 1]")
@click.option("--top-p", type=float, metavar="P", help="Draw from the likeliest tokens that make up P. [default: 1]")
@click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens; 0 from all. [default: 0]")
@click.option(
    "--min-p",
    type=float,
    metavar="P",
    help="Draw from tokens at least P times as probable as the likeliest. [default: 0]",
)
@click.option(
    "--repetition-penalty",
    type=float,
    metavar="X",
    help="Divide the odds of tokens that were there before; 1.1 is mild. [default: 1]",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. May be given more than once.")
@click.option("--seed", type=int, metavar="N", help="The same seed draws the same tokens.")
@click.option(
    "--json-schema",
    metavar="FILE|JSON",
    help="The answer is JSON that keeps to this schema: a file, or the schema itself, which begins with a brace.",
)
@click.option("--json-object", is_flag=True, help="The answer is some JSON object.")
@click.option(
    "--special-tokens",
    type=click.Choice(["control", "text"]),
    help="What the model's own control tokens are where a message spells them. Default: as the worker is told.",
)
@click.option("--model", metavar="NAME", help="The model. Default: the one the worker serves.")
@click.option(
    "--stream", is_flag=True, help="Print the text while it is made. Ctrl-C stops the job and keeps what is there."
)
@click.option("--logprobs", is_flag=True, help="With --json: each token, and the logarithm of its probability.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up waiting after this. The job goes on. Default: wait as long as it takes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole result: usage, timings, and where it ran.")
@patience_option
@redis_url_option
def generate(
    prompt: str | None,
    system: str | None,
    messages_file: TextIO | None,
    raw: bool,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    repetition_penalty: float | None,
    stop: tuple[str, ...],
    seed: int | None,
    json_schema: str | None,
    json_object: bool,
    special_tokens: str | None,
    model: str | None,
    stream: bool,
    logprobs: bool,
    timeout_s: float | None,
    as_json: bool,
    patience_s: float,
    redis_url: str | None,
) -> None:
    """Answer PROMPT, or `-` for standard input, and print the text.

    \b
    Examples:
        impetus generate "Name three rivers." --max-tokens 60 --stream
        impetus generate - --system "Summarise in one sentence." < article.txt
        impetus generate "Once upon a time" --raw --temperature 0.7 --seed 1
        impetus generate "And in French?" --messages conversation.json --json
        impetus generate "A river and its length." --json-schema river.schema.json

    An answer that --max-tokens cuts off is only the beginning of its JSON: --json tells (finish_reason: length).
    """
    _check_stream(stream, as_json)
    if logprobs and not as_json:
        raise click.UsageError("--logprobs are in the whole result: add --json.")
    if json_schema is not None and json_object:
        raise click.UsageError("Give --json-schema or --json-object, and not both.")
    if prompt == "-":
        prompt = _read_stdin()
    if prompt is None and messages_file is None:
        raise click.UsageError("Give a PROMPT, or --messages FILE.")
    if raw and (system is not None or messages_file is not None):
        raise click.UsageError("--raw continues PROMPT alone: leave out --system and --messages.")
    options: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": list(stop) or None,
        "seed": seed,
        "logprobs": logprobs or None,
        "response_format": {"type": "json_object"} if json_object else _schema_format(json_schema),
        "special_tokens": special_tokens,
        "stream": stream or None,
    }
    options |= {"prompt": prompt} if raw else {"messages": _conversation(system, messages_file, prompt)}
    request = {name: value for name, value in options.items() if value is not None}
    # Told before a server is started for it.
    parse_request(GenerationRequest, request)
    worker_options = ["--roles", "generation", *(["--generation-model", model] if model else [])]
    with open_session(redis_url, patience_s, contract.GENERATION_QUEUE, worker_options) as session:
        handle = session.producer.generate(**request)
        try:
            if stream:
                _print_stream(handle, timeout_s, session.check)
                return
            answer = wait(handle, timeout_s, session.check)
        except KeyboardInterrupt:
            # Told is enough, and whoever pressed Ctrl-C does not wait for a server either.
            with suppress(ResultTimeoutError, ServerError):
                handle.cancel(timeout_s=0)
            raise
    print_result(answer, as_json)


def _check_stream(stream: bool, as_json: bool) -> None:
    if stream and as_json:
        raise click.UsageError("--stream prints the text as it comes, --json the whole result at the end: give one.")


def _schema_format(schema: str | None) -> dict[str, Any] | None:
    """A response format out of a file's name or a schema."""
    if schema is None:
        return None
    inline = schema.lstrip().startswith("{")
    try:
        text = schema if inline else Path(schema).read_text(encoding="utf-8")
        return {"type": "json_schema", "json_schema": {"schema": json.loads(text)}}
    except OSError as error:
        raise InvalidRequestError(f"the schema {schema!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidRequestError(f"{'the schema' if inline else repr(schema)} is no JSON: {error}") from None


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input is not UTF-8, from byte {error.start + 1} on") from None


def _conversation(system: str | None, messages_file: TextIO | None, prompt: str | None) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system is not None else []
    if messages_file is not None:
        try:
            more = json.load(messages_file)
        except ValueError as error:
            raise InvalidRequestError(f"{messages_file.name!r} is no JSON: {error}") from None
        if not isinstance(more, list):
            raise InvalidRequestError(f"{messages_file.name!r} must hold a list of messages")
        messages += more
    if prompt is not None:
        messages.append({"role": "user", "content": prompt})
    return messages


@click.command(short_help="Print the result of a job.")
@click.argument("job_id")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up waiting after this; 0 only looks. Default: wait as long as it takes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole result: usage, and where it ran.")
@click.option(
    "--stream", is_flag=True, help="Print a text from its beginning and while it is made; Ctrl-C leaves the job alone."
)
@patience_option
@redis_url_option
def result(
    job_id: str, timeout_s: float | None, as_json: bool, stream: bool, patience_s: float, redis_url: str | None
) -> None:
    """Print the result of JOB_ID: a text; one JSON list of numbers for each text that was embedded; or of a reranking
    one line for each document, its score and its number.

    \b
    Examples:
        impetus result 5f2c9b0e --timeout 0
        impetus result 5f2c9b0e --json | jq .usage
        impetus result 5f2c9b0e --stream
    """
    _check_stream(stream, as_json)
    handle = patient_producer(redis_url, patience_s).handle(job_id)
    if stream:
        if not isinstance(handle, GenerationHandle):
            raise click.UsageError(f"Job {job_id} makes no text: there is none to stream.")
        _print_stream(handle, timeout_s, check=None)
        return
    print_result(wait(handle, timeout_s, check=None), as_json)


@click.command(short_help="Withdraw a job while it waits, or stop it while it runs.")
@click.argument("job_id")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until a job that runs has stopped. It is stopped later all the same.",
)
@patience_option
@redis_url_option
def cancel(job_id: str, timeout_s: float, patience_s: float, redis_url: str | None) -> None:
    """Withdraw JOB_ID while it waits, or stop it while it runs.

    Says "cancelled" once it is so; that it was told to stop where it still runs, with exit status 1.

    \b
    Example:
        impetus cancel 5f2c9b0e
    """
    handle = patient_producer(redis_url, patience_s).handle(job_id)
    if not handle.cancel(timeout_s):
        raise ImpetusError(f"job {job_id} had ended before: it is {name_shown(handle.status())}")
    click.echo(f"cancelled {job_id}")


def wait(
    handle: EmbeddingHandle | GenerationHandle | RerankHandle,
    timeout_s: float | None,
    check: Callable[[], None] | None,
) -> EmbeddingResult | GenerationResult | RerankResult:
    """The result; `check` is called now and then until it comes."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while check is not None and (deadline is None or deadline - time.monotonic() > _CHECK_EVERY_S):
        try:
            return handle.result(_CHECK_EVERY_S)
        except ResultTimeoutError:
            check()
    try:
        return handle.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except ResultTimeoutError:
        raise ResultTimeoutError(
            f"job {handle.job_id} is {name_shown(handle.status())}: no result within {timeout_s:g} s. "
            f"Ask again: impetus result {handle.job_id}"
        ) from None


def _print_stream(handle: GenerationHandle, timeout_s: float | None, check: Callable[[], None] | None) -> None:
    """The text as it comes. Where the worker begins anew, so does the text, on a new line."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    line_open = False
    while True:
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            for piece in handle.stream(left_s, on_wait=check):
                line_open = not piece.endswith("\n")  # known before Ctrl-C can come in between
                click.echo(_as_shown(piece), nl=False)
                sys.stdout.flush()
            click.echo()
            return
        except StreamRestartedError:
            _end_line(line_open)
            line_open = False
            click.echo("The worker began anew. The text above is void; this is the new one:", err=True)
        except ResultTimeoutError:
            _end_line(line_open)
            raise ResultTimeoutError(
                f"job {handle.job_id} is {name_shown(handle.status())}: it did not end within {timeout_s:g} s. "
                f"Go on with it: impetus result {handle.job_id} --stream"
            ) from None
        except (ImpetusError, KeyboardInterrupt):
            # What is there stays, and the reason comes on a line of its own.
            _end_line(line_open)
            raise


def _as_shown(text: str) -> str:
    """A model's text: to a file or another program as it is."""
    return for_terminal(text) if sys.stdout.isatty() else text


def _end_line(line_open: bool) -> None:
    if line_open:
        click.echo()


def print_result(answer: EmbeddingResult | GenerationResult | RerankResult, as_json: bool) -> None:
    if isinstance(answer, RerankResult):
        if as_json:
            click.echo(answer.model_dump_json(exclude_none=True))
            return
        for each in answer.results:
            text = f"\t{_as_shown(' '.join(each.document.text.split()))}" if each.document is not None else ""
            click.echo(f"{each.relevance_score:.6f}\t{each.index}{text}")
        return
    if isinstance(answer, GenerationResult):
        click.echo(answer.model_dump_json() if as_json else _as_shown(answer.text))
        return
    rows = [list(map(float, row)) for row in answer.vectors]
    if as_json:
        whole = answer.model_dump(mode="json")
        whole["embeddings"] |= {"encoding": "float", "data": rows}
        click.echo(json.dumps(whole))
        return
    for row in rows:
        click.echo(json.dumps(row))
