#!/usr/bin/env python3
"""Counts texts that come out otherwise because somebody decodes beside them, with `deterministic` and without.

Each prompt is answered alone, and then beside strangers who come and leave, each time others. How a device rounds
depends on how many rows a step has, so that on a GPU texts part where two tokens are all but equally likely; of
requests that are deterministic none may. The exit status is 1 if one does. Runs on MLX's default device: Metal on a
Mac, the CPU of a Linux machine, or CUDA with MLX's build for it (`mlx-cuda-13`), where Python needs nothing but
mlx-lm, llguidance and this checkout: `PYTHONPATH=.:backends:producer python -m scripts.models.deterministic`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.models.make_tiny_model import SIZES, TEXT, make_tiny_model

from impetus_backends.generation.engine import EngineLimits
from impetus_backends.generation.opening import open_generation_engine
from impetus_backends.protocol import Generated, GenerationWork, Rejected

if TYPE_CHECKING:
    from impetus_backends.generation.engine import GenerationEngine

_STRANGERS_FROM = 1_000_000
"""Their ids."""


def count_parted(engine: GenerationEngine, prompts: int, tokens: int, rounds: int, *, deterministic: bool) -> int:
    """Of `prompts` times `rounds` greedy texts, those that are not what the same request got alone."""
    chance, words = random.Random(1), sorted(set(TEXT.split()))
    asked = [" ".join(chance.choices(words, k=chance.randint(3, 30))) for _ in range(prompts)]

    def work(number: int, prompt: str, most: int, *, exact: bool) -> GenerationWork:
        return GenerationWork(number, prompt, None, most, temperature=0.0, ignore_eos=True, deterministic=exact)

    alone: list[str] = []
    for number, prompt in enumerate(asked):
        engine.admit(work(number, prompt, tokens, exact=deterministic))
        alone.append(_texts(engine)[number])
    parted = 0
    for _ in range(rounds):
        for number, prompt in enumerate(asked):
            for stranger in range(2):
                other = " ".join(chance.choices(words, k=chance.randint(1, 40)))
                identity = _STRANGERS_FROM + 2 * number + stranger
                engine.admit(work(identity, other, chance.randint(1, 2 * tokens), exact=False))
            engine.admit(work(number, prompt, tokens, exact=deterministic))
        found = _texts(engine)
        parted += sum(found[number] != text for number, text in enumerate(alone))
    return parted


def _texts(engine: GenerationEngine) -> dict[int, str]:
    """By id, once all is done."""
    made: dict[int, str] = {}
    while engine.pending():
        for event in engine.step():
            if isinstance(event, Rejected):
                raise SystemExit(f"the engine refused a request: {event.message}")
            if isinstance(event, Generated):
                made[event.id] = event.text
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a folder  [default: a random one of 30 million weights]")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--rounds", type=int, default=2, help="how often all are asked for beside strangers")
    parser.add_argument("--rows", type=int, default=16, help="that decode together")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        folder = asked.model or make_tiny_model(Path(made) / "30m", sizes=SIZES["30m"])
        limits = EngineLimits(max_concurrent=asked.rows, lookup_tokens=0)
        engine = open_generation_engine(folder, model_name=folder.name, aliases=(), limits=limits)
        print(f"{folder.name}, {engine.info.precision}, on {engine.info.device}", flush=True)
        texts = asked.prompts * asked.rounds
        parted = {}
        for deterministic in (False, True):
            parted[deterministic] = count_parted(
                engine, asked.prompts, asked.tokens, asked.rounds, deterministic=deterministic
            )
            kind = "deterministic" if deterministic else "ordinary"
            print(f"{kind}: {parted[deterministic]} of {texts} texts part from what they are alone", flush=True)
        engine.close()
    return int(parted[True] > 0)


if __name__ == "__main__":
    sys.exit(main())
