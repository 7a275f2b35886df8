"""`impetus generate`: an answer to a prompt, or to each of many documents."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .. import contract
from ..bulk.generating import GenerationWork
from ..contract import GenerationRequest
from ..enqueueing.parsing import parse_request
from ..errors import InvalidRequestError
from ..handles import GenerationHandle
from ..reading.options import ReadingOptions
from ..writing.output import open_answers
from ..writing.rows import Layout
from .jobs import check_stream, enqueued, print_result, print_stream, wait
from .runs.bulk import Steps, open_checked, run
from .runs.options import RunOptions, reading_options, run_options
from .runs.templating import Templated, template_option
from .settings.server import open_session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

_FOR_MANY = {each.name for kind in (ReadingOptions, RunOptions) for each in fields(kind)} - {
    "as_json",
    "patience_s",
    "redis_urls",
} | {"template"}


@click.command(short_help="Answer a prompt and print the text, or answer many into a file.")
@click.argument("prompts", metavar="[PROMPT | INPUT...]", nargs=-1)
@click.option(
    "--output",
    "-o",
    metavar="OUT",
    help="Answer every document of INPUT, and write the answers here: a name ending in .jsonl, .parquet or .arrow.",
)
@template_option("With -o: what is asked about each document", "'Summarise {title}: {body}'")
@click.option("--system", metavar="TEXT", help="Instructions that stand before the conversation.")
@click.option(
    "--messages",
    "messages_file",
    type=click.File(),
    metavar="FILE",
    help='A conversation to go on with: a JSON list of {"role", "content"}. PROMPT, if given, comes last.',
)
@click.option("--raw", is_flag=True, help="Continue PROMPT as it stands, without the model's chat template.")
@click.option(
    "--max-tokens",
    type=int,
    metavar="N",
    help="Stop after so many tokens. [default: what the worker allows]",
)
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
    "--schema",
    "json_schema",
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
@reading_options
@run_options
@click.pass_context
def generate(
    context: click.Context,
    prompts: tuple[str, ...],
    output: str | None,
    template: str | None,
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
    reading: ReadingOptions,
    options: RunOptions,
) -> None:
    """Answer PROMPT, or `-` for standard input, and print the text. With -o answer all documents of INPUT.

    \b
    Examples:
        impetus generate "Name three rivers." --max-tokens 60 --stream
        impetus generate - --system "Summarise in one sentence." < article.txt
        impetus generate "Once upon a time" --raw --temperature 0.7 --seed 1
        impetus generate "And in French?" --messages conversation.json --json
        impetus generate "A river and its length." --schema river.schema.json
        impetus generate docs.jsonl --template 'Summarise: {text}' -o summaries.jsonl
        impetus generate rows.parquet --template '{title}: {body}' --schema tags.json --column sku -o tags.parquet

    An answer that --max-tokens cuts off is only the beginning of its JSON: its finish_reason is length, which --json
    and OUT have. INPUT is read, and OUT written and gone on with, as by `impetus embed`. Answers that a seed or a
    temperature of 0 fixes are made once for equal texts, and kept for others by --store.
    """
    if json_schema is not None and json_object:
        raise click.UsageError("Give --json-schema or --json-object, and not both.")
    asked: dict[str, Any] = {
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
    request = {name: value for name, value in asked.items() if value is not None}
    worker_options = ["--roles", "generation", *(["--generation-model", model] if model else [])]
    if output is not None:
        if messages_file is not None or stream or logprobs or timeout_s is not None:
            raise click.UsageError("--messages, --stream, --logprobs and --timeout are for one PROMPT: leave them out")
        work = GenerationWork(request, system, raw)
        _answer_all(prompts, output, template, work, reading, options, worker_options)
        return
    _check_alone(context, prompts)
    _check_stream_and_logprobs(stream, logprobs, options.as_json)
    prompt = prompts[0] if prompts else None
    if prompt == "-":
        prompt = _read_stdin()
    if prompt is None and messages_file is None:
        raise click.UsageError("Give a PROMPT, or --messages FILE.")
    if raw and (system is not None or messages_file is not None):
        raise click.UsageError("--raw continues PROMPT alone: leave out --system and --messages.")
    request |= {"prompt": prompt} if raw else {"messages": _conversation(system, messages_file, prompt)}
    # Told before a server is started for it.
    parse_request(GenerationRequest, request)
    session_of = open_session(options.redis_urls, options.patience_s, contract.GENERATION_QUEUE, worker_options)
    handle_of = partial(GenerationHandle, awaited=False)
    with session_of as session, enqueued(session, "generation", request, handle_of) as handle:
        if stream:
            print_stream(handle, timeout_s, session.check)
            return
        answer = wait(handle, timeout_s, session.check)
    print_result(answer, options.as_json)


def _check_alone(context: click.Context, prompts: Sequence[str]) -> None:
    """Refuses what is for many documents."""
    if len(prompts) > 1:
        raise click.UsageError("Give one PROMPT, in quotes; or with -o OUT the documents to answer.")
    for parameter in context.command.params:
        typed = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if typed and parameter.name in _FOR_MANY:
            raise click.UsageError(f"{parameter.opts[0]} is for many documents: add -o OUT.")


def _check_stream_and_logprobs(stream: bool, logprobs: bool, as_json: bool) -> None:
    check_stream(stream, as_json)
    if logprobs and not as_json:
        raise click.UsageError("--logprobs are in the whole result: add --json.")


def _answer_all(
    inputs: Sequence[str],
    output: str,
    template: str | None,
    work: GenerationWork,
    reading: ReadingOptions,
    options: RunOptions,
    worker_options: Sequence[str],
) -> None:
    try:
        work.check()
        if work.raw and work.system is not None:
            raise InvalidRequestError("--raw continues the text alone: leave out --system")
        templated = Templated(template, reading)
        source = open_checked(inputs, templated.asked, output, options)
        types = source.column_types()
        layout = Layout({name: types.get(name) for name in reading.columns}, source.has_several_files)
        out = open_answers(output, layout)
    except InvalidRequestError as error:
        raise click.UsageError(str(error)) from None
    run(source, work, out, options, worker_options, steps=Steps(templated))


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
