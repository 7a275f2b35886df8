"""mlx-lm by itself, and Impetus's engine without a queue, in a process of their own: `Program.ask` says what to run.

A request is one line of JSON on standard input, its answer one line on standard output. The model is loaded once, by
whichever task needs it first. Run as `python -m benchmarks.generation.program FOLDER`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ..means.servers import child

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from impetus_backends.protocol import Engine

_ROWS = 16


class Program:
    """The bench's end of it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self.pid = process.pid

    def ask(self, task: str, **arguments: Any) -> Any:
        """The answer of one task; ends the bench with the process's last words if it has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"task": task, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            words = "\n  ".join(self._log.read_text(errors="replace").splitlines()[-8:])
            raise click.ClickException(f"the program that runs {task} ended:\n  {words}")
        return json.loads(line)


@contextlib.contextmanager
def program(folder: Path, log: Path, environment: Mapping[str, str]) -> Iterator[Program]:
    command = [sys.executable, "-m", __name__, str(folder)]
    with child(command, log, environment=environment, answers=True) as process:
        yield Program(process, log)


class _Model:
    """mlx-lm's model, loaded when first asked for."""

    def __init__(self, folder: str) -> None:
        import mlx_lm

        loaded: Any = mlx_lm.load(folder)
        self.model, self.tokenizer = loaded[:2]

    def tokens(self, payload: Mapping[str, Any]) -> list[int]:
        if "messages" in payload:
            return list(self.tokenizer.apply_chat_template(payload["messages"], add_generation_prompt=True))
        return list(self.tokenizer.encode(payload["prompt"]))


def bare(loaded: _Model, payloads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All of them through one `BatchGenerator` of 16 rows: from texts to texts, as `mlx_lm.batch_generate` does it."""
    from mlx_lm.generate import BatchGenerator

    busy, started = time.process_time(), time.perf_counter()
    prompts = [loaded.tokens(payload) for payload in payloads]
    stops = [[token] for token in loaded.tokenizer.eos_token_ids]
    generator = BatchGenerator(loaded.model, stop_tokens=stops, completion_batch_size=_ROWS)
    made: dict[int, list[int]] = {
        uid: [] for uid in generator.insert(prompts, [payload["max_tokens"] for payload in payloads])
    }
    while responses := generator.next_generated():
        for response in responses:
            made[response.uid].append(response.token)
    texts = [loaded.tokenizer.decode(tokens) for tokens in made.values()]
    seconds = time.perf_counter() - started
    generator.close()
    assert len(texts) == len(payloads)
    tokens = sum(len(tokens) for tokens in made.values())
    return {"seconds": seconds, "tokens": tokens, "cpu_s": time.process_time() - busy}


def through_engine(engine: Engine, payloads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All of them through Impetus's engine, each admitted as soon as a row is free for it."""
    from impetus_backends.protocol import Generated, GenerationWork, Rejected

    busy, started = time.process_time(), time.perf_counter()
    tokens, waiting, free = 0, list(enumerate(payloads, 1)), _ROWS
    while waiting or engine.pending():
        while waiting and free:
            number, payload = waiting.pop(0)
            engine.admit(
                GenerationWork(
                    number,
                    payload["prompt"],
                    None,
                    payload["max_tokens"],
                    temperature=payload["temperature"],
                    top_p=1.0,
                )
            )
            free -= 1
        for event in engine.step():
            if isinstance(event, Rejected):
                raise RuntimeError(f"the engine refused the bench's request: {event.message}")
            if isinstance(event, Generated):
                free += 1
                tokens += event.completion_tokens
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": tokens, "cpu_s": time.process_time() - busy}


def bare_one_at_a_time(loaded: _Model, payloads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each alone through mlx-lm. What batching is worth here, at best, is the rate of `bare` by this one."""
    import mlx_lm

    busy, started = time.process_time(), time.perf_counter()
    tokens = 0
    for payload in payloads:
        prompt = loaded.tokens(payload)
        for response in mlx_lm.stream_generate(
            loaded.model, loaded.tokenizer, prompt, max_tokens=payload["max_tokens"]
        ):
            tokens += response.finish_reason is None
        tokens += 1
    return {"seconds": time.perf_counter() - started, "tokens": tokens, "cpu_s": time.process_time() - busy}


def solo(loaded: _Model, payloads: Sequence[Mapping[str, Any]]) -> list[str]:
    """What `mlx_lm.generate` makes of each, alone."""
    import mlx_lm

    def text(payload: Mapping[str, Any]) -> str:
        """The tokenizer's own: what mlx-lm puts together while it streams lacks a space at the beginning."""
        steps = mlx_lm.stream_generate(
            loaded.model, loaded.tokenizer, loaded.tokens(payload), max_tokens=payload["max_tokens"]
        )
        tokens = [step.token for step in steps if step.token not in loaded.tokenizer.eos_token_ids]
        made: str = loaded.tokenizer.decode(tokens)
        return made

    return [text(payload) for payload in payloads]


def gap_at(loaded: _Model, payload: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Where the solo answer leaves `text`, and by how much its token was likelier there than the next best."""
    import mlx.core as mx
    import mlx_lm

    said: list[int] = []
    steps = mlx_lm.stream_generate(
        loaded.model, loaded.tokenizer, loaded.tokens(payload), max_tokens=payload["max_tokens"]
    )
    for number, response in enumerate(steps):
        said.append(response.token)
        if not text.startswith(loaded.tokenizer.decode(said).rstrip("\ufffd")) or response.finish_reason is not None:
            best = mx.sort(response.logprobs.astype(mx.float32))[-2:]
            return {"token": number, "gap": float(best[1] - best[0])}
    return {"token": -1, "gap": float("nan")}


_TASKS: dict[str, Callable[..., Any]] = {
    "bare": bare,
    "bare one at a time": bare_one_at_a_time,
    "solo": solo,
    "gap_at": gap_at,
}


def main() -> None:
    folder = sys.argv[1]
    answers, sys.stdout = sys.stdout, sys.stderr
    loaded: _Model | None = None
    engine: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        task = request.pop("task")
        answer: Any
        if task in ("first_token", "engine"):
            from .first_token import in_engine, open_engine

            engine = engine or open_engine(folder)
            answer = through_engine(engine, **request) if task == "engine" else in_engine(engine, **request)
        else:
            loaded = loaded or _Model(folder)
            answer = _TASKS[task](loaded, **request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
